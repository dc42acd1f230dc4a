"""Text to token ids and back, through the tokenizer and chat template of a Hugging Face model folder."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtjudge_jax.data.tokenizer import hf, sentencepiece
from mtjudge_jax.data.tokenizer.codec import Codec, Parts
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, nearby
from mtjudge_jax.records import BadRecord

TEXT_FILES = (".json", ".jinja", ".model", ".txt")  # endings of what a folder has beside its weights
READERS = {"tokenizer.json": hf.read, "tokenizer.model": sentencepiece.read}  # the first that is there
VISION_NAMES = {  # how tokenizer_config.json of other families names them; Qwen3-VL's names none of them
    "<|image_pad|>": ("image_token",),
    "<|vision_start|>": ("vision_start_token", "vision_bos_token", "boi_token"),
    "<|vision_end|>": ("vision_end_token", "vision_eos_token", "eoi_token"),
}
THINK = "<think>"
PROBE, FORM = "What is it?", "<think>it is</think><answer>yes</answer>"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. Its methods change nothing, so threads may share it."""

    chat: Callable[[list[dict[str, Any]]], str]  # messages to a prompt that is open for the answer
    codec: Codec
    pad: int
    eos: int
    image: int
    vision_start: int
    vision_end: int
    size: int  # one more than the largest real id; the model's embedding may be larger
    control: tuple[tuple[str, int], ...]  # (text, id) of the tokens that neither users nor the sampler may write
    opening: str = ""  # what the chat template already writes of every answer: "<think>\n" of a Thinking model

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added or cut. Special tokens in `text` become special: `escape` user text."""
        return self.codec.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` with the reasoning and answer tags, without pad and eos; other control tokens stay visible."""
        kept = [int(i) for i in ids if i not in (self.pad, self.eos)]
        if kept and not 0 <= min(kept) <= max(kept) < self.size:
            raise UserError(f"ids {min(kept)}..{max(kept)} outside 0..{self.size - 1}; sample under allowed_mask")
        return self.codec.decode(kept)

    def decode_answer(self, ids: Iterable[int]) -> str:
        """The whole answer whose sampled part is `ids`: with the opening, as the parsers and rewards want it."""
        return self.opening + self.decode(ids)

    def encode_answer(self, text: str) -> list[int]:
        """Ids to sample for a whole answer, without eos: what follows the opening, with control tokens escaped.

        With the opening "<think>\\n" both "<think>\\nsharp</think>.." and "<think>sharp</think>.." give "sharp</think>..".
        Raises BadRecord `target_form` on an answer that does not begin with the opening, else as `escape` does.
        """
        start = next((s for s in (self.opening, self.opening.rstrip()) if text.startswith(s)), None)
        if start is None:
            raise BadRecord("target_form", f"the chat template begins every answer with {self.opening!r}, not so {text[:80]!r}")
        return self.encode(self.escape(text[len(start) :]))

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        """bool [vocab_size]: True where the sampler may go: text and eos; no control token, nothing past `size`."""
        if vocab_size < self.size:
            raise UserError(f"vocab_size {vocab_size} is below the tokenizer's {self.size} ids; fix config.json")
        mask = np.zeros(vocab_size, bool)
        mask[self.codec.text_ids()] = True
        mask[[*self.control_ids]] = False
        mask[self.eos] = True
        return mask

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of `control`."""
        return frozenset(i for _, i in self.control)

    def escape(self, text: str) -> str:
        """`text` with a space after the first character of every control token in it, so that it stays plain text.

        `a <|image_pad|> b` becomes `a < |image_pad|> b`. Where the tokenizer would fold look-alikes into a control token
        (full-width `＜｜image_pad｜＞`), the text is folded first. Raises BadRecord `forged_token` where that does not help.
        """
        text = self._split_control(text)
        if self.control_ids.isdisjoint(self.encode(text)):
            return text
        text = self._split_control(self.codec.normalize(text))
        forged = self.control_ids.intersection(self.encode(text))
        if forged:
            raise BadRecord("forged_token", f"the tokenizer reads control tokens {sorted(forged)} in {text[:80]!r}")
        return text

    def _split_control(self, text: str) -> str:
        for token, _ in self.control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def render(self, question_text: str, n_images: int) -> str:
        """The prompt of one user turn, images first, open for the answer; one image token an image, not yet expanded."""
        return self.render_parts([None] * n_images + [question_text])

    def render_parts(self, parts: Sequence[str | None]) -> str:
        """The prompt of one user turn of texts and, where a part is None, images in this order; open for the answer."""
        content = [{"type": "image"} if part is None else {"type": "text", "text": self.escape(part)} for part in parts]
        return self.chat([{"role": "user", "content": content}])


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a local folder: `tokenizer.json`, else SentencePiece's `tokenizer.model`, and its chat template.

    Never runs code from the folder and never opens a connection. Raises ValueError where the folder, the chat template,
    the pad or eos token or a vision token is missing, or the template or tokenizer cannot carry a question or an answer.
    """
    folder = as_path(folder)
    read = next((read for file, read in READERS.items() if (folder / file).is_file()), None)
    if read is None:
        raise UserError(f"{folder} has no {' and no '.join(READERS)}; give a local Hugging Face model folder")
    with nearby(folder, TEXT_FILES) as copy:  # what reads tokenizer.json reads disks only
        parts = read(copy)
    vision = [_named(parts, keys, default) for default, keys in VISION_NAMES.items()]
    needed = {name: parts.special.get(name) for name in ("pad_token", "eos_token")}
    missing = [text for text in vision if text not in parts.vocab]
    missing += [name if text is None else text for name, text in needed.items() if text not in parts.vocab]
    missing += ["chat_template.jinja"] if parts.chat is None else []
    if missing:
        raise UserError(f"{folder}: the tokenizer has no {', '.join(missing)}; is it a Qwen3-VL folder?")
    ids = [parts.vocab[text] for text in (*needed.values(), *vision)]
    size = max(max(parts.codec.text_ids()), max(parts.vocab.values())) + 1
    tokenizer = Tokenizer(parts.chat, parts.codec, *ids, size, _with_vision(parts.control, vision, parts.vocab))
    return dataclasses.replace(tokenizer, opening=_check(tokenizer, folder))


