"""The shapes that a run's prompts get, and which rows run together in them."""

import itertools

import numpy as np
import pytest

from mtjudge_jax.rl.logp import Bins, lay_out, least_bins, split_rows
from mtjudge_jax.rl.rooms import Rooms, fit_shapes, make_rooms
from mtjudge_jax.types import Lengths, PromptRoom

LARGEST = PromptRoom(2048, 4096)


def cost(prompts, shapes):
    """Tokens and patches that the prompts take, each in the first shape that holds it."""
    return sum(next(sum(shape) for shape in shapes if shape[0] >= p and shape[1] >= m) for p, m in prompts)


def drawn(seed: int, count: int = 30) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    images = 4 * rng.integers(0, 200, count)
    return list(zip((40 + images // 4 + rng.integers(0, 400, count)).tolist(), images.tolist(), strict=True))


def test_three_sizes_get_three_shapes_and_the_largest_stays():
    prompts = [(30, 0)] * 5 + [(200, 256)] * 5 + [(700, 1500)] * 2
    assert fit_shapes(prompts, LARGEST) == ((64, 0), (256, 256), (704, 1536), LARGEST)
    assert fit_shapes(prompts[:5], LARGEST) == ((64, 0), LARGEST)  # texts alone need no tower
    assert fit_shapes([(700, 1500)], LARGEST) == ((704, 1536), LARGEST)


def test_prompts_that_fill_the_room_and_small_rooms_have_one_shape():
    assert fit_shapes([(1900, 4000)] * 9, LARGEST) == (LARGEST,)
    assert fit_shapes([(30, 16)] * 9, PromptRoom(100, 100)) == (PromptRoom(100, 100),)
    assert make_rooms([(30, 16)] * 9, PromptRoom(100, 100), answers=100, most=8) is None


@pytest.mark.parametrize("seed", range(6))
def test_no_other_three_shapes_compute_less(seed):
    """Against all choices of three of the sizes that the prompts have, rounded as the kernels like it."""
    prompts = drawn(seed, 12)
    shapes = fit_shapes(prompts, LARGEST)
    assert all(a.prompt <= b.prompt and a.patches <= b.patches for a, b in itertools.pairwise(shapes))
    up = sorted({tuple(-(-x // 64) * 64 for x in one) for one in prompts}, key=sum)
    every = [tuple(x) for x in np.maximum.accumulate(up).tolist()]
    best = min(cost(prompts, sorted(some, key=sum)) for some in itertools.combinations(every, 3) if some[-1] == every[-1])
    assert best <= cost(prompts, shapes) <= best / 0.95


def test_rows_that_run_together_are_few_where_they_are_long():
    prompts = drawn(0)
    sizes = [make_rooms(prompts, LARGEST, answers=answers, most=8).size for answers in (0, 20_000)]
    assert sizes == [1, 1]
    small = PromptRoom(256, 64)
    assert [make_rooms([(40, 16)] * 4, small, answers=a, most=8).size for a in (0, 800, 4000)] == [8, 4, 1]
    assert make_rooms([(40, 16)] * 4, small, answers=0, most=3) == Rooms(((48, 16), small), 3)


@pytest.mark.parametrize("devices,size", [(1, 1), (1, 4), (2, 2), (4, 1), (8, 1)])
def test_every_row_runs_once_in_a_room_that_holds_it(devices, size):
    rng = np.random.default_rng(devices)
    prompts = np.array(drawn(devices, 16))
    lengths = Lengths(prompts[:, 0], prompts[:, 1], rng.integers(0, 65, (16, 4)))
    shapes = fit_shapes(prompts.tolist(), LARGEST)
    found = split_rows(lengths, shapes, devices=devices, size=size, length=64)
    assert [one.rows.shape for one in found] == [(devices * size,)] * (16 // devices // size)
    assert np.sort(np.concatenate([one.rows for one in found])).tolist() == list(range(16))
    for one in found:
        fits = (lengths.prompt[one.rows] <= one.shape.prompt) & (lengths.patches[one.rows] <= one.shape.patches)
        assert fits.all() and lay_out(lengths.answers[one.rows], 64, one.bins).shape == (len(one.rows), *one.bins)
    assert len({(one.shape, one.bins) for one in found}) == len({one.shape for one in found})
    assert [one.shape for one in found] == sorted(one.shape for one in found), "small rows first"
    again = split_rows(lengths, shapes, devices=devices, size=size, length=64)
    assert all(np.array_equal(a.rows, b.rows) and a[1:] == b[1:] for a, b in zip(found, again, strict=True))


def test_one_long_row_on_each_device_costs_one_large_micro_batch():
    """A micro-batch has one shape on all devices: long rows run together, wherever they were."""
    long = np.arange(16) % 4 == 3  # the last row of each of four devices
    lengths = Lengths(np.where(long, 2000, 30), np.full(16, 16), np.where(long, 60, 3)[:, None])
    for moved in (lengths, Lengths(*(x[np.random.default_rng(0).permutation(16)] for x in lengths))):
        found = split_rows(moved, (PromptRoom(32, 16), LARGEST), devices=4, size=1, length=64)
        assert [one.shape.prompt for one in found] == [32, 32, 32, 2048]
        assert (moved.prompt[found[-1].rows] == 2000).all()


def test_short_answers_have_one_layout_and_long_ones_the_least_that_holds_them():
    lengths = Lengths(np.array([10, 20]), np.array([0, 0]), np.array([[1, 1], [2, 2]]))
    (one, two) = split_rows(lengths, (PromptRoom(32, 0), LARGEST), devices=1, size=1, length=16)
    assert one.bins == two.bins == (2, 15)
    longer = lengths._replace(answers=np.full((2, 2), 120))
    rungs = [Bins(1, places) for places in (270, 405, 607, 910, 1364)]
    found = split_rows(longer, (PromptRoom(32, 0), LARGEST), devices=1, size=1, length=1024)
    assert [x.bins for x in found] == [least_bins(longer.answers, 1024, rungs)] * 2 == [(1, 270)] * 2
