"""The shapes that a run's prompts get, and which rows run together in them."""

import itertools

import numpy as np
import pytest

from mtjudge_jax.plan.lengths import Spread
from mtjudge_jax.rl.rooms import Rooms, SharedRoom, balance, fit_shapes, make_rooms, sums_of
from mtjudge_jax.rl.streams import Bins, lay_out, least_bins, split_rows
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
    assert make_rooms([(30, 16)] * 9, PromptRoom(100, 100), answers=100, most=8, rows=8, devices=1) is None


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
    sizes = [make_rooms(prompts, LARGEST, answers=answers, most=8, rows=8, devices=1).size for answers in (0, 20_000)]
    assert sizes == [1, 1]
    small = PromptRoom(256, 64)
    assert [make_rooms([(40, 16)] * 4, small, answers=a, most=8, rows=8, devices=1).size for a in (0, 800, 4000)] == [8, 4, 1]
    assert make_rooms([(40, 16)] * 4, small, answers=0, most=3, rows=3, devices=1) == Rooms(((48, 16), small), 3)


@pytest.mark.parametrize("devices,size", [(1, 1), (1, 4), (2, 2), (4, 1), (8, 1)])
def test_every_row_runs_once_in_a_room_that_holds_it(devices, size):
    rng = np.random.default_rng(devices)
    prompts = np.array(drawn(devices, 16))
    lengths = Lengths(prompts[:, 0], prompts[:, 1], rng.integers(0, 65, (16, 4)))
    shapes = fit_shapes(prompts.tolist(), LARGEST)
    found = split_rows(lengths, Rooms(shapes, size), devices=devices, length=64)
    assert [one.rows.shape for one in found] == [(devices * size,)] * (16 // devices // size)
    assert np.sort(np.concatenate([one.rows for one in found])).tolist() == list(range(16))
    for one in found:
        fits = (lengths.prompt[one.rows] <= one.shape.prompt) & (lengths.patches[one.rows] <= one.shape.patches)
        assert fits.all() and lay_out(lengths.answers[one.rows], 64, one.bins).shape == (len(one.rows), *one.bins)
    assert len({(one.shape, one.bins) for one in found}) == len({one.shape for one in found})
    assert [one.shape for one in found] == sorted(one.shape for one in found), "small rows first"
    again = split_rows(lengths, Rooms(shapes, size), devices=devices, length=64)
    assert all(np.array_equal(a.rows, b.rows) and a[1:] == b[1:] for a, b in zip(found, again, strict=True))


def test_one_long_row_on_each_device_costs_one_large_micro_batch():
    """A micro-batch has one shape on all devices: long rows run together, wherever they were."""
    long = np.arange(16) % 4 == 3  # the last row of each of four devices
    lengths = Lengths(np.where(long, 2000, 30), np.full(16, 16), np.where(long, 60, 3)[:, None])
    for moved in (lengths, Lengths(*(x[np.random.default_rng(0).permutation(16)] for x in lengths))):
        found = split_rows(moved, Rooms((PromptRoom(32, 16), LARGEST), 1), devices=4, length=64)
        assert [one.shape.prompt for one in found] == [32, 32, 32, 2048]
        assert (moved.prompt[found[-1].rows] == 2000).all()


def test_short_answers_have_one_layout_and_long_ones_the_least_that_holds_them():
    lengths = Lengths(np.array([10, 20]), np.array([0, 0]), np.array([[1, 1], [2, 2]]))
    (one, two) = split_rows(lengths, Rooms((PromptRoom(32, 0), LARGEST), 1), devices=1, length=16)
    assert one.bins == two.bins == (2, 15)
    longer = lengths._replace(answers=np.full((2, 2), 120))
    rungs = [Bins(1, places) for places in (270, 405, 607, 910, 1364)]
    found = split_rows(longer, Rooms((PromptRoom(32, 0), LARGEST), 1), devices=1, length=1024)
    assert [x.bins for x in found] == [least_bins(longer.answers, 1024, rungs)] * 2 == [(1, 270)] * 2


@pytest.mark.parametrize("count,streams,slots", [(8, 4, 2), (8, 4, 8), (13, 5, 4), (256, 64, 6)])
def test_rows_are_dealt_so_that_the_largest_stream_is_small(count, streams, slots):
    """Every row once, no stream with more than its slots, and none above the mean by more than the largest row."""
    sizes = np.random.default_rng(count).lognormal(sigma=0.6, size=(count, 1))
    dealt = balance(sizes, streams, slots)
    assert dealt.shape == (streams, slots) and np.sort(dealt[dealt < count]).tolist() == list(range(count))
    sums = sums_of(sizes, dealt)[:, 0]
    assert sums.sum() == pytest.approx(sizes.sum()) and sums.max() <= sizes.mean() * count / streams + sizes.max()
    two = np.hstack([sizes, sizes[::-1]])
    both = sums_of(two, balance(two, streams, slots)).max(0)
    assert (both <= 1.5 * (two.sum(0) / streams + two.max(0))).all()


def papers(rng, count: int) -> Lengths:
    """As in docs/plan.md: prompts of 600 tokens in the mean, pictures of 1,600 patches, 20 answers of 200."""
    z = rng.normal(size=count)
    answers = Spread(200, 600).at(rng.normal(size=(count, 20)), 1024)
    return Lengths(Spread(600, 1500).at(z, 2048), Spread(1600, 4000).at(z, 4096), answers)


def real_shares(lengths: Lengths, found) -> np.ndarray:
    """Of tokens, patches and places that are computed, the share that is there."""
    computed = sum(one.streams * np.array([*one.shape, np.prod(one.bins)]) for one in found)
    return np.array([lengths.prompt.sum(), lengths.patches.sum(), np.minimum(lengths.answers, 1023).sum()]) / computed


def test_prompts_share_streams_where_devices_would_wait_for_the_longest():
    """64 devices, four prompts each: the paper's update. Alone, a half of what is computed is padding."""
    rng = np.random.default_rng(0)
    looked = papers(rng, 500)
    sizes = list(zip(looked.prompt.tolist(), looked.patches.tolist(), strict=True))
    rooms = make_rooms(sizes, LARGEST, answers=20 * 1023, most=2, rows=4, devices=64)
    for _ in range(4):
        lengths = papers(rng, 256)
        found, alone = (split_rows(lengths, use, devices=64, length=1024) for use in (rooms, rooms._replace(shared=())))
        assert (real_shares(lengths, found) > 0.85).all() and (real_shares(lengths, alone) < 0.7).all()
        (one,) = found
        rows = one.rows.reshape(64, -1)
        assert np.sort(rows[rows < 256]).tolist() == list(range(256))
        assert (sums_of(np.stack(lengths[:2], 1), rows) <= one.shape).all()
        own = np.concatenate([lengths.answers, np.zeros((1, 20), int)])[rows].reshape(64, -1)
        places = lay_out(own, 1024, one.bins, 20)
        assert (places >= 0).sum() == np.minimum(lengths.answers, 1023).sum()
        assert one.shape.prompt + np.prod(one.bins) <= 2 * (2048 + 20 * 1023), "no more than two of the longest rows"


def test_a_batch_of_two_updates_has_twice_the_streams_and_rows_alone_stay_alone():
    rng, way = np.random.default_rng(1), SharedRoom(4, 6, PromptRoom(4096, 8192), 20 * 1023)
    lengths = papers(rng, 64)
    found = split_rows(lengths, Rooms((LARGEST,), 1, (way,)), devices=8, length=1024)
    assert [(one.streams, one.rows.size) for one in found] == [(8, 48)] * 2
    tight = way._replace(shape=PromptRoom(64, 8192))
    alone = split_rows(lengths, Rooms((LARGEST,), 1, (tight,)), devices=8, length=1024)
    assert all(one.rows.size == one.streams for one in alone)
    full = Lengths(np.full(64, 2048), np.full(64, 4096), np.full((64, 20), 1024))
    assert len(split_rows(full, Rooms((LARGEST,), 1, (way,)), devices=8, length=1024)) == 8
    assert make_rooms([(2000, 4000)] * 9, LARGEST, answers=99, most=1, rows=4, devices=1) is None
