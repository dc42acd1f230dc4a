"""Two runs on the same questions: the statistics, the table, what they disagree on, where evaluations are found."""

import json
import shutil

import numpy as np
import pytest
from report_folder import Page, make_workdir, result, save
from scipy import stats

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.paired import mcnemar_exact, paired_interval
from mtjudge_jax.report.compare.compare import compare
from mtjudge_jax.report.compare.pages import p_text, write_comparison
from mtjudge_jax.report.compare.paired import ALL, disagreements, paired_rows
from mtjudge_jax.report.compare.read import read_runs
from mtjudge_jax.report.read import find_evaluation, read_run


def judged(task, right, *, start=0, group=lambda i: f"g{i}", **more):
    """Predictions of which those in `right` (by place) are correct."""
    return [
        {"task": task, "example_id": f"e{i}", "group_id": group(i), "label": "yes", "verdict": "yes" if ok else "no",
         "correct": ok, "text": "", "reasoning": "", "split": "test", "sampled_accuracy": None} | more
        for i, ok in enumerate(right, start)
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (1, 7), (7, 1), (5, 5), (3, 20), (150, 201), (900, 1300)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_paired_interval_covers_as_often_as_it_says():
    """100 data sets of two judges whose accuracies differ by 0.1, two questions a group: about 95 intervals hold 0.1."""
    rng, held, width = np.random.default_rng(0), 0, 0.0
    for _ in range(100):
        hard = np.repeat(rng.random(60), 2)  # of a photograph, for both judges
        before, after = ((rng.random(120) < p).astype(float) for p in (0.8 - 0.6 * hard, 0.9 - 0.6 * hard))
        low, high = paired_interval(after - before, np.repeat([0, 1], 60), np.arange(120) // 2)
        held, width = held + (low <= 0.1 <= high), width + (high - low) / 100
    assert 88 <= held <= 100 and 0.2 < width < 0.3
    assert paired_interval(np.zeros(4), np.zeros(4, int), np.arange(4)) == [0.0, 0.0]


def test_rows_are_of_the_questions_that_both_were_asked():
    base = judged("a", [True, True, False, False, True]) + judged("b", [True] * 3) + judged("c", [True])
    arm = judged("a", [True, False, True, True], start=0) + judged("b", [False, False, True])
    arm += judged("a", [False], start=4, unusable=True)
    first, second, both = paired_rows(base, arm, ["a", "b", "c"])
    assert (first.task, first.questions, first.base, first.arm, first.only_base, first.only_arm) == ("a", 4, 0.5, 0.75, 1, 2)
    assert first.difference[0] == 0.25 and first.difference[1] <= 0.25 <= first.difference[2] and first.p == 1.0
    assert (second.task, second.base, second.arm, second.p) == ("b", 1.0, pytest.approx(1 / 3), 0.5)
    assert (both.task, both.questions, both.only_base, both.only_arm) == (ALL, 7, 3, 2)
    assert both.difference[0] == pytest.approx((0.25 - 2 / 3) / 2)  # the tasks count alike
    assert paired_rows(base, [], ["a"]) == [] and len(paired_rows(base, arm, ["a"])) == 1
    other = judged("a", [True]) + judged("a", [True], start=1)
    other[1]["label"] = "no"  # other data under the same id is another question
    assert paired_rows(base, other, ["a"])[0].questions == 1


def test_what_they_disagree_on():
    base = judged("a", [True, True, False, True]) + judged("b", [True, False, False])
    arm = judged("a", [False, False, True, True]) + judged("b", [False, True, True])
    found = disagreements(base, arm, ["a", "b"], 24)
    assert [(one.after["task"], one.after["correct"]) for one in found] == [
        ("a", False), ("b", False), ("a", False), ("a", True), ("b", True), ("b", True),
    ]  # fmt: skip
    assert all(one.before["correct"] is not one.after["correct"] for one in found)
    assert [one.after["correct"] for one in disagreements(base, arm, ["a", "b"], 4)] == [False, False, True, True]
    assert len(disagreements(base, arm, ["a"], 24)) == 3


def test_p_in_words():
    assert [p_text(p) for p in (1.0, 0.0312, 0.001, 0.00099)] == ["1.000", "0.031", "0.001", "< 0.001"]


def test_own_pairs_are_scored_by_their_own_metric():
    """Macro-F1 over A, B and an absent tie would hide that accuracy rose."""
    entry = {"name": "sharper", "kind": "pairwise", "question": "Which is sharper?", "allow_tie": True}
    runs = {name: result(sharper=0.5) for name in ("sft", "rl")}
    for name, accuracy in (("sft", 0.683), ("rl", 0.817)):
        runs[name]["tasks"]["sharper"] |= {"accuracy": accuracy, "macro_f1": 0.6}
        runs[name]["predictions"] = [p | {"label": "A", "verdict": "A", "custom": entry} for p in judged("sharper", [True])]
    found = compare(runs)
    assert found.metrics == {"sharper": "accuracy"} and found.scores["rl"]["sharper"].value == 0.817
    # Without predictions nothing says what the task is.
    assert compare({"sft": result(sharper=0.5)}).metrics == {"sharper": "macro_f1"}


def pair_of_runs(folder):
    """runs/sft and runs/rl with the same questions."""
    for name, seed in (("sft", 0), ("rl", 0)):
        make_workdir(folder / name, per_task=6, seed=seed)
    path = folder / "rl" / "eval" / "trained_test.predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["correct"] = bool(i % 3) or row["correct"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "sft", folder / "rl"


def test_two_workdirs_side_by_side(tmp_path):
    """Paired differences, the learning curves of both, and the pictures on which they disagree."""
    places = pair_of_runs(tmp_path)
    comparison = compare(read_runs([str(place) for place in places]))
    assert comparison.base == "sft" and [row.task for row in comparison.paired["rl"]][-1] == ALL
    written = {path.name: path for path in write_comparison(comparison, tmp_path / "out")}
    source = written["comparison.html"].read_text()
    page = Page(source)
    cards = [a for a in page.all("li") if "data-task" in a]
    differ = comparison.paired["rl"][-1]
    assert 0 < len(cards) == min(24, differ.only_base + differ.only_arm)
    assert [a for a in page.all("img") if a["src"].startswith("data:image/webp")]
    assert "Where sft and rl disagree" in page.text and "Paired differences from sft" in page.text
    curves = [a["aria-label"] for a in page.all("div") if a.get("class") == "chart" and a.get("data-values")]
    assert len(curves) == 6 and all("sft" in text and "rl" in text for text in curves)
    paired = json.loads(written["comparison.json"].read_text())["paired"]["rl"]
    assert paired[-1]["only_arm"] == differ.only_arm and paired[0]["p"] == comparison.paired["rl"][0].p
    # Two results of one run have its curves only once, so there is nothing to compare.
    one = [f"{name}={places[0]}/eval/{name}_test.json" for name in ("base", "trained")]
    write_comparison(compare(read_runs(one)), tmp_path / "one")
    assert "Learning curves" not in (tmp_path / "one" / "comparison.html").read_text()


def move_test(workdir, out, **judged_by):
    """What `mtjudge eval --model=WORKDIR --out=OUT` leaves, in place of eval/trained_test.json."""
    out.mkdir()
    for ending in (".json", ".predictions.jsonl"):
        (workdir / "eval" / f"trained_test{ending}").rename(out / f"test{ending}")
    path = out / "test.json"
    (workdir / "best").mkdir(exist_ok=True)
    (workdir / "best" / "judge.json").write_text(json.dumps({"step": 12}))
    facts = {"model": str(workdir / "best"), "data": str(workdir / "data"), "step": 12} | judged_by
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split": "test", "judged": facts}))


def test_an_evaluation_is_found_wherever_it_was_written(tmp_path):
    """`mtjudge eval --model=runs/rl --out=runs/rl_test`, as the documentation has it, then `mtjudge report runs/sft runs/rl`."""
    sft, rl = pair_of_runs(tmp_path)
    move_test(rl, tmp_path / "rl_test")
    runs = read_runs([str(sft), str(rl)])
    assert runs["rl"][0]["note"] == f"{rl}: evaluated in {tmp_path / 'rl_test' / 'test.json'}" and not runs["sft"][0]["note"]
    assert runs["rl"][0]["tasks"] and runs["rl"][0]["data"] == rl / "data"
    run = read_run(rl)  # the page of one run finds it too
    assert run.evaluations["trained_test"].tasks and any("rl_test/test.json" in problem for problem in run.problems)
    assert not any("mtjudge eval" in problem for problem in run.problems)
    assert list(read_runs([str(tmp_path / "rl_test")])) == ["rl_test"]  # or the folder itself


def test_of_several_evaluations_the_fullest_is_taken(tmp_path):
    """Not the newest: a look at one task, a few examples or held-out wordings does not take the place of the whole."""
    _, rl = pair_of_runs(tmp_path)
    config = {"data": {"tasks": ["technical", "safety"]}}
    move_test(rl, tmp_path / "rl_test")
    whole = tmp_path / "rl_test" / "test.json"
    full = json.loads(whole.read_text())
    score = next(iter(full["tasks"].values()))
    full |= {"tasks": {"technical": score, "safety": score}, "settings": {"wordings": "train"}}
    whole.write_text(json.dumps(full))
    others = {"one": {"tasks": {"safety": full["tasks"]["safety"]}}, "few": {"settings": {"wordings": "train", "limit": 5}}}
    others["held"] = {"settings": {"wordings": "held_out"}}
    for name, change in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_text(json.dumps(full | change))
        assert find_evaluation(rl, config, rl / "data", "trained_test") == whole, name
    whole.unlink()
    shutil.rmtree(tmp_path / "few")
    assert find_evaluation(rl, config, rl / "data", "trained_test") == tmp_path / "one" / "test.json"
    (rl / "config.json").write_text(json.dumps(json.loads((rl / "config.json").read_text()) | config))
    (said,) = [problem for problem in read_run(rl).problems if "trained_test.json is missing" in problem]
    assert said.endswith("It is of 1 of the 2 trained tasks; a whole one takes its place.")


@pytest.mark.parametrize("other", [{"step": 6}, {"data": "/elsewhere"}, {"model": "/another/best"}])
def test_an_evaluation_of_another_model_or_data_is_not_taken(tmp_path, other):
    _, rl = pair_of_runs(tmp_path)
    move_test(rl, tmp_path / "rl_test", **other)
    assert find_evaluation(rl, {}, rl / "data", "trained_test") is None


def test_without_an_evaluation_runs_are_compared_by_their_best_validation(tmp_path):
    sft, rl = pair_of_runs(tmp_path)
    for ending in (".json", ".predictions.jsonl"):
        (rl / "eval" / f"trained_test{ending}").unlink()
    runs = read_runs([str(sft), str(rl)])
    assert "validation" in runs["sft"][0]["note"] and "mtjudge eval" not in runs["sft"][0]["note"]
    assert f"To judge the test split: mtjudge eval --model={rl} --data={rl}/data --out={rl}/eval --name=trained_test" in (
        runs["rl"][0]["note"]
    )
    splits = {p["split"] for results in runs.values() for p in results[0]["predictions"]}
    assert splits == {"val"} and compare(runs).paired["rl"]
    # One alone, or beside a result of the test split, is refused with the same line.
    for names in ([str(rl)], [str(sft / "eval" / "trained_test.json"), str(rl)]):
        with pytest.raises(UserError, match=r"without eval/trained_test\.json.*: evaluate it by mtjudge eval --model=.* or name"):
            read_runs(names)


def test_the_validation_of_the_model_in_best_is_taken(tmp_path):
    """By the mean of all validations, not the newest one; one whose file is gone is passed over."""
    folder = tmp_path / "run"
    (folder / "eval").mkdir(parents=True)
    lines = [{"kind": "eval", "split": "val", "step": step, "mean": {"macro_f1": mean}, "tasks": {}}
             for step, mean in ((0, 0.2), (10, 0.9), (20, 0.8), (30, 0.5))]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (0, 20, 30):
        save(folder / "eval" / f"val_{step:06d}.json", result(technical=step / 100))
    found = read_runs([f"a={folder}", f"b={folder}"])
    assert [results[0]["tasks"]["technical"]["macro_f1"] for results in found.values()] == [0.2, 0.2]
