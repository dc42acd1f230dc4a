"""The report page over a synthetic run folder: what it says, that it is one inert file, that missing parts are said."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from report_folder import PAIRWISE, POINTWISE, Page, draw_picture, make_example, make_workdir, write_evaluation

from mtjudge_jax.report.curves import mixture_plot
from mtjudge_jax.report.examples import _judged_pairs, choose_balanced, thumbnail
from mtjudge_jax.report.intervals import mean_interval
from mtjudge_jax.report.page import format_ci, format_duration
from mtjudge_jax.report.plots import Series, draw_curves, looks_of, smooth
from mtjudge_jax.report.read import Evaluation, latest_by_step, read_run
from mtjudge_jax.report.write import write_report
from mtjudge_jax.tasks import TASKS

HOSTILE = '<script>document.title="run"</script><img src=x onerror=alert(1)>"\'{{ 7*7 }}'


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def source(workdir):
    return write_report(workdir).read_text(encoding="utf-8")


def test_page_is_complete(workdir, source):
    page = Page(source)
    scores = json.loads((workdir / "eval" / "trained_test.json").read_text())
    assert (workdir / "report.html").exists()
    assert not list(workdir.glob(".report*"))  # the temporary file is gone
    headline = re.sub(r"[ \n]+", " ", page.text)
    assert "12 steps" in headline and "32.1\u00a0s" in headline
    title = re.search(r"<h1>(.*?)</h1>", source, re.S).group(1)
    assert re.fullmatch(r"Mean macro-F1 on held-out questions rose from 0\.\d\d to (0\.\d\d)", " ".join(title.split()))
    assert f"to {scores['mean']['macro_f1']:.2f}" in title
    assert f"→ {scores['mean']['macro_f1']:.2f} " in headline
    assert f"→ {100 * scores['mean']['sampled_accuracy']:.0f}\u00a0% " in headline
    assert "unknown" not in headline
    assert "coin flips" in page.text and "demonstration set made by construction" in page.text
    assert "Missing from this page" not in page.text
    plots = [a for a in page.all("div") if a.get("class") == "chart"]
    assert len(page.all("svg")) == len(plots) == 1 + 10 + 1 and all(len(a["aria-label"]) > 30 for a in plots)
    names = ("strip", "tasks", "honest", "curves", "pairwise", "answers", "measured", "work", "examples")
    order = [source.index(f'class="{name}"' if name in ("strip", "honest") else f'id="{name}"') for name in names]
    assert order == sorted(order)


def test_one_picture_shows_tasks_and_pairs_before_and_after(workdir, source):
    """The trained tasks, their mean, then the pairs that were never trained."""
    before, after = (json.loads((workdir / "eval" / f"{name}_test.json").read_text()) for name in ("base", "trained"))
    label = next(a["aria-label"] for a in Page(source).all("div") if a.get("aria-label", "").startswith("Macro-F1 of the base"))
    scores = [(task, before["tasks"][task], after["tasks"][task]) for task in (*POINTWISE, *PAIRWISE)]
    scores.insert(len(POINTWISE), ("mean", before["mean"], after["mean"]))
    rows = [f"{name} {old['macro_f1']:.3g} to {new['macro_f1']:.3g}" for name, old, new in scores]
    assert label == f"Macro-F1 of the base and the trained model, by task: {'; '.join(rows)}."
    assert "Below the mean: tasks on pairs of pictures that were never trained." in Page(source).text


def test_all_numbers_of_the_test_split_are_there(workdir, source):
    """Kappa, calibration and the official metric of every task, of the base and of the trained model."""
    table = source[source.index('id="measured"') : source.index('id="work"')]
    titles, shown = re.findall("<h3>(.*?)</h3>", table), {}
    assert titles == ["Verdicts", "Probabilities of the labels", "Pairs, over both orders", "Official measures"]
    for title, part in zip(titles, re.findall("<table.*?</table>", table, re.S), strict=True):
        heads = re.findall(r'<th scope="col">(.*?)</th>', part)
        rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)[1:]]
        tasks = PAIRWISE if title.startswith("Pairs") else (*POINTWISE, *PAIRWISE)
        assert [row[:2] for row in rows] == [[task, arm] for task in tasks for arm in ("base", "trained")]
        for task, arm, *cells in rows:
            shown.setdefault((task, arm), {}).update(zip(heads[2:], cells, strict=True))
    for (task, arm), cells in shown.items():
        score = json.loads((workdir / "eval" / f"{arm}_test.json").read_text())["tasks"][task]
        assert cells["kappa"] == f"{score['kappa']:.3f}" and cells["ECE"] == "0.125"
        assert cells["official"] == f"acc_with_tie {score['accuracy']:.3f}"
        assert cells.get("same winner") == ("0.700" if task in PAIRWISE else None)


def test_the_weights_of_mt_grpo_are_drawn(workdir, source):
    run = read_run(workdir)
    assert mixture_plot(run, looks_of(POINTWISE)) is None
    for line in run.train:
        line["mixture"] = {task: {"weight": 0.1 * (i + line["step"] % 2)} for i, task in enumerate(POINTWISE)}
    drawn = mixture_plot(run, looks_of(POINTWISE))
    assert drawn.title == "Weights of the tasks" and all(task in drawn.alt for task in POINTWISE)


def test_curves_can_be_read(workdir, source):
    """No text is smaller than 11 pixels at 360, every number of a step is there under the pointer, no two tasks look the same."""
    page = Page(source)
    charts = [a for a in page.all("div") if a.get("class") == "chart"]
    assert all(float(size) >= 11 for size in re.findall(r"font-size: ([\d.]+)px", source[: source.index("<script>")]))
    assert all(float(a["viewbox"].split()[2]) <= 330 for a in page.all("svg"))
    curves = {a["aria-label"].split(", steps")[0]: json.loads(a["data-values"]) for a in charts if "data-values" in a}
    assert {"Learning rate", "Gradient norm", "Reward", "Loss", "Macro-F1 on validation"} <= set(curves)
    (rate,) = curves["Learning rate"]["lines"]
    assert rate["x"] == list(range(1, 13)) and rate["y"] == [2e-4] * 12
    *_, mean = curves["Macro-F1 on validation"]["lines"]
    judged = [line for line in read_run(workdir).validation if (workdir / "eval" / f"val_{line['step']:06d}.json").exists()]
    assert mean["name"] == "mean" and sum(band is not None for band in mean["band"]) == len(judged) == 2
    looks = looks_of([f"t{i}" for i in range(24)])
    assert len({(look.color, look.dash) for look in looks.values()}) == 24


def test_the_page_has_a_dark_side_and_hints_at_hidden_columns(source):
    assert "prefers-color-scheme: dark" in source and "color-scheme: light dark" in source
    drawn = source[source.index("<body>") : source.index("<script>")]
    assert not re.search(r"(fill|stroke|background|color): ?#", drawn)  # all by variables of the style sheet
    used, known = set(re.findall(r"var\((--[\w]+)\)", source)), set(re.findall(r"(--[\w]+):", source))
    assert used <= known | {"--share"}
    hints = re.findall(r'<p class="hint.*?</p>\s*<div class="scroll"', source, re.S)
    tables = re.findall('<table class="wide.*?</table>', source, re.S)
    assert len(tables) == 6 and len(hints) == sum(table.count('scope="col"') > 3 for table in tables) == 4


def test_cards_have_pictures_question_and_filters(source):
    page = Page(source)
    cards = [a for a in page.all("li") if "data-task" in a]
    assert len(cards) == 6 * (6 + 6) + 3 * 12  # val and test, and the pairwise tasks in both orders
    listed = Page(source[source.index('id="examples"') :])
    pictures = [a for a in listed.all("img") if a["src"].startswith("data:image/webp")]
    assert len(pictures) == 6 * 12 + 3 * 12 * 2 and all("picture of example" in a["alt"] for a in pictures)
    assert {a["data-split"] for a in cards} == {"test", "val"}
    assert {a["data-outcome"].split()[0] for a in cards} == {"right", "wrong"}
    assert TASKS["technical"].template in page.text and "Is it right that this picture shows a cup of tea?" in page.text
    for control in page.all("select") + page.all("input"):
        assert control["name"] in ("task", "outcome", "split", "text")


def test_page_needs_no_network_and_runs_only_its_own_script(source):
    page = Page(source)
    assert "://" not in source.replace("data:image/", "")
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/"))
        assert not [name for name in attrs if name.startswith("on")]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert len(page.all("script")) == 1


def test_hostile_text_is_inert_and_cut(tmp_path):
    folder = make_workdir(tmp_path, per_task=2)
    path = folder / "eval" / "trained_test.predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"text": HOSTILE + "x" * 1_000_000, "reasoning": HOSTILE, "error": HOSTILE}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((folder / "config.json").read_text()) | {HOSTILE: HOSTILE}
    (folder / "config.json").write_text(json.dumps(config))
    source = write_report(folder).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("script")) == 1 and "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert "&lt;script&gt;document.title" in source and HOSTILE in page.text
    assert "1,000,0" in page.text and len(source) < 3_000_000  # 24 answers of a megabyte were cut, and it is said


def test_unfinished_run_says_what_is_missing(tmp_path):
    (tmp_path / "eval").mkdir()
    page = Page(write_report(tmp_path, out=tmp_path / "other.html").read_text(encoding="utf-8"))
    assert "has not been evaluated on its test split yet (0 training steps done)" in page.text
    for part in ("config.json", "metrics.jsonl", "eval/base_test.json", "eval/trained_test.json", "data folder"):
        assert part in page.text
    folder = make_workdir(tmp_path / "run")
    for name in ("trained_test.json", "trained_test.predictions.jsonl"):
        (folder / "eval" / name).unlink()
    (folder / "data" / "test" / "safety.array_record").unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "the trained model has not been evaluated yet (12 steps done)" in re.sub(r"\s+", " ", page.text)
    assert "metrics.jsonl: 1 of 20 lines could not be read" in page.text
    assert "test/safety.array_record missing; prepare the data first" in page.text
    with pytest.raises(FileNotFoundError, match="give the --workdir"):
        write_report(tmp_path / "nowhere")


def test_same_folder_gives_the_same_bytes(workdir, source):
    assert write_report(workdir).read_text(encoding="utf-8") == source


def test_reference_is_set_beside(tmp_path):
    folder = make_workdir(tmp_path, per_task=2)
    rng = np.random.default_rng(3)
    examples = [make_example(rng, task, "test", i) for task in POINTWISE for i in range(4)]
    write_evaluation(folder / "eval", "reference_sft_test", examples, rng, skill=1.0)
    text = re.sub(r"\s+", " ", Page(write_report(folder).read_text(encoding="utf-8")).text)
    assert re.search(r"It reaches a mean macro-F1 of (1\.00|0\.9\d)", text) and "SFTreference" in text


def test_choice_is_balanced_and_deterministic():
    rows = [
        {"task": "t", "example_id": str(i), "correct": i >= 12, "label": ("no", "yes")[i % 2], "verdict": "no"}
        for i in range(100)
    ]
    chosen = choose_balanced(rows, 20)
    assert sum(r["correct"] for r in chosen) == 10
    assert [sum(r["label"] == "yes" for r in chosen if r["correct"] is side) for side in (True, False)] == [5, 5]
    assert chosen == choose_balanced(rows[::-1], 20)
    assert sum(not r["correct"] for r in choose_balanced(rows, 40)) == 12  # all the wrong ones there are, the rest right


def test_mean_interval_covers_and_keeps_groups_together():
    rng = np.random.default_rng(0)
    rows = [
        {"task": t, "group_id": str(i), "label": ("no", "yes")[i % 2], "sampled_accuracy": 0.75}
        | {"verdict": ("no", "yes")[int(i % 2) ^ int(rng.random() < 0.2)]}
        for t in ("technical", "safety") for i in range(400)
    ]  # fmt: skip
    low, high = mean_interval(rows, ["technical", "safety"], score="macro_f1")
    assert low < 0.8 < high and high - low == pytest.approx(2 * 1.96 * 0.4 / np.sqrt(800), rel=0.25)
    assert mean_interval(rows, ["technical", "safety"], score="sampled_accuracy") == pytest.approx([0.75, 0.75])
    doubled = mean_interval(rows + rows, ["technical", "safety"], score="macro_f1")  # copies in the same group tell nothing new
    assert doubled == pytest.approx([low, high], abs=1e-9)
    wrong = [row | {"verdict": None} for row in rows]
    assert mean_interval(wrong, ["technical", "safety"], score="macro_f1") == [0.0, 0.0]
    assert mean_interval(rows, ["technical", "alignment"], score="macro_f1") is None


def test_small_parts():
    assert latest_by_step([{"step": 1}, {"step": 2, "x": 0}, {"step": 3}, {"step": 2, "x": 1}])[1] == {
        "step": 2,
        "x": 1,
    }
    assert np.allclose(smooth([1.0, 2.0, 3.0]), [1, 2, 3])
    assert np.allclose(smooth([0.0, 48.0] * 24)[24], 24, atol=24 / 5)
    assert [format_duration(s).replace("\u00a0", " ") for s in (75.2, 7260, 4.2)] == [
        "1 min 15 s",
        "2 h 1 min",
        "4.2 s",
    ]
    assert format_ci((0.781, 0.84), 100) == "78 to 84\u00a0%" and format_ci(None) == "unknown"
    assert draw_curves("x", [Series("all", [1, 2], [None, float("nan")], "#000000")]) is None
    assert thumbnail(b"not a picture") == ""


def test_thumbnail_shrinks_and_encodes_again():
    file = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(file, "JPEG", comment=b"hidden")
    data = base64.b64decode(thumbnail(file.getvalue()).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (192, 96) and b"hidden" not in data
    assert len(base64.b64decode(thumbnail(draw_picture(np.random.default_rng(0))).split(",")[1])) < 10_000


def test_the_first_validation_is_set_beside_the_last():
    """Of three validations the middle one is not shown; of one alone there is nothing before."""
    runs = {f"val_{step:06d}": Evaluation(f"val_{step:06d}", {}, {}, [], None) for step in (12, 0, 6)}
    assert list(_judged_pairs(runs)) == [("val", runs["val_000000"], runs["val_000012"])]
    assert list(_judged_pairs({"val_000012": runs["val_000012"]})) == [("val", None, runs["val_000012"])]
    runs |= {"trained_test": Evaluation("trained_test", {}, {}, [], None)}
    assert next(_judged_pairs(runs)) == ("test", None, runs["trained_test"])
