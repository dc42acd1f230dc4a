"""Where the tokens of the answers lie in the stream of training: one after the other, in bins, however long they are.

The stream of a prompt is `[prompt | bin 1 | .. | bin B]`. A bin has W places and holds whole answers, end to end. The last token
of an answer of full length predicts nothing and has no place. With G = 3, C = 6 and answers of 2, 6 and 3 tokens, two bins of 5:

    tokens     b0 b1 b2 b3 b4 | c0 c1 c2 a0 a1
    places      6  7  8  9 10 | 12 13 14  0  1        of a token t of answer g: g * C + t; -1 where there is none

All rows of a batch have the same bins, the least of a short ladder that holds the answers of every row. So few programs are
compiled, and which of them runs depends on the batch alone.
"""

import math
from typing import NamedTuple

import numpy as np

SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16)  # of the places that G answers of full length take


class Bins(NamedTuple):
    count: int  # B
    width: int  # W, places of a bin


def ladder(group: int, length: int) -> list[Bins]:
    """The bins that a run may use for G answers of at most `length` tokens, the fewest places first.

    The last one has a bin for each answer, so it holds any. A bin is at least as wide as an answer, unless there is only one bin,
    and less than twice as wide: attention within a bin costs the square of its width.
    """
    longest, shapes = length - 1, []
    for share in reversed(SHARES):
        places = math.ceil(share * group * longest)
        count = max(1, places // longest)
        shapes.append(Bins(count, math.ceil(places / count)))
    return list(dict.fromkeys(shapes))


def pack_row(lengths: np.ndarray, bins: Bins) -> list[tuple[int, int]] | None:
    """(bin, first place in it) of each answer of a prompt, or None if the bins do not hold them. lengths int [G], in places.

    The longest answer comes first, each goes to the first bin with room for it.
    """
    used, where = [0] * bins.count, [(0, 0)] * len(lengths)
    for g in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[g])
        at = next((at for at, filled in enumerate(used) if filled + size <= bins.width), None)
        if at is None:
            return None
        where[g], used[at] = (at, used[at]), used[at] + size
    return where


def places_needed(lengths: np.ndarray, length: int) -> np.ndarray:
    """The places that answers of so many tokens take: all but the last token of an answer of full length, `length`."""
    return np.minimum(lengths, length - 1)


def least_step(lengths: np.ndarray, length: int) -> int:
    """The index of the first bins in the ladder that hold every row. lengths int [Q, G], in tokens."""
    steps, least = ladder(lengths.shape[1], length), 0
    for row in places_needed(lengths, length):
        while pack_row(row, steps[least]) is None:
            least += 1
    return least


def lay_out(lengths: np.ndarray, length: int, bins: Bins) -> np.ndarray:
    """int32 [Q, B, W]: for each place of the bins, the index in [G * C] of its token; -1 where there is none.

    lengths int [Q, G], in tokens; length: C. Raises ValueError if the bins do not hold the answers of a row.
    """
    places = np.full((len(lengths), *bins), -1, np.int32)
    for into, row in zip(places, places_needed(lengths, length), strict=True):
        where = pack_row(row, bins)
        if where is None:
            sizes = f"{bins.count} bins of {bins.width}"
            raise ValueError(f"answers of {row.tolist()} places do not fit into {sizes}: take a wider step of the ladder")
        for g, ((at, start), size) in enumerate(zip(where, row.tolist(), strict=True)):
            into[at, start : start + size] = np.arange(g * length, g * length + size)
    return places
