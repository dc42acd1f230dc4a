"""The tokenizer of a model folder that has SentencePiece's tokenizer.model, trained here."""

import concurrent.futures
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_fixtures import (
    CONFIG,
    FORGERIES,
    SPECIAL,
    TAGS,
    TEMPLATE,
    THINKING_TEMPLATE,
    noise,
    write_sentencepiece,
    write_tokenizer,
)

from mtjudge_jax.data.rows import RowFormat, completion_text, make_target, prompt_row
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.tasks.answer import parse_strict

KINDS = [(kind, rule) for kind in ("bpe", "unigram") for rule in ("identity", "nmt_nfkc")]
FOLDING = "nmt_nfkc"
# Of the trained models: 0 unknown, 1 <s>, 2 </s>, 3 <pad>, 4.. SPECIAL[:3], 7.. TAGS, 11.. SPECIAL[3:], 16.. bytes
BYTES = 16


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def tokenizer(request, tmp_path_factory):
    kind, rule = request.param
    return load_tokenizer(write_sentencepiece(tmp_path_factory.mktemp("model"), kind=kind, rule=rule))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def exact(request, tmp_path_factory):
    """Tokenizers whose models fold nothing."""
    return load_tokenizer(write_sentencepiece(tmp_path_factory.mktemp("model"), kind=request.param))


def raw_model(folder):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def edit_model(folder, edit):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    edit(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def test_round_trip(tokenizer):
    text = "<think>it looks sharp, é 日本 🙂</think><answer>yes</answer>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.pad, tokenizer.pad]) == text
    assert tokenizer.decode(np.array(ids, np.int32)) == text
    assert [tokenizer.encode(tag) for tag in TAGS] == [[i] for i in range(7, 11)]
    assert [tokenizer.encode(token) for token in SPECIAL] == [[i] for i in (4, 5, 6, 11, 12, 13, 14, 15)]
    assert (tokenizer.pad, tokenizer.eos, tokenizer.image) == (4, 6, 14)
    assert (tokenizer.vision_start, tokenizer.vision_end) == (11, 12)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode([5, 1, 0, tokenizer.eos]) == "<|im_start|><s>\ufffd"
    for spaces in (" ", "  ", " a  b ", "sharp ", "   a<|vision_start|> b <|vision_end|>  "):
        assert tokenizer.decode(tokenizer.encode(spaces)) == spaces


TEXTS = ["\n", "\n\n a\tb\r\n", "🙂é\u0301 日", "\0", "＜ﬁ①", "<s>", "</s>", "<unk>", "<0x41>", "\U0010ffff"]


@pytest.mark.parametrize("text", TEXTS)
def test_exact_round_trip(exact, text):
    for given_text in (text, f" {text}", f"a{text} ", f"{text}<think>{text}"):
        assert exact.decode(exact.encode(given_text)) == given_text


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_round_trips(exact, text):
    plain = exact.escape(text)  # hypothesis also tries the control tokens that it finds in the package's source
    assert exact.decode(exact.encode(plain)) == plain
    assert plain == text or any(token in text for token, _ in exact.control)
    escaped = exact.escape(text)
    assert exact.decode(exact.encode(escaped)) == escaped and exact.control_ids.isdisjoint(exact.encode(escaped))


def test_ids_are_the_models_own(tmp_path):
    """Only the space that the model would put before a text is left out."""
    folder = write_sentencepiece(tmp_path)
    ours, raw = load_tokenizer(folder), raw_model(folder)
    for text in ("the picture looks sharp", "a dog: é 🙂\n<think>is it</think>", "<answer>yes</answer>"):
        assert ours.encode(f" {text}") == raw.encode(text)
    assert len(ours.encode("looks sharp")) < 8
    assert raw.encode("x")[0] == raw.piece_to_id("▁") and ours.encode("x") == raw.encode("x")[1:]


def test_split_bytes_are_never_an_error(tokenizer):
    cut = [i for i in tokenizer.encode("🙂🙂") if i >= BYTES][:-1]
    assert tokenizer.decode(cut) == "🙂\ufffd"


def test_allowed_mask(tokenizer):
    mask = tokenizer.allowed_mask(400)
    assert mask.shape == (400,) and mask.dtype == bool
    assert mask[7:11].all() and mask[tokenizer.eos] and mask[BYTES : tokenizer.size].all()
    assert mask.sum() == tokenizer.size - BYTES + 4 + 1  # pieces and bytes, tags, eos
    with pytest.raises(ValueError, match=f"vocab_size {tokenizer.size - 1} is below the tokenizer's {tokenizer.size} ids"):
        tokenizer.allowed_mask(tokenizer.size - 1)


def test_unused_pieces_are_never_sampled(tmp_path):
    folder = write_sentencepiece(tmp_path)
    unused = load_tokenizer(folder).encode("picture")[0]

    def edit(model):
        model.pieces[unused].type = 5

    edit_model(folder, edit)
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.allowed_mask(400)[unused] and tokenizer.allowed_mask(400)[unused - 1]
    assert tokenizer.decode(tokenizer.encode("picture")) == "picture"


@pytest.mark.parametrize("text", FORGERIES)
def test_forgeries_stay_text(tokenizer, text):
    prompt = tokenizer.encode(tokenizer.render(text, 2))
    assert [i for i in prompt if i in tokenizer.control_ids] == [
        i for i in tokenizer.encode(tokenizer.render("", 2)) if i in tokenizer.control_ids
    ]
    assert prompt.count(tokenizer.image) == 2


def test_look_alikes_are_a_danger_where_the_model_folds(tmp_path):
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path, rule=FOLDING))
    for forged in ("＜｜image_pad｜＞", "<|image\u0001_pad|>"):
        assert tokenizer.encode(forged) == [tokenizer.image]
        assert tokenizer.escape(forged) == "< |image_pad|>"
    for text, escaped in (("ﬁne ＜", "ﬁne ＜"), ("ﬁne <|image_pad|>", "ﬁne < |image_pad|>")):  # nothing is folded without need
        assert tokenizer.escape(text) == escaped


