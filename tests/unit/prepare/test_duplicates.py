"""Records that are there twice are found: across splits, as other files, in another order of their candidates."""

from dataclasses import replace

from preparing import by_split, made, picture, run

from mtjudge_jax.data.pipeline import open_split
from mtjudge_jax.prepare import checking
from mtjudge_jax.records import TIE, Candidate, Label, reordered


def test_duplicates_planted_in_native_splits_are_found(tmp_path, source):
    """Ten of 1,000, half as the same bytes, half as the same pixels in another file."""
    examples = [made(i, split="train" if i < 900 else "test") for i in range(1000)]
    for k in range(10):
        kind = "PNG" if k < 5 else "BMP"
        twin = made(900 + k, images=(picture(900 + k, kind),), split="train", group_id=f"other {k}")
        examples[k * 50] = replace(twin, example_id=f"fake/twin{k}")
    out, report = run(tmp_path, source, examples, val=0)
    assert report["left_out"]["duplicate_across_splits"]["count"] == 10 and report["records_written"] == 990
    assert len(open_split(out, "test", "sharp")) == 100


def test_duplicates_within_a_source_without_splits_are_found_too(tmp_path, source):
    examples = [made(i) for i in range(1000)]
    for k in range(10):
        twin = made(900 + k, group_id=f"other {k}", label=Label(binary=1 - k % 2))
        examples[k * 50] = replace(twin, example_id=f"fake/twin{k}")
    _, report = run(tmp_path, source, examples)
    assert report["left_out"]["duplicate"]["count"] == 10 and report["records_written"] == 990
    first = report["left_out"]["duplicate"]["first"]
    assert "fake/901: in val, the same question as fake/twin1 in val, whose label is 0, not 1" in first
    assert report["notes"] == ["10 of the dropped duplicates have another label than the copy that is kept: the labels disagree."]


def pair(number: int, *, first: int, second: int, winner: int, **changes):
    """A pair of pictures; the winner is a place."""
    shown = {"images": (picture(first), picture(second)), "candidates": (Candidate(1), Candidate(1)), "allow_tie": True}
    label = Label(winner=winner)
    return made(number, task="nicer", kind="pairwise", instruction="", **shown, label=label, group_id=f"g{number}", **changes)


def test_a_pair_that_is_there_in_both_orders_is_found(tmp_path, source):
    examples = [pair(i, first=2 * i, second=2 * i + 1, winner=(0, 1, TIE)[i % 3], split="train") for i in range(300)]
    for k in range(6):  # test has six of them turned; of the last two the label says otherwise
        winner = (1, 0, TIE, 1, 1, 0)[k]
        examples.append(pair(300 + k, first=2 * k + 1, second=2 * k, winner=winner, split="test"))
    out, report = run(tmp_path, source, examples, val=0)
    found = report["left_out"]["duplicate_across_splits"]
    assert found["count"] == 6 and report["records_written"] == 300
    text = "fake/0: in train, the same question as fake/300 in test with its candidates in another order"
    assert text in found["first"]
    assert report["notes"] == ["2 of the dropped duplicates have another label than the copy that is kept: the labels disagree."]
    assert {name: len(rows) for name, rows in by_split(out).items()} == {"train": 294, "test": 6}


def test_a_list_in_another_order_is_found_and_other_texts_about_the_same_pictures_are_not(tmp_path, source):
    texts = [Candidate(0, text) for text in ("a dog", "a cat", "a cow")]
    first = made(0, task="caption", kind="listwise", context_images=1, candidates=tuple(texts), label=Label(ranks=(1, 2, 3)))
    turned = replace(reordered(first, (2, 0, 1)), example_id="fake/1")
    others = replace(first, example_id="fake/2", candidates=(*texts[:2], Candidate(0, "a horse")))
    _, report = run(tmp_path, source, [first, turned, others], val=0, test=0, max_bad=1)
    assert report["left_out"]["duplicate"]["count"] == 1 and report["records_written"] == 2 and report["notes"] == []


def test_a_picture_of_many_records_is_decoded_once(tmp_path, source, monkeypatch):
    """300 records of three pictures: more than are read ahead."""
    looked, look = [], checking._look
    monkeypatch.setattr(checking, "_look", lambda image: looked.append(image) or look(image))
    _, report = run(tmp_path, source, [made(i, images=(picture(i % 3),)) for i in range(300)], val=0.0, test=0.0)
    assert report["records_written"] == 300
    assert sorted(looked) == sorted(picture(i) for i in range(3))
