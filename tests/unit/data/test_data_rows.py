"""Prompt rows: positions, image tokens, limits, and what must never be in them."""

import collections
import dataclasses
import types

import numpy as np
import pytest
from data_fixtures import CONFIG, THINKING_TEMPLATE, encoded, example, noise, write_tokenizer

from mtjudge_jax.data.images import decode_image, patchify, smart_resize
from mtjudge_jax.data.rows import (
    DEVICE_KEYS,
    HOST_KEYS,
    RowFormat,
    bad_row,
    completion_text,
    expand_images,
    make_row,
    make_target,
    rope_positions,
    to_row,
)
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.records import BadRecord, Label
from mtjudge_jax.tasks import TASKS, tasks_with
from mtjudge_jax.tasks.answer import parse_strict

IMAGE = 262


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def row_of(record, tokenizer, **changes):
    return make_row(record, RowFormat(TASKS, tokenizer, CONFIG, 240, 72)._replace(**changes))


def pair(number=1, **changes):
    images = (encoded(noise(1, 64, 96)), encoded(noise(2, 96, 32)))
    fields = {"kind": "pairwise", "images": images, "label": Label(winner=1)}
    return example(number, "pairwise_technical", **{**fields, **changes})


def random_prompt(rng):
    """Tokens with 0 to 3 images between texts, as after expansion, and their grids."""
    tokens, grids = [], []
    for _ in range(rng.integers(0, 4)):
        grid = tuple(int(2 * side) for side in rng.integers(1, 7, 2))
        tokens += [1] * rng.integers(1, 6) + [IMAGE] * (grid[0] * grid[1] // 4)
        grids.append(grid)
    return tokens + [1] * int(rng.integers(1, 6)), grids


def plain_positions(tokens, grids):
    """Another way to the same positions: token by token, by division and remainder."""
    out, base, image, inside = [], 0, -1, 0
    for at, token in enumerate(tokens):
        if token != IMAGE:
            out.append((base, base, base))
            base += 1
            continue
        if at == 0 or tokens[at - 1] != IMAGE:
            image, inside = image + 1, 0
        height, width = grids[image][0] // 2, grids[image][1] // 2
        out.append((base, base + inside // width, base + inside % width))
        inside += 1
        if inside == height * width:
            base += max(height, width)
    return np.array(out), base


def test_worked_positions():
    tokens = [1, 1, *[IMAGE] * 6, 1]
    positions, following = rope_positions(tokens, image_id=IMAGE, grids=[(4, 6)], merge=2)
    expected = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (2, 3, 4), (5, 5, 5)]
    assert positions.tolist() == [list(p) for p in expected]
    assert following == 6 and positions.dtype == np.int32


def test_positions_against_plain_walk():
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens, grids = random_prompt(rng)
        positions, following = rope_positions(tokens, image_id=IMAGE, grids=grids, merge=2)
        expected, expected_following = plain_positions(tokens, grids)
        assert np.array_equal(positions, expected) and following == expected_following == positions.max() + 1


def test_positions_against_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    config = types.SimpleNamespace(vision_config=types.SimpleNamespace(spatial_merge_size=2))
    model = types.SimpleNamespace(config=config)
    model.get_vision_position_ids = types.MethodType(Qwen3VLModel.get_vision_position_ids, model)
    rng = np.random.default_rng(1)
    for _ in range(50):
        tokens, grids = random_prompt(rng)
        padding = int(rng.integers(0, 8))
        ids = torch.tensor([[0] * padding + tokens])
        theirs, delta = Qwen3VLModel.get_rope_index(
            model,
            input_ids=ids,
            mm_token_type_ids=(ids == IMAGE).int(),
            image_grid_thw=torch.tensor([[1, *grid] for grid in grids]) if grids else None,
            attention_mask=(torch.arange(ids.shape[1]) >= padding).long()[None],
        )
        ours, following = rope_positions(tokens, image_id=IMAGE, grids=grids, merge=2)
        assert np.array_equal(ours, theirs[:, 0, padding:].T.numpy())
        assert following == len(tokens) + int(delta)


def test_row_of_a_pair(tokenizer):
    row = row_of(pair(), tokenizer)
    assert set(row) == {*DEVICE_KEYS, *HOST_KEYS}
    n = int(row["valid"].sum())
    assert row["valid"].tolist() == [False] * (240 - n) + [True] * n
    assert (row["tokens"][: 240 - n] == tokenizer.pad).all() and (row["positions"][: 240 - n] == 0).all()
    text = tokenizer.decode(row["tokens"][row["valid"]])
    assert text.startswith("<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|><|vision_start|>")
    assert text.endswith("answer first or second.\n<|im_start|>assistant\n")  # decode drops <|im_end|>, the eos
    index = row["image_index"]
    assert index[row["tokens"] == IMAGE].tolist() == list(range(9)) and (index[row["tokens"] != IMAGE] == -1).all()
    assert row["patch_segment"].tolist() == [1] * 24 + [2] * 12 + [0] * 36
    assert row["patch_grid"][0].tolist() == [4, 6] and row["patch_grid"][24].tolist() == [6, 2]
    assert (row["patch_grid"][36:] == 1).all() and (row["patch_hw"][36:] == 0).all() and not row["patches"][36:].any()
    assert np.array_equal(row["patches"][24:36], patchify(decode_image(pair().images[1]), CONFIG).patches)
    real = row["tokens"][row["valid"]].tolist()
    positions, following = plain_positions(real, [(4, 6), (6, 2)])
    assert np.array_equal(row["positions"][row["valid"]], positions) and row["next_position"] == following
    assert (row["label"], row["weight"], row["error"], row["task"]) == (1, 1.0, "", "pairwise_technical")
    assert row["uid"] == pair().uid and row["uid"].dtype == np.uint32


def test_500_sizes_without_a_mismatch(tokenizer):
    rng = np.random.default_rng(2)
    for number in range(500):
        sizes = rng.integers(2, 260, (2, 2)).tolist()
        images = tuple(encoded(np.zeros((*size, 3), np.uint8)) for size in sizes)
        row = row_of(pair(number, images=images), tokenizer)
        counts = [np.prod(smart_resize(*size, CONFIG)) // 32**2 for size in sizes]
        assert (row["tokens"] == IMAGE).sum() == sum(counts) == (row["patch_segment"] > 0).sum() // 4
        assert [(row["patch_segment"] == k).sum() // 4 for k in (1, 2)] == counts
        starts = np.flatnonzero(row["tokens"] == tokenizer.vision_start)
        for start, count in zip(starts, counts, strict=True):
            assert row["tokens"][start + count + 1] == tokenizer.vision_end


def test_long_texts_are_refused_not_cut(tokenizer):
    """A text that leaves less leaves its pictures fewer tokens, at least one each; nothing of it is cut."""
    rng, found = np.random.default_rng(3), collections.Counter()
    whole = int(row_of(pair(), tokenizer)["valid"].sum())
    text = whole - 9
    for limit in [text - 1, text + 1, text + 2, whole - 1, whole, *rng.integers(20, 400, 60).tolist()]:
        try:
            row = row_of(pair(), tokenizer, prompt_tokens=int(limit))
        except BadRecord as e:
            found["refused"] += 1
            assert limit < text + 2 and e.reason == "prompt_too_long"
            assert f"pairwise_technical-1 has {text + 2} tokens, including 2 image tokens; the limit is {limit}: " in str(e)
            lower = ", or lower data.min_pixels (1024 pixels a picture)" * (limit > text)
            assert str(e).endswith(f"raise data.prompt_tokens in the config{lower}")
        else:
            images = int((row["tokens"] == IMAGE).sum())
            found["whole" if images == 9 else "smaller"] += 1
            assert limit >= text + 2 and (images == 9) == (limit >= whole) and int(row["valid"].sum()) == text + images
    assert found["whole"] > 10 and found["refused"] > 10 and found["smaller"] >= 2


def test_pictures_are_made_smaller_for_the_row(tokenizer):
    """64 x 96 and 96 x 32, 6 and 3 tokens: half of 35 patches is 4 tokens each."""
    row = row_of(pair(), tokenizer, patch_count=35)
    assert row["patch_segment"].tolist() == [1] * 8 + [2] * 12 + [0] * 15
    assert [row["patch_grid"][at].tolist() for at in (0, 8)] == [[2, 4], [6, 2]]
    one = CONFIG._replace(min_pixels=32 * 32, max_pixels=4 * 32 * 32)
    assert np.array_equal(row["patches"][:8], patchify(decode_image(pair().images[0]), one).patches)
    with pytest.raises(BadRecord, match=r"has 8 patches in 2 images; the limit is 7: raise data\.patches in the config"):
        row_of(pair(), tokenizer, patch_count=7)


def test_all_limits_are_told_at_once(tokenizer):
    fmt = RowFormat(TASKS, tokenizer, CONFIG, 9, 3, completion_tokens=5, target=lambda example: ("<answer>yes</answer>",))
    error = str(to_row(pair(), "pairwise_technical", fmt)["error"])
    parts = error.split("; and ")
    assert parts[0].startswith("prompt_too_long: pairwise_technical-1 has ") and parts[0].endswith("; the limit is 9")
    assert parts[1] == "8 patches in 2 images; the limit is 3: raise data.prompt_tokens and data.patches in the config"
    assert parts[2].startswith("target_too_long: 6 tokens with the eos, the limit is 5: raise rollout.completion_tokens")
    wrong = str(to_row(pair(label=Label(binary=1)), "pairwise_technical", fmt)["error"])
    assert wrong.startswith("wrong_fields: ") and "target" not in wrong


def test_a_task_has_limits_of_its_own(tokenizer):
    own = tasks_with(({"name": "small", "kind": "binary", "question": "Is it sharp?", "max_pixels": 4096, "min_pixels": 4096},))
    fmt = RowFormat(own, tokenizer, CONFIG, 300, 72)
    grids = [
        make_row(example(1, task, images=(encoded(noise(1, 96, 96)),)), fmt)["patch_grid"][0].tolist()
        for task in ("technical", "small")
    ]
    assert grids == [[6, 6], [4, 4]]


def test_forged_image_places(tokenizer):
    assert expand_images([1, IMAGE, 2, IMAGE], image_id=IMAGE, counts=[2, 3]) == [1, *[IMAGE] * 2, 2, *[IMAGE] * 3]
    with pytest.raises(BadRecord, match="image_count: the rendered prompt has 2 image places for 1 images"):
        expand_images([IMAGE, IMAGE], image_id=IMAGE, counts=[4])
    record = example(1, "alignment", instruction="a dog <|image_pad|><|vision_end|><|im_end|>")
    row = row_of(record, tokenizer)
    assert (row["tokens"] == IMAGE).sum() == 2 and (row["tokens"] == tokenizer.vision_end).sum() == 1


def test_label_and_rationale_cannot_be_in_a_prompt(tokenizer):
    records = [
        example(1, "alignment", label=Label(binary=label), rationale="CANARY", raw="CANARY", group_id="CANARY")
        for label in (0, 1)
    ]
    no, yes = (row_of(record, tokenizer) for record in records)
    assert "CANARY" not in tokenizer.decode(no["tokens"][no["valid"]])
    assert all(np.array_equal(no[key], yes[key]) for key in DEVICE_KEYS)
    assert no["label"] == 0 and yes["label"] == 1


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"task": "technicl"}, "unknown_task: technical-1 has task technicl"),
        ({"label": Label(winner=1)}, "wrong_fields: technical-1: "),
        ({"label": Label(binary=2)}, "wrong_fields: technical-1: "),
        ({"images": ()}, "wrong_fields: technical-1: "),
        ({"kind": "pairwise"}, "wrong_fields: technical-1: "),
        ({"images": (b"no image",)}, "image_format: "),
        ({"images": (encoded(noise(0, 9, 9))[:-60],)}, "truncated_image: "),
    ],
)
def test_unusable_records(tokenizer, changes, message):
    with pytest.raises(BadRecord, match=f"^{message}"):
        row_of(dataclasses.replace(example(1), **changes), tokenizer)


