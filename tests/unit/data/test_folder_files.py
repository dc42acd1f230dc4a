"""Folders as transformers 5.24 and trainers built on it save them: what is read is what transformers reads, and a new folder made
from one says the same in every file.
"""

import json
import shutil

import numpy as np
import pytest
from data_fixtures import TEMPLATE, write_sentencepiece, write_tokenizer

from mtjudge_jax.data.folder_files import dropped_settings, settled
from mtjudge_jax.data.image_config import load_image_config
from mtjudge_jax.data.images import patchify
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.errors import UserError

SIZE = {"shortest_edge": 4096, "longest_edge": 9216}
IMAGES = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGES |= {"size": SIZE, "image_processor_type": "Qwen2VLImageProcessor", "resample": 3, "do_resize": True}
SMALL = IMAGES | {"size": {"shortest_edge": 1024, "longest_edge": 1024}}
BASE_TOKENIZER = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
SIZES = ((40, 60), (200, 90), (96, 96))
OTHER = TEMPLATE.replace("<|im_start|>{{ m.role }}", "<|im_start|>[{{ m.role }}]")

# {file: its fields, added to those of the plain folder; None: without this file; a text: the whole file}
VARIANTS = {
    "plain": {},
    "saved by transformers 5": {
        "preprocessor_config.json": None,
        "processor_config.json": {"image_processor": IMAGES, "video_processor": {}},
    },
    "another size nested": {"processor_config.json": {"image_processor": SMALL, "processor_class": "Qwen3VLProcessor"}},
    "older names of the size": {"preprocessor_config.json": {"min_pixels": 1024, "max_pixels": 2048}},
    "a base tokenizer and a list of ends": {
        "tokenizer_config.json": BASE_TOKENIZER,
        "generation_config.json": {"eos_token_id": [258, 256]},
    },
    "a base tokenizer and one other end": {
        "tokenizer_config.json": BASE_TOKENIZER,
        "generation_config.json": {"eos_token_id": 258},
    },
    "ends in config.json": {
        "tokenizer_config.json": BASE_TOKENIZER,
        "generation_config.json": None,
        "config.json": {"text_config": {"eos_token_id": [258]}},
    },
    "a legacy template that disagrees": {"chat_template.json": {"chat_template": OTHER}},
    "a template of the tokenizer alone": {
        "chat_template.jinja": None,
        "tokenizer_config.json": {"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": OTHER}]},
    },
    "a template of the processor": {
        "processor_config.json": {"chat_template": OTHER},
        "tokenizer_config.json": {"chat_template": TEMPLATE},
    },
    "templates in a folder": {
        "chat_template.jinja": None,
        "additional_chat_templates/default.jinja": OTHER,
        "additional_chat_templates/tools.jinja": "x",
    },
    "an older map of special tokens": {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}},
    },
    "names in a list": {"tokenizer_config.json": {"extra_special_tokens": ["<|image_pad|>", "<|vision_start|>"]}},
    "names in a dict": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<|image_pad|>"}}},
    "penalties": {"generation_config.json": {"eos_token_id": 258, "repetition_penalty": 1.05, "max_new_tokens": 7, "top_k": 20}},
}


def write_variant(folder, files, write=write_tokenizer):
    write(folder)
    plain = {"preprocessor_config.json": IMAGES, "generation_config.json": {"eos_token_id": 258, "pad_token_id": 256}}
    if write is write_sentencepiece:
        ends = {258: 6, 256: 4}
        plain["generation_config.json"] = {"eos_token_id": 6, "pad_token_id": 4}
        files = json.loads(json.dumps(files))
        for fields in (files.get("generation_config.json"), (files.get("config.json") or {}).get("text_config")):
            if fields:
                ids = fields["eos_token_id"]
                fields["eos_token_id"] = [ends[i] for i in ids] if isinstance(ids, list) else ends[ids]
    plain["config.json"] = {"model_type": "qwen3_vl"}
    for name in {**plain, **files}:
        path, fields = folder / name, files.get(name, {})
        if fields is None:
            path.unlink(missing_ok=True)
        elif isinstance(fields, str):
            path.parent.mkdir(exist_ok=True)
            path.write_text(fields)
        else:
            old = json.loads(path.read_text()) if path.exists() else plain.get(name, {})
            path.write_text(json.dumps(old | fields))
    return folder


def exported(source, out):
    """A new folder: the files of the source, and over them those that were settled."""
    shutil.copytree(source, out, ignore=lambda *_: ["additional_chat_templates"])
    for name, content in settled(source, load_tokenizer(source)).items():
        (out / name).write_bytes(content)
    return out


def read_by_us(folder) -> dict:
    tokenizer, images = load_tokenizer(folder), load_image_config(folder)
    prompt = tokenizer.render_parts(["What?\n", None, " <|im_end|> "])
    grids = [patchify(np.zeros((*size, 3), np.uint8), images).grid for size in SIZES]
    return {"prompt": tokenizer.encode(prompt), "eos": tokenizer.eos, "ends": {*tokenizer.ends}, "grids": grids, "images": images}


