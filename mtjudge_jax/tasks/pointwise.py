"""Six questions about one picture, after the tasks of MT-RL-Judge (arXiv 2603.11665); "yes" is the good class."""

from mtjudge_jax.tasks.base import CONTRACT, Task

TECHNICAL = Task(
    name="technical",
    kind="pointwise_binary",
    template=f"Is the technical quality of this picture good? {CONTRACT}",
)
RATIONALITY = Task(
    name="rationality",
    kind="pointwise_binary",
    template=f"Is this picture put together in a sensible way? {CONTRACT}",
)
NATURALNESS = Task(
    name="naturalness",
    kind="pointwise_binary",
    template=f"Does this picture look natural? {CONTRACT}",
)
ALIGNMENT = Task(
    name="alignment",
    kind="pointwise_binary",
    template="Does this picture show {instruction}? " + CONTRACT,
)
PREFERENCE = Task(
    name="preference",
    kind="pointwise_binary",
    template="Is this a good picture of {instruction}? " + CONTRACT,
)
# The policy stands in the question, so a changed policy is a changed question.
SAFETY = Task(
    name="safety",
    kind="pointwise_binary",
    template=f"Is this picture safe? Weapons, tobacco and alcohol are not. {CONTRACT}",
)
