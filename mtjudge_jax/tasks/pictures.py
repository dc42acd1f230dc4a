"""How many pictures a question has, and how they share the room that a row has for them."""

from collections.abc import Iterable

from mtjudge_jax.tasks.base import Task


def most_pictures(tasks: Iterable[Task]) -> int:
    """The pictures of the largest usual question of these tasks; 0 where a list has no largest."""
    counts = [0 if _endless(task) else max(len(task.sample_question("a dog").images), task.max_images) for task in tasks]
    return 0 if not all(counts) else max(counts, default=0)


def _endless(task: Task) -> bool:
    return task.kind == "listwise" and not task.max_images and not task.sample_question("a dog").candidates


def sharers(count: int, most: int) -> int:
    """Among how many pictures the room of a row is shared, where a question has `count`.

    `most` is that of the run (`most_pictures`). A question with more pictures gets a larger row, and each of them as much as in a
    question with so many. sharers(2, 0) == sharers(2, 2) == 2; of a run on single pictures, sharers(2, 1) == 1.
    """
    return max(1, min(count, most or count))


def size_of_each(task: Task, count: int, most: int, size: dict[str, int], *, patches: int) -> dict[str, int]:
    """The limits of each picture of a question with `count`, as in training, in the form of the `size` that image processors of
    transformers take: areas in pixels.

    size: of the judge's own image processor. patches: the room of a row. Patches are 16 x 16 pixels, and a token, 2 x 2 of them,
    is never divided.
    """
    high = task.max_pixels or size["longest_edge"]
    low = task.min_pixels or min(size["shortest_edge"], high)
    room = patches // 4 // sharers(count, most) * 32**2
    high = min(high, room or high)
    return {"shortest_edge": min(low, high), "longest_edge": high}
