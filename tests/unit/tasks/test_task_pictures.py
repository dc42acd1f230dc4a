"""How pictures share the room of a row, in numbers."""

from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.custom import custom_task
from mtjudge_jax.tasks.pictures import most_pictures, sharers, size_of_each

QWEN = {"shortest_edge": 65_536, "longest_edge": 1_048_576}


def own(kind: str, **fields):
    return custom_task({"name": "own", "kind": kind, "question": "Which?", **fields}, ())


def test_the_most_pictures_of_a_question():
    assert most_pictures([]) == 0 and most_pictures([TASKS["technical"], TASKS["seetrue"]]) == 1
    assert most_pictures([TASKS["technical"], TASKS["pairwise_technical"]]) == 2
    assert most_pictures([own("binary", max_images=3)]) == 3 and most_pictures([own("listwise", max_images=5)]) == 5
    assert most_pictures([TASKS["technical"], own("listwise")]) == 0  # a list has no largest
    assert most_pictures([own("listwise", noun="Answer")]) == 1  # of texts about one picture


def test_who_shares():
    assert [sharers(count, 0) for count in (0, 1, 2, 40)] == [1, 1, 2, 40]
    assert [sharers(count, 1) for count in (1, 2, 40)] == [1, 1, 1]
    assert [sharers(count, 2) for count in (1, 2, 3)] == [1, 2, 2]


def test_the_size_of_each_picture():
    single, pair = TASKS["technical"], TASKS["pairwise_technical"]
    assert size_of_each(single, 1, 2, QWEN, patches=4096) == QWEN
    assert size_of_each(pair, 2, 2, QWEN, patches=4096) == {"shortest_edge": 65_536, "longest_edge": 524_288}
    assert size_of_each(pair, 2, 1, QWEN, patches=4096) == QWEN
    assert size_of_each(pair, 3, 0, QWEN, patches=4096)["longest_edge"] == 341 * 1024
    assert size_of_each(own("binary", max_pixels=50_000), 1, 1, QWEN, patches=4096) == {
        "shortest_edge": 50_000, "longest_edge": 50_000
    }  # fmt: skip
