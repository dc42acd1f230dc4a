"""The count of unusable rows: when it stops a run, and what it says helps."""

import json

import numpy as np
import pytest

from mtjudge_jax.data.bad_rows import BadRowCounter, TooManyBadRecords


@pytest.mark.parametrize(
    ("reasons", "remedy"),
    [
        (["image_hash"], "Prepare the data again or leave these records out"),
        (["too_many_patches", "prompt_too_long"], "Change the config as the reasons say"),
        (
            ["target_too_long", "image_hash"],
            "Change the config as the reasons say; prepare the data again or leave these records out",
        ),
    ],
)
def test_what_the_config_mends_is_not_to_be_prepared_again(reasons, remedy):
    counter = BadRowCounter()
    for number in range(100):
        counter.add_one(f"e{number}", f"{reasons[number % len(reasons)]}: why")
    with pytest.raises(TooManyBadRecords, match=rf"why\)\. {remedy}$"):
        counter.check()


def test_bad_rows_stop_the_run_over_one_percent():
    def batch(n, bad):
        errors = ["truncated_image: cut"] * bad + [""] * (n - bad)
        ids = [f"e{i}" for i in range(n)]
        return {"example_id": np.array(ids), "weight": np.array([not e for e in errors]), "error": np.array(errors)}

    counter = BadRowCounter()
    counter.add(batch(99, 5))  # too few rows to judge by
    counter.check()
    counter.add(batch(1, 0))
    with pytest.raises(TooManyBadRecords, match=r"5 of 100 rows .* limit is 1.0%. Reasons: truncated_image 5.*e0 \(trunc"):
        counter.check()
    exactly = BadRowCounter()
    exactly.add(batch(200, 2))
    exactly.check()
    exactly.add(batch(1, 1))
    with pytest.raises(TooManyBadRecords, match="3 of 201"):
        exactly.check()
    filler = {"example_id": np.array([""] * 500), "weight": np.zeros(500), "error": np.array([""] * 500)}
    exactly.add(batch(300, 0))
    exactly.add(filler)
    assert exactly.rows == 501
    both = BadRowCounter()
    for facts in (counter.facts(), exactly.facts()):  # of two processes
        both.add_facts(json.loads(json.dumps(facts)))
    assert (both.rows, both.bad, dict(both.reasons), len(both.ids)) == (601, 8, {"truncated_image": 8}, 5)