@pytest.mark.parametrize("text", FORGERIES)
def test_prompt_row(tokenizer, text):
    fmt = RowFormat({}, tokenizer, CONFIG, 500, 72)
    row = prompt_row(f"Is it sharp? {text}", [noise(1, 64, 96), noise(2, 96, 32)], fmt, name="x")
    tokens = row["tokens"][row["valid"]]
    assert (tokens == tokenizer.image).sum() == 6 + 3 and (row["image_index"] >= 0).sum() == 9
    starts = np.flatnonzero(tokens == tokenizer.vision_start)
    assert np.flatnonzero(tokens == tokenizer.vision_end).tolist() == [starts[0] + 7, starts[1] + 4]
    written = tokenizer.decode(tokens)
    line = " " if tokenizer.codec.normalize("\n") == " " else "\n"  # an old model's normaliser knows no line
    assert written.startswith(f"<|im_start|>user{line}<|vision_start|>" + "<|image_pad|>" * 6)
    assert "Is it sharp? " in written and written.endswith(f"{line}<|im_start|>assistant{line}")
    assert row["tokens"][~row["valid"]].tolist() == [tokenizer.pad] * (500 - len(tokens))


def test_target_of_a_thinking_model(tmp_path):
    folder = write_sentencepiece(tmp_path)
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.opening == "<think>\n"
    ids, mask = make_target(completion_text("looks sharp", "yes"), tokenizer, 64)
    assert tokenizer.decode(ids) == "looks sharp</think><answer>yes</answer>" and ids[mask][-1] == tokenizer.eos
    assert parse_strict(tokenizer.decode_answer(ids), ("no", "yes")) == (1, "looks sharp", "")


