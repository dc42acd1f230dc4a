"""The tokenizer of a model folder, from tokenizer.json: round trips, escaping, the sampler's mask, the chat template."""

import concurrent.futures
import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_fixtures import FORGERIES, SPECIAL, TAGS, TEMPLATE, THINKING_TEMPLATE, write_tokenizer

from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.data.tokenizer.codec import looks_like_control
from mtjudge_jax.data.tokenizer.sentencepiece import template_chat
from mtjudge_jax.records import BadRecord
from mtjudge_jax.tasks.answer import parse_strict


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_round_trip(tokenizer):
    text = "<think>looks sharp, é 日本 🙂</think><answer>yes</answer>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.pad, tokenizer.pad]) == text
    assert tokenizer.decode(np.array(ids, np.int32)) == text
    assert [tokenizer.encode(tag) for tag in TAGS] == [[i] for i in range(264, 268)]
    assert (tokenizer.pad, tokenizer.eos, tokenizer.image, tokenizer.size) == (256, 258, 262, 269)
    assert (tokenizer.vision_start, tokenizer.vision_end) == (259, 260)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_spaces_are_kept(tokenizer):
    text = " a ,  b .\n\n don 't  "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_refuses_unreal_ids(tokenizer):
    with pytest.raises(ValueError, match=r"ids 65\.\.269 outside 0\.\.268"):
        tokenizer.decode([65, 269])


def test_other_control_tokens_stay_visible(tokenizer):
    assert tokenizer.decode([tokenizer.encode("<|im_start|>")[0], tokenizer.eos]) == "<|im_start|>"


def test_allowed_mask(tokenizer):
    mask = tokenizer.allowed_mask(320)
    assert mask.shape == (320,) and mask.dtype == bool
    assert mask[:256].all() and mask[264:268].all() and mask[tokenizer.eos]
    assert mask.sum() == 256 + 4 + 1  # bytes, tags, eos: no vision token, no <|fim_prefix|>, nothing past 268
    with pytest.raises(ValueError, match="vocab_size 268 is below the tokenizer's 269 ids"):
        tokenizer.allowed_mask(268)


def test_render(tokenizer):
    assert tokenizer.render("What is it?", 2) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "What is it?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("token", [*SPECIAL, "<|fim_prefix|>"])
def test_user_text_never_becomes_special(tokenizer, token):
    control = tokenizer.control_ids
    plain = [i for i in tokenizer.encode(tokenizer.render("", 1)) if i in control]
    for text in (token, f"a{token}{token}b", f"<|{token}|>", f"{token[:5]}{token}{token[5:]}", f"<{token}"):
        assert not control & set(tokenizer.encode(tokenizer.escape(text)))
        assert [i for i in tokenizer.encode(tokenizer.render(text, 1)) if i in control] == plain
    assert tokenizer.escape("no tokens < | here") == "no tokens < | here"
    assert tokenizer.escape("a <|image_pad|> b") == "a < |image_pad|> b"


@pytest.mark.parametrize("text", FORGERIES)
def test_forgeries_stay_text(tokenizer, text):
    prompt = tokenizer.encode(tokenizer.render(text, 2))
    assert [i for i in prompt if i in tokenizer.control_ids] == [
        i for i in tokenizer.encode(tokenizer.render("", 2)) if i in tokenizer.control_ids
    ]
    assert prompt.count(tokenizer.image) == 2


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(st.sampled_from([*SPECIAL, *TAGS, "<|", "|>", "<", "|", " ", "image_pad", "é", "a"])).map("".join))
def test_no_mixture_of_parts_is_special(tokenizer, text):
    escaped = tokenizer.escape(text)
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(escaped))
    assert escaped.replace(" ", "") == text.replace(" ", "")
    assert tokenizer.decode(tokenizer.encode(escaped)) == escaped


