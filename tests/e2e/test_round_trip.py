"""Folders as transformers saves them and as trainers built on it leave them: trained a step, exported, loaded by transformers.

Both sides must ask the same prompt over the same grids, stop at the same tokens and give the same greedy texts.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import commands
from PIL import Image
from places import TEXT_END, TURN_END
from safetensors.numpy import load_file, save_file

from mtjudge_jax.judge import Judge
from mtjudge_jax.judge.engine import AskedAs
from mtjudge_jax.policy.model import DEMO_BASE
from mtjudge_jax.tasks.chat import chat_content, example_of

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

SIZES = ((96, 96), (200, 60), (70, 100), (40, 90))


def saved(folder: Path, *, shard: str = "1GB", dtype: str = "float32") -> Path:
    """The demo's base, saved by transformers."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    AutoModelForImageTextToText.from_pretrained(DEMO_BASE, dtype=dtype).save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(DEMO_BASE).save_pretrained(folder)
    Qwen2VLImageProcessorPil.from_pretrained(DEMO_BASE).save_pretrained(folder)
    return folder


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str, **new: object) -> None:
    (folder / name).write_text(json.dumps(read(folder, name) | new))


def processor_alone(folder: Path) -> None:
    """As transformers 5 saves a processor."""
    images = folder / "preprocessor_config.json"
    nested = {"image_processor": json.loads(images.read_text()), "processor_class": "Qwen3VLProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    images.unlink()


def two_processors(folder: Path) -> None:
    """The older file says another limit."""
    processor_alone(folder)
    older = read(DEMO_BASE, "preprocessor_config.json") | {"size": {"shortest_edge": 1024, "longest_edge": 1024}}
    (folder / "preprocessor_config.json").write_text(json.dumps(older))


def older_pixels(folder: Path) -> None:
    """min_pixels and max_pixels beside a size that says otherwise."""
    size = {"shortest_edge": 1024, "longest_edge": 1024}
    change(folder, "preprocessor_config.json", min_pixels=4096, max_pixels=9216, size=size)


def colours_of_its_own(folder: Path) -> None:
    """CLIP's mean and deviation of each colour, as other families of models have them."""
    name = "processor_config.json" if (folder / "processor_config.json").exists() else "preprocessor_config.json"
    whole = read(folder, name)
    own = whole.get("image_processor", whole)
    own |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / name).write_text(json.dumps(whole))


def list_of_ends(folder: Path) -> None:
    """A base tokenizer, whose eos_token does not end a turn."""
    change(folder, "generation_config.json", eos_token_id=[TURN_END, TEXT_END], repetition_penalty=1.2, top_k=20)
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>")


def no_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def head_beside_a_tie(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def untied(folder: Path) -> None:
    """A head of its own; config.json says so at the top, as transformers reads it."""
    head_beside_a_tie(folder)
    cfg = read(folder, "config.json")
    text = cfg["text_config"] | {"tie_word_embeddings": False}
    change(folder, "config.json", tie_word_embeddings=False, text_config=text)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * np.float32(1.25)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def older_rope(folder: Path) -> None:
    cfg = read(folder, "config.json")
    rope = cfg["text_config"].pop("rope_parameters", None) or cfg["text_config"]["rope_scaling"]
    cfg["text_config"]["rope_theta"] = rope.get("rope_theta", 5000000)
    cfg["text_config"]["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    cfg["torch_dtype"] = cfg.pop("dtype", "float32")
    (folder / "config.json").write_text(json.dumps(cfg))


def template_in_json(folder: Path) -> None:
    """chat_template.json alone, as Qwen's own folders of 2025 have it."""
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    (folder / "chat_template.jinja").unlink()


def template_in_the_tokenizer(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    change(folder, "tokenizer_config.json", chat_template=text)
    (folder / "chat_template.jinja").unlink()


ODD = {  # how it is saved, and what is changed afterwards: each spelling once, those of one folder in different files
    "as saved": ({}, ()),
    "in shards": (
        {"shard": "1MB", "dtype": "bfloat16"}, (processor_alone, template_in_json, colours_of_its_own, no_generation_config)
    ),
    "older": ({}, (older_pixels, older_rope, template_in_the_tokenizer, untied)),
    "contradicting": ({}, (two_processors, list_of_ends, head_beside_a_tie)),
}


def theirs(folder: Path, messages: list[dict], picture: Path) -> tuple[list[int], tuple[int, int], str, tuple[int, ...]]:
    """By transformers alone: the prompt's ids, the grid, the greedy text, the tokens that end an answer."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokenizer, images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = images(images=[Image.open(picture)], return_tensors="pt")
    grid = tuple(inputs["image_grid_thw"][0, 1:].tolist())
    count, image = grid[0] * grid[1] // images.merge_size**2, model.config.image_token_id
    ids = [token for i in tokenizer(text, add_special_tokens=False)["input_ids"] for token in [i] * (count if i == image else 1)]
    asked = torch.tensor([ids])
    inputs.update(input_ids=asked, attention_mask=torch.ones_like(asked), mm_token_type_ids=(asked == image).int())
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, len(ids) :]
    ends = model.generation_config.eos_token_id
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    return ids, grid, tokenizer.decode(out, skip_special_tokens=True), ends


def ours(judge: Judge, picture: Path) -> tuple[list[int], tuple[int, int], str, tuple[int, ...]]:
    """The same by the judge."""
    row = judge._prepare((0, {"image": picture}), AskedAs("technical")).row
    grid = tuple(row["patch_grid"][0].tolist())
    tokens = row["tokens"][row["valid"]].tolist()
    return tokens, grid, judge.judge(images=picture, task="technical").text, judge._how.programs.tokenizer.ends


@pytest.mark.parametrize("odd", ODD)
def test_a_folder_is_trained_exported_and_loaded_again(tmp_path, odd):
    how, changes = ODD[odd]
    base = saved(tmp_path / "base", **how)
    for one in changes:
        one(base)
    flags = [f"--config.model.path={base}", "--config.steps=1", "--config.eval.limit=1", "--config.model.dtype=float32"]
    ended = commands().wait(commands().train(tmp_path / "run", *flags))
    assert ended.status == 0, ended.err[-2000:]
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert 0 < line["format"] <= 1 and line["moved"] > 0
    ended = commands().run("export", f"--workdir={tmp_path / 'run'}", "--step=1", f"--out={tmp_path / 'out'}")
    assert ended.status == 0, ended.err[-2000:]
    judge = Judge.from_pretrained(tmp_path / "out", batch=8)
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        picture = tmp_path / f"{number}.png"
        smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        smooth.save(picture)
        content = chat_content(example_of(judge.task("technical")).parts, [picture.name])
        a, b = theirs(tmp_path / "out", [{"role": "user", "content": content}], picture), ours(judge, picture)
        assert a[0] == b[0] and a[1] == b[1] and sorted(a[3]) == sorted(b[3]), (odd, size)
        assert a[2].strip() == b[2].strip() and len(a[2]) > 8, (odd, size)
