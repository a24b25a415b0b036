"""Compute the score of a data set from the values of its documents, and its standard error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from darumeru_tasks.subjects import CATEGORIES, CATEGORY_OF, SUBJECTS

MAX_POINTS = 34
"""Maximum number of points in one variant of the Unified State Exam."""


@dataclass(frozen=True)
class Statistic:
    """The score of a list of values, one per document. A value is a number or a tuple of numbers and strings.

    function: receives one array per column and returns the score. by_group: whether the first column names groups of
    documents that belong together, such as the two orders of a question or the tasks of an exam.
    """

    function: Callable[..., float]
    by_group: bool = False

    def __call__(self, values: Sequence[Any]) -> float:
        return float(self.function(*_columns(values)))

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def standard_error(self, values: Sequence[Any], *, draws: int = 1000) -> float:
        """Return the bootstrap standard error over documents or groups. It is the same for the same values."""
        columns = _columns(values)
        random = np.random.default_rng(0)
        groups = np.unique(columns[0], return_inverse=True)[1] if self.by_group else np.arange(len(values))
        members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
        scores = []
        for _ in range(draws):
            drawn = random.integers(len(members), size=len(members))
            if self.by_group:  # a group that is drawn twice must count as two groups
                rows = np.concatenate([members[group] for group in drawn])
                names = np.repeat(np.arange(len(drawn)), [len(members[group]) for group in drawn])
                scores.append(self.function(names, *(column[rows] for column in columns[1:])))
            else:
                scores.append(self.function(*(column[drawn] for column in columns)))
        return float(np.std(scores, ddof=1))


def _columns(values: Sequence[Any]) -> list[np.ndarray]:
    if isinstance(values[0], tuple | list):
        return [np.array(column) for column in zip(*values, strict=True)]
    return [np.array(values)]


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(gold == predicted))


def f1_macro(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F-measure over all labels that occur in `gold` or `predicted`."""
    scores = []
    for label in np.union1d(gold, predicted):
        right = np.sum((gold == label) & (predicted == label))
        scores.append(2 * right / (np.sum(gold == label) + np.sum(predicted == label)))
    return float(np.mean(scores))


def matthews(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return the Matthews correlation (Gorodkin 2004 for more than two labels); 0.0 if one side has only one label."""
    labels = np.union1d(gold, predicted)
    counts = np.array([[np.sum((gold == g) & (predicted == p)) for p in labels] for g in labels], dtype=float)
    of_gold, of_predicted, total = counts.sum(1), counts.sum(0), counts.sum()
    spread = (total**2 - of_gold @ of_gold) * (total**2 - of_predicted @ of_predicted)
    return float((np.trace(counts) * total - of_gold @ of_predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def accuracy_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    return (accuracy(gold, predicted) + f1_macro(gold, predicted)) / 2


def accuracy_matthews(gold: np.ndarray, predicted: np.ndarray) -> float:
    return (accuracy(gold, predicted) + matthews(gold, predicted)) / 2


def all_orders(question: np.ndarray, right: np.ndarray) -> float:
    """Return the fraction of questions that were answered right in all of their orders."""
    groups = np.unique(question, return_inverse=True)[1]
    return float(np.mean(np.bincount(groups, weights=~right.astype(bool)) == 0))


def exam_grade(variant: np.ndarray, points: np.ndarray) -> float:
    """Return the mean over variants of their points, as a fraction of the maximum of 34."""
    groups = np.unique(variant, return_inverse=True)[1]
    return float(np.mean(np.bincount(groups, weights=points) / MAX_POINTS))


def category_mean(subject: np.ndarray, right: np.ndarray) -> float:
    """Return the mean accuracy over categories. The accuracy of a category is the mean over its subjects.

    subject: indices into SUBJECTS. Subjects and categories without questions are left out.
    """
    counts = np.bincount(subject, minlength=len(SUBJECTS))
    accuracies = np.bincount(subject, weights=right, minlength=len(SUBJECTS)) / np.maximum(counts, 1)
    known = counts > 0
    categories = np.array(CATEGORY_OF)[known]
    subjects_known = np.bincount(categories, minlength=len(CATEGORIES))
    sums = np.bincount(categories, weights=accuracies[known], minlength=len(CATEGORIES))
    return float(np.mean(sums[subjects_known > 0] / subjects_known[subjects_known > 0]))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Return the ratio of the sums, such as symbols per token; 0.0 if the denominator is 0."""
    return float(numerator.sum() / denominator.sum()) if denominator.sum() else 0.0
