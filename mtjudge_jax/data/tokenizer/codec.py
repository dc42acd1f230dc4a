"""What every tokenizer format reads a model folder into, and the JSON files that all formats share."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import read_object

_CONTROL_SHAPE = re.compile(r"<\|.*\|>|<unused_?\d+>", re.DOTALL)
CONFIG_FILE, GENERATION_FILE = "tokenizer_config.json", "generation_config.json"


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
    vocab: Mapping[str, int]
    special: Mapping[str, str]
    in_template: Mapping[str, str]  # those of `special` that a chat template may name
    control: tuple[tuple[str, int], ...]  # (text, id) of the tokens that neither users nor the sampler may write


def looks_like_control(text: str) -> bool:
    """Whether a text has the form `<|...|>` or `<unused7>`: Qwen3's file does not mark all such tokens as special."""
    return _CONTROL_SHAPE.fullmatch(text) is not None


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if the file is missing. Raises UserError on anything else."""
    return read_object(path) if path.is_file() else {}


def special_texts(folder: Path) -> dict[str, str]:
    """Texts of the tokens that the folder names: {"eos_token": "<|im_end|>", "image_token": "<|image_pad|>", ..}.

    special_tokens_map.json wins over tokenizer_config.json, unless the latter lists added_tokens_decoder: then it is not read, as
    in transformers 5.24 (`PreTrainedTokenizerBase._from_pretrained`).
    """
    config, named = json_object(folder / CONFIG_FILE), {}
    older = {} if "added_tokens_decoder" in config else json_object(folder / "special_tokens_map.json")
    for source in (config, older):
        for part in (source, source.get("extra_special_tokens"), source.get("model_specific_special_tokens")):
            named |= part if isinstance(part, dict) else {}  # a list holds texts without names
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def generation_ends(folder: Path) -> list[int]:
    """Ids at which transformers' `generate` stops: `eos_token_id`, a number or a list, of generation_config.json; without that
    file of config.json, and last of its text_config. [] where it is not set.

    vLLM stops at these and at the tokenizer's eos_token. Source: transformers 5.24, `GenerationMixin.adjust_generation_fn` and
    `GenerationConfig.from_model_config`; vLLM, `SamplingParams.update_from_generation_config`. Raises UserError for other values.
    """
    path, model = folder / GENERATION_FILE, folder / "config.json"
    found = json_object(path).get("eos_token_id")
    if not path.is_file():
        path, config = model, json_object(model)
        text = config.get("text_config")
        found = config.get("eos_token_id")
        found = text.get("eos_token_id") if found is None and isinstance(text, dict) else found
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{path}: eos_token_id is {found!r}, it must be a token id or a list of them")
    return ids
