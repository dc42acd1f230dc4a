"""What every tokenizer format reads a model folder into, and the JSON files that all formats share."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mtjudge_jax.paths import read_object

_CONTROL_SHAPE = re.compile(r"<\|.*\|>|<unused_?\d+>", re.DOTALL)
CONFIG_FILE = "tokenizer_config.json"


class Codec(Protocol):
    """Text to ids and back. The methods change nothing, so threads may share one."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added or cut. Special tokens in `text` become special."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens stay visible."""

    def normalize(self, text: str) -> str:
        """`text` as it is just before it is cut into tokens: some formats fold full-width letters or composed accents."""

    def text_ids(self) -> list[int]:
        """Ids of text and of special tokens: without the unknown token and ids that mean nothing."""


class TokenizerParts(NamedTuple):
    """The content of a tokenizer folder. `special` maps pad_token, eos_token, image_token, .. to texts, `vocab` texts to ids."""

    codec: Codec
    chat: Callable[[list[dict[str, Any]]], str] | None  # messages -> a prompt up to the answer; None: no template
    vocab: Mapping[str, int]
    special: Mapping[str, str]
    control: tuple[tuple[str, int], ...]  # (text, id) of the tokens that neither users nor the sampler may write


def looks_like_control(text: str) -> bool:
    """Whether a text has the form `<|...|>` or `<unused7>`: Qwen3's file does not mark all such tokens as special."""
    return _CONTROL_SHAPE.fullmatch(text) is not None


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if the file is missing. Raises UserError on anything else."""
    return read_object(path) if path.is_file() else {}


def special_texts(folder: Path) -> dict[str, str]:
    """Texts of the tokens that the folder names: {"eos_token": "<|im_end|>", "image_token": "<|image_pad|>", ..}."""
    config = json_object(folder / CONFIG_FILE)
    named = json_object(folder / "special_tokens_map.json")
    for part in (config, config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        named |= part if isinstance(part, dict) else {}  # a list holds texts without names
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def chat_template(folder: Path) -> str | None:
    """The Jinja template of `chat_template.jinja`, else of `tokenizer_config.json`, else of `chat_template.json`."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text()
    for name in (CONFIG_FILE, "chat_template.json"):
        found = json_object(folder / name).get("chat_template")
        if isinstance(found, list):  # several by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if found is not None:
            return found
    return None
