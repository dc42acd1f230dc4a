"""A trained judge in your own program: `from mtjudge_jax.judge import Judge`."""


def __getattr__(name: str):
    """Imports on first use: importing jax takes seconds, and `mtjudge judge --help` must not wait for it."""
    if name in ("WinRates", "Judge", "Verdict"):
        from mtjudge_jax.judge import judge

        return vars(judge)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
