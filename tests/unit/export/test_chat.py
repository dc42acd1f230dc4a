"""The questions of a model card, as transformers renders them: tokens and pixels of training."""

import json
import re
import runpy

import numpy as np
import pytest
from data_fixtures import CONFIG, TEMPLATE, THINKING_TEMPLATE, noise, write_tokenizer
from PIL import Image

from mtjudge_jax.config import Config, get_tasks
from mtjudge_jax.data.folder_files import settled
from mtjudge_jax.data.image_config import exported_limits, load_image_config
from mtjudge_jax.data.images import Budget
from mtjudge_jax.data.rows import RowFormat, prompt_row
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.export.model_card import Asking, Origin, model_card
from mtjudge_jax.tasks.base import IMAGE
from mtjudge_jax.tasks.chat import chat_content, example_of, openai_request

CUSTOM = (
    {"name": "upside_down", "kind": "pointwise_binary", "question": "Is it upside down?", "paraphrases": ("Upside down?",)},
    {
        "name": "grade",
        "kind": "pointwise_score",
        "question": "How good is it?",
        "instruction": "Prompt",
        "rubric": "Look <|image_pad|> well.",
    },
    {"name": "sharper", "kind": "pairwise", "question": "Which is sharper?", "allow_tie": True, "flipped": ("Which is not?",)},
    {"name": "texts", "kind": "pairwise", "question": "Which text is true?", "max_images": 1, "noun": "Text"},
    {"name": "order", "kind": "listwise", "question": "Order them.", "criterion": "sharpness"},
    {
        "name": "edited",
        "kind": "pointwise_binary",
        "question": "Is the edit good?",
        "max_images": 2,
        "instruction": "Instruction",
    },
)
TASKS = ("technical", "alignment", "pairwise_technical", "pairwise_alignment", "seetrue", "agin_tech", "mj_safety", "mllm_score")
TASKS += ("vl_rewardbench", "mllm_batch", "genai_edit", "hpdv2_list", *(entry["name"] for entry in CUSTOM))


def config(**data) -> Config:
    cfg = Config(steps=4)
    cfg.data.tasks, cfg.data.custom_tasks = TASKS, CUSTOM
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


