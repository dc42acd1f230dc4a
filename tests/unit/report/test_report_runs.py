"""The report of runs that are not the demo's: tasks of their own and pairs that were trained, SFT, parts that are missing."""

import json
import re

import pytest
from report_folder import PAIRWISE, Page, make_workdir

from mtjudge_jax.report import views
from mtjudge_jax.report.curves import validation_plot
from mtjudge_jax.report.intervals import mean_interval
from mtjudge_jax.report.plots import looks_of
from mtjudge_jax.report.read import read_run
from mtjudge_jax.report.write import write_report

TRAINED_TASKS = ["safety", "pairwise_safety"]


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory):
    """A run that trained a pairwise task too, as its config says, and judged others beside."""
    folder = make_workdir(tmp_path_factory.mktemp("pairs"))
    config = json.loads((folder / "config.json").read_text()) | {"data": {"path": "", "tasks": TRAINED_TASKS}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:  # what validation and training say of pairs
        line["tasks"]["pairwise_safety"] = line["tasks"]["technical"] | {"consistency": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_is_trained_is_told_by_the_config(pair_run):
    """Score table, curves, mean and interval are over the same tasks, a pairwise one among them."""
    run = read_run(pair_run)
    tasks = views.mean_tasks(run)
    assert tasks == views.run_tasks(run) == [row.task for row in views.task_rows(run)] == TRAINED_TASKS
    for name in ("base_test", "trained_test"):
        scores = json.loads((pair_run / "eval" / f"{name}.json").read_text())["tasks"]
        found = views.means_of(run.evaluations[name], tasks).macro_f1
        assert found.value == pytest.approx((scores["safety"]["macro_f1"] + scores["pairwise_safety"]["macro_f1"]) / 2)
        assert found.ci == mean_interval(run.evaluations[name].predictions, TRAINED_TASKS, score="macro_f1")
    last = run.validation[-1]["tasks"]
    drawn = validation_plot(run, tasks, looks_of(tasks), key="macro_f1", title="F1")
    assert re.findall(r"(\w+) [\d.]+ to (\d[.\d]*\d)", drawn.alt.split(": ")[1]) == [
        (name, f"{value:.3g}") for name, value in (
            ("safety", last["safety"]["macro_f1"]), ("pairwise_safety", last["technical"]["macro_f1"]),
            ("mean", (last["safety"]["macro_f1"] + last["technical"]["macro_f1"]) / 2),
        )
    ]  # fmt: skip


def test_tasks_that_one_of_the_two_lacks_are_in_no_mean(pair_run):
    run = read_run(pair_run)
    del run.evaluations["base_test"].tasks["safety"]
    assert views.mean_tasks(run) == ["pairwise_safety"]
    score = run.evaluations["trained_test"].tasks["pairwise_safety"]["macro_f1"]
    assert views.means_of(run.evaluations["trained_test"], ["pairwise_safety"]).macro_f1.value == score
    assert views.means_of(run.evaluations["base_test"], ["safety"]).macro_f1.value is None


def test_pairs_that_were_trained_are_no_transfer(pair_run):
    page = write_report(pair_run).read_text(encoding="utf-8")
    assert "<h2>Pairs in both orders</h2>" in page and "Pairwise transfer" not in page
    table = page[page.index('id="pairwise"') : page.index('id="measured"')]
    told = re.findall(r'<th scope="rowgroup".*?>(\w+)<span class="ci">(.*?)</span>', table)
    assert told == [(name, "trained" if name == "pairwise_safety" else "never trained") for name in PAIRWISE]
    drawn = re.search(r'aria-label="Macro-F1 of the base and the trained model, by task: (.*?)"', page).group(1)
    order = [row.split()[0] for row in drawn.split("; ")]
    assert order[order.index("mean") :] == ["mean", "pairwise_technical", "pairwise_alignment"]  # "pairwise_safety" stands above
    assert "pairwise_safety" in order[: order.index("mean")]
    assert "Below the mean: tasks on pairs of pictures that were never trained." in page  # others of the form were trained


def test_missing_judgings_come_with_their_commands(tmp_path):
    """Each flag is one of mtjudge eval, and --out and --name are where the report looks."""
    folder, data = tmp_path / "my run", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    config = {"model": {"path": "demo"}, "data": {"path": str(data), "tasks": ["mine"], "custom_tasks": [{"name": "mine"}]}}
    (folder / "config.json").write_text(json.dumps(config))
    base, trained = (line for line in read_run(folder).problems if "mtjudge eval" in line)
    rest = f"--data={data} '--out={folder}/eval'"
    assert f"mtjudge eval --config=CONFIG.py --model=demo {rest} --name=base_test" in base and "CONFIG.py" in base
    assert f"mtjudge eval --config=CONFIG.py '--model={folder}' {rest} --name=trained_test" in trained
    config["data"]["path"], config["model"] = "", {}
    (folder / "config.json").write_text(json.dumps(config))
    base, trained = (line for line in read_run(folder).problems if "mtjudge eval" in line)
    assert f"--model=BASE_MODEL '--data={folder}/data' '--out={folder}/eval'" in base


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"is no run: .* neither config\.json nor metrics\.jsonl nor eval/") as refused:
        write_report(tmp_path)
    assert "\n" not in str(refused.value) and [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def text_of(folder):
    return re.sub(r"[ \n]+", " ", Page(write_report(folder).read_text(encoding="utf-8")).text)


def test_a_cut_validation_is_no_whole_split(tmp_path):
    folder = make_workdir(tmp_path)
    assert text_of(folder).count("the whole validation split") == 2
    change_config(folder, eval={"limit": 4})
    text = text_of(folder)
    assert text.count("validation, at most 4 questions per task") == 2 and "the whole validation split" not in text


def test_a_number_that_does_not_move_stayed_at_it(tmp_path):
    folder = make_workdir(tmp_path)
    for name in ("base_test", "trained_test"):
        path = folder / "eval" / f"{name}.json"
        result = json.loads(path.read_text())
        for score in result["tasks"].values():
            score["macro_f1"] = score["sampled_accuracy"] = 0.251 if name == "base_test" else 0.252
        result["mean"] |= {f"{key}{ci}": value for key in ("macro_f1", "sampled_accuracy")
                           for ci, value in (("", score[key]), ("_ci", [0.2, 0.3]))}  # fmt: skip
        path.write_text(json.dumps(result))
    text = text_of(folder).replace("\u00a0", " ")
    assert "Mean macro-F1 on held-out questions stayed at 0.25 " in text and "rose from" not in text
    assert "25 % → 25 % 20 to 30 % → 20 to 30 %" in text and "0.25 → 0.25 0.20 to 0.30 → 0.20 to 0.30" in text


def test_the_constant_answer_is_that_of_the_tasks(tmp_path):
    """0.33 and 0.50 hold of two labels; of others the scores' own constant is said, of no scores nothing."""
    folder = make_workdir(tmp_path)
    assert "(with balanced labels, always the same verdict scores about 0.33 and a coin flip 0.50)" in text_of(folder)
    for name in ("base_test", "trained_test"):
        path = folder / "eval" / f"{name}.json"
        result = json.loads(path.read_text())
        result["tasks"]["safety"] |= {"label_share": dict.fromkeys("12345", 0.2), "constant_macro_f1": 1 / 15}
        path.write_text(json.dumps(result))
    text = text_of(folder)
    assert "coin flip 0.50" not in text
    assert "(the best constant answer scores 0.29)" in text  # (5/3 + 1/15) / 6
    change_config(folder, data={"path": "", "tasks": ["a_task_of_mine"]})
    text = text_of(folder)
    assert "coin flip 0.50" not in text and "scores the greedy answer. Sampled" in text


def test_an_answer_without_verdict_is_not_the_word_none(tmp_path):
    source = write_report(make_workdir(tmp_path)).read_text(encoding="utf-8")
    assert "no verdict ✗ wrong" in source and "none ✗" not in source


def test_sft_lists_what_sft_reads(tmp_path):
    """No groups, temperature, weights of form and KL; its batch is update.prompts."""
    folder = make_workdir(tmp_path)
    rollout = {"prompts": 24, "group_size": 5, "temperature": 0.75}
    change_config(folder, rollout=rollout, update={"prompts": 12}, reward={"alpha": 0.125}, loss={"kl_coef": 0.0625})
    shown = dict(views.highlight(views.config_rows(read_run(folder).config), "grpo"))
    told = ("prompts per step", "answers per prompt", "temperature", "weight of the format reward", "weight of the KL")
    assert [shown[words] for words in told] == ["24", "5", "0.75", "0.125", "0.0625"]
    change_config(folder, stage="sft")
    shown = dict(views.highlight(views.config_rows(read_run(folder).config), "sft"))
    assert shown["prompts per step"] == "12" and shown.keys().isdisjoint(told[1:]) and shown["stage"] == "sft"
    text = text_of(folder)
    assert "weight of the KL" not in text and "drawn as in training" not in text
    change_config(folder, stage="dpo", dpo={"beta": 0.375})
    shown = dict(views.highlight(views.config_rows(read_run(folder).config), "dpo"))
    assert shown["beta"] == "0.375" and shown.keys().isdisjoint(told[1:]) and "target" not in shown
    assert "a worse answer shown in this run (DPO)" in text_of(folder)


def test_a_run_without_its_data_is_not_taken_for_the_demo(tmp_path):
    folder = make_workdir(tmp_path)
    (folder / "data").rename(tmp_path / "gone")
    assert "verdicts it was taught were coin flips" not in text_of(folder)
