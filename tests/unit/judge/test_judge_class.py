"""The Judge on eight devices: how weights are shared, which questions are batched, that a bad question does not lose the others.

Nothing is compiled: the pass through the model is a stand-in that answers "yes" and keeps the sizes.
"""

import functools
import io
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from data_fixtures import encoded, noise
from PIL import Image

from mtjudge_jax.data.images import Budget
from mtjudge_jax.errors import UserError
from mtjudge_jax.judge import engine as module
from mtjudge_jax.judge.engine import AskedAs, _ladder
from mtjudge_jax.judge.judge import Judge, _all_devices, _dtype_of
from mtjudge_jax.models.qwen3_vl.config import load_config
from mtjudge_jax.policy.model import DEMO_BASE
from mtjudge_jax.tasks.verdicts import Reply, Verdict


@functools.cache
def on_all_devices():
    return Judge.from_pretrained(DEMO_BASE, batch=16)


@pytest.fixture
def judge(monkeypatch):
    """The same judge with the stand-in; `judge.batches` are (task, rows, size, room)."""
    made = on_all_devices()
    judge = Judge(made._model, made._params, made._how, made._temperature)
    judge.batches = []

    def answered(rows, size, asked):
        sizes = rows[0].fmt.prompt_tokens, rows[0].fmt.patch_count, rows[0].fmt.completion_tokens
        judge.batches.append((rows[0].task.name, [row.number for row in rows], size, sizes))
        judge._compiled.add((rows[0].program, size))
        seen = {row.number: str(int(row.example.images[0][0, 0, 0])) for row in rows}
        return {number: [Reply("yes", pixel, "", "", "strict", None)] * asked.samples for number, pixel in seen.items()}

    monkeypatch.setattr(judge, "_judge_rows", answered)
    return judge


def picture(i=0):
    return np.full((40, 40, 3), i, np.uint8)


def bytes_on(device, params):
    return sum(part.data.nbytes for x in jax.tree.leaves(params) for part in x.addressable_shards if part.device == device)


def test_all_devices_share_the_weights():
    params, whole = on_all_devices()._params, Judge.from_pretrained(DEMO_BASE, mesh={"data": 8})._params
    one = bytes_on(jax.devices()[0], whole)
    assert one == sum(x.nbytes for x in jax.tree.leaves(whole))
    assert all(bytes_on(device, params) < one / 5 for device in jax.devices())
    four = Judge.from_pretrained(DEMO_BASE, mesh="fsdp=4,tensor=2")._how.programs.mesh.shape
    assert dict(four) == {"data": 1, "fsdp": 4, "expert": 1, "tensor": 2} == dict(on_all_devices()._how.programs.mesh.shape)


