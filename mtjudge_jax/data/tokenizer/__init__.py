"""Text to token ids and back, through the tokenizer and chat template of a Hugging Face model folder."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtjudge_jax.data.tokenizer import sentencepiece
from mtjudge_jax.data.tokenizer.codec import Codec, TokenizerParts, generation_ends, looks_like_control, special_texts
from mtjudge_jax.data.tokenizer.template import TEMPLATE_FILE, Chat, chat_template, template_chat
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, nearby
from mtjudge_jax.records import BadRecord

_TEXT_FILES = (".json", ".jinja", ".model", ".txt")  # the files that a folder has beside its weights
_VISION_NAMES = {  # how the tokenizer_config.json of other model families names them; Qwen3-VL's does not
    "<|image_pad|>": ("image_token",),
    "<|vision_start|>": ("vision_start_token", "vision_bos_token", "boi_token"),
    "<|vision_end|>": ("vision_end_token", "vision_eos_token", "eoi_token"),
}
_THINK = "<think>"
_KEPT_PROMPTS, _KEPT_CHARACTERS = 256, 10_000  # how many prompts are kept, and how long each may be
_PROBE, _REPLY, _FORM = "What is it?", "It is sharp.", "<think>it is</think><answer>yes</answer>"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. Its methods change nothing, so threads may share it."""

    chat: Chat
    codec: Codec
    pad: int
    eos: int  # ends an answer that is taught: what the chat template writes after an assistant's text
    image: int
    vision_start: int
    vision_end: int
    size: int  # one more than the largest real id; the model's embedding may be larger
    control: tuple[tuple[str, int], ...]  # (text, id) of the tokens that neither users nor the sampler may write
    opening: str = ""  # the start of every answer, if the chat template writes it: "<think>\n" of a Thinking model
    other_ends: tuple[int, ...] = ()  # further tokens that end an answer

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, `eos` first: all at which transformers' `generate` or vLLM would stop. The pad may be one."""
        return self.eos, *self.other_ends

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added or cut. Special tokens in `text` become special, so `escape` user text first."""
        return self.codec.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` with the reasoning and answer tags, without pad and ends; other control tokens stay visible."""
        kept = [int(i) for i in ids if i not in (self.pad, *self.ends)]
        if kept and not 0 <= min(kept) <= max(kept) < self.size:
            raise ValueError(f"ids {min(kept)}..{max(kept)} outside 0..{self.size - 1}: sample with allowed_mask")
        return self.codec.decode(kept)

    def decode_answer(self, ids: Iterable[int]) -> str:
        """The whole answer whose sampled part is `ids`: with the opening, as parsers and rewards need it."""
        return self.opening + self.decode(ids)

    def encode_answer(self, text: str) -> list[int]:
        """Ids to sample for a whole answer, without its end: the part after the opening, with control tokens escaped.

        With the opening "<think>\\n" both "<think>\\nsharp</think>.." and "<think>sharp</think>.." give "sharp</think>..".
        Raises BadRecord `target_form` for an answer without the opening, and what `escape` raises.
        """
        start = next((s for s in (self.opening, self.opening.rstrip()) if text.startswith(s)), None)
        if start is None:
            raise BadRecord("target_form", f"the chat template begins every answer with {self.opening!r}, but not {text[:80]!r}")
        return self.encode(self.escape(text[len(start) :]))

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        """bool [vocab_size]: True for the ids that may be sampled: text and ends, no other control token, nothing past `size`."""
        if vocab_size < self.size:
            raise UserError(f"vocab_size {vocab_size} is below the tokenizer's {self.size} ids; fix config.json")
        mask = np.zeros(vocab_size, bool)
        mask[self.codec.text_ids()] = True
        mask[[*self.control_ids]] = False
        mask[[*self.ends]] = True
        return mask

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of `control`."""
        return frozenset(i for _, i in self.control)

    def escape(self, text: str) -> str:
        """`text` with a space after the first character of every control token in it, so that it stays plain text.

        `a <|image_pad|> b` becomes `a < |image_pad|> b`. If the tokenizer would fold look-alikes into a control token
        (full-width `＜｜image_pad｜＞`), the text is folded first. Raises BadRecord `forged_token` if that does not help.
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
        """The prompt of one user turn with the images first, up to the answer; one image token per image, not yet expanded."""
        return self.render_parts([None] * n_images + [question_text])

    def render_parts(self, parts: Sequence[str | None]) -> str:
        """The prompt of one user turn of texts and, for each None, an image, in this order; up to the answer."""
        content = [{"type": "image"} if part is None else {"type": "text", "text": self.escape(part)} for part in parts]
        return self.chat([{"role": "user", "content": content}])

    def prompt_ids(self, parts: Sequence[str | None]) -> tuple[int, ...]:
        """Ids of `render_parts`, one for each image. Those of short prompts are kept: many questions differ in pictures alone."""
        short = sum(len(part) for part in parts if part) <= _KEPT_CHARACTERS
        return (self._kept_ids if short else self._make_ids)(tuple(parts))

    def _make_ids(self, parts: tuple[str | None, ...]) -> tuple[int, ...]:
        return tuple(self.encode(self.render_parts(parts)))

    @functools.cached_property
    def _kept_ids(self) -> Callable[[tuple[str | None, ...]], tuple[int, ...]]:
        return functools.lru_cache(_KEPT_PROMPTS)(self._make_ids)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a local folder: `tokenizer.json`, else SentencePiece's `tokenizer.model`, else `vocab.json` with
    `merges.txt`; its chat template; and the tokens that end an answer.

    Runs no code from the folder and opens no connection. Raises UserError if the folder, the chat template, the pad or eos
    token or a vision token is missing, or if the template or tokenizer cannot represent a question or an answer, or if the
    template ends an answer with a token at which nobody stops.
    """
    folder = as_path(folder)
    read = next((read for file, read in _READERS.items() if (folder / file).is_file()), None)
    if read is None:
        raise UserError(f"{folder} has no tokenizer.json and no tokenizer.model; give a local Hugging Face model folder")
    template = chat_template(folder)
    with nearby(folder, _TEXT_FILES) as copy:  # the reader of tokenizer.json reads disks only
        parts, stops = read(copy), generation_ends(copy)
    special = parts.special
    vision = [next((special[key] for key in keys if key in special), default) for default, keys in _VISION_NAMES.items()]
    known = {*parts.codec.text_ids(), *parts.vocab.values()}
    stops = [i for i in stops if i in known]  # the model can never write another
    names = ("pad_token", "eos_token") if "eos_token" in special or not stops else ("pad_token",)
    named = {name: special.get(name) for name in names}
    missing = [text for text in vision if text not in parts.vocab]
    missing += [name if text is None else text for name, text in named.items() if text not in parts.vocab]
    missing += [TEMPLATE_FILE] if template is None else []
    if missing:
        raise UserError(f"{folder}: the tokenizer has no {', '.join(missing)}; is it a Qwen3-VL folder?")
    pad, *own = [parts.vocab[text] for text in named.values()]
    eos, *others = dict.fromkeys([*own, *stops])
    size = max(known) + 1
    # With the vision tokens, however the folder marks these, in the order of their ids.
    control = sorted({*parts.control, *((text, parts.vocab[text]) for text in vision)}, key=lambda token: token[1])
    chat, ids = template_chat(template, parts.in_template), [parts.vocab[text] for text in vision]
    tokenizer = Tokenizer(chat, parts.codec, pad, eos, *ids, size, tuple(control), other_ends=tuple(others))
    opening, eos = _check(tokenizer, folder), _turn_end(tokenizer, folder)
    return dataclasses.replace(tokenizer, opening=opening, eos=eos, other_ends=tuple(i for i in tokenizer.ends if i != eos))


def _check(tokenizer: Tokenizer, folder: AnyPath) -> str:
    """The opening, after a test with a question about an image and an answer. Raises UserError if one of them fails."""
    try:
        prompt = tokenizer.render(_PROBE, 1)
    except Exception as e:  # a template may raise anything
        raise UserError(f"{folder}: its chat template fails on a question with an image: {type(e).__name__}: {e}") from e
    places = tokenizer.encode(prompt).count(tokenizer.image)
    if places != 1 or _PROBE not in prompt:
        raise UserError(
            f"{folder}: for a question with one image its chat template writes {prompt!r}, with {places} image tokens; "
            "it must write the question and one image token; is this the folder of a vision-language model?"
        )
    written = tokenizer.decode(tokenizer.encode(_FORM))
    if written != _FORM:
        raise UserError(f"{folder}: the tokenizer turns {_FORM!r} into {written!r}: no answer could be parsed; use another model")
    return _opening(prompt.rpartition(_PROBE)[2], tokenizer, folder)


def _turn_end(tokenizer: Tokenizer, folder: AnyPath) -> int:
    """The first control token that the chat template writes behind an assistant's text; of a template that takes questions only,
    the tokenizer's eos. Raises UserError if it is none of `ends`: a model of this template would never stop.
    """
    tail = _after_reply(tokenizer)
    if tail is None:
        return tokenizer.eos
    marks = [i for i in tokenizer.encode(tail) if i in tokenizer.control_ids or i in tokenizer.ends]
    if marks and marks[0] in tokenizer.ends:
        return marks[0]
    texts = {i: f"{text} ({i})" for text, i in tokenizer.control}
    ends = " or ".join(texts.get(i, str(i)) for i in tokenizer.ends)
    wrote = f"with {texts[marks[0]]}" if marks else "without a token"
    remedy = f"add {marks[0]} to eos_token_id of generation_config.json" if marks else "write one of these there"
    raise UserError(f"{folder}: its chat template ends an assistant's turn {wrote}, but an answer ends with {ends}: {remedy}")


def _after_reply(tokenizer: Tokenizer) -> str | None:
    """What the template writes after an assistant's text, None if it does not write such a text."""
    question = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
    for content in (_REPLY, [{"type": "text", "text": _REPLY}]):
        try:
            written = tokenizer.chat([question, {"role": "assistant", "content": content}], prompt=False)
        except Exception:  # a template may raise anything
            continue
        _, found, tail = written.rpartition(_REPLY)
        if found:
            return tail
    return None


def _opening(tail: str, tokenizer: Tokenizer, folder: AnyPath) -> str:
    """The part of a prompt's end, after the question, that begins the answer: from the last <think>, unless a turn follows."""
    _, tag, rest = tail.rpartition(_THINK)
    if not tag or any(token in rest for token, _ in tokenizer.control):
        return ""
    if rest.strip():
        raise UserError(f"{folder}: its chat template begins the answer with {tag + rest!r}: use one that ends with {_THINK}")
    return tag + rest


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


def _read_json(folder: Path) -> TokenizerParts:
    """`tokenizer.json`, or `vocab.json` with `merges.txt`, read by transformers and tokenizers.

    Runs no code from the folder and opens no connection. Raises what transformers raises on damaged files."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that torch is missing; nothing needs it
    from transformers import AutoTokenizer  # takes seconds to import

    hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    core = hf.backend_tokenizer
    core.no_truncation()
    core.no_padding()
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
    return TokenizerParts(_JsonCodec(core, unknown), vocab, special, hf.special_tokens_map, control)


_READERS = {"tokenizer.json": _read_json, "tokenizer.model": sentencepiece.read, "merges.txt": _read_json}  # the first file found
