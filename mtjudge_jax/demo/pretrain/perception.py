"""How well a demo model sees, and how well it answers neutral questions: measured on validation pictures."""

from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.data.image_config import load_image_config
from mtjudge_jax.data.rows import RowFormat
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.demo.cases import label_of, stated_facts
from mtjudge_jax.demo.dataset import LICENSE, encode, make_examples
from mtjudge_jax.demo.neutral import neutral_case
from mtjudge_jax.demo.pretrain.corpus import families
from mtjudge_jax.demo.scenes import load_pool
from mtjudge_jax.eval.batches import Judging, judge
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy.programs import make_programs
from mtjudge_jax.records import JudgeExample, swapped
from mtjudge_jax.tasks import DEMO
from mtjudge_jax.tasks.demo import NEUTRAL_KINDS
from mtjudge_jax.types import Params

_COUNT, _BATCH = 48, 48
_LATEST = 10**6  # an update that asks all families


def neutral_examples(split: str, kind: str, family: str, *, count: int, seed: int) -> list[JudgeExample]:
    """Records of a neutral question, from the photographs of a split; example i is a function of (seed, i)."""
    pool, task, made = load_pool(split), NEUTRAL_KINDS[kind], []
    for i in range(count):
        case = neutral_case(np.random.default_rng((seed, i)), pool, kind, family)
        about = (f"neutral/{kind}/{family}/{i}", "neutral", split, case.scenes[0].photo, task.name, family, kind)
        pictures, label = tuple(encode(scene.image) for scene in case.scenes), label_of(kind, case.told, enough=any)
        ends = {"score_min": 1.0, "score_max": 5.0} if kind == "pointwise_score" else {}
        made.append(JudgeExample(*about, case.instruction, pictures, label, case.rationale, LICENSE, **ends))
    return made


class Perception:
    """Judges validation pictures and compares the reasoning with the truth; verdicts count for neutral questions alone."""

    def __init__(
        self, cfg: Config, model_cfg: Qwen3VLConfig, folder: Path, mesh: Mesh, room: tuple[int, int, int], count: int = _COUNT
    ):
        """room: prompt tokens, patches and answer tokens of a question about one picture. count: questions of each kind."""
        tokenizer, image_cfg = load_tokenizer(folder), load_image_config(folder)
        self.programs = make_programs(cfg, model_cfg, tokenizer, mesh)
        self.fmt = RowFormat(DEMO | {task.name: task for task in NEUTRAL_KINDS.values()}, tokenizer, image_cfg, *room)
        self.count = count

    def _answers(self, params: Params, examples: list[JudgeExample], order: str = "") -> list[dict]:
        how = Judging(self.programs, self.fmt, _BATCH, np.zeros(1, np.float32), 0.1, 0)
        return judge(params, examples, how, step=0, probabilities=False, order=order)

    def measure(self, params: Params) -> dict[str, dict[str, float]]:
        """"seen": {task: share of the reasonings that state exactly the facts}, "valid": {task: share of readable answers}, and
        "neutral": see `neutral`."""
        out: dict[str, dict[str, float]] = {"seen": {}, "valid": {}}
        for name in DEMO:
            examples = list(make_examples(split="val", task=name, count=self.count, seed=1))
            rows = self._answers(params, examples)
            pairs = list(zip(rows, examples, strict=True))
            out["seen"][name] = float(np.mean([stated_facts(row["reasoning"]) == stated_facts(e.rationale) for row, e in pairs]))
            out["valid"][name] = float(np.mean([not row["error"] for row in rows]))
        out["neutral"] = self.neutral(params)
        return {key: {name: round(value, 3) for name, value in shares.items()} for key, shares in out.items()}

    def neutral(self, params: Params, split: str = "val", seed: int = 1) -> dict[str, float]:
        """{"pairwise look": accuracy, of pairs in both orders, .., "pairwise same winner": of all pairs in both orders}."""
        found, same = {}, []
        for kind, task in NEUTRAL_KINDS.items():
            for family in dict.fromkeys(families(kind, _LATEST)) if kind != "pointwise_score" else ("both",):
                asked = "look" if family == "both" else family
                examples = neutral_examples(split, kind, asked, count=self.count, seed=seed)
                rows = self._answers(params, examples)
                right = [row["verdict"] == row["label"] for row in rows]
                if kind == "pairwise":
                    other = self._answers(params, [swapped(example) for example in examples], "ba")
                    turned = {task.labels[0]: task.labels[1], task.labels[1]: task.labels[0]}
                    right += [row["verdict"] == row["label"] for row in other]
                    same += [one["verdict"] == turned.get(two["verdict"]) for one, two in zip(rows, other, strict=True)]
                found[f"{kind} {family}"] = float(np.mean(right))
        return found | {"pairwise same winner": float(np.mean(same))}
