"""Rewards of a user's own, as the config names them."""


def short(facts: dict, text: str, parsed) -> float:
    """Half a point for an answer of less than 60 characters, a tenth more where the instruction is about a cup."""
    return 0.5 * (len(text) < 60) + 0.1 * ("cup" in facts["instruction"])


def fails(facts: dict, text: str, parsed) -> float:
    raise KeyError("no such fact")


def nothing(facts: dict, text: str, parsed) -> float:
    return float("nan")


NOT_A_FUNCTION = 3
