"""An independent reference for Darumeru's scores, written from the benchmark's description as plain loops over rows.

Nothing here imports the tasks, numpy, scikit-learn, difflib or rouge_score. Where the description leaves a choice, the
conventions of scikit-learn are used (a label that occurs in either list counts for F1-macro; Matthews' correlation is 0
if one side has only one label), and those of SQuAD (ASCII punctuation, English articles, two empty answers are equal).
"""

import json
import math
import re
import string
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

DATA = Path(__file__).with_name("darumeru_data")
HUMANITIES = (
    "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
    "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
    "world_religions"
).split()
SOCIAL_SCIENCES = (
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
    "security_studies sociology us_foreign_policy"
).split()
OTHER = (
    "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
    "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
).split()


def rows(config: str, split: str = "test") -> list[dict]:
    """Return the rows of a file of the miniature data."""
    lines = (DATA / config / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Choices


def most_probable(choices: Sequence[str], likelihoods: Sequence[float]) -> str:
    """Return the choice with the highest likelihood; the first of equal ones."""
    best = 0
    for index in range(len(choices)):
        if likelihoods[index] > likelihoods[best]:
            best = index
    return choices[best]


def accuracy(golds: Sequence[str], predicted: Sequence[str]) -> float:
    return mean([float(g == p) for g, p in zip(golds, predicted, strict=True)])


def f1_macro(golds: Sequence[str], predicted: Sequence[str]) -> float:
    scores = []
    for label in set(golds) | set(predicted):
        true = sum(g == label and p == label for g, p in zip(golds, predicted, strict=True))
        precision = true / predicted.count(label) if label in predicted else 0.0
        recall = true / golds.count(label) if label in golds else 0.0
        scores.append(2 * precision * recall / (precision + recall) if true else 0.0)
    return mean(scores)


def matthews(golds: Sequence[str], predicted: Sequence[str], positive: str) -> float:
    """Return Matthews' correlation of two labels by its textbook formula."""
    pairs = [(g == positive, p == positive) for g, p in zip(golds, predicted, strict=True)]
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((True, True), (False, False), (False, True), (True, False)))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def both_orders(questions: Sequence[tuple[str, bool]]) -> float:
    """Return the fraction of ids whose answers are all right, given (id, right) for every order of every question."""
    right: dict[str, bool] = {}
    for name, is_right in questions:
        right[name] = right.get(name, True) and is_right
    return mean([float(value) for value in right.values()])


def category_mean(answers: Sequence[tuple[str, bool]]) -> float:
    """Return the mean over categories of the mean over subjects, from (subject, right)."""
    subjects: dict[str, list[float]] = {}
    for subject, right in answers:
        subjects.setdefault(subject, []).append(float(right))
    categories: dict[str, list[float]] = {}
    for subject, values in subjects.items():
        groups = {"humanities": HUMANITIES, "social sciences": SOCIAL_SCIENCES, "other": OTHER}
        category = next((name for name, members in groups.items() if subject in members), "STEM")
        categories.setdefault(category, []).append(mean(values))
    return mean([mean(values) for values in categories.values()])


# Generated answers


def squad_words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()


def squad(predicted: str, golds: Sequence[str]) -> tuple[float, float]:
    """Return F1 and exact match, each the best over the golds."""
    best_f1 = best_match = 0.0
    for gold in golds:
        ours, theirs = squad_words(predicted), squad_words(gold)
        best_match = max(best_match, float(ours == theirs))
        if ours and theirs:
            left, common = list(theirs), 0
            for word in ours:
                if word in left:
                    left.remove(word)
                    common += 1
            precision, recall = common / len(ours), common / len(theirs)
            best_f1 = max(best_f1, 2 * precision * recall / (precision + recall) if common else 0.0)
        else:
            best_f1 = max(best_f1, float(ours == theirs))
    return best_f1, best_match


def use_points(predicted: str, gold: str, kind: str, id_task: str) -> int:
    if kind == "text":
        letters = "".join(c for c in predicted if not re.match(r"\d|\W", c))
        return 1 if letters.lower() in gold.split(",") else 0
    given, right = [part.strip() for part in predicted.split(",")], gold.split(",")
    if kind == "matching":
        points = 0
        if len(given) == len(right):
            for index in range(len(right)):
                points += given[index] == right[index]
        return points
    if id_task == "16":
        while len(given) < len(right):
            given.append("-1")
        common = {answer for answer in given if answer in right}
        return max(0, len(common) - len(given) + len(right))
    return 1 if sorted(set(given)) == sorted(set(right)) else 0


def exam(points: Sequence[tuple[str, int]]) -> float:
    """Return the mean over variants of points / 34, from (variant, points)."""
    variants: dict[str, int] = {}
    for variant, number in points:
        variants[variant] = variants.get(variant, 0) + number
    return mean([number / 34 for number in variants.values()])


@lru_cache(maxsize=1)
def _analyzer():
    from pymorphy3 import MorphAnalyzer

    return MorphAnalyzer()


def lemmas(text: str) -> list[str]:
    for character in string.punctuation:
        text = text.replace(character, " ")
    return [_analyzer().parse(word)[0].normal_form for word in text.lower().split()]


def rouge(predicted: str, gold: str, length: int) -> tuple[float, float]:
    """Return F-measure and recall of the n-grams of lemmas, n = `length`."""
    ours, theirs = (
        [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
        for words in (lemmas(predicted), lemmas(gold))
    )
    common = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))
    precision, recall = common / max(len(ours), 1), common / max(len(theirs), 1)
    return (2 * precision * recall / (precision + recall) if common else 0.0), recall


# Sentences and copies


def r_precision(scores: Sequence[float], gold: Sequence[int]) -> float:
    """Return the fraction of gold sentences among the k best, where k is the number of gold sentences.

    Of equal scores, the earlier one is better.
    """
    left, best = list(range(len(scores))), []
    for _ in set(gold):
        winner = left[0]
        for index in left:
            if scores[index] > scores[winner]:
                winner = index
        left.remove(winner)
        best.append(winner)
    return sum(index in gold for index in best) / len(set(gold)) if gold else 0.0


def length_ratio(num_generated: int, num_source: int) -> float:
    if num_generated == 0 or num_source == 0:
        return 0.0
    return min(num_generated / num_source, num_source / num_generated)


def matched(a: str, b: str) -> int:
    """Return the number of characters in matching blocks.

    The first block is the longest common substring (the first one in `a`). The parts before and after it are matched in
    the same way.
    """
    best = (0, 0, 0)
    for i in range(len(a)):
        for j in range(len(b)):
            size = 0
            while i + size < len(a) and j + size < len(b) and a[i + size] == b[j + size]:
                size += 1
            if size > best[0]:
                best = (size, i, j)
    size, i, j = best
    return size + matched(a[:i], b[:j]) + matched(a[i + size :], b[j + size :]) if size else 0


def copied(source: str, generated: str) -> tuple[float, float]:
    """Return whether 99 % of the generated text is matched, and whether 99 % of the source is. Both are stripped."""
    source, generated = source.strip(), generated.strip()
    if not generated or not source:
        return 0.0, 0.0
    number = matched(source, generated)
    return float(100 * number >= 99 * len(generated)), float(100 * number >= 99 * len(source))