def _named(parts: Parts, keys: tuple[str, ...], default: str) -> str:
    return next((parts.special[key] for key in keys if key in parts.special), default)


def _with_vision(control: tuple, vision: list[str], vocab: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The control tokens with the vision tokens among them, however the folder marks those; in the order of their ids."""
    return tuple(sorted({*control, *((text, vocab[text]) for text in vision)}, key=lambda token: token[1]))


def _check(tokenizer: Tokenizer, folder: AnyPath) -> str:
    """The opening, after a question with an image and an answer went through. Raises ValueError where one does not."""
    try:
        prompt = tokenizer.render(PROBE, 1)
    except Exception as e:  # a template may raise anything
        raise UserError(f"{folder}: its chat template fails on a question with an image: {type(e).__name__}: {e}") from e
    places = tokenizer.encode(prompt).count(tokenizer.image)
    if places != 1 or PROBE not in prompt:
        raise UserError(
            f"{folder}: of a question with one image its chat template makes {prompt!r}, with {places} image tokens; "
            "it must hold the question and one image token; is it a vision-language model's folder?"
        )
    written = tokenizer.decode(tokenizer.encode(FORM))
    if written != FORM:
        raise UserError(f"{folder}: the tokenizer turns {FORM!r} into {written!r}: an answer could not be read")
    return _opening(prompt.rpartition(PROBE)[2], tokenizer, folder)


def _opening(tail: str, tokenizer: Tokenizer, folder: AnyPath) -> str:
    """What of a prompt's end, after the question, belongs to the answer: from the last <think>, if no turn begins after it."""
    _, tag, rest = tail.rpartition(THINK)
    if not tag or any(token in rest for token, _ in tokenizer.control):
        return ""
    if rest.strip():
        raise UserError(f"{folder}: its chat template begins the answer with {tag + rest!r}: use one that ends with {THINK}")
    return tag + rest
