"""The sizes that segments of decoding have."""

import itertools

from mtjudge_jax.policy.programs import column_ladder, lane_ladder


def test_the_ladders_of_lanes_are_short_and_steep():
    assert lane_ladder(512) == (512, 384, 256, 192, 128, 96, 64, 48, 32, 16)
    assert lane_ladder(160) == (160, 120, 80, 64, 40, 24)
    assert [lane_ladder(count) for count in (1, 24, 31)] == [(1,), (24,), (31,)]
    for count in range(1, 3000):
        rungs = lane_ladder(count)
        assert rungs[0] == count and len(rungs) <= 11
        assert all(a - b >= 16 and b >= 16 and b % 8 == 0 for a, b in itertools.pairwise(rungs))


def test_the_ladders_of_columns_read_at_most_four_times_what_is_filled():
    assert column_ladder(511) == (64, 256, 511) and column_ladder(2047) == (64, 256, 1024, 2047)
    assert [column_ladder(count) for count in (1, 63, 95, 96)] == [(1,), (63,), (95,), (64, 96)]