def test_look_alikes_that_a_normaliser_folds(tmp_path):
    """A tokenizer.json with NFKC, whose added tokens are matched after it, reads a token where none was written."""
    folder = write_tokenizer(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFKC"}
    for token in content["added_tokens"]:
        token["normalized"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer, forged = load_tokenizer(folder), "a ＜｜image_pad｜＞ b"
    assert tokenizer.image in tokenizer.encode(forged)
    assert tokenizer.escape(forged) == "a < |image_pad|> b"
    for text in FORGERIES:
        assert tokenizer.encode(tokenizer.render(text, 1)).count(tokenizer.image) == 1
    broken = dataclasses.replace(tokenizer, codec=NeverPlain())
    with pytest.raises(BadRecord, match=r"forged_token: the tokenizer reads control tokens \[262\] in 'a'"):
        broken.escape("a")


class NeverPlain:
    """A codec that reads an image token in everything."""

    def encode(self, text):
        return [262]

    def normalize(self, text):
        return text


def test_threads_share_it(tokenizer):
    texts = [f"text {i} " * 20 for i in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda t: tokenizer.encode(tokenizer.render(t, 1)), texts))
    assert ids == [tokenizer.encode(tokenizer.render(t, 1)) for t in texts]


def test_no_code_of_the_folder_runs(tmp_path):
    folder = write_tokenizer(tmp_path / "model")
    (folder / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "tokenization_evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        load_tokenizer(folder)
    except ValueError as e:
        assert "trust_remote_code" in str(e)
    assert not (tmp_path / "ran").exists()


def test_incomplete_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nothing")
    folder = write_tokenizer(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match=r"has no pad_token, eos_token, chat_template\.jinja"):
        load_tokenizer(folder)


def test_template_is_rendered_as_by_transformers(tmp_path):
    """The way of SentencePiece folders, which have no class of transformers, on a folder that has one."""
    from transformers import AutoTokenizer

    template = TEMPLATE + "{{ eos_token }}{{ messages | tojson }}"
    (write_tokenizer(tmp_path) / "chat_template.jinja").write_text(template)
    hf, ours = AutoTokenizer.from_pretrained(tmp_path), template_chat(template, {"eos_token": "<|im_end|>"})
    image, text = {"type": "image"}, {"type": "text", "text": "is it <b>bright</b> & 'sharp'?\n é "}
    for content in ([text], [image, text], [image, image, text]):
        messages = [{"role": "system", "content": [text]}, {"role": "user", "content": content}]
        theirs = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours(messages) == theirs and "<|im_start|>assistant\n<|im_end|>[{" in theirs


def with_template(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


def test_thinking_template(tmp_path, tokenizer):
    assert tokenizer.opening == ""
    thinking = with_template(write_tokenizer(tmp_path), THINKING_TEMPLATE)
    assert thinking.opening == "<think>\n"
    assert thinking.render("What?", 0).endswith("What?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    sampled = thinking.encode("it is sharp\n</think>\n\n<answer>yes</answer>")
    answer = thinking.decode_answer([*sampled, thinking.eos, thinking.pad])
    assert answer == "<think>\nit is sharp\n</think>\n\n<answer>yes</answer>"
    assert parse_strict(answer, ("no", "yes")) == (1, "it is sharp", "")
    assert thinking.encode_answer(answer) == sampled
    assert thinking.encode_answer("<think>sharp</think>") == thinking.encode("sharp</think>")
    assert tokenizer.encode_answer("<think>a <|im_end|></think>") == tokenizer.encode("<think>a < |im_end|></think>")
    with pytest.raises(BadRecord, match=r"target_form: the chat template begins every answer with '<think>\\n', but not 'yes'"):
        thinking.encode_answer("yes")


def test_openings_of_other_templates(tmp_path):
    folder = write_tokenizer(tmp_path)
    turn = "<|im_start|>assistant\n"
    told = with_template(folder, TEMPLATE.replace("<|im_end|>\n{%", "Write <think> and <answer>.<|im_end|>\n{%"))
    assert told.opening == "" and "Write <think>" in told.render("a", 0)
    assert with_template(folder, TEMPLATE.replace(turn, f"{turn}<think>")).opening == "<think>"
    with pytest.raises(ValueError, match=r"begins the answer with .*</think>.*: use one that ends with <think>"):
        with_template(folder, TEMPLATE.replace(turn, f"{turn}<think>\n\n</think>\n\n"))


@pytest.mark.parametrize(
    "template,message",
    [
        ("{{ raise_exception('no images here') }}", "fails on a question with an image: TemplateError: no images here"),
        ("{{ messages[0].content + 'x' }}", "fails on a question with an image: TypeError"),
        ("{{ messages[0].content[1].text }}", "'What is it\\?', with 0 image tokens"),
        ("<|image_pad|><|image_pad|>What is it?", "with 2 image tokens"),
        ("<|image_pad|>", "it must write the question and one image token"),
    ],
)
def test_templates_that_cannot_carry_a_question(tmp_path, template, message):
    with pytest.raises(ValueError, match=message):
        with_template(write_tokenizer(tmp_path), template)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "list", "chat_template.json"])
def test_template_in_other_files(tmp_path, place):
    folder = write_tokenizer(tmp_path)
    (folder / "chat_template.jinja").unlink()
    file = folder / ("tokenizer_config.json" if place == "list" else place)
    content = json.loads(file.read_text()) if file.exists() else {}
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    content["chat_template"] = named if place == "list" else TEMPLATE
    file.write_text(json.dumps(content))
    assert load_tokenizer(folder).render("a", 1).startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")


def test_control_shapes():
    control = ("<|image_pad|>", "<|fim_prefix|>", "<|a b|>", "<unused0>", "<unused_12>")
    text = ("<think>", "<answer>", "a <|b|>", "<|", "<unused>", "<table>", "|>", "<||")
    assert all(map(looks_like_control, control)) and not any(map(looks_like_control, text))