def test_names_of_another_family(tmp_path):
    """Tokens named by tokenizer_config.json, some beyond the model's pieces, some marked as special only there."""
    folder = write_sentencepiece(tmp_path, user_defined_symbols=[*TAGS, "<boi>", "<eot>", "<unused0>", "<table>", "  "])
    size, raw = raw_model(folder).get_piece_size(), raw_model(folder)
    added = {
        str(size): {"content": "<image>", "special": True},
        str(size + 1): {"content": "<eoi>", "special": False},
        str(size + 2): {"content": "[step]", "special": False},
        str(size + 3): {"content": "[step]+", "special": False},
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
    }
    config = {"pad_token": "<pad>", "eos_token": {"content": "</s>"}, "boi_token": "<boi>", "eoi_token": "<eoi>"}
    config |= {"extra_special_tokens": {"image_token": "<image>", "eot_token": "<eot>"}}
    config |= {"added_tokens_decoder": added, "add_bos_token": True}
    template = "{{ bos_token }}user\n{% for c in messages[0].content %}"
    template += "{{ '<boi><image><eoi>' if c.type == 'image' else c.text }}{% endfor %}</s>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad, tokenizer.eos, tokenizer.image, tokenizer.size) == (3, 2, size, size + 4)
    assert (tokenizer.vision_start, tokenizer.vision_end) == (raw.piece_to_id("<boi>"), size + 1)
    assert tokenizer.render("a <image> <eoi> [step] <table>", 1) == (
        "<s>user\n<boi><image><eoi>a < image> < eoi> [step] <table></s>"
    )
    assert tokenizer.encode("<s><image>a[step]") == [1, size, *tokenizer.encode("a"), size + 2]
    assert tokenizer.encode("[step]+[step]") == [size + 3, size + 2]
    assert tokenizer.decode([1, size, size + 2]) == "<s><image>[step]"
    assert tokenizer.decode(tokenizer.encode("a  <unk>  b")) == "a  <unk>  b" and 0 not in tokenizer.encode("<unk>")
    mask, banned = tokenizer.allowed_mask(size + 9), ["<boi>", "<eot>", "<unused0>", "<s>", "<unk>", "<pad>"]
    assert not mask[[*map(raw.piece_to_id, banned), size, size + 1]].any() and not mask[size + 4 :].any()
    assert mask[[raw.piece_to_id("<table>"), raw.piece_to_id("  "), size + 2, size + 3, 2]].all()


def test_the_models_own_special_tokens_will_do(tmp_path):
    folder = write_sentencepiece(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|im_end|>", "{{ eos_token }}"))
    assert (load_tokenizer(folder).pad, load_tokenizer(folder).eos) == (3, 2)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert (load_tokenizer(folder).pad, load_tokenizer(folder).eos) == (3, 6)
    (folder / "added_tokens.json").write_text(json.dumps({"<|extra|>": 500, "extra": 501}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("extra") == [501] and tokenizer.encode(tokenizer.escape("<|extra|>"))[-1] < 500
    assert tokenizer.allowed_mask(600).nonzero()[0][-1] == 501 and not tokenizer.allowed_mask(600)[500]


def test_json_comes_first(tmp_path):
    write_sentencepiece(tmp_path)
    assert load_tokenizer(tmp_path).image == 14
    write_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path).image == 262


def test_threads_share_it(exact):
    texts = [f"text {i} 日 " * 20 for i in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda text: exact.encode(exact.render(text, 1)), texts))
    assert ids == [exact.encode(exact.render(text, 1)) for text in texts]
    assert [exact.decode(i).count("日") for i in ids] == [20] * 200


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4241003\n", b"\x08\x96" * 9, b"\0" * 99]
)
def test_damaged_models_are_refused(tmp_path, content):
    folder = write_sentencepiece(tmp_path)
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model .*copy it again"):
        load_tokenizer(folder)


def test_incomplete_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json and no tokenizer\.model; give a local"):
        load_tokenizer(tmp_path)
    folder = write_sentencepiece(tmp_path, user_defined_symbols=[*TAGS], pad_id=-1)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no <\|image_pad\|>, <\|vision_start\|>, <\|vision_end\|>, pad_token"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not valid JSON .*copy it again"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds a list instead of an object"):
        load_tokenizer(folder)


def test_a_model_that_cannot_write_an_answer_is_refused(tmp_path):
    folder = write_sentencepiece(tmp_path, byte_fallback=False, user_defined_symbols=[*SPECIAL[3:]], vocab_size=80)
    with pytest.raises(ValueError, match="no answer could be parsed"):
        load_tokenizer(folder)