def read_by_transformers(folder, question) -> dict:
    """What AutoTokenizer, AutoProcessor's template, generate and vLLM would use. AutoProcessor itself needs torchvision."""
    from transformers import AutoTokenizer, GenerationConfig, Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    tokenizer, images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    found = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template") or tokenizer.chat_template
    template = found["default"] if isinstance(found, dict) else found
    text = tokenizer.apply_chat_template(question, chat_template=template, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        ends = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True).eos_token_id
    found = [images(np.zeros((*size, 3), np.uint8))["image_grid_thw"][0].tolist() for size in SIZES]
    grids = [tuple(grid[1:]) for grid in found]
    generate = {*(ends if isinstance(ends, list) else [ends])}
    stops = {"ends": generate, "vllm": generate | {tokenizer.eos_token_id}}
    return {"prompt": prompt, "grids": grids, "own": tokenizer.chat_template} | stops


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_of_any_spelling_goes_round(tmp_path, variant):
    """Read here, written here, read by transformers: the same prompts, the same ends, the same grids."""
    source = write_variant(tmp_path / "source", VARIANTS[variant])
    ours = read_by_us(source)
    text = lambda t: {"type": "text", "text": t}  # noqa: E731
    question = [{"role": "user", "content": [text("What?\n"), {"type": "image"}, text(" < |im_end|> ")]}]
    before = read_by_transformers(source, question)
    assert (ours["prompt"], ours["grids"], ours["ends"]) == (before["prompt"], before["grids"], before["vllm"])
    out = exported(source, tmp_path / "out")
    after = read_by_transformers(out, question)
    assert read_by_us(out) == ours
    assert (ours["prompt"], ours["grids"], ours["ends"]) == (after["prompt"], after["grids"], after["ends"])
    assert after["vllm"] == after["ends"]
    own = after["own"]["default"] if isinstance(after["own"], dict) else after["own"]
    assert own == (out / "chat_template.jinja").read_text()  # AutoTokenizer, which the card uses, takes it too
    assert read_by_us(exported(out, tmp_path / "again")) == ours
    assert all((tmp_path / "again" / path.name).read_bytes() == path.read_bytes() for path in out.iterdir() if path.is_file())


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "map" not in name and "names" not in name])
def test_a_sentencepiece_folder_goes_round(tmp_path, variant):
    """transformers makes nothing of such a tokenizer, so the two readings are ours."""
    source = write_variant(tmp_path / "source", VARIANTS[variant], write_sentencepiece)
    ours = read_by_us(source)
    assert ours["eos"] == 6 and ours["ends"] == ({6, 4} if "base tokenizer" in variant or "config.json" in variant else {6})
    assert read_by_us(exported(source, tmp_path / "out")) == ours


def test_a_folder_without_contradictions_keeps_its_bytes(tmp_path):
    source = write_variant(tmp_path, VARIANTS["plain"])
    for name, content in settled(source, load_tokenizer(source)).items():
        assert (source / name).read_bytes() == content, name
    assert dropped_settings(source) == {}


def test_what_would_change_an_answer_is_left_out(tmp_path):
    source = write_variant(tmp_path, VARIANTS["penalties"])
    written = json.loads(settled(source, load_tokenizer(source))["generation_config.json"])
    assert written == {"eos_token_id": 258, "pad_token_id": 256, "top_k": 20}
    assert dropped_settings(source) == {"repetition_penalty": 1.05, "max_new_tokens": 7}


@pytest.mark.parametrize("variant", ["plain", "saved by transformers 5", "another size nested", "older names of the size"])
def test_a_new_folder_has_the_limits_of_training(tmp_path, variant):
    source = write_variant(tmp_path / "source", VARIANTS[variant])
    shutil.copytree(source, tmp_path / "out")
    for name, content in settled(source, load_tokenizer(source), (2048, 4096)).items():
        (tmp_path / "out" / name).write_bytes(content)
    ours = load_image_config(tmp_path / "out")
    assert (ours.min_pixels, ours.max_pixels) == (2048, 4096)
    grids = read_by_transformers(tmp_path / "out", [{"role": "user", "content": [{"type": "image"}]}])["grids"]
    assert grids == read_by_us(tmp_path / "out")["grids"] == [(2, 4), (4, 2), (4, 4)]
    limits = load_image_config(source)[2:4]
    assert settled(source, load_tokenizer(source), limits) == settled(source, load_tokenizer(source))


def test_a_video_processor_that_disagrees_is_settled(tmp_path):
    nested = {"image_processor": IMAGES, "video_processor": {"fps": 2}}
    source = write_variant(tmp_path, {"processor_config.json": nested, "video_preprocessor_config.json": {"fps": 1}})
    assert json.loads(settled(source, load_tokenizer(source))["video_preprocessor_config.json"]) == {"fps": 2}


def test_a_folder_that_is_gone_is_a_file_error(tmp_path):
    source = write_variant(tmp_path / "source", {})
    tokenizer = load_tokenizer(source)
    shutil.rmtree(source)
    with pytest.raises(FileNotFoundError, match="its chat template is gone"):
        settled(source, tokenizer)


@pytest.mark.parametrize(
    "name", [f"{what}.json" for what in ("generation_config", "processor_config", "preprocessor_config", "chat_template")]
)
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_file_is_one_line(tmp_path, name, content):
    source = write_variant(tmp_path, {})
    (source / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(source), load_image_config(source)
    assert name in str(caught.value) and "\n" not in str(caught.value)
