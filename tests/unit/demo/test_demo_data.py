"""The demo's pictures, data set and tokenizer."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from mtjudge_jax.data.tf_example import record_in
from mtjudge_jax.demo import cases, dataset, scenes
from mtjudge_jax.demo.pretrain import corpus, tokenizer
from mtjudge_jax.records import unpack
from mtjudge_jax.tasks import TASKS

MAX_ASSET_BYTES = 8_000_000
FREE = re.compile(r"public-domain|CC0-1\.0|CC-BY(-SA)?-[1-4]\.[05]|Apache-2\.0")
SMALL = {"seed": 3, "train": 4, "val": 2, "test": 2, "unseen": 2}


@pytest.fixture(scope="module")
def pool():
    return scenes.load_pool("train")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.build_tokenizer(folder)
    return folder


def test_attribution_lists_every_shipped_picture_and_nothing_else():
    rows = re.findall(r"^\| ((?:photos|glyphs)/\S+) \|.*\| (.+?) \| (.+?) \| .+ \|$", (scenes.ASSETS / "ATTRIBUTION.md")
                      .read_text(), re.M)  # fmt: skip
    files = [p.relative_to(scenes.ASSETS).as_posix() for p in scenes.ASSETS.glob("*/*")]
    assert sorted(row[0] for row in rows) == sorted(files)
    assert all(author and FREE.fullmatch(licence) for _, author, licence in rows)


def test_assets_are_small_and_every_photograph_has_a_split():
    assert sum(p.stat().st_size for p in scenes.ASSETS.rglob("*") if p.is_file()) <= MAX_ASSET_BYTES
    table = json.loads((scenes.ASSETS / "splits.json").read_text())
    assert sorted(table) == sorted(p.stem for p in (scenes.ASSETS / "photos").iterdir())
    shares = Counter(row["split"] for row in table.values())
    assert set(shares) == set(scenes.SPLITS)
    assert 0.55 <= shares["train"] / len(table) <= 0.65 and 0.2 <= shares["test"] / len(table) <= 0.3
    for path in (scenes.ASSETS / "photos").iterdir():
        with Image.open(path) as image:
            assert image.mode in ("RGB", "L") and max(image.size) <= 320 and min(image.size) >= 96
    assert {p.stem for p in (scenes.ASSETS / "glyphs").iterdir()} == set(scenes.THINGS)


def test_pools_share_no_photograph_and_backgrounds_show_no_thing():
    pools = {split: scenes.load_pool(split) for split in scenes.SPLITS}
    names = [photo.name for p in pools.values() for photo in p.photos]
    assert len(names) == len(set(names)) >= 100
    assert all(not photo.shows for p in pools.values() for photo in p.backgrounds)
    assert all(len(p.backgrounds) >= 10 for p in pools.values())
    with pytest.raises(ValueError, match="train, val, test"):
        scenes.load_pool("dev")


def test_defects_are_measurable(pool):
    """Each defect moves the quantity that defines it well past every good picture."""
    rng = np.random.default_rng(0)
    good = [scenes.grey(scenes.photo_scene(rng, pool).image) for _ in range(30)]

    def bad(look):
        return [scenes.grey(scenes.photo_scene(rng, pool, look=look).image) for _ in range(30)]

    assert min(map(scenes.detail, good)) >= scenes.MIN_DETAIL > 1.5 * max(map(scenes.detail, bad("blurry")))
    assert min(g.mean() for g in good) >= scenes.MEAN_RANGE[0] > 1.3 * max(g.mean() for g in bad("dark"))
    bright = bad("bright")
    assert max((g > 243).mean() for g in good) <= scenes.MAX_EXTREME < 0.5 * np.median([(g > 243).mean() for g in bright])
    assert min(g.mean() for g in bright) > 150 > 1.1 * np.median([g.mean() for g in good])
    assert np.median([scenes.detail(g) for g in bad("noisy")]) > 2 * np.median([scenes.detail(g) for g in good])


def test_shuffled_and_inverted_are_rearrangements(pool):
    rng = np.random.default_rng(1)
    image = scenes.photo_scene(rng, pool).image
    shuffled = scenes.reorder(rng, image, "shuffled")
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))
    assert scenes.seam(scenes.grey(shuffled)) >= scenes.MIN_SEAM > scenes.seam(scenes.grey(image))
    assert np.array_equal(255 - scenes.reorder(rng, image, "inverted"), image)


def test_a_scene_is_a_function_of_its_generator(pool):
    for draw in (lambda rng: scenes.photo_scene(rng, pool, look="noisy"), lambda rng: scenes.glyph_scene(rng, pool, ("dog",))):
        a, b = (draw(np.random.default_rng(7)) for _ in range(2))
        assert np.array_equal(a.image, b.image) and a.photo == b.photo and a.image.shape == (96, 96, 3)
    with pytest.raises(ValueError, match="1 or 2 things"):
        scenes.glyph_scene(np.random.default_rng(0), pool, ())
    with pytest.raises(ValueError, match="sharp, blurry"):
        scenes.damage(np.random.default_rng(0), np.zeros((96, 96, 3), np.uint8), "grainy")


@pytest.mark.parametrize("task", cases.DEMO_TASKS)
def test_examples_are_balanced_repeatable_and_labelled_by_their_facts(task):
    examples = list(dataset.make_examples(split="val", task=task, count=24, seed=5))
    again = list(dataset.make_examples(split="val", task=task, count=24, seed=5))
    assert examples == again
    assert examples != list(dataset.make_examples(split="val", task=task, count=24, seed=6))
    names = {photo.name for photo in scenes.load_pool("val").photos}
    labels = []
    for i, example in enumerate(examples):
        assert example.example_id == f"demo/{task}/val/{i:06d}" and example.group_id in names
        assert TASKS[task].question_text(example.question)
        labels.append(cases.answer_word(TASKS[task].kind, example.label))
        assert labels[-1] == expected_answer(task, example.rationale)
        assert re.search(r": (yes|no)$", example.rationale)
    kind = TASKS[task].kind
    if kind == "listwise":
        good = [label.partition(" > ")[0].count("=") + 1 for label in labels]
        assert [sorted(good[i : i + 3]) for i in range(0, 24, 3)] == [[1, 2, 3]] * 8
        return
    words = {"pointwise_binary": ["no", "yes"], "pairwise": ["first", "second"], "pointwise_score": ["1", "3", "5"]}[kind]
    runs = [sorted(labels[i : i + len(words)]) for i in range(0, 24, len(words))]
    assert runs == [words] * (24 // len(words))
    assert len({tuple(labels[i : i + len(words)]) for i in range(0, 24, len(words))}) > 1  # and not one order


def expected_answer(task: str, rationale: str) -> str:
    """The answer that a person would give from the facts alone, whatever is said of them."""
    bad = {*scenes.DEFECTS, *scenes.DISORDERS, *scenes.HARMFUL, "differs"}
    told = re.split(r", (?=second )|, (?=[BCD] )", cases.stated_facts(rationale))
    faults = [len(set(re.findall(r"\w+", text)) & bad) for text in told]
    if task.startswith("pairwise_"):
        assert len(faults) == 2 and faults[0] != faults[1]
        return "first" if faults[0] < faults[1] else "second"
    if task.startswith("graded_"):
        return {0: "5", 1: "3", 2: "1"}[faults[0]]
    if task.startswith("ranked_"):
        levels = [" = ".join(name for name, n in zip("ABCD", faults, strict=True) if n == level) for level in sorted(set(faults))]
        return " > ".join(levels)
    return "no" if faults[0] else "yes"


def test_what_is_said_of_the_facts_is_true_of_each():
    """ "looks sharp: yes, parts shuffled: no": every fact has its own word, and the answer follows from these."""
    bad = {*scenes.DEFECTS, *scenes.DISORDERS, *scenes.HARMFUL, "differs"}
    for task in cases.DEMO_TASKS:
        for example in dataset.make_examples(split="val", task=task, count=12, seed=2):
            facts = re.findall(r"(?:looks|parts|shows|and) (\w+)(?:, (matches|differs))?: (yes|no)\b", example.rationale)
            assert len(facts) == example.rationale.count(":")
            assert all((word == "no") == bool({thing, found} & bad) for thing, found, word in facts), example.rationale


def test_a_reasoning_and_its_facts():
    told = ((cases.Fact("looks dark", False),), (cases.Fact("looks sharp", True),))
    text = cases.reasoning(told)
    assert text == "first looks dark: no, second looks sharp: yes"
    assert cases.stated_facts(text) == "first looks dark, second looks sharp"
    assert cases.answer_word("pairwise", cases.label_of("pairwise", told)) == "second"
    three = (*told, told[0], told[1])
    assert cases.reasoning(three).startswith("A looks dark: no, B looks sharp: yes, C looks dark")
    assert cases.answer_word("listwise", cases.label_of("listwise", three)) == "B = D > A = C"
    both = ((cases.Fact("looks dark", True), cases.Fact("parts ordered", False)),)
    assert cases.answer_word("pointwise_score", cases.label_of("pointwise_score", both)) == "3"
    assert cases.label_of("pointwise_binary", both).binary == 0
    assert cases.label_of("pointwise_binary", both, enough=any).binary == 1
    with pytest.raises(ValueError, match="label 3 must be 0 to 2"):
        cases.draw_case(np.random.default_rng(0), None, "graded_naturalness", label=3, variant=0)


def test_negatives_are_shared_among_their_kinds():
    def negatives(task):
        examples = dataset.make_examples(split="val", task=task, count=80, seed=0)
        return [example.rationale for example in examples if example.label.binary == 0]

    assert Counter(negatives("rationality")) == {"parts shuffled: no": 20, "parts inverted: no": 20}
    assert sum("differs" in r for r in negatives("preference")) == sum("looks sharp" in r for r in negatives("preference")) == 20
    natural = negatives("naturalness")
    assert 15 <= sum("looks sharp" in r for r in natural) <= 20 and 15 <= sum("parts ordered" in r for r in natural) <= 20


def test_an_example_does_not_depend_on_the_count():
    few = list(dataset.make_examples(split="test", task="safety", count=2, seed=0))
    assert list(dataset.make_examples(split="test", task="safety", count=6, seed=0))[:2] == few
    with pytest.raises(ValueError, match="even"):
        dataset.make_examples(split="test", task="safety", count=3, seed=0)
    with pytest.raises(ValueError, match="known are technical"):
        dataset.make_examples(split="test", task="beauty", count=2, seed=0)


def test_written_data_is_complete_repeatable_and_never_overwritten(tmp_path):
    folder = tmp_path / "data"
    dataset.write_demo_data(folder, **SMALL)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 2 and manifest["dataset"] == "demo" and len(manifest["files"]) == 3 * 8 + 7
    for name, row in manifest["files"].items():
        reader = ArrayRecordReader(str(folder / f"{name}.array_record"))
        examples = [unpack(record_in(record)) for record in reader.read_all()]
        assert len(examples) == row["count"] and {f"{e.split}/{e.task}" for e in examples} == {name}
    before = (folder / "manifest.json").stat().st_mtime_ns
    dataset.write_demo_data(folder, **SMALL)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another folder"):
        dataset.write_demo_data(folder, **{**SMALL, "seed": 4})
    dataset.write_demo_data(tmp_path / "twin", **SMALL)
    assert json.loads((tmp_path / "twin" / "manifest.json").read_text()) == manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "twin"]


def test_every_word_is_one_token(tokens, pool):
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_file(str(tokens / "tokenizer.json"))
    assert bpe.get_vocab_size() <= tokenizer.MAX_VOCABULARY
    rng = np.random.default_rng(0)
    texts = [corpus.base_sample(rng, pool, pictures=pictures) for pictures in (1, 2, 4) for _ in range(60)]
    for text in [part for sample in texts for part in (sample.question, sample.answer)]:
        pieces = re.findall(r"</?[a-z]+>| ?[A-Za-z]+| ?[>=]| ?[0-9]|[,.?:]", text)
        assert "".join(pieces) == text
        assert [bpe.id_to_token(i).replace("Ġ", " ") for i in bpe.encode(text).ids] == pieces


def test_tokenizer_loads_as_a_qwen3_vl_folder_and_lays_out_turns(tokens, tmp_path):
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tokens / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "Is this picture safe?"}]
    prompt = loaded.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is this picture safe?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(loaded.encode(prompt)) == 16
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|im_end|>")
    answer = "<think>shows axe: no</think><answer>no</answer>"
    assert loaded.decode(loaded.encode(answer + "<|im_end|>"), skip_special_tokens=True) == answer


def test_tokenizer_files_are_the_same_every_time(tokens, tmp_path):
    tokenizer.build_tokenizer(tmp_path)
    for path in tokens.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
