"""How well a demo model sees: the share of its greedy reasonings that describe the pictures exactly."""

from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.data.image_config import load_image_config
from mtjudge_jax.data.rows import RowFormat
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.demo.dataset import make_examples
from mtjudge_jax.eval.batches import Judging, judge
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy.programs import make_programs
from mtjudge_jax.tasks import DEMO
from mtjudge_jax.types import Params

_COUNT, _BATCH = 96, 32


class Perception:
    """Judges validation pictures and compares the reasoning with the truth; the verdicts do not count."""

    def __init__(self, cfg: Config, model_cfg: Qwen3VLConfig, folder: Path, mesh: Mesh, shapes: dict[int, tuple[int, int]]):
        tokenizer, image_cfg = load_tokenizer(folder), load_image_config(folder)
        self.programs = make_programs(cfg, model_cfg, tokenizer, mesh)
        self.fmt = RowFormat(DEMO, tokenizer, image_cfg, *shapes[1], cfg.rollout.completion_tokens)
        self.examples = {name: list(make_examples(split="val", task=name, count=_COUNT, seed=1)) for name in DEMO}

    def measure(self, params: Params) -> dict[str, dict[str, float]]:
        """{"seen": {task: share of exactly right reasonings}, "yes": {task: share of yes}, "valid": ..}."""
        out: dict[str, dict[str, float]] = {"seen": {}, "yes": {}, "valid": {}}
        for name, examples in self.examples.items():
            how = Judging(self.programs, self.fmt, _BATCH, np.zeros(1, np.float32), 0.1, 0)
            rows = judge(params, examples, how, step=0, probabilities=False)
            right = [row["reasoning"] == example.rationale for row, example in zip(rows, examples, strict=True)]
            out["seen"][name] = float(np.mean(right))
            out["yes"][name] = float(np.mean([row["verdict"] == "yes" for row in rows]))
            out["valid"][name] = float(np.mean([not row["error"] for row in rows]))
        return {key: {name: round(value, 3) for name, value in shares.items()} for key, shares in out.items()}
