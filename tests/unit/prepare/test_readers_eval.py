"""The readers of evaluation sets, on files in each one's native form: counts, labels, bad rows, ids."""

import json
import zipfile

import pytest
from native_eval import (
    CANARY,
    genai_edit_row,
    genai_row,
    hpd,
    hpdv2_row,
    mllm_batch_row,
    mllm_pair_row,
    mllm_score_row,
    mmrb,
    mmrb_row,
    pickapic_row,
    png,
    read_all,
    reasons,
    struct,
    vl_row,
    write_image,
    write_jsonl,
    write_parquet,
)

from mtjudge_jax.prepare.readers.benchmarks import (
    genai_bench,
    hpdv2,
    mllm_judge,
    multimodal_rewardbench,
    pickapic,
    vl_rewardbench,
)
from mtjudge_jax.records import TIE, Label

# VL-RewardBench


def test_vl_rewardbench(tmp_path):
    rows = [
        vl_row(0),
        vl_row(1, human_ranking=[1, 0], id="mathverse_12"),
        vl_row(2, id="wildvision-3"),
        vl_row(0, id="hallucination_pair-1"),
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    examples, bad = read_all(vl_rewardbench, tmp_path, revision="abc")
    assert bad == []
    assert [e.label.winner for e in examples] == [0, 1, 0, 0]
    assert [e.example_id for e in examples] == [
        f"vl_rewardbench/RLAIF-V-{CANARY}-0", "vl_rewardbench/mathverse_12", "vl_rewardbench/wildvision-3",
        "vl_rewardbench/hallucination_pair-1",
    ]  # fmt: skip
    assert [json.loads(e.raw)["group"] for e in examples] == ["hallucination", "reasoning", "general", "hallucination"]
    assert [c.text for c in examples[1].candidates] == ["A dog 1.", "A cat 1."]
    assert [c.name for c in examples[1].candidates] == [f"{CANARY}-one", f"{CANARY}-two"]
    assert examples[0].images == (png(0),) and examples[0].context_images == 1
    assert examples[0].group_id == examples[3].group_id != examples[1].group_id  # the same picture
    assert {(e.split, e.source_split, e.license, e.terms, e.revision) for e in examples} == {
        ("ood", "test", "mit", "eval_only", "abc")
    }


@pytest.mark.parametrize(
    ("native", "group"),
    [("RLAIF-V-1", "hallucination"), ("RLHF-V_2", "hallucination"), ("mathverse_1", "reasoning"), ("mmmu-pro_1", "reasoning"),
     ("wildvision-battle-1", "general"), ("povid_3", "hallucination"), ("sherlock-9", "general"), ("17", "general")],
)  # fmt: skip
def test_vl_rewardbench_groups(native, group):
    assert vl_rewardbench.group_of(native) == group


def test_vl_rewardbench_without_optional_columns_and_an_id_twice(tmp_path):
    rows = [{key: vl_row(n)[key] for key in ("query", "response", "image", "human_ranking")} | {"id": 5} for n in range(3)]
    examples, bad = read_all(vl_rewardbench, write_parquet(tmp_path / "t.parquet", rows))
    assert bad == [] and [e.example_id for e in examples] == [f"vl_rewardbench/5{again}" for again in ("", "#2", "#3")]
    assert [c.name for c in examples[0].candidates] == ["", ""]
    assert json.loads(examples[0].raw) == {"group": "general", "id": "5"}


def test_vl_rewardbench_bad_rows(tmp_path):
    rows = [vl_row(n) for n in range(8)]
    rows[1]["human_ranking"] = [0, 2]
    rows[2]["human_ranking"] = [0, 0]
    rows[3]["response"] = ["one", "two", "three"]
    rows[4]["image"] = {"bytes": None, "path": None}
    rows[5]["image"] = {"bytes": None, "path": "gone.png"}
    rows[6]["query"] = None
    rows[7]["image"] = {"bytes": None, "path": "../../etc/passwd"}
    examples, bad = read_all(vl_rewardbench, write_parquet(tmp_path / "test-0.parquet", rows))
    assert [e.example_id for e in examples] == [f"vl_rewardbench/RLAIF-V-{CANARY}-0"]
    assert reasons(bad) == ["label_outside"] * 2 + ["wrong_field"] + ["missing_image"] * 2 + ["wrong_field", "image_path"]
    assert bad[0][1] == "label_outside: test-0.parquet row 1: human_ranking is 2, must be 0 or 1"
    assert bad[1][1] == "label_outside: test-0.parquet row 2: human_ranking is [0, 0], must be [0, 1] or [1, 0]"
    assert bad[5][1] == "wrong_field: test-0.parquet row 6: query is None, must be a text"
    assert all("\n" not in text and "test-0.parquet row " in text for _, text in bad)


# Multimodal RewardBench


def test_multimodal_rewardbench(tmp_path):
    rows = [
        mmrb_row(0),
        mmrb_row(1, Better="Output2", ID=17),
        mmrb_row(2, Better=" output2 ", Image="data/images/mathvista/2.png"),
    ]
    rows[2] = {key: value for key, value in rows[2].items() if key not in ("ID", "Category")}
    examples, bad = read_all(multimodal_rewardbench, mmrb(tmp_path, rows))
    assert bad == [] and [e.label.winner for e in examples] == [0, 1, 1]
    assert [e.example_id.split("/")[1] for e in examples] == [f"{CANARY}-0", "17", "2"]
    assert [e.images for e in examples] == [(png(n),) for n in range(3)]
    assert json.loads(examples[0].raw) == {"category": f"{CANARY}-category", "id": f"{CANARY}-0"}
    assert {(e.split, e.license, e.terms) for e in examples} == {("ood", "cc-by-nc-4.0", "research")}


def test_multimodal_rewardbench_bad_rows(tmp_path):
    rows = [mmrb_row(0), mmrb_row(1), mmrb_row(2, Better="Output3"), mmrb_row(3, Output2=None), "row", mmrb_row(5)]
    del rows[5]["Text"]
    examples, bad = read_all(multimodal_rewardbench, mmrb(tmp_path, rows, missing=(1,)))
    assert len(examples) == 1
    assert reasons(bad) == ["missing_image", "label_outside", "wrong_field", "bad_json", "missing_field"]
    assert bad[1][1] == "label_outside: all_data.json row 2: Better is 'Output3', must be Output1 or Output2"
    assert bad[4][1] == "missing_field: all_data.json row 5: no Text or text"


# GenAI-Bench


def genai(tmp_path):
    votes = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    rows = [genai_row(n, vote_type=votes[n % 4]) for n in range(5)]
    write_parquet(tmp_path / "image_generation" / "test_v1-00000-of-00002.parquet", rows[:3])
    write_parquet(tmp_path / "image_generation" / "test_v1-00001-of-00002.parquet", rows[3:])
    write_parquet(tmp_path / "image_generation" / "test-00000-of-00001.parquet", [genai_row(50)])
    edits = [genai_edit_row(n, vote_type=votes[-1 - n % 4], source_image=struct(9000 + n // 2)) for n in range(4)]
    write_parquet(tmp_path / "image_edition" / "test_v1-00000-of-00001.parquet", edits)
    write_parquet(tmp_path / "video_generation" / "test_v1-00000-of-00001.parquet", [{"left_video": "a.mp4"}])
    return tmp_path


def test_genai_bench(tmp_path):
    examples, bad = read_all(genai_bench, genai(tmp_path))
    assert bad == []
    assert [e.example_id for e in examples] == [f"genai_image/test_v1/{n}" for n in range(5)] + [
        f"genai_edit/test_v1/{n}" for n in range(4)
    ]
    good, poor = Label(winner=TIE, tie="both_good"), Label(winner=TIE, tie="both_bad")
    left, right = Label(winner=0), Label(winner=1)
    assert [e.label for e in examples] == [left, right, good, poor, left, poor, good, right, left]
    assert all(e.allow_tie and e.kind == "pairwise" for e in examples)
    image, edit = examples[1], examples[6]
    assert image.images == (png(2), png(3)) and image.context_images == 0 and image.instruction == "a painting of 1 dogs"
    assert edit.images == (png(9000), png(2), png(3)) and edit.context_images == 1 and edit.instruction == "make dog 1 red"
    assert examples[5].group_id == edit.group_id != examples[7].group_id  # the same source picture
    assert [c.images for c in edit.candidates] == [1, 1] and edit.candidates[0].name == f"{CANARY}-left"
    assert json.loads(image.raw) == {"models": [f"{CANARY}-left", f"{CANARY}-right"], "vote_type": "rightvote"}


def test_genai_bench_options(tmp_path):
    genai(tmp_path)
    assert [e.example_id for e in read_all(genai_bench, tmp_path, part="test")[0]] == ["genai_image/test/0"]
    assert {e.task for e in read_all(genai_bench, tmp_path, task="genai_edit")[0]} == {"genai_edit"}
    one = tmp_path / "image_edition" / "test_v1-00000-of-00001.parquet"
    assert len(read_all(genai_bench, one)[0]) == 4
    with pytest.raises(ValueError, match=r"no parquet file of genai_edit, part test; there is test_v1-00000-of-00001.parquet"):
        list(genai_bench.read(tmp_path, {"part": "test", "task": "genai_edit"}))
    with pytest.raises(ValueError, match=r"option part: unknown choice 'test_v2', did you mean 'test_v1'\?"):
        list(genai_bench.read(tmp_path, {"part": "test_v2"}))


def test_genai_bench_shards_in_a_folder_named_by_their_part(tmp_path):
    write_parquet(tmp_path / "image_generation" / "test_v1" / "0000.parquet", [genai_row(0)])
    write_parquet(tmp_path / "image_generation" / "test" / "0000.parquet", [genai_row(1)])
    assert [e.images[0] for e in read_all(genai_bench, tmp_path)[0]] == [png(0)]


def test_genai_bench_bad_rows(tmp_path):
    rows = [genai_row(0), genai_row(1, vote_type="upvote"), genai_row(2, left_image=None), genai_row(3, prompt=" "), genai_row(4)]
    examples, bad = read_all(genai_bench, write_parquet(tmp_path / "test_v1-0.parquet", rows))
    assert [e.example_id for e in examples] == ["genai_image/test_v1/0", "genai_image/test_v1/4"]  # bad rows keep their number
    assert reasons(bad) == ["label_outside", "missing_image", "wrong_field"]
    assert bad[0][1].endswith("vote_type is 'upvote', must be leftvote or rightvote or tievote or bothbad_vote")


# MLLM-as-a-Judge


def mllm(tmp_path, *, images="image", score=None, pair=None, batch=None):
    parts = {
        "score": score
        or [mllm_score_row(0), mllm_score_row(1, human="2", image_path="image/0.jpg"), mllm_score_row(2, human=5.0)],
        "pair": pair or [mllm_pair_row(0), mllm_pair_row(1, human_answer="B"), mllm_pair_row(2, human_answer="c")],
        "batch": batch or [mllm_batch_row(0), mllm_batch_row(1, human_answer="bcad")],
    }
    for part, rows in parts.items():
        write_jsonl(tmp_path / "Benchmark" / f"{part}.jsonl", rows)
    for number in range(2):
        write_image(tmp_path / images / f"{number}.jpg", number)
    return tmp_path


@pytest.mark.parametrize("images", ["image", "", "images", "Dataset/image"])
def test_mllm_judge(tmp_path, images):
    examples, bad = read_all(mllm_judge, mllm(tmp_path, images=images))
    assert bad == []
    score, pair, batch = examples[:3], examples[3:6], examples[6:]
    assert [(e.label.score, e.score_min, e.score_max) for e in score] == [(4, 1, 5), (2, 1, 5), (5, 1, 5)]
    assert [e.label.winner for e in pair] == [0, 1, TIE] and all(e.allow_tie for e in pair)
    assert [e.label.ranks for e in batch] == [(3, 4, 1, 2), (3, 1, 2, 4)]  # "CDAB": C is first, A third
    assert [e.example_id for e in examples] == [
        "mllm_score/0", "mllm_score/1", "mllm_score/2", "mllm_pair/0", "mllm_pair/1", "mllm_pair/2", "mllm_batch/0",
        "mllm_batch/1",
    ]  # fmt: skip
    assert [e.task for e in examples] == ["mllm_score"] * 3 + ["mllm_pair"] * 3 + ["mllm_batch"] * 2
    assert [e.images for e in examples] == [(png(n),) for n in (0, 0, 1, 0, 0, 1, 0, 1)]
    assert {e.group_id for e in examples} == {"mllm_judge/0.jpg", "mllm_judge/1.jpg"}
    assert batch[0].candidates[2].text == "3 dogs in picture 0" and batch[0].candidates[2].name == f"{CANARY}-2"
    assert json.loads(pair[0].raw) == {"id": "0", "original_dataset": f"{CANARY}-coco"}


def test_mllm_judge_images_in_a_zip(tmp_path):
    mllm(tmp_path)
    with zipfile.ZipFile(tmp_path / "image.zip", "w") as archive:
        for number in range(2):
            archive.write(tmp_path / "image" / f"{number}.jpg", f"image/{number}.jpg")
            (tmp_path / "image" / f"{number}.jpg").unlink()
    assert len(read_all(mllm_judge, tmp_path)[0]) == 8


def test_mllm_judge_names_of_columns_over_the_revisions(tmp_path):
    pair = mllm_pair_row(0)
    pair["human"] = pair.pop("human_answer")
    batch = {key: value for key, value in mllm_batch_row(1).items() if key != "original_dataset"}
    examples, bad = read_all(mllm_judge, mllm(tmp_path, pair=[pair], batch=[batch]))
    assert bad == [] and len(examples) == 5


def test_mllm_judge_parts(tmp_path):
    mllm(tmp_path)
    assert {e.task for e in read_all(mllm_judge, tmp_path, part="pair")[0]} == {"mllm_pair"}
    (tmp_path / "Benchmark" / "batch.jsonl").unlink()
    assert {e.task for e in read_all(mllm_judge, tmp_path)[0]} == {"mllm_score", "mllm_pair"}
    with pytest.raises(ValueError, match=r"no file of part batch, edition full; there is pair.jsonl, score.jsonl"):
        list(mllm_judge.read(tmp_path, {"part": "batch"}))
    write_jsonl(tmp_path / "Benchmark_Lite" / "score_lite.jsonl", [mllm_score_row(3)])
    assert [e.example_id for e in read_all(mllm_judge, tmp_path, edition="lite")[0]] == ["mllm_score/3"]
    write_jsonl(tmp_path / "old" / "score.jsonl", [mllm_score_row(3)])
    assert len(read_all(mllm_judge, tmp_path, part="score")[0]) == 3  # Benchmark/ counts
    (tmp_path / "Benchmark").rename(tmp_path / "new")
    with pytest.raises(ValueError, match=r"score.jsonl exists more than once"):
        list(mllm_judge.read(tmp_path, {}))


def test_mllm_judge_bad_rows(tmp_path):
    score = [mllm_score_row(0, human=0), mllm_score_row(1, human="good"), mllm_score_row(2, human=True), mllm_score_row(3),
             mllm_score_row(0, human=2.5), mllm_score_row(9), '{"cut": ', mllm_score_row(0, answer="\ud800")]  # fmt: skip
    pair = [mllm_pair_row(0, human_answer="D"), mllm_pair_row(1, answer1="text"), mllm_pair_row(2)]
    batch = [mllm_batch_row(0, human_answer="CDA"), mllm_batch_row(0, human_answer="CDAA"), mllm_batch_row(1, answers={}),
             mllm_batch_row(1, human_answer=None), mllm_batch_row(1)]  # fmt: skip
    examples, bad = read_all(mllm_judge, mllm(tmp_path, score=score, pair=pair, batch=batch))
    assert [e.example_id for e in examples] == ["mllm_score/3", "mllm_pair/2", "mllm_batch/1"]
    of_score = ["label_outside"] * 4 + ["missing_image", "bad_json", "wrong_field"]
    of_batch = ["label_outside", "label_outside", "wrong_field", "label_outside"]
    assert reasons(bad) == [*of_score, "label_outside", "wrong_field", *of_batch]
    assert bad[0][1] == "label_outside: score.jsonl line 1: human is 0, must be 1 or 2 or 3 or 4 or 5"
    assert bad[4][1].startswith("missing_image: score.jsonl line 6: 4.jpg is not in ")
    assert bad[9][1].endswith("human_answer is 'CDA', must be the letters ABCD, best first")


# Pick-a-Pic


def test_pickapic(tmp_path):
    labels = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    rows = [pickapic_row(n, label_0=a, label_1=b) for n, (a, b) in enumerate(labels)]
    write_parquet(tmp_path / "data" / "test_unique-00000-of-00001-abc.parquet", rows)
    write_parquet(tmp_path / "data" / "train-00000-of-00645.parquet", [pickapic_row(9)])
    write_parquet(tmp_path / "data" / "test-00000-of-00014.parquet", [pickapic_row(8)])
    examples, bad = read_all(pickapic, tmp_path)
    assert bad == [] and [e.label.winner for e in examples] == [0, 1, TIE]
    assert [e.example_id for e in examples] == [f"pickapic/test_unique/{n}" for n in range(3)]
    assert examples[1].images == (png(2), png(3)) and examples[1].candidates[0].name == f"{CANARY}-zero"
    assert [e.example_id for e in read_all(pickapic, tmp_path, part="test")[0]] == ["pickapic/test/8"]
    with pytest.raises(ValueError, match="no parquet file of the part validation; there is test-00000"):
        list(pickapic.read(tmp_path, {"part": "validation"}))
    with pytest.raises(ValueError, match="option part: unknown choice 'train'"):
        list(pickapic.read(tmp_path, {"part": "train"}))


def test_pickapic_bad_rows_and_other_columns(tmp_path):
    kept = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    rows = [{key: pickapic_row(n)[key] for key in kept} | {"has_label": True} for n in range(5)]
    rows[1] |= {"label_0": 1.0, "label_1": 1.0}
    rows[2] |= {"label_0": 0.3, "label_1": 0.7}
    rows[3] |= {"jpg_1": b""}
    rows[4] |= {"has_label": False}
    examples, bad = read_all(pickapic, write_parquet(tmp_path / "test_unique-0.parquet", rows))
    assert [e.example_id for e in examples] == ["pickapic/test_unique/0"]
    assert reasons(bad) == ["label_outside", "label_outside", "missing_image", "no_label"]
    assert bad[0][1].endswith("label_0 and label_1 are (1.0, 1.0), must be 1 and 0, 0 and 1, or 0.5 twice")


# HPD v2


def test_hpdv2_pairs(tmp_path):
    rows = [hpdv2_row(0, rank=[2, 1, 3]), hpdv2_row(1, rank=[1, 2, 2]), hpdv2_row(2, rank=[0, 2, 1])]
    examples, bad = read_all(hpdv2, hpd(tmp_path, rows))
    assert bad == []
    assert [(e.example_id, e.label.winner) for e in examples] == [
        ("hpdv2/0/0-1", 1), ("hpdv2/0/0-2", 0), ("hpdv2/0/1-2", 0),
        ("hpdv2/1/0-1", 0), ("hpdv2/1/0-2", 0),  # 1-2 is tied
        ("hpdv2/2/0-1", 0), ("hpdv2/2/0-2", 0), ("hpdv2/2/1-2", 1),
    ]  # fmt: skip
    assert examples[2].images == (png(1), png(2)) and examples[2].task == "hpdv2"
    assert len({e.group_id for e in examples}) == 3


def test_hpdv2_lists(tmp_path):
    rows = [hpdv2_row(0, rank=[2, 1, 3]), hpdv2_row(1, rank=[1, 2, 2]), hpdv2_row(2, rank=["0", "2", "1"])]
    hpd(tmp_path, rows, folder="")
    examples, bad = read_all(hpdv2, tmp_path, form="list")
    assert bad == [] and [e.example_id for e in examples] == ["hpdv2/0", "hpdv2/1", "hpdv2/2"]
    assert [e.label.ranks for e in examples] == [(2, 1, 3), (1, 2, 2), (1, 3, 2)]
    assert examples[0].images == (png(0), png(1), png(2)) and {e.task for e in examples} == {"hpdv2_list"}
    both, _ = read_all(hpdv2, tmp_path, form="both")
    assert len(both) == 8 + 3


def test_hpdv2_bad_rows(tmp_path):
    rows = [hpdv2_row(0), hpdv2_row(1, rank=[1, 2]), hpdv2_row(2, rank=[2, 3, 3]), hpdv2_row(3, rank=[1, 2, 9]),
            hpdv2_row(4, rank=[1, 2, 1.5])]  # fmt: skip
    examples, bad = read_all(hpdv2, hpd(tmp_path, rows, missing=(1,)), form="list")
    assert examples == []
    assert reasons(bad) == ["missing_image", "wrong_field", "label_outside", "label_outside", "label_outside"]
    assert bad[2][1].endswith("rank is [2, 3, 3], must hold a first place")
