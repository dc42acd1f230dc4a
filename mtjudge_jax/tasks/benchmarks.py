"""Tasks of other judge benchmarks, for evaluation: pairs of answers and of pictures, with and without ties, grades, lists."""

from mtjudge_jax.tasks.base import LETTERS, RANKING, Task, Wordings
from mtjudge_jax.tasks.paper import forms, pair

_GRADES = ("1", "2", "3", "4", "5")
_ANSWERS = "Judge the answers to the question about the picture: correct, helpful, complete, clear, nothing made up."
_BETTER_ANSWER = forms(
    ("Which answer is better?", "Which answer would a careful reader prefer?", "Which answer is more helpful and correct?"),
    ("Which is the better of the two answers?", "Which answer serves the question better?"),
    ("Which answer is worse?", "Which answer would a careful reader reject first?"),
)
_PICTURES = "Judge the images made for the prompt: how well each fits the prompt, how well it is made, how pleasing it is."
_BETTER_PICTURE = forms(
    ("Which image is better?", "Which image would people prefer?", "Which image is the better result for the prompt?"),
    ("Which of the two images is the better one?", "Which image would the writer of the prompt choose?"),
    ("Which image is worse?", "Which image would people leave?"),
)
_EDITS = "Judge the edits of the picture: whether each does what is asked, leaves the rest as it was, and looks right."
_BETTER_EDIT = forms(
    ("Which edit is better?", "Which edit would people prefer?", "Which image is the better result of the instruction?"),
    ("Which of the two edits is the better one?", "Which edit follows the instruction better and looks right?"),
    ("Which edit is worse?", "Which edit would people leave?"),
)


def _answers(name: str, *, tie: bool = False) -> Task:
    """Two answers to a question about a picture."""
    return pair(name, _BETTER_ANSWER, rubric=_ANSWERS, tie=tie, max_images=1, instruction="Question", noun="Answer")


def _listed(
    name: str, texts: tuple[tuple[str, ...], ...], *, max_images: int, rubric: str, instruction: str, noun: str = "Image"
) -> Task:
    wordings = Wordings(forms(*texts), (LETTERS,), rubric, instruction, noun)
    return Task(name, "listwise", labels=RANKING, metric="accuracy", ood=True, wordings=wordings, max_images=max_images)


_MLLM_SCORE = Task(
    "mllm_score",
    "pointwise_score",
    labels=_GRADES,
    metric="accuracy",
    ood=True,
    wordings=Wordings(
        forms(
            ("How good is the answer, from 1 (poor) to 5 (excellent)?", "Which grade from 1 to 5 does the answer deserve?",
             "Grade the answer from 1, the worst, to 5, the best."),
            ("On a scale of 1 (worst) to 5 (best), how good is the answer?", "What grade, 1 to 5, fits the answer?"),
        ),
        (_GRADES,),
        rubric=_ANSWERS.replace("answers", "answer"),
        instruction="Question",
        noun="Answer",
    ),
    max_images=1,
)  # fmt: skip
_MLLM_BATCH = _listed(
    "mllm_batch",
    (
        ("Rank the answers from the best to the worst.", "In which order, best first, do the answers come?",
         "Order the answers by how good they are, best first."),
        ("Put the answers in order, starting with the best.", "What is the ranking of the answers, best to worst?"),
    ),
    max_images=1,
    rubric=_ANSWERS,
    instruction="Question",
    noun="Answer",
)  # fmt: skip
_HPDV2_LIST = _listed(
    "hpdv2_list",
    (
        ("Rank the images from the best to the worst.", "In which order, best first, would people put the images?",
         "Order the images by how good they are, best first."),
        ("Put the images in order, starting with the best.", "What is the ranking of the images, best to worst?"),
    ),
    max_images=9,
    rubric=_PICTURES,
    instruction="Prompt",
)  # fmt: skip

BENCHMARKS: dict[str, Task] = {
    "vl_rewardbench": _answers("vl_rewardbench"),
    "multimodal_rewardbench": _answers("multimodal_rewardbench"),
    "genai_image": pair("genai_image", _BETTER_PICTURE, rubric=_PICTURES, tie=True),
    "genai_edit": pair("genai_edit", _BETTER_EDIT, rubric=_EDITS, tie=True, max_images=3, instruction="Instruction"),
    "mllm_score": _MLLM_SCORE,
    "mllm_pair": _answers("mllm_pair", tie=True),
    "mllm_batch": _MLLM_BATCH,
    "pickapic": pair("pickapic", _BETTER_PICTURE, rubric=_PICTURES, tie=True),
    "hpdv2": pair("hpdv2", _BETTER_PICTURE, rubric=_PICTURES),
    "hpdv2_list": _HPDV2_LIST,
}
