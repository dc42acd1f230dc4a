"""Which bins a batch gets, and where its answers lie in them."""

import math

import numpy as np
import pytest

from mtjudge_jax.rl.streams import BIN_SHARES, Bins, bins_ladder, lay_out, least_bins


def test_the_example_of_the_module():
    """Answers of 2, 6 and 3 tokens of at most 6: the longest has five places and a bin of its own."""
    want = [[[6, 7, 8, 9, 10], [12, 13, 14, 0, 1]]]
    assert lay_out(np.array([[2, 6, 3]]), 6, Bins(2, 5)).tolist() == want
    with pytest.raises(ValueError, match=r"answers of \[2, 5, 3\] places do not fit into 1 bins of 9: take a wider step of"):
        lay_out(np.array([[2, 6, 3]]), 6, Bins(1, 9))


@pytest.mark.parametrize("group,length", [(1, 2), (1, 16), (1, 1024), (2, 2), (3, 6), (8, 16), (8, 256), (20, 1024)])
def test_the_ladder_is_short_and_ends_with_a_bin_for_every_answer(group, length):
    rungs = bins_ladder(group, length)
    sizes = [count * width for count, width in rungs]
    assert rungs[-1] == (group, length - 1)
    assert len(rungs) <= len(BIN_SHARES) == 6
    assert sizes == sorted(sizes) and len(set(rungs)) == len(rungs)
    for count, width in rungs:
        assert width < 2 * (length - 1) or width == 1
        assert count == 1 or width >= length - 1
        wanted = [math.ceil(share * group * (length - 1)) for share in BIN_SHARES]
        assert any(places <= count * width < places + count for places in wanted)  # rounded up to whole bins, no more


@pytest.mark.parametrize("group,length", [(1, 9), (4, 6), (8, 64), (20, 32)])
def test_every_token_has_one_place_and_answers_stay_whole(group, length):
    rng = np.random.default_rng(0)
    for share in (0.05, 0.2, 0.6, 1):
        lengths = rng.integers(0, max(2, int(share * length) + 1), (5, group))
        bins = least_bins(lengths, length, bins_ladder(group, length))
        places = lay_out(lengths, length, bins)
        assert places.shape == (5, *bins) and places.dtype == np.int32
        for row, sizes in zip(places, lengths, strict=True):
            there = row[row >= 0]
            want = [g * length + t for g in range(group) for t in range(min(sizes[g], length - 1))]
            assert sorted(there.tolist()) == want
            for filled in row:
                tokens = filled[: (filled >= 0).sum()]
                assert (tokens >= 0).all()  # nothing between the answers
                begins = np.flatnonzero(np.diff(tokens, prepend=-9) != 1)
                assert (tokens[begins] % length == 0).all()  # each begins with its first token


def test_the_bins_are_the_least_that_hold_the_fullest_row():
    rungs = bins_ladder(8, 101)
    assert rungs == [(1, 150), (2, 100), (3, 100), (4, 100), (6, 100), (8, 100)]
    short, long = np.full((1, 8), 12), np.full((1, 8), 101)
    found = lambda lengths: rungs.index(least_bins(lengths, 101, rungs))  # noqa: E731
    assert [found(x) for x in (short, long, np.concatenate([short, long]))] == [0, 5, 5]
    assert found(np.full((3, 8), 51)) == 5  # two of 51 do not fit beside each other into a bin of 100
    assert found(np.full((3, 8), 50)) == 3
    assert found(np.array([[101, 50, 1, 0, 0, 0, 0, 0]])) == 1
    assert found(np.zeros((2, 8), int)) == 0


def test_full_answers_take_the_places_they_always_took():
    places = lay_out(np.full((2, 4), 6), 6, bins_ladder(4, 6)[-1])
    assert np.array_equal(places, np.broadcast_to(np.arange(4)[:, None] * 6 + np.arange(5), (2, 4, 5)))
