"""The tokenizer of a model folder, from tokenizer.json: round trips, escaping, the sampler's mask, the chat template."""

import concurrent.futures
import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_fixtures import FORGERIES, SPECIAL, TAGS, TEMPLATE, THINKING_TEMPLATE, write_tokenizer

from mtjudge_jax.data.rows import make_target
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.data.tokenizer.codec import generation_ends, looks_like_control, special_texts
from mtjudge_jax.data.tokenizer.template import chat_template, template_chat
from mtjudge_jax.errors import UserError
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


# the end of an answer

BASE = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}  # of a base model's tokenizer: not what ends a turn


def write_json(folder, name, **fields):
    (folder / name).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("files", "eos", "ends"),
    [
        ({}, 258, {258}),
        ({"generation_config.json": {"eos_token_id": 258}}, 258, {258}),
        ({"generation_config.json": {"eos_token_id": [258, 256]}}, 258, {258, 256}),  # the published Qwen3-VL: the pad is one
        ({"tokenizer_config.json": BASE, "generation_config.json": {"eos_token_id": [258, 256]}}, 258, {258, 256}),
        ({"tokenizer_config.json": BASE, "generation_config.json": {"eos_token_id": 258}}, 258, {258, 256}),
        ({"tokenizer_config.json": BASE, "config.json": {"eos_token_id": 258}}, 258, {258, 256}),
        ({"tokenizer_config.json": BASE, "config.json": {"text_config": {"eos_token_id": [258]}}}, 258, {258, 256}),
        ({"tokenizer_config.json": {"eos_token": None}, "generation_config.json": {"eos_token_id": [258]}}, 258, {258}),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 256}}, 258, {258}),
        ({"generation_config.json": {"eos_token_id": []}}, 258, {258}),
        ({"generation_config.json": {"eos_token_id": [258, 300]}}, 258, {258}),  # 300 is no token
    ],
)
def test_an_answer_ends_where_transformers_and_vllm_stop(tmp_path, files, eos, ends):
    folder = write_tokenizer(tmp_path)
    for name, fields in files.items():
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        write_json(folder, name, **(old | fields))
    found = load_tokenizer(folder)
    assert (found.eos, set(found.ends), len(found.ends)) == (eos, ends, len(ends))
    assert {i for i in range(256, 264) if found.allowed_mask(320)[i]} == ends
    assert found.decode([*found.encode("<answer>yes</answer>"), *ends]) == "<answer>yes</answer>"
    ids, mask = make_target("<answer>yes</answer>", found, 64)
    assert ids[mask][-1] == eos and found.decode(ids[mask]) == "<answer>yes</answer>"


def test_the_ends_are_those_that_transformers_reads(tmp_path):
    """GenerationConfig reads the same files; without generation_config.json it takes the model's config."""
    from transformers import GenerationConfig

    folder = write_tokenizer(tmp_path)
    write_json(folder, "config.json", model_type="qwen3_vl", eos_token_id=[258, 256])
    theirs = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
    assert generation_ends(folder) == theirs.eos_token_id == [258, 256]
    write_json(folder, "generation_config.json", eos_token_id=256)
    assert generation_ends(folder) == [GenerationConfig.from_pretrained(folder).eos_token_id] == [256]


@pytest.mark.parametrize("value", ["<|im_end|>", True, [258, "x"], -1, {"id": 258}])
def test_an_end_that_is_no_id_is_refused(tmp_path, value):
    write_json(write_tokenizer(tmp_path), "generation_config.json", eos_token_id=value)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is .*, it must be a token id or a list of them"):
        load_tokenizer(tmp_path)


def test_a_template_that_nobody_stops_at_is_refused_in_one_line(tmp_path):
    folder = write_tokenizer(tmp_path)
    write_json(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **BASE)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == (
        f"{folder}: its chat template ends an assistant's turn with <|im_end|> (258), but an answer ends with "
        "<|endoftext|> (256): add 258 to eos_token_id of generation_config.json"
    )
    said = r"ends an assistant's turn without a token, but an answer ends with <\|im_end\|> \(258\): write"
    with pytest.raises(UserError, match=said):
        with_template(write_tokenizer(tmp_path), TEMPLATE.replace("{%- endfor -%}<|im_end|>", "{%- endfor -%}"))


def test_a_turn_is_written_as_a_text_or_in_parts(tmp_path):
    """Templates of text models take a text, and write a list of parts as Python would print it."""
    loop, reply = "{% for c in m.content -%}", "{% if m.role == 'assistant' %}{{ m.content }}{% else %}"
    text = TEMPLATE.replace(loop, reply + loop)
    text = text.replace("{%- endfor -%}<|im_end|>", "{%- endfor -%}{% endif %}<|im_end|>")
    assert with_template(write_tokenizer(tmp_path), text).ends == (258,)
    only_questions = TEMPLATE.replace("{%- for m in messages -%}", "{%- for m in messages[:1] -%}")
    assert with_template(tmp_path, only_questions).ends == (258,)


