"""`tokenizer.json`, read by transformers and tokenizers."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtjudge_jax.data.tokenizer.codec import TokenizerParts, chat_template, looks_like_control, special_texts


@dataclasses.dataclass(frozen=True, eq=False)
class _JsonCodec:
    """See Codec."""

    core: Any  # tokenizers.Tokenizer: unlike transformers' wrapper it may be called from several threads at once
    unknown: int | None

    def encode(self, text: str) -> list[int]:
        return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.core.decode(ids, skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        return text if self.core.normalizer is None else self.core.normalizer.normalize_str(text)

    def text_ids(self) -> list[int]:
        return sorted({*self.core.get_vocab(with_added_tokens=True).values()} - {self.unknown})


def read(folder: Path) -> TokenizerParts:
    """Runs no code from the folder and opens no connection. Raises what transformers raises on damaged files."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that torch is missing; nothing needs it
    from transformers import AutoTokenizer  # takes seconds to import

    hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    core = hf.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    if hf.chat_template is None:
        hf.chat_template = chat_template(folder)

    def chat(messages: list[dict[str, Any]]) -> str:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    special = special_texts(folder) | {
        name: text for name, text in (("pad_token", hf.pad_token), ("eos_token", hf.eos_token)) if text is not None
    }
    unknown = hf.unk_token_id
    control = tuple(
        (token.content, i)
        for i, token in sorted(core.get_added_tokens_decoder().items())
        if i != unknown and (token.special or looks_like_control(token.content))
    )
    vocab = core.get_vocab(with_added_tokens=True)
    return TokenizerParts(_JsonCodec(core, unknown), chat if hf.chat_template is not None else None, vocab, special, control)
