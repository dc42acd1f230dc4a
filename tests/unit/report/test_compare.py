"""Comparison of runs: the numbers of the tables and of the paper, what is read and what is refused."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from report_folder import Page, result, save

from mtjudge_jax.report.compare.compare import Cell, compare
from mtjudge_jax.report.compare.measures import measure_tables
from mtjudge_jax.report.compare.pages import arm_style, cell_text, comparison_markdown, write_comparison
from mtjudge_jax.report.compare.paper import PAPER, paper_arm
from mtjudge_jax.report.compare.read import read_runs, unlike_samples
from mtjudge_jax.report.intervals import score_difference


def line(task, name, label, verdict):
    p = {"task": task, "example_id": name, "group_id": name, "label": label, "verdict": verdict, "sampled_accuracy": None}
    return p | {"correct": label == verdict}


def test_the_papers_numbers_are_those_of_its_table():
    assert PAPER["mt_rl_judge"]["mj_safety"] == 82.23 and PAPER["sft_unified"]["mj_safety"] == 49.40
    assert PAPER["rl_single"]["agin_rat"] == 82.71 and "mj_safety" not in PAPER["rl_single"]
    assert [len(row) for row in PAPER.values()] == [8, 6, 8, 6, 8]
    assert paper_arm("MT-RL-Judge") == "mt_rl_judge" and paper_arm("off the shelf") == "off_the_shelf" and paper_arm("mine") == ""


def test_arms_in_rows_and_tasks_in_columns():
    runs = {
        "off_the_shelf": result(technical=(0.5, 0.4, 0.6), safety=0.3, pairwise_safety=0.5),
        "mine": result(technical=0.9, safety=0.7, pairwise_safety=(0.625, 0.6, 0.65)),
        "one": result(technical=0.95),
    }
    found = compare(runs)
    assert found.tasks == ["technical", "safety"] and found.unseen == ["pairwise_safety"] and found.base == "off_the_shelf"
    assert found.scores["off_the_shelf"]["technical"] == Cell(0.5, 0.4, 0.6)
    assert found.scores["mine"]["mean"].value == pytest.approx(0.8) and found.scores["mine"]["worst"].value == 0.7
    assert "mean" not in found.scores["one"]  # it has not all tasks
    assert found.transfer == {"mine": {"pairwise_safety": Cell(0.125), "mean": Cell(0.125)}}
    text = comparison_markdown(found)
    assert "| arm | technical | safety | mean | worst |" in text
    assert "| off_the_shelf | 50.0 [40.0, 60.0] | 30.0 | 40.0 | 30.0 |" in text
    assert "| one | 95.0 | – | – | – |" in text
    assert "| arm | pairwise_safety (accuracy) | mean |" in text and "| mine | 62.5 [60.0, 65.0] | 62.5 |" in text
    assert "## Format transfer: pairwise minus off_the_shelf" in text and "| mine | +12.5 | +12.5 |" in text
    assert "paper" not in text


def test_seeds_are_their_mean_and_lowest_to_highest():
    seeds = [result(technical=x, pairwise_safety=y) for x, y in ((0.8, 0.5), (0.9, 0.75), (0.7, 0.625))]
    found = compare({"off_the_shelf": [result(technical=0.5, pairwise_safety=0.5)], "mine": seeds})
    assert found.scores["mine"]["technical"] == Cell(pytest.approx(0.8), 0.7, 0.9, 3)
    assert found.transfer["mine"]["pairwise_safety"] == Cell(0.125, 0.0, 0.25, 3)
    text = comparison_markdown(found)
    assert "lowest to highest seed" in text and "| arm | seeds | technical | mean | worst |" in text
    assert "| mine | 3 | 80.0 (70.0 to 90.0) | 80.0 (70.0 to 90.0) | 80.0 (70.0 to 90.0) |" in text
    assert "| off_the_shelf | 1 | 50.0 | 50.0 | 50.0 |" in text
    assert "| mine | 3 | +12.5 (+0.0 to +25.0) | +12.5 (+0.0 to +25.0) |" in text


def test_both_orders_stand_beside_the_unseen_form():
    runs = {"off_the_shelf": result(pairwise_safety=0.5, pairwise_technical=0.25), "mine": result(pairwise_safety=0.75)}
    for task, consistency in (("pairwise_safety", 0.5), ("pairwise_technical", 0.75)):
        runs["off_the_shelf"]["tasks"][task] |= {"consistency": consistency, "invalid_rate": 0.0, "accuracy": 0.4}
    text = comparison_markdown(compare(runs))  # by accuracy
    assert "| arm | pairwise_safety (accuracy) | pairwise_technical (accuracy) | mean | same winner | invalid |" in text
    assert "| off_the_shelf | 40.0 | 40.0 | 40.0 | 62.5 | 0.0 |" in text and "| mine | 75.0 | – | – | – | – |" in text
    text = comparison_markdown(compare(runs, metric="macro_f1"))
    assert "| arm | pairwise_safety | pairwise_technical | mean | accuracy | same winner | invalid |" in text
    assert "| off_the_shelf | 50.0 | 25.0 | 37.5 | 40.0 | 62.5 | 0.0 |" in text


def test_constant_answer_and_position_bias_are_named_and_empty_columns_left_out():
    runs = {"a": result(technical=0.5, pairwise_safety=0.5), "b": result(technical=0.75)}
    runs["a"]["tasks"]["technical"] |= {"constant_macro_f1": 1 / 3, "kappa": None}
    (table,) = measure_tables(compare(runs))
    assert table.head == ["task", "arm", "macro-F1", "constant answer", "accuracy"]  # no kappa, no official
    assert table.rows[0] == ["technical", "a", "0.500", "0.333", "0.500"] and table.rows[1][3] == ""
    assert "Constant answer: the macro-F1 of the best judge that always gives the same verdict." in table.note
    runs["a"]["tasks"]["pairwise_safety"] |= {"first_share": 0.1875, "position_bias": -0.3125}
    verdicts, pairs = measure_tables(compare(runs))
    assert verdicts.rows[2] == ["pairwise_safety", "a", "0.500", "", "0.500"]
    assert pairs.head == ["task", "arm", "first wins", "position bias"]
    assert pairs.rows == [["pairwise_safety", "a", "0.188", "-0.312"]]  # no row of a task without such a measure
    assert "Position bias: the share of choices (ties left out) for the first picture, minus" in pairs.note
    runs["b"]["tasks"]["technical"] |= {"official": {"srcc": 0.25}}
    assert measure_tables(compare(runs))[-1].rows == [["technical", "b", "srcc 0.250"]]


def test_the_papers_numbers_stand_beside():
    runs = {
        "off_the_shelf": result(agin_nat=0.6812, mj_safety=0.7),
        "MT-RL-Judge": result(agin_nat=0.8, mj_safety=0.8),
        "mine": result(agin_nat=0.7, mj_safety=0.9),
    }
    text = comparison_markdown(compare(runs, metric="macro_f1"))
    assert "| off_the_shelf | 68.1 paper 67.99 | 68.1 | 68.1 |" in text
    assert "| MT-RL-Judge | 80.0 paper 81.63 | 80.0 | 80.0 |" in text and "| mine | 70.0 | 70.0 | 70.0 |" in text
    assert "| paper: sft_unified | 81.75 |  |  |" in text and "| paper: sft_unified | 49.40 |  |" in text
    assert "paper: mt_rl_judge" not in text  # it stands beside the run of that name
    assert "| MT-RL-Judge | +10.0 paper +9.16 | +10.0 |" in text  # 82.23 - 73.07


def test_means_and_differences_have_intervals_from_predictions():
    rng = np.random.default_rng(0)
    labels = rng.choice(["no", "yes"], 200)
    guess = rng.choice(["no", "yes"], 200)
    before = [line("technical", f"g{i}", labels[i], guess[i]) for i in range(200)]
    after = [line("technical", f"g{i}", labels[i], labels[i] if i % 10 else guess[i]) for i in range(200)]
    wide = score_difference(before, [{**p, "group_id": f"{p['group_id']}b"} for p in after], ["technical"], score="accuracy")
    value, low, high = score_difference(before, after, ["technical"], score="accuracy")
    gain = np.mean([p["label"] == p["verdict"] for p in after]) - np.mean(labels == guess)
    assert value == pytest.approx(gain) and low < gain < high and 0.08 < high - low < 0.2
    assert high - low < wide[2] - wide[1]  # the same questions: what is hard for both cancels
    same = score_difference(before, before, ["technical"], score="macro_f1")
    assert same == (0.0, 0.0, 0.0)
    assert score_difference([], after, ["technical"], score="accuracy") is None
    assert score_difference(before, after, ["technical"], score="tau_b") is None
    pairs = {name: result(technical=0.5) | {"predictions": rows} for name, rows in (("a", before), ("b", after))}
    assert compare(pairs).scores["b"]["mean"].low is not None


def test_a_cell_in_words():
    assert cell_text(None) == "–" and cell_text(Cell(1.0)) == "100.0"
    assert cell_text(Cell(0.8163, 0.79, 0.84)) == "81.6 [79.0, 84.0]"
    assert cell_text(Cell(-0.012, -0.03, 0.0), sign=True) == "-1.2 [-3.0, +0.0]"
    assert cell_text(Cell(0.5, 0.4, 0.6, seeds=2)) == "50.0 (40.0 to 60.0)"


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="nothing to compare: no run without a result"):
        compare({})
    with pytest.raises(ValueError, match="--base=x: no such run, there are a"):
        compare({"a": result(technical=0.5)}, base="x")
    with pytest.raises(ValueError, match="--tasks=safety: none is in the runs, they have technical"):
        compare({"a": result(technical=0.5)}, tasks=["safety"])


def test_runs_are_found(tmp_path):
    save(tmp_path / "run" / "eval" / "base_test.json", result(technical=0.5))
    save(tmp_path / "run" / "eval" / "trained_test.json", result(technical=0.9))
    save(tmp_path / "again" / "test.json", result(technical=0.8), [line("technical", "a", "no", "no")])
    save(tmp_path / "again" / "val.json", result(technical=0.1))
    save(tmp_path / "s" / "one.json", result(safety=0.7))
    found = read_runs([str(tmp_path / name) for name in ("run", "again", "run/eval/base_test.json", "s")])
    assert list(found) == ["run", "again", "run/base_test", "s"]
    assert [runs[0]["tasks"]["technical"]["macro_f1"] for runs in list(found.values())[:3]] == [0.9, 0.8, 0.5]
    assert len(found["again"][0]["predictions"]) == 1
    # One model a task, two seeds of it.
    named = [f"single={tmp_path / name}" for name in ("run", "s", "again", "s/one.json")]
    (seeds,) = read_runs(named).values()
    assert [{task: score["macro_f1"] for task, score in seed["tasks"].items()} for seed in seeds] == [
        {"technical": 0.9, "safety": 0.7},
        {"technical": 0.8, "safety": 0.7},
    ]


BAD = {
    "nowhere": "no such file or folder",
    "empty": "must have one result but has none",
    "two": "must have one result but has a.json, b.json",
    "workdir": "is a workdir without eval/trained_test.json",
    "cut.json": "is damaged",
    "other.json": "has no task scores",
    "=x": "give PATH or ARM=PATH",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_is_said(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "workdir" / "eval").mkdir(parents=True)
    for other in ("a", "b"):
        save(tmp_path / "two" / f"{other}.json", result(technical=0.5))
    (tmp_path / "cut.json").write_text('{"tasks": {')
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match=BAD[name]) as refused:
        read_runs([name if name.startswith("=") else str(tmp_path / name)])
    assert "\n" not in str(refused.value)


def test_arms_look_different():
    assert len({arm_style(number) for number in range(36)}) == 36
    assert arm_style(0) == ("#0072b2", "o") and arm_style(6) == ("#0072b2", "s")


def test_pages_and_plots(tmp_path):
    hostile = "<script>alert(1)</script>|"
    runs = {"off_the_shelf": result(technical=0.5, pairwise_safety=0.5), hostile: result(technical=0.9, pairwise_safety=0.75)}
    runs[hostile]["tasks"]["technical"]["official"] = {"SRCC": 0.25}
    written = write_comparison(compare(runs), tmp_path / "out")
    names = ["comparison.html", "comparison.json", "comparison.md", "comparison.png", "transfer.png"]
    assert [path.name for path in written] == names
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert len(Page(page).all("script")) == 1 and "script-src 'sha256-" in page and "&lt;script&gt;" in page
    assert "alert(1)" in Page(page).text and not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "://" not in page
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (data["base"], data["metrics"]["pairwise_safety"], data["note"]) == ("off_the_shelf", "accuracy", "")
    assert data["transfer"] == {hostile: dict.fromkeys(("pairwise_safety", "mean"), Cell(0.25)._asdict())}
    assert "SRCC 0.250" in page and "+25.0" in page and len(Page(page).all("svg")) == 2
    assert "&lt;" not in (text := (tmp_path / "out" / "comparison.md").read_text()) and "</script>\\| | 90.0" in text
    for name in ("comparison.png", "transfer.png"):
        data = (tmp_path / "out" / name).read_bytes()
        assert Image.open(io.BytesIO(data)).size[0] >= 1000
    before = {path: path.read_bytes() for path in written}
    write_comparison(compare(runs), tmp_path / "out")
    assert before == {path: path.read_bytes() for path in written}


def test_arms_with_other_numbers_of_sampled_answers_are_told():
    """A vote of two answers does not compare with one of eight."""
    eight, two, old = ({"settings": {"samples": 8}}, {"settings": {"samples": 2}}, {})
    said = "Answers sampled a question: sft 8, rl 2. Majority and self-agreement do not compare across these numbers."
    assert unlike_samples({"sft": [eight, eight], "rl": [two], "older": [old]}) == said
    assert unlike_samples({"sft": [eight], "rl": [eight], "older": [old]}) == ""
    assert "rl 2 and 8" in unlike_samples({"sft": [eight], "rl": [eight, two]})
