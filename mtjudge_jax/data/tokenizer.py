"""Text to token ids and back, through the tokenizer and chat template of a Hugging Face model folder."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

VISION_TOKENS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. Its methods change nothing, so threads may share it."""

    hf: Any  # transformers' tokenizer; used for the chat template only
    core: Any  # tokenizers.Tokenizer: unlike the wrapper it may be called from several threads at once
    pad: int
    eos: int
    image: int
    vision_start: int
    vision_end: int
    size: int  # one more than the largest real id; the model's embedding may be larger
    control: tuple[tuple[str, int], ...]  # (text, id) of the tokens that neither users nor the sampler may write

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added or cut. Special tokens in `text` become special: `escape` user text."""
        return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` with the reasoning and answer tags, without pad and eos; other control tokens stay visible."""
        kept = [int(i) for i in ids if i not in (self.pad, self.eos)]
        if kept and not 0 <= min(kept) <= max(kept) < self.size:
            raise ValueError(f"ids {min(kept)}..{max(kept)} outside 0..{self.size - 1}; sample under allowed_mask")
        return self.core.decode(kept, skip_special_tokens=False)

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        """bool [vocab_size]: True where the sampler may go: text and eos; no control token, nothing past `size`."""
        if vocab_size < self.size:
            raise ValueError(f"vocab_size {vocab_size} is below the tokenizer's {self.size} ids; fix config.json")
        mask = np.zeros(vocab_size, bool)
        mask[list(self.core.get_vocab(with_added_tokens=True).values())] = True
        mask[[i for _, i in self.control]] = False
        mask[self.eos] = True
        return mask

    def escape(self, text: str) -> str:
        """`text` with a space after the first character of every control token in it, so that it stays plain text.

        `a <|image_pad|> b` becomes `a < |image_pad|> b`.
        """
        for token, _ in self.control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(self, question_text: str, n_images: int) -> str:
        """The prompt of one user turn, images first, open for the answer; one image_pad an image, not yet expanded."""
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": self.escape(question_text)}]
        messages = [{"role": "user", "content": content}]
        return self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` from a local folder.

    Never runs code from the folder and never opens a connection. Raises ValueError where the folder, the chat template,
    the pad or eos token or a vision token is missing.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would tell that torch is missing; nothing needs it
    from transformers import AutoTokenizer  # takes seconds to import

    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json; give a local Hugging Face model folder")
    hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    core = hf.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    vocab = core.get_vocab(with_added_tokens=True)
    missing = [token for token in VISION_TOKENS if token not in vocab]
    needed = {"pad_token": hf.pad_token_id, "eos_token": hf.eos_token_id, "chat_template.jinja": hf.chat_template}
    missing += [name for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"{folder}: the tokenizer has no {', '.join(missing)}; is it a Qwen3-VL folder?")
    image, start, end = (vocab[token] for token in VISION_TOKENS)
    size = max(vocab.values()) + 1
    return Tokenizer(hf, core, hf.pad_token_id, hf.eos_token_id, image, start, end, size, _control_tokens(core))


def _control_tokens(core: Any) -> tuple[tuple[str, int], ...]:
    """Added tokens that are special or written `<|...|>`: Qwen3 has some, `<|fim_prefix|>`, marked as not special."""
    added = core.get_added_tokens_decoder()
    return tuple(
        (token.content, i)
        for i, token in sorted(added.items())
        if token.special or (token.content.startswith("<|") and token.content.endswith("|>"))
    )