# the order of files that may say the same


OTHER = TEMPLATE.replace("<|im_start|>{{ m.role }}", "<|im_start|>[{{ m.role }}]")


@pytest.mark.parametrize(
    ("files", "wins"),
    [
        ({"processor_config.json": {"chat_template": OTHER}, "chat_template.json": {"chat_template": TEMPLATE}}, "OTHER"),
        ({"processor_config.json": {"chat_template": {"default": OTHER, "x": "y"}}}, "OTHER"),
        (
            {"processor_config.json": {"processor_class": "Qwen3VLProcessor"}, "chat_template.json": {"chat_template": OTHER}},
            "OTHER",
        ),
        ({"chat_template.json": {"chat_template": OTHER}}, "OTHER"),  # the legacy file wins over the jinja
        ({"tokenizer_config.json": {"chat_template": OTHER}}, "TEMPLATE"),  # the jinja wins over the tokenizer's
        ({"additional_chat_templates/default.jinja": OTHER}, "TEMPLATE"),
        ({"additional_chat_templates/default.jinja": OTHER, "chat_template.jinja": None}, "OTHER"),
        (
            {
                "additional_chat_templates/default.jinja": OTHER,
                "chat_template.jinja": None,
                "tokenizer_config.json": {"chat_template": TEMPLATE},
            },
            "OTHER",
        ),
    ],
)
def test_of_several_templates_the_one_counts_that_transformers_takes(tmp_path, files, wins):
    from transformers.processing_utils import ProcessorMixin

    folder = write_tokenizer(tmp_path)
    for name, fields in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if fields is None:
            path.unlink()
        elif isinstance(fields, str):
            path.write_text(fields)
        else:
            write_json(folder, name, **((json.loads(path.read_text()) if path.exists() else {}) | fields))
    theirs = ProcessorMixin.get_processor_dict(folder)[0]["chat_template"]
    theirs = theirs["default"] if isinstance(theirs, dict) else theirs
    assert chat_template(folder) == theirs == {"OTHER": OTHER, "TEMPLATE": TEMPLATE}[wins]
    assert load_tokenizer(folder).render("a", 0).startswith("<|im_start|>[user]" if wins == "OTHER" else "<|im_start|>user")


def test_templates_that_transformers_refuses_together_are_refused(tmp_path):
    folder = write_tokenizer(tmp_path)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    write_json(folder, "chat_template.json", chat_template=TEMPLATE)
    with pytest.raises(UserError, match=r"chat_template\.json is beside additional_chat_templates/, and transformers refuses"):
        load_tokenizer(folder)


def qwen(folder):
    """A tokenizer of the class that Qwen3-VL's has, as transformers saves it."""
    from transformers import AutoTokenizer

    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder, "tokenizer_config.json", **(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_a_vocabulary_with_merges_is_the_same_tokenizer(tmp_path):
    """The older form, that slow tokenizers and many converters write."""
    whole = load_tokenizer(qwen(tmp_path))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path, "vocab.json", **content["model"]["vocab"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path, "tokenizer_config.json", **(config | {"added_tokens_decoder": added}))
    (tmp_path / "tokenizer.json").unlink()
    parts = load_tokenizer(tmp_path)
    text = "<|im_start|>user\n<think>looks sharp, é 日本 🙂</think> it's 12<|im_end|>"
    assert parts.encode(text) == whole.encode(text) and parts.decode(parts.encode(text)) == whole.decode(whole.encode(text))
    fields = ("pad", "ends", "image", "vision_start", "vision_end", "size", "control")
    assert all(getattr(parts, name) == getattr(whole, name) for name in fields)


@pytest.mark.parametrize("listed", [False, True])
def test_special_tokens_of_an_older_map_count_as_in_transformers(tmp_path, listed):
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    added = {"258": {"content": "<|im_end|>", "special": True}}
    write_json(folder, "tokenizer_config.json", **(config | ({"added_tokens_decoder": added} if listed else {})))
    write_json(folder, "special_tokens_map.json", eos_token={"content": "<|im_end|>"})
    write_json(folder, "generation_config.json", eos_token_id=258)
    theirs = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert theirs == (256 if listed else 258) and theirs in load_tokenizer(folder).ends
    assert special_texts(folder)["eos_token"] == ("<|endoftext|>" if listed else "<|im_end|>")
