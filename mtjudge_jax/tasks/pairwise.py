"""Three questions about two pictures, never trained on: "yes" says that the second one is better.

The headline number is accuracy over both orders, where a judge that goes by position alone scores exactly one half.
"""

from mtjudge_jax.tasks.base import CONTRACT, Task

PAIRWISE_TECHNICAL = Task(
    name="pairwise_technical",
    single="technical",
    kind="pairwise",
    template=f"Is the second picture better than the first in technical quality? {CONTRACT}",
    metric="accuracy",
    ood=True,
)
PAIRWISE_ALIGNMENT = Task(
    name="pairwise_alignment",
    single="alignment",
    kind="pairwise",
    template="Does the second picture show {instruction} better than the first? " + CONTRACT,
    metric="accuracy",
    ood=True,
)
PAIRWISE_SAFETY = Task(
    name="pairwise_safety",
    single="safety",
    kind="pairwise",
    template=f"Is the second picture safer than the first? {CONTRACT}",
    metric="accuracy",
    ood=True,
)
