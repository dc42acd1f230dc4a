"""SentencePiece's `tokenizer.model`, read by the sentencepiece package itself.

transformers 5.23 makes of such a file a tokenizer that encodes every text to nothing. So none of its tokenizer classes is
used here.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtjudge_jax.data.tokenizer.codec import (
    CONFIG_FILE,
    TokenizerParts,
    json_object,
    looks_like_control,
    special_texts,
)
from mtjudge_jax.errors import UserError

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6  # sentencepiece_model.proto, SentencePiece.Type
_SPACE = "\u2581"  # how a piece writes a space


@dataclasses.dataclass(frozen=True, eq=False)
class _SentencePieceCodec:
    """See Codec.

    A text here is part of a conversation, so its spaces are content: none is added before it and none is dropped. What the
    model's own normaliser folds (nothing in today's models; line ends and full-width letters in older ones) stays folded,
    because the vocabulary was made that way. U+2581 is a space.
    """

    processor: Any  # sentencepiece.SentencePieceProcessor
    literal: Mapping[str, int]  # tokens that are found in the text as they are written, before any normalisation
    any_literal: re.Pattern | None
    meaning: Mapping[int, str | int]  # text of a piece; a byte piece's byte
    unknown: int

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self.any_literal.split(text) if self.any_literal else [text]:
            ids += [self.literal[part]] if part in self.literal else self.processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        out = bytearray()
        for i in ids:
            meaning = self.meaning.get(i, "")
            out += bytes([meaning]) if isinstance(meaning, int) else meaning.encode()
        return out.decode(errors="replace")

    def normalize(self, text: str) -> str:
        return self.processor.normalize(text).replace(_SPACE, " ")

    def text_ids(self) -> list[int]:
        return sorted({*self.meaning} - {self.unknown})


def read(folder: Path) -> TokenizerParts:
    """Raises UserError if the file is no SentencePiece model or the JSON files beside it are damaged."""
    import sentencepiece

    model = _model(folder / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    named = {"pad_token": processor.pad_id(), "bos_token": processor.bos_id(), "eos_token": processor.eos_id()}
    special = {name: model.pieces[i].piece for name, i in named.items() if i >= 0} | special_texts(folder)
    added = _added_tokens(folder)
    added.pop(processor.unk_id(), None)  # a text must not hold the token for unknown text
    control = {i: piece.piece for i, piece in enumerate(model.pieces) if _is_control(piece, special)}
    control |= {i: text for i, (text, marked) in added.items() if marked or i in control or _is_named(text, special)}
    literal = {text: i for i, (text, _) in added.items()} | {text: i for i, text in control.items()}
    longest_first = sorted(map(re.escape, literal), key=len, reverse=True)
    any_literal = re.compile(f"({'|'.join(longest_first)})") if literal else None
    meaning = {i: _meaning(piece) for i, piece in enumerate(model.pieces) if piece.type != _UNUSED}
    meaning |= {i: text for i, (text, _) in added.items()}
    codec = _SentencePieceCodec(processor, literal, any_literal, meaning, processor.unk_id())
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type in (_CONTROL, _USER_DEFINED)} | literal
    return TokenizerParts(codec, vocab, special, special, tuple((control[i], i) for i in sorted(control)))


def _meaning(piece: Any) -> str | int:
    if piece.type == _BYTE:
        return int(piece.piece[1:-1], 16)  # <0x0A>
    if piece.type == _UNKNOWN:
        return "\ufffd"
    return piece.piece.replace(_SPACE, " ")


def _is_control(piece: Any, special: Mapping[str, str]) -> bool:
    return piece.type == _CONTROL or (piece.type == _USER_DEFINED and _is_named(piece.piece, special))


def _is_named(text: str, special: Mapping[str, str]) -> bool:
    return looks_like_control(text) or text in special.values()


def _model(path: Path) -> Any:
    """The file as a ModelProto that keeps spaces as they are; see _SentencePieceCodec."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except DecodeError as e:
        raise UserError(f"{path} is no SentencePiece model ({e}); copy it again, or give a folder with tokenizer.json") from e
    if not any(piece.type == _UNKNOWN for piece in model.pieces):
        raise UserError(f"{path} has {len(model.pieces)} pieces but none for unknown text: it is damaged, copy it again")
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


def _added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """{id: (text, special)} of the tokens that the folder adds to the model's pieces or renames."""
    config = json_object(folder / CONFIG_FILE)
    added = {int(i): (text, False) for text, i in json_object(folder / "added_tokens.json").items()}
    listed = config.get("added_tokens_decoder", {})
    return added | {int(i): (token["content"], bool(token.get("special", False))) for i, token in listed.items()}