def test_heads_are_shared_as_far_as_devices_divide_them(monkeypatch):
    large = load_config(DEMO_BASE)
    heads = large.text.__class__(**{**vars(large.text), "num_heads": 32, "num_kv_heads": 8})
    large = large.__class__(
        **{**vars(large), "text": heads, "vision": large.vision.__class__(**{**vars(large.vision), "num_heads": 16})}
    )
    for devices, tensor in ((1, 1), (3, 1), (4, 4), (6, 2), (8, 8), (16, 8)):
        monkeypatch.setattr(jax, "device_count", lambda n=devices: n)
        monkeypatch.setattr(jax, "local_device_count", lambda n=devices: n)
        found = _all_devices(large)
        assert (found.tensor, found.fsdp, found.data) == (tensor, devices // tensor, 1), devices


@pytest.mark.parametrize(
    "spelt,dtype",
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "text": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float16"}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_dtype_is_that_of_config_json(tmp_path, spelt, dtype):
    folder = tmp_path / "judge"
    shutil.copytree(DEMO_BASE, folder)
    raw = json.loads((folder / "config.json").read_text())
    for part in (raw, raw["text_config"], raw["vision_config"]):
        part.pop("dtype", None), part.pop("torch_dtype", None)
    raw["text_config"] |= spelt.pop("text", {})
    (folder / "config.json").write_text(json.dumps(raw | spelt))
    assert _dtype_of(load_config(folder)) == dtype
    if dtype == "bfloat16":
        assert {str(x.dtype) for x in jax.tree.leaves(Judge.from_pretrained(folder)._params)} == {"bfloat16"}
        assert {str(x.dtype) for x in jax.tree.leaves(Judge.from_pretrained(folder, dtype="float32")._params)} == {"float32"}


def test_what_from_pretrained_refuses():
    for given, said in (
        ({"dtype": "float16"}, "dtype = 'float16': give 'float32' or 'bfloat16'"),
        ({"mesh": {"fdsp": 8}}, "--mesh=fdsp=8: give AXIS=DEVICES"),
        ({"mesh": "fsdp=3"}, "need a multiple of 3 devices, here are 8"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            Judge.from_pretrained(DEMO_BASE, **given)


def test_a_batch_is_as_large_as_its_questions(judge):
    assert _ladder(1, 1) == [1] and _ladder(1, 12) == [1, 2, 4, 8, 12] and _ladder(4, 16) == [4, 8, 16]
    for count, sizes in ((1, [4]), (5, [8]), (9, [16]), (16, [16]), (17, [16, 4])):
        judge.batches.clear()
        found = judge.judge_all([picture(i) for i in range(count)], task="technical")
        assert [v.reasoning for v in found] == [str(i) for i in range(count)]
        assert [size for _, _, size, _ in judge.batches] == sizes, count
    for asked in ({"questions": [picture(0), picture(1)]}, {"images": [picture(0), picture(1)]}):
        found = judge.judge_all(**asked, task="alignment", instruction="a dog")
        assert [v.error for v in found] == ["", ""], asked
    assert "needs an instruction" in judge.judge_all([picture()], task="alignment")[0].error
    judge._compiled.clear()
    judge.judge_all([picture()] * 17, task="technical")
    assert judge.batches[-1][2] == 16  # the last one fits where nothing new is compiled


def test_a_question_gets_the_room_of_the_run_where_it_fits(judge):
    own = judge._how.fmt
    sizes = own.prompt_tokens, own.patch_count, own.completion_tokens
    judge.judge(images=picture(), task="technical")
    judge.judge(images=[picture(), picture()], task="pairwise_technical")
    judge.judge(images=picture(), task="alignment", instruction="a dog " * 20)
    (*_, plain), (*_, pair), (*_, long) = judge.batches
    assert plain == sizes and pair == ((sizes[0] + 64) * 2, sizes[1] * 4, sizes[2] * 2)
    assert long == (sizes[0] + 64, sizes[1] * 2, sizes[2])
    wide = judge._how._replace(fmt=own._replace(prompt_tokens=128, patch_count=72))
    roomy = Judge(judge._model, judge._params, wide, judge._temperature)
    row = roomy._prepare((0, (picture(), picture())), AskedAs("pairwise_technical"))  # of a run whose sizes are for pairs
    assert (row.fmt.prompt_tokens, row.fmt.patch_count) == (128, 72)
    with pytest.raises(
        UserError, match=r"^prompt_too_long: it has [0-9]+ tokens, .* raise prompt_tokens in the model's judge.json"
    ):
        judge.judge(images=picture(), task="alignment", instruction="a dog " * 200)


def trained_on(judge, images, *, low=65_536, **sizes):
    """The judge of a run with the hub's limits, and rows for single pictures (1) or pairs (2)."""
    own = judge._how.fmt._replace(prompt_tokens=512, patch_count=1024, budget=Budget(512, 1024, images))
    fmt = own._replace(image_cfg=own.image_cfg._replace(min_pixels=low, max_pixels=16_777_216), **sizes)
    return Judge(judge._model, judge._params, judge._how._replace(fmt=fmt), judge._temperature)


def row_of(judge, pictures, task="technical", instruction=""):
    row = judge._prepare((0, (pictures, instruction)), AskedAs(task))
    if isinstance(row, UserError):
        raise row
    segment = row.row["patch_segment"]
    grids = [row.row["patch_grid"][segment == n][0].tolist() for n in range(1, int(segment.max(initial=0)) + 1)]
    return (row.fmt.prompt_tokens, row.fmt.patch_count), grids


def test_pictures_are_as_large_as_in_training(judge):
    """A photograph of 12 megapixels is judged in the row of training. A pair is too where pairs were trained, with half for each;
    else each has what a single one has, in a larger row.
    """
    photo, first, larger = np.zeros((3024, 4032, 3), np.uint8), (512, 1024), ((512 + 64) * 2, 1024 * 2 * 2)
    for images, room, pair in ((1, larger, [26, 36]), (2, first, [18, 26])):
        made = trained_on(judge, images)
        assert row_of(made, [photo]) == (first, [[26, 36]])
        assert row_of(made, [photo, photo], "pairwise_technical") == (room, [pair] * 2)
        assert row_of(made, [np.zeros((134, 20_000, 3), np.uint8)]) == (first, [[2, 390]])
        assert row_of(made, [picture(), picture()], "pairwise_technical") == (first, [[16, 16]] * 2)
    room, grids = row_of(trained_on(judge, 1), [photo], "alignment", "a dog " * 150)
    assert (room, grids) == (first, [[22, 30]])  # 165 of the 186 tokens that the text leaves; by patches it would be 234
    assert row_of(trained_on(judge, 1), [photo], "alignment", "a dog " * 230)[0] == (512 + 64, 2048)
    with pytest.raises(UserError, match=r"raise prompt_tokens in the model's judge\.json, or lower min_pixels \(65536 pixels"):
        row_of(trained_on(judge, 1), [photo], "alignment", "a dog " * 260)


def test_a_judge_of_an_older_version_shows_what_fitted_as_it_did(judge):
    """Its judge.json has no limits. What was too large for any of its rows is made smaller for the first."""
    made = trained_on(judge, 1, budget=None)
    assert row_of(made, [np.zeros((600, 700, 3), np.uint8)]) == ((576, 2048), [[38, 44]])  # 418 tokens
    assert row_of(made, [np.zeros((3024, 4032, 3), np.uint8)]) == ((512, 1024), [[26, 36]])
    own = judge._how.fmt
    odd = np.zeros((50, 40, 3), np.uint8)  # which the demo's limits, 96 x 96 both, round up to 128 x 96
    assert row_of(judge, [odd]) == ((own.prompt_tokens + 64, own.patch_count * 2), [[8, 6]]) and own.budget is None


def test_a_bad_question_does_not_lose_the_others(judge, tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(noise(1, 16, 24), "PNG")[:-300])
    questions = [
        picture(3),
        tmp_path / "cut.png",
        tmp_path / "none.png",
        None,
        (picture(), "caf\udce9"),
        (picture(5), "a dog"),
        {"imge": picture()},
        {"image": picture(), "task": "technicall"},
        {"image": picture(8), "task": "safety"},
        [picture(), picture(), picture()],
        Image.open(io.BytesIO(encoded(noise(1, 64, 48), "JPEG")[:-300])),
        picture(11),
    ]
    with pytest.warns(UserWarning, match=r"^8 of 12 questions were not judged: question 1: .*cut.png: truncated_image: "):
        found = judge.judge_all(questions, task="technical")
    assert [i for i, v in enumerate(found) if v.verdict == "yes"] == [0, 5, 8, 11] and found[8].reasoning == "8"
    assert {name for name, *_ in judge.batches} == {"technical", "safety"}
    for i, said in {
        1: "cut.png: truncated_image",
        2: "image_path: no file",
        3: "image_type: None is no picture",
        4: "instruction is no Unicode text",
        6: "unknown field 'imge'",
        7: "did you mean 'technical'",
        9: "exactly 1 image",
        10: "truncated_image: OSError",
    }.items():
        verdict = found[i]
        assert verdict.error.startswith(f"question {i}: ") and said in verdict.error and "\n" not in verdict.error
        assert verdict == Verdict(None, "", None, "", verdict.error, None, "invalid", None)


def test_one_bad_question_alone_is_an_error(judge):
    with pytest.raises(UserError, match=r"^image_path: no file 'none.png'"):
        judge.judge(images="none.png", task="technical")
    for case in (["a.png"], [picture()]):
        with pytest.raises(UserError, match=r"unknown task 'technicall'"):
            judge.judge_all(case, task="technicall")
    with pytest.raises(UserError, match=r"question 0 has no task: give judge_all a task"):
        judge.judge_all([picture()])
    for given in ({}, {"questions": [picture()], "images": [picture()]}):
        with pytest.raises(UserError, match=r"takes questions or images"):
            judge.judge_all(task="technical", **given)
    assert judge.judge_all([], task="technical") == [] and judge.judge_all(images=[], task="technical") == []


def test_ways_to_call_judge_all(judge):
    batch = np.stack([picture(i) for i in range(3)])
    for given in ({"questions": batch}, {"images": batch}, {"images": iter(batch)}, {"questions": ({"image": p} for p in batch)}):
        assert [v.reasoning for v in judge.judge_all(**given, task="technical")] == ["0", "1", "2"]
    pairs = [(picture(1), picture(2)), [picture(3), picture(4)], ([picture(5), picture(6)], "")]
    assert [v.reasoning for v in judge.judge_all(pairs, task="pairwise_technical")] == ["1", "3", "5"]
    assert [v.reasoning for v in judge.judge_all(images=pairs[:2], task="pairwise_technical")] == ["1", "3"]


def test_a_task_that_was_never_trained_is_said_once(judge):
    judge.trained_tasks = ("safety",)
    with pytest.warns(UserWarning, match=r"never trained on the task 'technical'.* its tasks are safety$") as said:
        judge.judge_all([picture()] * 20, task="technical")
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.judge(images=picture(), task="safety")


def test_pictures_are_decoded_by_several_threads_and_not_all_at_once(judge, monkeypatch):
    import threading

    made, threads, most = [], set(), [0]
    whole = module.question_example

    def counted(*args, **named):
        threads.add(threading.current_thread())
        made.append(1)
        return whole(*args, **named)

    answered = judge._judge_rows

    def judged(rows, size, asked):
        most[0] = max(most[0], len(made) - sum(len(done) for _, done, _, _ in judge.batches))
        return answered(rows, size, asked)

    monkeypatch.setattr(module, "question_example", counted)
    monkeypatch.setattr(judge, "_judge_rows", judged)
    judge.judge_all((picture(i) for i in range(200)), task="technical")
    assert threading.main_thread() not in threads and most[0] <= 16 * 3 + 1


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "image_type: None is no picture"),
        (7, "image_type: 7 is no picture"),
        ([["a.png"]], r"image_type: \['a.png'\] is no picture"),
        (np.zeros((4, 4)), r"image_array: an array of float64 \[4, 4\] is no picture"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"image_array: an array of uint8 \[2, 4, 4, 3\] is no picture"),
        (np.zeros((0, 4, 3), np.uint8), r"image_array: an array of uint8 \[0, 4, 3\] is no picture"),
    ],
)
def test_what_is_no_picture_is_told_what_may_be_one(judge, images, said):
    with pytest.raises(ValueError, match=f"^{said}: give a path, encoded bytes, a PIL image or a uint8 array"):
        judge.judge(images=images, task="technical")
