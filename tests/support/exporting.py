"""An export by two processes; the tests call this in forked ones."""

from pathlib import Path


def together(*, checkpoint: str, out: str, process: int, port: int) -> dict:
    """Exports on 4 devices of each of two processes; says how often this one put a finished folder in its place."""
    import jax

    from mtjudge_jax.export.export import choose_weights, export
    from mtjudge_jax.models.hf import folder

    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    placed, swap = [], folder._swap
    folder._swap = lambda *where: placed.append(1) or swap(*where)
    export(choose_weights("", "", checkpoint), Path(out), dtype="", form="merge", base="", overwrite=False)
    return {"devices": jax.device_count(), "placed": len(placed)}
