"""Rollouts as a tracker shows them: a table with a row an answer, or a text."""

from mtjudge_jax.train.monitor.shown import Shown

COLUMNS = (
    "step", "task", "chosen", "example_id", "question", "label", "answer", "reward", "parts", "advantage", "tokens", "truncated",
)  # fmt: skip


def answer_rows(line: dict) -> list[list]:
    """A row of COLUMNS for each answer to a prompt."""
    prompt = [line[name] for name in COLUMNS[:6]]
    return [
        [*prompt, a["text"], a["reward"], _parts_text(a), a["advantage"], a["tokens"], a["truncated"]] for a in line["answers"]
    ]


def markdown_of(line: dict) -> str:
    """A prompt with its answers, the texts as blocks of code so that none of them is read as markdown or HTML."""
    head = f"**{line['task']}**, {line['chosen']}, example `{line['example_id']}`, label `{line['label']}`"
    parts = [head, _block(line["question"])]
    for a in line["answers"]:
        cut = ", truncated" if a["truncated"] else ""
        facts = (
            f"reward {_number(a['reward'])} ({_parts_text(a)}), advantage {_number(a['advantage'])}, {a['tokens']} tokens{cut}"
        )
        parts += [facts, _block(a["text"])]
    return "\n\n".join(parts)


def tag_of(shown: list[Shown], number: int) -> str:
    """`rollouts/technical/best`; of several `rollouts/technical/best/2`."""
    key = lambda one: (one.line["task"], one.line["chosen"])  # noqa: E731
    before = sum(key(one) == key(shown[number]) for one in shown[:number])
    return "/".join(["rollouts", *key(shown[number]), *([str(before + 1)] if before else [])])


def _parts_text(answer: dict) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in answer["parts"].items())


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
