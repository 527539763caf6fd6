"""What measures are called: where the model's own answers count as right, agreement with them."""

from ..analysis import Result
from ..asked_questions import OWN_ANSWER
from .paired_table import METRICS

_NAMES = {
    "accuracy": "accuracy",
    "logprob": "the answer’s log-probability",
    "kl": "the next token’s distribution",
    "flips": "the greedy answer",
}
_TITLES = {
    "accuracy": "Accuracy",
    "logprob": "Log-probability",
    "kl": "KL",
    "flips": "Answers that change",
}


def answers_are_own(result: Result) -> bool:
    """Whether what counts as right is what the untouched model wrote."""
    return bool(result.meta["reference"] == OWN_ANSWER)


def measure_name(result: Result, metric: str) -> str:
    """A measure in a sentence."""
    if metric == "accuracy" and answers_are_own(result):
        return "agreement with the model’s own answers"
    return _NAMES[metric]


def measure_title(result: Result, metric: str) -> str:
    """A measure over a column."""
    if metric == "accuracy" and answers_are_own(result):
        return "Agreement"
    return _TITLES[metric]


def axis_label(result: Result, metric: str) -> str:
    """The change of a measure along an axis, with its unit."""
    label = METRICS[metric].label
    if metric == "accuracy" and answers_are_own(result):
        return label.replace("accuracy", "agreement")
    return label
