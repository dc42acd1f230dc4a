"""Label probabilities from what servers say of their tokens."""

import math

import pytest

from mtjudge_jax.client.logprobs import exact_shares, first_token_shares

YES_NO = {"no": "no", "yes": "yes"}


def tokens(*texts, likely):
    """logprobs.content of these tokens; `likely` are those of the verdict's place, token: probability."""
    top = [{"token": text, "logprob": math.log(p)} for text, p in likely.items()]
    return {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top if text in likely else []} for text in texts]}


def test_a_label_of_one_token():
    said = tokens("<think>", "fine", "</think>", "<answer>", "yes", "</answer>", likely={"yes": 0.6, "no": 0.2, "Yes": 0.1})
    found = first_token_shares(said, "<think>fine</think><answer>yes</answer>", YES_NO)
    assert found == {"no": pytest.approx(0.25), "yes": pytest.approx(0.75)} and list(found) == ["no", "yes"]


def test_a_token_that_holds_the_end_of_the_tag():
    said = tokens("ok<", "answer", ">yes", "</answer>", likely={">yes": 0.5, ">no": 0.25, ">": 0.1})
    assert first_token_shares(said, "ok<answer>yes</answer>", YES_NO)["yes"] == pytest.approx(2 / 3)


def test_parts_of_a_word_count_for_it():
    said = tokens("<answer>", "blur", "red", "</answer>", likely={"blur": 0.3, "blurred": 0.1, "sharp": 0.4, "s": 0.2})
    found = first_token_shares(said, "<answer>blurred</answer>", {"blurred": "blurred", "sharp": "sharp"})
    assert found == {"blurred": pytest.approx(0.4), "sharp": pytest.approx(0.6)}


def test_labels_with_one_beginning_get_none():
    said = tokens("<answer>", "1", "</answer>", likely={"1": 0.5, "2": 0.2})
    grades = {str(grade): str(grade) for grade in range(1, 11)}
    assert first_token_shares(said, "<answer>1</answer>", grades) is None
    found = first_token_shares(said, "<answer>1</answer>", {str(grade): str(grade) for grade in range(1, 6)})
    assert found["1"] == pytest.approx(5 / 7) and sum(found.values()) == pytest.approx(1) and found["5"] == 0.0


@pytest.mark.parametrize("said,text", [(None, "<answer>yes</answer>"), ({"content": None}, "<answer>yes"), ({}, "<answer>yes")])
def test_without_logprobs_there_are_none(said, text):
    assert first_token_shares(said, text, YES_NO) is None


def test_without_a_verdicts_place_there_are_none():
    assert first_token_shares(tokens("yes", likely={"yes": 1.0}), "yes", YES_NO) is None
    assert first_token_shares(tokens("<answer>", likely={"yes": 1.0}), "<answer>", YES_NO) is None


def test_exact_shares_compare_what_follows_the_equal_tokens():
    """Of words with several tokens too: no = [7], yes = [8, 9], then </answer> = [5]."""
    sent = []

    class Requests:
        def post(self, path, body):
            sent.append(body)
            ids = [1, 2, 3, *([8, 9] if "yes" in body["messages"][1]["content"] else [7]), 5]
            logp = {1: -9.0, 2: -8.0, 3: -7.0, 7: math.log(0.2), 8: math.log(0.7), 9: math.log(0.9), 5: math.log(0.99)}
            return {"prompt_logprobs": [None, *({str(i): {"logprob": logp[i], "rank": 1}} for i in ids)]}

    question = {"role": "user", "content": "?"}
    found = exact_shares("<think>ok</think><answer>no</answer> bye", YES_NO, Requests(), "judge", question)
    assert found["yes"] == pytest.approx(0.63 / 0.83) and sum(found.values()) == pytest.approx(1)
    assert sent[1]["messages"][1] == {"role": "assistant", "content": "<think>ok</think><answer>yes</answer>"}
    assert sent[0]["continue_final_message"] and not sent[0]["add_generation_prompt"] and sent[0]["max_tokens"] == 1
    assert exact_shares("no tags", YES_NO, Requests(), "judge", {}) is None
