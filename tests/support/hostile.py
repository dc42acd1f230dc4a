"""Texts that try to trick a parser."""

from mtjudge_jax.tasks.answer import TAGS

THINK, THINK_END, ANSWER, ANSWER_END = TAGS

# "yes" in look-alike letters: the 13 mathematical alphabets, full-width, Cyrillic, Greek, small capitals, circled, ...
YES_LOOK_ALIKES = [
    "".join(chr(0x1D41A + 52 * style + ord(c) - ord("a")) for c in "yes") for style in range(13) if style not in (2, 3, 4)
]
YES_LOOK_ALIKES += [
    "уes",
    "yеs",
    "yeѕ",
    "уеѕ",
    "ｙｅｓ",
    "ＹＥＳ",
    "Ｙes",
    "γes",
    "yεs",
    "ʏᴇs",
    "ⓨⓔⓢ",
    "yeꜱ",
    "yeſ",
    "ｙes",
]


NO_LOOK_ALIKES = ["nо", "пo", "nο", "ｎｏ", "ＮＯ", "ո0", "n0", "Νo", "Nо", "ⓝⓞ", "no\u0301", "ɴo", "nօ"]


def hostile_texts(size: int) -> dict[str, str]:
    def fill(piece: str) -> str:
        return (piece * (size // len(piece) + 1))[:size]

    return {
        "newlines": fill("\n"),
        "newlines in the form": f"<think>{fill(chr(10))}</think>{fill(chr(10))}<answer>{fill(chr(10))}no</answer>",
        "tags": fill("".join(TAGS)),
        "open tags": fill(THINK),
        "close tags": fill(ANSWER_END),
        "almost tags": fill("<think"),
        "angles": fill("<"),
        "brackets": fill("[" * 50 + "]" * 50),
        "combining marks": fill("\u0301\u0323"),
        "marks as the label": f"<think>a</think><answer>{fill(chr(0x301) + chr(0x323))}</answer>",
        "ligatures": fill("\ufdfa"),
        "dotted capitals": fill("İ"),
        "NUL": fill("\0"),
        "surrogates": fill("\ud800"),
        "good outputs": fill(GOOD),
    }


REASONING = "looks blurry, parts ordered"
GOOD = f"<think>{REASONING}</think><answer>no</answer>"
