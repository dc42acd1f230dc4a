"""Files of a model folder that may say the same thing twice: which one counts, and one truth of them all for a new folder.

The order is that of transformers 5.24, which vLLM reads most of them through.
"""

import json
from collections.abc import Mapping
from typing import Any

from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.data.tokenizer.codec import CONFIG_FILE, GENERATION_FILE, json_object
from mtjudge_jax.data.tokenizer.template import LEGACY_FILE, PROCESSOR_FILE, TEMPLATE_FILE, chat_template, with_default
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath

_PREPROCESSOR, _VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"
# Of a generation config, what may stay: everything else changes which answer is the likeliest, or cuts it, and the judge was
# trained without it. Greedy decoding of transformers and vLLM applies a repetition_penalty, for example.
_KEPT = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p", "transformers_version")
_NEUTRAL = {
    "repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "max_length": 20,
    "min_length": 0, "num_return_sequences": 1, "use_cache": True,
}  # fmt: skip


def image_processor(folder: AnyPath) -> tuple[AnyPath, dict[str, Any]]:
    """The file that holds the settings of the image processor, and the settings: `image_processor` of processor_config.json, else
    preprocessor_config.json. Source: transformers 5.24, `ImageProcessingMixin.get_image_processor_dict`. Raises UserError without
    either.
    """
    nested, plain = folder / PROCESSOR_FILE, folder / _PREPROCESSOR
    if (found := json_object(nested).get("image_processor")) is not None:
        if not isinstance(found, dict):
            raise UserError(f"{nested}: image_processor holds a {type(found).__name__} instead of an object: copy the file again")
        return nested, found
    if not plain.is_file():
        also = f"{PROCESSOR_FILE} without image_processor" if nested.is_file() else f"no {PROCESSOR_FILE}"
        raise UserError(f"{folder} has no {_PREPROCESSOR} and {also}: copy one of them from the model's Hugging Face folder")
    return plain, json_object(plain)


def pixel_limits(processor: Mapping[str, Any]) -> tuple[Any, Any]:
    """What an image processor's settings name as the smallest and the largest area. The older names win, as in transformers."""
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    older = {"shortest_edge": processor.get("min_pixels"), "longest_edge": processor.get("max_pixels")}
    low, high = (size.get(edge) if pixels is None else pixels for edge, pixels in older.items())
    return low, high


def _limited(processor: dict[str, Any], pixels: tuple[int, int] | None) -> dict[str, Any]:
    """The settings with other limits, in the form that wins everywhere; unchanged if they have them already."""
    if pixels is None or pixel_limits(processor) == pixels:
        return processor
    kept = {name: value for name, value in processor.items() if name not in ("min_pixels", "max_pixels")}
    return kept | {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}


def settled(folder: AnyPath, tokenizer: Tokenizer, pixels: tuple[int, int] | None = None) -> dict[str, bytes]:
    """Files that replace those of `folder` in a new folder, by name, so that all its files agree with what was read from it.

    pixels: the limits of a picture in training, smallest and largest area; None: the folder's own.

    chat_template.jinja is always among them: every loader of transformers reads it. An older file is written anew only if the
    folder has it and it says something else, so a folder without contradictions keeps its bytes. Raises FileNotFoundError if the
    folder's files are gone.
    """
    template = chat_template(folder)
    if template is None:
        raise FileNotFoundError(f"{folder}: its chat template is gone")
    files = {TEMPLATE_FILE: template.encode()}
    processor = _limited(image_processor(folder)[1], pixels)
    for name in (LEGACY_FILE, CONFIG_FILE, PROCESSOR_FILE):
        old, new = json_object(folder / name), {}
        if old.get("chat_template") is not None:
            new["chat_template"] = with_default(old["chat_template"], template)
        if name == PROCESSOR_FILE and old.get("image_processor") is not None:
            new["image_processor"] = processor
        if new:
            files[name] = _changed(folder / name, **new)
    files[_PREPROCESSOR] = _changed(folder / _PREPROCESSOR, whole=processor)
    video = json_object(folder / PROCESSOR_FILE).get("video_processor")
    if video is not None and (folder / _VIDEO).is_file():
        files[_VIDEO] = _changed(folder / _VIDEO, whole=video)
    files[GENERATION_FILE] = _generation(folder / GENERATION_FILE, tokenizer)
    return files


def _changed(path: AnyPath, *, whole: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """The bytes of a JSON file with other fields or content; its own bytes if that changes nothing."""
    old = json_object(path)
    new = old | fields if whole is None else whole
    if path.is_file() and new == old:
        return path.read_bytes()
    return json.dumps(new, indent=2, ensure_ascii=False).encode() + b"\n"


def _generation(path: AnyPath, tokenizer: Tokenizer) -> bytes:
    """generation_config.json: the ends of an answer, and the source's settings for sampling."""
    old = json_object(path)
    ids = old.get("eos_token_id")
    named = ids if isinstance(ids, list) else [ids]
    if {*named} != {*tokenizer.ends}:
        ids = tokenizer.eos if len(tokenizer.ends) == 1 else [*tokenizer.ends]
    kept = {name: value for name, value in old.items() if name in _KEPT or (name, value) in _NEUTRAL.items()}
    return _changed(path, whole={"eos_token_id": ids} | (kept if old else {"pad_token_id": tokenizer.pad}))


def dropped_settings(folder: AnyPath) -> dict[str, Any]:
    """Settings of the folder's generation_config.json that `settled` leaves out."""
    old = json_object(folder / GENERATION_FILE)
    dropped = {name: value for name, value in old.items() if name not in _KEPT and (name, value) not in _NEUTRAL.items()}
    return {name: value for name, value in dropped.items() if name != "eos_token_id" and not name.startswith("_")}
