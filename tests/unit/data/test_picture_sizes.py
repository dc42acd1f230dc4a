"""Pictures of any size in a row of any room: none is refused for its size, and each is resized as transformers does."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_fixtures import CONFIG, noise
from PIL import Image

from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.data.images import Budget, Room, fitted, least_tokens, patchify, row_limits, tokens_of
from mtjudge_jax.records import BadRecord

QWEN = ImageConfig(16, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)  # as Qwen3-VL is downloaded
DEMO = QWEN._replace(min_pixels=9216, max_pixels=9216)
PHONE, PANORAMA = (3024, 4032), (134, 20_000)


@st.composite
def any_size(draw):
    """From 1 x 1 to 20,000 x 200 pixels, either way round, at most 200 to 1."""
    short = draw(st.integers(1, 4000))
    size = (short, draw(st.integers(short, min(20_000, 200 * short, max(short, 4_000_000 // short)))))
    return size if draw(st.booleans()) else size[::-1]


def limits(sizes, *, cfg=QWEN, tokens=2048, patches=4096, text=100, images=0):
    return row_limits(sizes, text, cfg, room=Room(tokens, patches), budget=Budget(tokens, patches, images), name="it")


@hypothesis.settings(max_examples=1000, deadline=None)
@hypothesis.given(
    sizes=st.lists(any_size(), min_size=1, max_size=4),
    cfg=st.sampled_from([QWEN, CONFIG, DEMO, QWEN._replace(min_pixels=1, max_pixels=2000)]),
    patches=st.integers(4, 8000),
    tokens=st.integers(60, 3000),
)
def test_no_picture_is_refused_for_its_size(sizes, cfg, patches, tokens):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    text, least = 50, least_tokens(cfg) * len(sizes)
    try:
        found = limits(sizes, cfg=cfg, patches=patches, tokens=tokens, text=text)
    except BadRecord:
        assert least * 4 > patches or least + text > tokens  # by the numbers of the config, whatever the sizes
        return
    assert least * 4 <= patches and least + text <= tokens
    used = [tokens_of(size, one) for size, one in zip(sizes, found, strict=True)]
    share = min(patches // 4 // len(sizes), (tokens - text) // len(sizes))
    assert all(1 <= mine <= share for mine in used)
    for size, one, mine in zip(sizes, found, used, strict=True):
        assert 1 <= one.min_pixels <= one.max_pixels <= cfg.max_pixels
        height, width = theirs(*size, factor=32, min_pixels=one.min_pixels, max_pixels=one.max_pixels)
        assert height * width == mine * 1024
        plain = tuple(round(side / 32) * 32 for side in size)
        if cfg.min_pixels <= np.prod(plain) <= min(cfg.max_pixels, share * 1024):
            assert (height, width) == plain  # what fits as it is stays so


@functools.cache
def processor():
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)


SIZES = [(1, 1), (1, 150), (200, 1), (3, 590), (20, 3000), (100, 20_000), (200, 20_000), (20_000, 134), (40, 50), (1024, 1024)]
SIZES += [(2001, 1333), (33, 33), (700, 2000)]


@pytest.mark.parametrize(("patches", "cfg"), [(4096, QWEN), (256, QWEN), (36, DEMO), (4, CONFIG), (60, CONFIG)])
def test_patches_equal_transformers_under_the_limit(patches, cfg):
    for number, size in enumerate(SIZES):
        image = noise(number, *size)
        (one,) = limits([size], cfg=cfg, patches=patches)
        ours = patchify(image, one)
        assert len(ours.patches) <= patches
        bounds = {"shortest_edge": one.min_pixels, "longest_edge": one.max_pixels}
        theirs = processor()(Image.fromarray(image), size=bounds, return_tensors="np")
        assert theirs["image_grid_thw"].tolist() == [[1, *ours.grid]], size
        values = theirs["pixel_values"].reshape(len(ours.patches), 3, 2, 256)
        assert np.array_equal(np.rint((values[:, :, 0] * 0.5 + 0.5) * 255), ours.patches.reshape(-1, 3, 256)), size
        assert np.array_equal(values[:, :, 0], values[:, :, 1])


def test_the_numbers_of_a_photograph():
    """Of 4,096 patches a single one gets all, a pair half; under 512 tokens of prompt it is the text that counts."""
    (alone,) = limits([PHONE])
    assert (alone.min_pixels, alone.max_pixels, tokens_of(PHONE, alone)) == (65_536, 1_048_576, 27 * 36)
    pair = limits([PHONE, (100, 100)])
    assert [one.max_pixels for one in pair] == [524_288] * 2 and tokens_of((100, 100), pair[1]) == 64
    assert [one.max_pixels for one in limits([PHONE] * 3)] == [341 * 1024] * 3
    (short,) = limits([PHONE], tokens=512, text=112)
    assert short.max_pixels == 400 * 1024
    (own,) = limits([PHONE], cfg=QWEN._replace(max_pixels=300_000))
    assert own.max_pixels == 300_000
    assert limits([(480, 640)]) == [QWEN._replace(max_pixels=1_048_576)] and limits([]) == []
    assert tokens_of(PANORAMA, limits([PANORAMA])[0]) == 2 * 390


def test_a_picture_that_rounding_makes_too_large_gets_the_largest_limit_that_fits():
    for size, tokens, cfg in (((20, 3000), 9, DEMO), ((40, 50), 9, DEMO), ((1, 150), 30, QWEN), ((17, 2550), 79, QWEN)):
        held = cfg._replace(min_pixels=min(cfg.min_pixels, tokens * 1024), max_pixels=min(cfg.max_pixels, tokens * 1024))
        assert tokens_of(size, held) > tokens
        one = fitted(size, tokens, held)
        assert tokens_of(size, one) <= tokens
        next_pixels = one.max_pixels + 1
        assert tokens_of(size, held._replace(min_pixels=min(held.min_pixels, next_pixels), max_pixels=next_pixels)) > tokens
    assert tokens_of((20, 3000), fitted((20, 3000), 9, DEMO)) == 9


def test_forty_pictures_are_refused_with_the_remedy():
    said = (
        "too_many_patches: it has 10240 patches in 40 images; the limit is 4096: raise data.patches in the config, or lower "
        "data.min_pixels (65536 pixels a picture)"
    )
    with pytest.raises(BadRecord) as error:
        limits([PHONE] * 40, tokens=8192)
    assert str(error.value) == said
    with pytest.raises(
        BadRecord, match=r"^prompt_too_long: it has 2660 tokens, .*2560 image tokens; the limit is 2048; and 10240"
    ):
        limits([PHONE] * 40)
    assert len({one.max_pixels for one in limits([PHONE] * 16)}) == 1 == len({one.max_pixels for one in limits([PHONE] * 16)})
    assert limits([PHONE] * 40, cfg=QWEN._replace(min_pixels=1))[0].max_pixels == 25 * 1024
    with pytest.raises(
        BadRecord, match=r"^prompt_too_long: it has 3000 tokens; the limit is 2048: raise data.prompt_tokens in the"
    ):
        limits([], text=3000)


def test_a_larger_room_does_not_make_pictures_larger():
    """Trained on single pictures of at most 4,096 patches: each of a pair may have as many, in a row that holds them."""
    room = Room(2 * 2112, 4 * 4096)
    for images, share in ((1, 1024), (2, 512), (0, 512)):
        found = row_limits([PHONE] * 2, 100, QWEN, room=room, budget=Budget(2048, 4096, images), name="it")
        assert [one.max_pixels // 1024 for one in found] == [share] * 2
    # training would refuse 1,990 tokens of text, the larger row has room for 122 more
    (long,) = row_limits([PHONE], 1990, QWEN, room=Room(2112, 8192), budget=Budget(2048, 4096, 1), name="it")
    assert long.max_pixels == 122 * 1024


def test_without_a_budget_what_fits_stays_as_it_is():
    sizes, room = [(1600, 1600), (400, 400)], Room(4096, 12_000)  # 2,500 and 144 tokens
    assert row_limits(sizes, 100, QWEN, room=room, budget=None, name="it") == [QWEN] * 2
    found = row_limits([(1600, 1600), (2000, 2000)], 100, QWEN, room=room, budget=None, name="it")
    assert [one.max_pixels // 1024 for one in found] == [1500] * 2
