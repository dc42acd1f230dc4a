"""The numbers of MT-RL-Judge (Wu et al., arXiv 2603.11665): macro-F1 in percent on its test sets, one row per arm."""

from mtjudge_jax.tasks.paper import TRAINED, UNSEEN

_TABLE = {
    "off_the_shelf": (67.99, 63.24, 64.77, 80.01, 55.07, 72.78, 59.41, 73.07),
    "sft_single": (78.64, 77.04, 78.08, 80.41, 64.95, 90.28, None, None),
    "sft_unified": (81.75, 81.22, 81.31, 82.32, 63.34, 89.49, 55.82, 49.40),
    "rl_single": (80.50, 80.77, 82.71, 83.41, 65.07, 86.92, None, None),
    "mt_rl_judge": (81.63, 81.37, 81.58, 83.67, 64.97, 85.22, 60.59, 82.23),
}
PAPER = {arm: {task: x for task, x in zip((*TRAINED, *UNSEEN), row, strict=True) if x is not None} for arm, row in _TABLE.items()}


def paper_arm(name: str) -> str:
    """The paper's arm that a run is named after ("SFT-Unified", "sft_unified"), "" if there is none."""
    folded = name.lower().replace("-", "_").replace(" ", "_")
    return folded if folded in PAPER else ""
