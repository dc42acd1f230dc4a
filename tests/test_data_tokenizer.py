"""The tokenizer of a model folder: round trips, escaping, the sampler's mask."""

import concurrent.futures
import json

import numpy as np
import pytest
from data_fixtures import SPECIAL, TAGS, write_tokenizer

from mtjudge_jax.data.tokenizer import load_tokenizer


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
    control = {i for _, i in tokenizer.control}
    plain = [i for i in tokenizer.encode(tokenizer.render("", 1)) if i in control]
    for text in (token, f"a{token}{token}b", f"<|{token}|>", f"{token[:5]}{token}{token[5:]}", f"<{token}"):
        assert not control & set(tokenizer.encode(tokenizer.escape(text)))
        assert [i for i in tokenizer.encode(tokenizer.render(text, 1)) if i in control] == plain
    assert tokenizer.escape("no tokens < | here") == "no tokens < | here"
    assert tokenizer.escape("a <|image_pad|> b") == "a < |image_pad|> b"


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