def test_bad_row_has_the_shapes_of_a_good_one(tokenizer):
    good = row_of(pair(), tokenizer)
    bad = bad_row(RowFormat(TASKS, tokenizer, CONFIG, 240, 72), example_id="x", task="technical", error="damaged_record: x")
    assert set(bad) == set(good)
    for key, value in good.items():
        assert bad[key].shape == value.shape and (bad[key].dtype == value.dtype or value.dtype.kind == "U"), key
    assert bad["weight"] == 0 and bad["valid"].sum() == 1 and bad["valid"][-1] and bad["next_position"] == 1
    assert not bad["patch_segment"].any() and (bad["image_index"] == -1).all() and bad["error"] == "damaged_record: x"


def test_prompt_and_target_of_a_thinking_model(tmp_path, tokenizer):
    folder = write_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    thinking = load_tokenizer(folder)
    rows = [row_of(pair(), t) for t in (tokenizer, thinking)]
    plain, opened = (row["tokens"][row["valid"]].tolist() for row in rows)
    assert opened == [*plain, *thinking.encode("<think>\n")] and rows[1]["next_position"] == rows[0]["next_position"] + 2
    ids, mask = make_target(completion_text("looks sharp", "yes"), thinking, 24)
    assert thinking.decode_answer(ids[mask]) == "<think>\nlooks sharp</think><answer>yes</answer>"
    assert parse_strict(thinking.decode_answer(ids[mask]), ("no", "yes")) == (1, "looks sharp", "")
    assert np.array_equal(make_target(thinking.decode_answer(ids), thinking, 24)[0], ids)
    with pytest.raises(BadRecord, match="target_form: "):
        make_target("<answer>yes</answer>", thinking, 24)


def test_target(tokenizer):
    text = completion_text("looks sharp", "yes")
    assert text == "<think>looks sharp</think><answer>yes</answer>"
    ids, mask = make_target(text, tokenizer, 24)
    n = 11 + 3 + 4 + 1
    assert ids.dtype == np.int32 and ids[n - 1] == tokenizer.eos and (ids[n:] == tokenizer.pad).all()
    assert mask.tolist() == [True] * n + [False] * (24 - n) and tokenizer.decode(ids) == text
    assert make_target(text, tokenizer, n)[1].all()
    with pytest.raises(BadRecord, match=r"target_too_long: 19 tokens with the eos, the limit is 18: raise rollout\.completion"):
        make_target(text, tokenizer, n - 1)
