"""The bundles of arrays that pass from stage to stage, and the legend of their axes.

Axes: Q prompts, G completions per prompt, P prompt length, C completion length, B bins of W places that hold a prompt's answers
in training, S cache length, I images per prompt, M patches per prompt, V vocabulary, D model, F mlp, N query heads, K key-value
heads, H head size, L layers, E experts, R adapter rank, T DeepStack taps.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Params = dict[str, Any]  # nested dict of arrays; names end in their axes

NO_CHOICE = 255  # in Routing: no expert; those have lower numbers, so there are at most so many


class Routing(NamedTuple):
    """Which experts the sampler chose for each token that it read; NO_CHOICE elsewhere."""

    prompts: Array  # uint8 [Q, P, L, k]
    answers: Array  # uint8 [Q, G, C, L, k]


class Joined(NamedTuple):
    """Where rows hold k prompts each, one behind the other."""

    number: Array  # int32 [Q, P], which of the row's prompts a token is of, from 1; 0 on padding
    last: Array  # int32 [Q, k], the place of each prompt's last token


class PromptBatch(NamedTuple):
    """Q prompts with their images. Every array leads with Q, so one sharding fits all."""

    tokens: Array  # int32 [Q, P], left padded
    valid: Array  # bool [Q, P], True on real tokens
    positions: Array  # int32 [Q, P, 3], M-RoPE (t, h, w)
    next_position: Array  # int32 [Q], position of the first completion token on all three axes
    image_index: Array  # int32 [Q, P], index of the merged image token at this place, -1 on text
    patches: Array  # uint8 [Q, M, 3 * patch * patch]
    patch_hw: Array  # int32 [Q, M, 2], (row, column) in the patch grid of the image
    patch_grid: Array  # int32 [Q, M, 2], (height, width) of that grid in patches
    patch_segment: Array  # int32 [Q, M], image number from 1, 0 = padding
    uid: Array  # uint32 [Q], stable hash of the example, seeds the sampler
    heat: Array | None = None  # float32 [Q], temperature of the answers over the batch's, see rl/per_task.py; None: 1
    longest: Array | None = None  # int32 [Q], most tokens of an answer; None: C
    routing: Routing | None = None  # the experts to take in training, of prompts and answers; None: its own choice
    joined: Joined | None = None  # with it the arrays above without P and M are [Q, k]; None: a prompt a row


class Lengths(NamedTuple):
    """Of Q prompts with G answers each, in tokens. Without padding, or of the arrays that hold them."""

    prompt: np.ndarray  # [Q]
    patches: np.ndarray  # [Q], of all images of a prompt together
    answers: np.ndarray  # [Q, G], with the end


class PromptRoom(NamedTuple):
    """How much room each prompt of a micro-batch has."""

    prompt: int  # P, tokens; a prompt stands at the end of its row
    patches: int  # M; the patches stand at the beginning of theirs


@partial(jax.tree_util.register_dataclass, data_fields=("rows", "places"), meta_fields=("shape",))
@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, in q streams on each of D devices, which run together in the room that they need.

    A stream is that of one prompt or of k.
    """

    rows: Array  # int32 [D * q * k], which of the batch's rows; behind the last one where a stream has fewer than k
    places: Array  # int32 [D * q, B, W], where the tokens of their answers lie, see rl/streams.py
    shape: PromptRoom  # of the prompts of a stream together; known to the compiler


AnswerPlaces = Array | tuple[MicroBatch, ...]  # int32 [Q, B, W] of all rows alike, or micro-batches that hold each row once


class Rollout(NamedTuple):
    """G sampled completions per prompt. `mask` covers the tokens up to and including the first end-of-sequence."""

    tokens: Array  # int32 [Q, G, C], pad after the end
    mask: Array  # bool [Q, G, C]
    logp: Array  # float32 [Q, G, C], of the sampler; 0 where masked
    truncated: Array  # bool [Q, G], no end-of-sequence within C tokens
    routing: Routing | None = None  # with loss.replay_routing


class TrainBatch(NamedTuple):
    """What the update sees of a rollout."""

    prompts: PromptBatch
    tokens: Array  # int32 [Q, G, C]
    mask: Array  # bool [Q, G, C], also False on rows that are not learned from
    advantages: Array  # float32 [Q, G]
    old_logp: Array  # float32 [Q, G, C]
    ref_logp: Array  # float32 [Q, G, C]
    places: AnswerPlaces  # where the tokens lie in the stream of training, see rl/streams.py
    sampler_logp: Array | None = None  # float32 [Q, G, C], as the sampler computed them; None: old_logp are these


class SftBatch(NamedTuple):
    """Prompts, each with the one answer to learn."""

    prompts: PromptBatch
    tokens: Array  # int32 [Q, 1, C]
    mask: Array  # bool [Q, 1, C]
    places: AnswerPlaces  # of one bin each, see rl/streams.py


class DpoBatch(NamedTuple):
    """Prompts, each with a better and a worse answer, in this order on the second axis."""

    prompts: PromptBatch
    tokens: Array  # int32 [Q, 2, C]
    mask: Array  # bool [Q, 2, C], False on both answers of a row that is not learned from
    places: AnswerPlaces  # see rl/streams.py
    ref_logp: Array  # float32 [Q, 2, C], of the reference policy


class TrainState(NamedTuple):
    """Everything that an update changes."""

    params: Params  # the trained ones
    opt_state: Any
    step: Array  # int32 [], updates applied
