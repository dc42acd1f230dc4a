"""The demo's tokenizer: byte-level BPE in which every word of the demo is one token, in Qwen3-VL's file layout."""

import json
from itertools import chain
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mtjudge_jax.demo.cases import phrase
from mtjudge_jax.demo.neutral import ASKS, THING_KINDS
from mtjudge_jax.demo.pretrain.corpus import DESCRIBE
from mtjudge_jax.demo.scenes import LOOKS, ORDERS, SIZE, THINGS
from mtjudge_jax.tasks import DEMO
from mtjudge_jax.tasks.demo import ANSWERS, LISTED, NEUTRAL_KINDS

MAX_VOCABULARY = 1024
_PAD, _END = "<|endoftext|>", "<|im_end|>"
_SPECIAL = (_PAD, "<|im_start|>", _END, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# Not special: they belong to the answer's text and must survive decoding that skips special tokens.
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Lays out turns as Qwen3-VL does: nothing before the first turn, pictures where the message has them.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ "\\n" }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == "text" -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant{{ "\\n" }}
{%- endif -%}
"""
_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    # Areas in pixels: every picture is resized to about 96 x 96.
    "size": {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _demo_texts() -> list[str]:
    """Texts that hold every word of the demo's questions, descriptions and rationales."""
    tasks = [*DEMO.values(), *NEUTRAL_KINDS.values()]
    questions = [task.template.replace("{instruction}", "a dog") for task in tasks] + [*DESCRIBE.values()]
    questions += [text.format("has parts", "looks") for text in ASKS.values()]
    facts = [f"looks {look}, parts {order}" for look in LOOKS for order in ORDERS]
    things = [f"shows {thing}, and {phrase(thing)}, matches, differs from" for thing in THINGS]
    answers = [word for words in ANSWERS.values() for word in words] + [" > ".join(LISTED), " = ".join(LISTED)]
    return [*questions, *facts, *things, *THING_KINDS, *answers, "user", "assistant", "system"]


def build_tokenizer(folder: str | Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json. Deterministic.

    Raises ValueError if a word is not one token or the vocabulary is larger than MAX_VOCABULARY.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(_SPECIAL) - len(_TAGS),
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    clean = (text.translate(str.maketrans("", "", ",.?:{}")) for text in _demo_texts())
    words = sorted(set(chain.from_iterable(text.split() for text in clean)))
    # Each word inside a text (with its space) and at the start of one. Training continues until nothing is left to merge.
    tokenizer.train_from_iterator([form for word in words for form in (word, f" {word}")], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    _check(tokenizer, words)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": _END,
        "pad_token": _PAD,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")


def _check(tokenizer: Tokenizer, words: list[str]) -> None:
    broken = [form for word in words for form in (word, f" {word}") if len(tokenizer.encode(form).ids) != 1]
    if broken:
        raise ValueError(f"{len(broken)} words are more than one token ({broken[:5]}): raise MAX_VOCABULARY")
    if tokenizer.get_vocab_size() > MAX_VOCABULARY:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} ids, at most {MAX_VOCABULARY}: use fewer words")
