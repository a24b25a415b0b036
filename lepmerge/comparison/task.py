"""Measure the accuracy on a task with known answers, and test the difference of two models example by example."""

from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

from lepmerge.chats import Chat, read_chats
from lepmerge.comparison.decoding import Asking, Row, draft_of
from lepmerge.comparison.loading import LanguageModel
from lepmerge.errors import ComparisonError

ANSWER_MARGIN = 4
"""A reply may have this many more tokens than the longest answer."""


def read_task(path: Path) -> list[Chat]:
    """Return the prompts of a .jsonl file with their expected answers.

    Raises:
        CorpusError: a line is not a chat (with file and line).
        ComparisonError: a chat has no answer.
    """
    prompts = list(read_chats(path))
    for prompt in prompts:
        if not prompt.answer.strip():
            raise ComparisonError(f"{prompt.where}: no answer: add the key `answer` with the expected reply as a text")
    return prompts


def solving(model: LanguageModel, prompts: Sequence[Chat]) -> Asking[list[bool]]:
    """Return for each prompt whether the greedy reply equals its answer, ignoring whitespace at the ends.

    The model needs a chat template. A reply has at most ANSWER_MARGIN tokens more than the longest answer.
    """
    heads = [model.chat(prompt.messages, prompt.where) for prompt in prompts]
    answers = [prompt.answer.strip() for prompt in prompts]
    limit = max(map(len, model.encode(list({prompt.answer for prompt in prompts})))) + ANSWER_MARGIN
    rows = [
        Row(ids, limit, f"{model.name}: task", draft_of(model, head, answer))
        for ids, head, answer in zip(model.encode(heads), heads, answers, strict=True)
    ]
    yield rows
    return [model.decode(row.written).strip() == answer for row, answer in zip(rows, answers, strict=True)]


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Null hypothesis: among the n examples that exactly one model gets right, each model is equally likely to be the one.
    If the worse model is right on k of them, p = min(1, 2 Σ_{i ≤ k} C(n, i) / 2^n).
    """
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    total = only_a + only_b
    tail = sum(comb(total, number) for number in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)


def task_metrics(right: Sequence[bool], reference: Sequence[bool] | None) -> dict[str, Any]:
    """Return the accuracy and the number of examples.

    With a reference, also return how many examples only one of the two models gets right, and McNemar's p-value.
    """
    metrics: dict[str, Any] = {"examples": len(right), "accuracy": sum(right) / len(right)}
    if reference is not None:
        metrics |= {
            "only_this": sum(x and not y for x, y in zip(right, reference, strict=True)),
            "only_reference": sum(y and not x for x, y in zip(right, reference, strict=True)),
            "p": mcnemar(right, reference),
        }
    return metrics
