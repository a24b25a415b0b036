"""The scores of one answer; `statistics.py` makes a data set's score of them."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache, lru_cache
from typing import Any

from darumeru_tasks.errors import DarumeruError

SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))


def squad_exact_match(predicted: str, gold: str) -> float:
    """Return 1.0 if both are equal after SQuAD's normalization, else 0.0 (Rajpurkar et al. 2016)."""
    return float(_squad_words(predicted) == _squad_words(gold))


def squad_f1(predicted: str, gold: str) -> float:
    """Return the F-measure of the words, as multisets, after SQuAD's normalization.

    Where one of them has no words, 1.0 if neither has, else 0.0.
    """
    predicted_words, gold_words = _squad_words(predicted), _squad_words(gold)
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    common = sum((Counter(predicted_words) & Counter(gold_words)).values())
    return 2 * common / (len(predicted_words) + len(gold_words))


def _squad_words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def use_points(predicted: str, gold: str, *, kind: str, id_task: str) -> int:
    """Return the grade points of an answer to a question of the Unified State Exam.

    `text`: 1 if the letters of the answer, in lower case, are one of the comma-separated golds. `matching`: the number
    of equal positions of both comma-separated lists if they are equally long. Otherwise 1 if the two sets are equal;
    task 16 instead loses a point for each wrong or missing number, missing ones counted as "-1".
    White space around an answer of a list is no part of it.
    """
    golds = gold.split(",")
    if kind == "text":
        return int(re.sub(r"[\d\W]+", "", predicted).lower() in golds)
    answers = [answer.strip() for answer in predicted.split(",")]
    if kind == "matching":
        return sum(a == b for a, b in zip(answers, golds, strict=True)) if len(answers) == len(golds) else 0
    if id_task == "16":
        answers += ["-1"] * (len(golds) - len(answers))
        return max(0, len(set(answers) & set(golds)) - len(answers) + len(golds))
    return int(set(answers) == set(golds))


def length_ratio(num_generated: int, num_source: int) -> float:
    """Return the smaller number of tokens divided by the larger one; 0.0 if nothing was generated."""
    return min(num_generated, num_source) / max(num_generated, num_source) if num_generated and num_source else 0.0


def copied(source: str, generated: str) -> tuple[float, float]:
    """Return 1.0 where the matching blocks (Ratcliff and Obershelp) hold 99 % of the characters, else 0.0.

    First of the generated text's characters, then of the source's. White space around the texts does not count;
    nothing generated is 0.0 in both.
    """
    source, generated = source.strip(), generated.strip()
    if not source or not generated:
        return 0.0, 0.0
    if source == generated:  # common, and slow to find out by blocks
        return 1.0, 1.0
    blocks = SequenceMatcher(None, source, generated, autojunk=False).get_matching_blocks()
    num_matched = sum(block.size for block in blocks)
    return float(num_matched / len(generated) >= 0.99), float(num_matched / len(source) >= 0.99)


def r_precision(scores: Sequence[float], gold: Sequence[int]) -> float:
    """Return the share of the k gold indices among the k highest scores; of equal scores the earlier one is higher."""
    if not gold:
        return 0.0
    ranking = sorted(range(len(scores)), key=lambda index: -scores[index])
    return len(set(ranking[: len(gold)]) & set(gold)) / len(gold)


def rouge(predicted: str, gold: str) -> dict[str, float]:
    """Return ROUGE-1 and ROUGE-2, F-measure and recall, of the Russian lemmas of both texts (Lin 2004)."""
    scores = rouge_scorer().score(gold, predicted)
    return {
        "rouge1": scores["rouge1"].fmeasure,
        "rouge2": scores["rouge2"].fmeasure,
        "rouge1_recall": scores["rouge1"].recall,
        "rouge2_recall": scores["rouge2"].recall,
    }


@cache
def rouge_scorer() -> Any:
    """Return the scorer.

    Raises:
        DarumeruError: a package is missing.
    """
    try:
        from pymorphy3 import MorphAnalyzer
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        message = f"darumeru_sum_abstractive needs the package {error.name}: pip install 'lepmerge[eval]'"
        raise DarumeruError(message) from error
    return RougeScorer(["rouge1", "rouge2"], tokenizer=_Lemmas(MorphAnalyzer()))


class _Lemmas:
    """Splits a text into lemmas: lower case, ASCII punctuation is space (as for SQuAD), normal forms of pymorphy3."""

    def __init__(self, analyzer: Any) -> None:
        self._lemma = lru_cache(maxsize=1 << 18)(lambda word: analyzer.parse(word)[0].normal_form)

    def tokenize(self, text: str) -> list[str]:
        return [self._lemma(word) for word in text.lower().translate(SPACES).split()]