def write_folder(folder, template=TEMPLATE):
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    size = {"shortest_edge": CONFIG.min_pixels, "longest_edge": CONFIG.max_pixels}
    settings = {"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def card_of(folder, cfg, **changes) -> str:
    tokenizer = load_tokenizer(folder)
    asking = Asking(tokenizer.escape, tokenizer.opening, tokenizer.ends)
    settings = {"title": "judge", "origin": Origin("base", None, None), "step": 4, "best": False, "workdir": None}
    return model_card(cfg, **(settings | {"dtype": "float32", "adapter": False} | changes), asking=asking)


class Recorder:
    """In the place of a model: keeps what `generate` gets."""

    class config:
        image_token_id = 262

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def to(self, device):
        return self

    def generate(self, **inputs):
        import torch

        self.asked.append(inputs)
        return torch.cat([inputs["input_ids"], torch.tensor([self.answer])], 1)


@pytest.mark.parametrize("kind", ["whole", "adapter", "thinking", "shared", "shared adapter"])
def test_transformers_gets_the_prompts_of_training(tmp_path, monkeypatch, capsys, kind):
    """Runs the card's own program. The model alone is replaced."""
    pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import transformers

    folder = write_folder(tmp_path / "judge", THINKING_TEMPLATE if kind == "thinking" else TEMPLATE)
    names = ["picture.jpg", "first.jpg", "second.jpg", "third.jpg"]
    for number, name in enumerate(names):
        Image.fromarray(noise(number, 40 + 30 * number, 64)).save(tmp_path / name)
    tokenizer, cfg = load_tokenizer(folder), config(polarity="varied", label_words="varied")
    model = Recorder([*tokenizer.encode("ab"), tokenizer.eos])
    adapter, patches = "adapter" in kind, 32 if "shared" in kind else 400  # 8 tokens, where a picture may have 9
    cfg.lora.rank, cfg.data.patches = 4 * adapter, patches
    card = card_of(folder, cfg, adapter=adapter, pixels=exported_limits(CONFIG, patches) if "shared" in kind else None)
    if kind == "shared":
        (folder / "preprocessor_config.json").write_bytes(
            settled(folder, tokenizer, exported_limits(CONFIG, patches))["preprocessor_config.json"]
        )
    (program, *_) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "ask.py").write_text(program.replace('"PATH"', repr(str(folder))).replace('"BASE"', repr(str(folder))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_: model)
    runpy.run_path("ask.py")
    start = "<think>\n" if kind == "thinking" else ""
    assert capsys.readouterr().out == "".join(f"{task} {start}ab\n" for task in TASKS)

    tasks = get_tasks(config(), "first")
    fmt = RowFormat(tasks, tokenizer, load_image_config(folder), 2000, patches, budget=Budget(2000, patches))
    pixels = {name: np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in names}
    assert len(model.asked) == len(TASKS)
    for task, asked in zip(TASKS, model.asked, strict=True):
        example = example_of(tasks[task])
        row = prompt_row(example.parts, [pixels[name] for name in example.pictures], fmt, name=task)
        ours = row["tokens"][row["valid"]]
        assert asked["input_ids"][0].tolist() == ours.tolist(), task
        assert (asked["mm_token_type_ids"][0].numpy() == (ours == tokenizer.image)).all() and asked["attention_mask"].all()
        grids = [[1, *grid] for grid in dict.fromkeys(map(tuple, row["patch_grid"][row["patch_segment"] > 0]))]
        assert {tuple(grid) for grid in asked["image_grid_thw"].tolist()} == {tuple(grid) for grid in grids}
        patches = row["patches"][row["patch_segment"] > 0].reshape(-1, 3, 1, 16, 16) / np.float32(255)
        theirs = asked["pixel_values"].numpy().reshape(-1, 3, 2, 16, 16)
        assert np.abs(theirs - (patches - 0.5) / 0.5).max() < 1e-5, task
        assert asked["do_sample"] is False and asked.get("eos_token_id") == ([258] if adapter else None)


@pytest.mark.parametrize("task", TASKS)
def test_a_request_renders_to_the_same_prompt(tmp_path_factory, task):
    """As vLLM renders it with --chat-template-content-format openai: a part image_url becomes a part image."""
    folder = write_folder(tmp_path_factory.mktemp("judge"))
    tokenizer, example = load_tokenizer(folder), example_of(get_tasks(config(), "first")[task])
    request = json.loads(json.dumps(openai_request(example, model="PATH", max_tokens=9, escape=tokenizer.escape)))
    (message,) = request["messages"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert [url.rpartition("/")[2] for url in urls] == example.pictures and len(set(urls)) == len(urls)
    parts = [{"type": "image"} if part["type"] == "image_url" else part for part in message["content"]]
    assert tokenizer.chat([{"role": "user", "content": parts}]) == tokenizer.render_parts(example.parts)
    assert (request["temperature"], request["max_tokens"], message["role"]) == (0, 9, "user") and "stop_token_ids" not in request


def test_the_card_holds_the_request(tmp_path):
    folder = write_folder(tmp_path)
    for adapter in (False, True):
        cfg = config()
        cfg.lora.rank = 4 * adapter
        (body,) = re.findall(r"```json\n(.*?)```", card_of(folder, cfg, adapter=adapter), re.DOTALL)
        first, model = example_of(get_tasks(cfg, "first")[TASKS[0]]), "judge" if adapter else "PATH"
        assert json.loads(body) == openai_request(first, model=model, max_tokens=2048, ends=[258] * adapter)


def test_every_kind_is_among_the_examples():
    tasks = get_tasks(config(), "first")
    examples = {name: example_of(tasks[name]) for name in TASKS}
    assert examples["sharper"].pictures == ["first.jpg", "second.jpg"] and examples["order"].pictures[2:] == ["third.jpg"]
    assert examples["texts"].texts and examples["texts"].pictures == ["picture.jpg"]
    assert examples["edited"].pictures == ["picture.jpg", "first.jpg"] and examples["edited"].in_context == 1
    assert {name for name, example in examples.items() if example.instruction} >= {"alignment", "seetrue", "grade", "edited"}
    between = [name for name, e in examples.items() if IMAGE in e.parts[1:-1]]
    assert {"seetrue", "sharper", "upside_down", "genai_edit"} <= set(between)


def test_places_and_pictures_must_agree():
    assert chat_content(["a", None, "b"], ["x.jpg"]) == [
        {"type": "text", "text": "a"}, {"type": "image", "image": "x.jpg"}, {"type": "text", "text": "b"}
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the question has 1 places for pictures, 2 are given"):
        chat_content(["a", None], ["x.jpg", "y.jpg"])
