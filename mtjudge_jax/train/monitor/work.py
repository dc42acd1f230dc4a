"""How much a step computed: tokens with and without padding, the model's own operations, their share of the chips' peak."""

from typing import NamedTuple

import jax

from mtjudge_jax.models.chips import chip_of
from mtjudge_jax.policy.flops import step_flops
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.run import Run
from mtjudge_jax.types import AnswerPlaces, Lengths, PromptBatch


class Work(NamedTuple):
    """What a step did, over all processes."""

    sampled: Lengths | None  # of all its rounds of rollouts; None: it had none
    learned: Lengths
    passes: int  # for log-probabilities, beside the update
    stream: int  # places of a pass or an update: prompts and bins, with padding
    prefill: int = 0  # places of the sampled prompts, with padding
    decode: int = 0  # steps of the sampler's lanes, whether an answer lived in a lane or not


def stream_places(prompts: PromptBatch, places: AnswerPlaces) -> int:
    """Places of the stream of training: Q * (P + B * W), or that of all micro-batches."""
    if isinstance(places, tuple):
        return sum(part.places.shape[0] * part.shape.prompt + part.places.size for part in places)
    return prompts.tokens.size + places.size


def work_numbers(run: Run, work: Work, clock: Clock) -> dict:
    """For metrics.jsonl. tokens: real ones of `prompts` and `answers`, computed ones of `prefill`, `decode` and `stream`.
    tokens_per_s: real ones over the whole step. model_tflops: without padding and recomputation. mfu: their share of the peak of
    all devices in bfloat16, where the maker's figure is known.
    """
    seconds, seen = sum(clock.seconds.values()), work.sampled or work.learned
    prompts, answers = int(seen.prompt.sum()), int(seen.answers.sum())
    operations = step_flops(run.model.cfg, run.cfg, sampled=work.sampled, learned=work.learned, passes=work.passes)
    tokens = {"prompts": prompts, "answers": answers, "stream": work.stream}
    if work.sampled is not None:
        tokens |= {"prefill": work.prefill, "decode": work.decode}
    numbers = {"tokens": tokens, "tokens_per_s": (prompts + answers) / seconds, "model_tflops": operations / 1e12}
    chip = chip_of(jax.devices()[0].device_kind)
    return numbers | ({} if chip is None else {"mfu": operations / (seconds * chip.flops * jax.device_count())})
