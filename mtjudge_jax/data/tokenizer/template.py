"""The chat template of a model folder, and the text it makes of messages."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from mtjudge_jax.data.tokenizer.codec import CONFIG_FILE, json_object
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath

TEMPLATE_FILE, LEGACY_FILE, PROCESSOR_FILE = "chat_template.jinja", "chat_template.json", "processor_config.json"
_MORE = "additional_chat_templates"
_DEFAULT = "default"

# (messages, prompt=True) -> text; with `prompt` up to the answer, otherwise of complete turns only
Chat = Callable[..., str]


def chat_template(folder: AnyPath) -> str | None:
    """The Jinja template of a folder: `chat_template` of processor_config.json, else chat_template.json, else chat_template.jinja
    or additional_chat_templates/default.jinja, else `chat_template` of tokenizer_config.json. None without any.

    This is the order of transformers and vLLM: the processor's template, and the tokenizer's only where the processor has none.
    Source: transformers 5.24, `ProcessorMixin.get_processor_dict` and `PreTrainedTokenizerBase._from_pretrained`; vLLM,
    `resolve_hf_chat_template`. Raises UserError for two files that transformers refuses to read together.
    """
    legacy, jinja = folder / LEGACY_FILE, folder / TEMPLATE_FILE
    more = _additional(folder)
    if legacy.is_file() and more:
        raise UserError(f"{folder}: {LEGACY_FILE} is beside {_MORE}/, and transformers refuses both together: remove one of them")
    if (found := _default_of(json_object(folder / PROCESSOR_FILE).get("chat_template"))) is not None:
        return found
    if legacy.is_file() and (found := _default_of(json_object(legacy).get("chat_template"))) is not None:
        return found
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    return more.get(_DEFAULT) if more else _default_of(json_object(folder / CONFIG_FILE).get("chat_template"))


def _additional(folder: AnyPath) -> dict[str, str]:
    """The templates of additional_chat_templates/ by name."""
    if not (folder / _MORE).is_dir():
        return {}
    files = [path for path in (folder / _MORE).iterdir() if path.name.endswith(".jinja")]
    return {path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8") for path in files}


def _default_of(value: Any) -> str | None:
    """A template, or the one that is named default in a list or dict of several."""
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}
    return value.get(_DEFAULT) if isinstance(value, dict) else value


def with_default(value: Any, template: str) -> Any:
    """`value` of a `chat_template` field, in its own form, with `template` as the default."""
    if isinstance(value, list):
        others = [entry for entry in value if entry["name"] != _DEFAULT]
        return value if _default_of(value) == template else [*others, {"name": _DEFAULT, "template": template}]
    return value | {_DEFAULT: template} if isinstance(value, dict) else template


def template_chat(template: str, special: Mapping[str, str]) -> Chat:
    """The text of messages by a Jinja template, which sees the special tokens by name, as in transformers."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that torch is missing; nothing needs it
    from transformers.utils.chat_template_utils import render_jinja_template

    def chat(messages: list[dict[str, Any]], prompt: bool = True) -> str:
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=template, add_generation_prompt=prompt, **special
        )
        return rendered[0]

    return chat
