"""Scores of single answers. `statistics.py` combines them to the score of a data set."""

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
    """Return 1.0 if both texts are equal after SQuAD normalization, else 0.0 (Rajpurkar et al. 2016)."""
    return float(_squad_words(predicted) == _squad_words(gold))


def squad_f1(predicted: str, gold: str) -> float:
    """Return the F-measure of the words, as multisets, after SQuAD normalization.

    If one text has no words, return 1.0 if the other has none either, else 0.0.
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
    """Return the points for an answer to a question of the Unified State Exam.

    kind `text`: 1 if the letters of the answer, in lower case, equal one of the comma-separated gold answers. kind
    `matching`: the number of equal positions in both comma-separated lists, or 0 if their lengths differ. Other kinds:
    1 if the two sets are equal, except that task 16 loses a point for each wrong or missing number (a missing number
    counts as "-1"). Whitespace around list items is ignored.
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
    """Return two scores: 1.0 if the matching blocks (Ratcliff and Obershelp) cover 99 % of the characters, else 0.0.

    The first score counts the characters of the generated text, the second those of the source. Whitespace around the
    texts is ignored. If nothing was generated, both scores are 0.0.
    """
    source, generated = source.strip(), generated.strip()
    if not source or not generated:
        return 0.0, 0.0
    if source == generated:  # common, and slow to detect by blocks
        return 1.0, 1.0
    blocks = SequenceMatcher(None, source, generated, autojunk=False).get_matching_blocks()
    num_matched = sum(block.size for block in blocks)
    return float(num_matched / len(generated) >= 0.99), float(num_matched / len(source) >= 0.99)


def r_precision(scores: Sequence[float], gold: Sequence[int]) -> float:
    """Return the fraction of the k gold indices among the k highest scores. Ties: the earlier score is higher."""
    if not gold:
        return 0.0
    ranking = sorted(range(len(scores)), key=lambda index: -scores[index])
    return len(set(ranking[: len(gold)]) & set(gold)) / len(gold)


def rouge(predicted: str, gold: str) -> dict[str, float]:
    """Return the F-measure and recall of ROUGE-1 and ROUGE-2 on the Russian lemmas of both texts (Lin 2004)."""
    scores = rouge_scorer().score(gold, predicted)
    return {
        "rouge1": scores["rouge1"].fmeasure,
        "rouge2": scores["rouge2"].fmeasure,
        "rouge1_recall": scores["rouge1"].recall,
        "rouge2_recall": scores["rouge2"].recall,
    }


@cache
def rouge_scorer() -> Any:
    """Return the ROUGE scorer.

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
    """Split a text into lemmas: lower case, ASCII punctuation becomes spaces, words become pymorphy3's normal forms."""

    def __init__(self, analyzer: Any) -> None:
        self._lemma = lru_cache(maxsize=1 << 18)(lambda word: analyzer.parse(word)[0].normal_form)

    def tokenize(self, text: str) -> list[str]:
        return [self._lemma(word) for word in text.lower().translate(SPACES).split()]
