"""A trained judge in your own program: `Judge.from_pretrained(folder).judge(images=.., task=..)`."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.config_check import mesh_shape
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.jax_setup import check_platform
from mtjudge_jax.judge.calls import compare_call, judge_call, score_call, warn_failed
from mtjudge_jax.judge.engine import AskedAs, Call, Engine, shards
from mtjudge_jax.judge.pictures import Picture
from mtjudge_jax.judge.questions import listed, with_instructions
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.policy.judge_file import judge_config, judge_tasks, mesh_of
from mtjudge_jax.policy.model import judging_format, model_folder, open_model, read_params
from mtjudge_jax.tasks.comparison import WinRates
from mtjudge_jax.tasks.verdicts import Verdict, verdict_of

_DTYPES = ("float32", "bfloat16")


class Judge(Engine):
    """A loaded model that judges. Made by `from_pretrained`. Several threads may use it at a time."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        batch: int = 8,
        dtype: str | None = None,
        mesh: Mapping[str, int] | str | None = None,
    ) -> "Judge":
        """Loads a Hugging Face folder of type qwen3_vl from a disk or a bucket (gs://bucket/folder), never from the hub.

        batch: most questions judged at a time; fewer take the next power of two. dtype: "float32" or "bfloat16", of weights and
        computation, by default the one in config.json (float32 for float16, which it holds exactly). mesh: devices along axes,
        as {"fsdp": 4} or "fsdp=4"; by default all devices share the weights. The sizes of a question are those of the folder's
        judge.json, if it has one.
        """
        check_platform()
        if batch < 1:
            raise ConfigError(f"batch = {batch} must be at least 1")
        cfg = judge_config(folder, batch=batch)
        model_cfg = load_config(model_folder(cfg.model.path))
        cfg.model.dtype = _dtype_of(model_cfg) if dtype is None else dtype
        if cfg.model.dtype not in _DTYPES:
            raise ConfigError(f"dtype = {dtype!r}: give {' or '.join(map(repr, _DTYPES))}")
        cfg.mesh = _all_devices(model_cfg) if mesh is None else mesh_of(mesh)
        rows = shards(mesh_shape(cfg.mesh, jax.device_count()))
        cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = -(-batch // rows) * rows
        model = open_model(cfg)
        fmt = judging_format(model, cfg)
        how = Judging(model.programs, fmt, cfg.rollout.prompts, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
        return cls(model, read_params(model, cfg), how, cfg.rollout.temperature, judge_tasks(cfg.model.path))

    def judge(
        self,
        images: Picture | Sequence[Picture],
        *,
        task: str,
        instruction: str = "",
        texts: Sequence[str] = (),
        samples: int = 1,
        both_orders: bool = False,
        seed: int = 0,
    ) -> Verdict:
        """Judges one question. `images` is one picture, or those of a pair or a list: a path, encoded bytes, a PIL image or a
        uint8 array [h, w, 3] or [3, h, w], never a URL.

        texts: the candidates, if the task judges texts; the images are then what the texts are about. task: one of the package,
        or of the run that trained the model. samples: with more than 1, so many answers are drawn and the majority decides.
        both_orders: a pair is asked in both orders too, and the answers vote together. Raises UserError for an unknown task, a
        wrong number of images, a missing instruction, a text that is no Unicode and an unreadable image.
        """
        asked = AskedAs(None, samples, both_orders, seed)
        return self.run(judge_call(self.task(task), images, instruction=instruction, texts=texts, asked=asked))

    def judge_all(
        self,
        questions: Iterable[Any] | None = None,
        *,
        task: str | None = None,
        images: Iterable[Any] | None = None,
        instruction: str | Sequence[str] = "",
        samples: int = 1,
        both_orders: bool = False,
        seed: int = 0,
    ) -> list[Verdict]:
        """Judges many questions in batches; returns the verdicts in their order.

        A question is a picture, a tuple (pictures, instruction) or (pictures, instruction, texts), or a dict with `image` or
        `images`, `instruction` (or `text`), `texts` and `task`. For a task of pairs, ("a.jpg", "b.jpg") is one too. Instead,
        `images` holds the pictures of each question and `instruction` one text, or one for each; with an instruction, so do
        `questions`. An array [n, h, w, 3] is n
        pictures. samples, both_orders: as for `judge`.

        A question that cannot be asked gets a verdict None with the reason in `error`, beginning with its number, and a warning.
        Raises UserError for an unknown task and for questions in no such form at all.
        """
        if (questions is None) == (images is None):
            raise UserError("judge_all takes questions or images: give one of them")
        alone = instruction and questions is not None
        asked = listed(questions) if questions is not None and not alone else with_instructions(
            images if questions is None else questions, instruction
        )
        if task is not None:
            self.task(task)  # also where there is no question
        found = self.ask(asked, AskedAs(task, samples, both_orders, seed))
        failed = warn_failed(found)
        refused = {i: Verdict(None, "", None, "", text, None, "invalid") for i, text in failed.items()}
        return [refused[i] if i in refused else verdict_of(*one) for i, one in enumerate(found)]

    def score(
        self,
        images: Iterable[Any],
        *,
        task: str,
        instructions: str | Sequence[str] = "",
        samples: int = 1,
        seed: int = 0,
    ) -> np.ndarray:
        """One number for each element of `images`, float64 [N]: the probability of the task's second label (the class that the
        question names), or the expected grade, after the judge's reasoning. samples: so many reasonings are averaged; 1 takes the
        likeliest. Equal for equal pictures, whatever the batch.

        NaN where no reasoning led to a verdict or the question could not be asked, with a warning that counts these. Raises
        UserError for a task of pairs or lists.
        """
        asked = AskedAs(None, samples, seed=seed)
        return self.run(score_call(self.task(task), images, instructions=instructions, asked=asked))

    def compare(
        self,
        candidates: Iterable[Any],
        *,
        task: str,
        instruction: str = "",
        by: str | None = None,
        anchors: int | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> WinRates:
        """The probability that each of N pictures wins against each other one, and their mean, the win rates [N].

        by: "pairs" asks a task of pairs about every pair in both orders and is its default. "score", the default of a task
        about one picture, judges each alone and compares the scores; a task of pairs then takes its pointwise twin. anchors: each
        candidate meets only the next `anchors` ones. samples: as for `score`. Raises UserError for anything that cannot be asked.
        """
        how = {"instruction": instruction, "by": by, "anchors": anchors, "samples": samples, "seed": seed}
        return self.run(compare_call(self.task(task), candidates, find=self.task, **how))

    def run(self, call: Call) -> Any:
        """What the answers to a call's questions say."""
        return call.finish(self.ask(call.questions, call.asked))


def _all_devices(model: Qwen3VLConfig) -> MeshConfig:
    """Every device holds its part of the weights: of the heads, as far as devices divide them, else by fsdp. Heads come first
    because a batch need not be spread over them.
    """
    local, devices = jax.local_device_count(), jax.device_count()
    tensor = math.gcd(model.text.num_kv_heads, model.text.num_heads, model.vision.num_heads, local)
    return MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor)


def _dtype_of(model: Qwen3VLConfig) -> str:
    raw = [model.raw, model.raw.get("text_config", {})]
    named = [found[key] for found in raw for key in ("dtype", "torch_dtype") if found.get(key)]
    return "bfloat16" if named and named[0] == "bfloat16" else "float32"
