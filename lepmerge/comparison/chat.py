"""Measure agreement with a reference in chats.

There are two metrics: the bits that a model needs for the reference's greedy answers, and how often its own greedy
answers equal them.
"""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from lepmerge.chats import Chat
from lepmerge.comparison.decoding import Asking, Row
from lepmerge.comparison.loading import LanguageModel, surprisals
from lepmerge.progress import Progress, no_progress


def answering(
    model: LanguageModel, prompts: Sequence[Chat], reference: Sequence[str] = (), *, max_new_tokens: int
) -> Asking[tuple[list[str], list[float]]]:
    """Return the model's greedy answers, stripped, and the bits that it needs for the reference's answers, if given.

    An answer ends at `max_new_tokens` tokens or when the context is full. The forward pass that gives the bits also
    shows up to which token the model would have given the reference's answer. Decoding starts from that token.
    """
    heads = _heads(model, prompts)
    encoded = model.encode(heads)
    limits = [max(1, min(max_new_tokens, model.context - len(ids))) for ids in encoded]
    rows = [Row(ids, limit, f"{model.name}: chat") for ids, limit in zip(encoded, limits, strict=True)]
    apart: list[int] = []
    nats: Sequence[np.ndarray] = []
    if reference:
        whole, starts = _with_answers(model, heads, reference)
        for place, (row, ids, start) in enumerate(zip(rows, whole, starts, strict=True)):
            if ids[:start] == row.prompt:
                row.draft, row.scored = ids[start:], True
            else:  # a token spans the end of the prompt and the answer
                apart.append(place)
        nats = surprisals(model, [whole[place] for place in apart], [starts[place] for place in apart])
    yield rows
    for place, found in zip(apart, nats, strict=True):
        rows[place].nats = found
    return [model.decode(row.written).strip() for row in rows], [float(row.nats.sum()) / log(2) for row in rows]


def bits_of_answers(
    model: LanguageModel,
    prompts: Sequence[Chat],
    answers: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> list[float]:
    """Return the bits that the model needs for each answer after its prompt, summed over the answer's tokens.

    Prompt and answer are tokenized together. A token that holds both the end of the prompt and the beginning of the
    answer counts as part of the answer. An answer is cut at the end of the context.
    """
    rows, starts = _with_answers(model, _heads(model, prompts), answers)
    what = f"{model.name}: answers"
    found = surprisals(model, rows, starts, batch_size=batch_size, progress=progress, what=what)
    return [float(nats.sum()) / log(2) for nats in found]


def _heads(model: LanguageModel, prompts: Sequence[Chat]) -> list[str]:
    return [model.chat(prompt.messages, prompt.where) for prompt in prompts]


def _with_answers(
    model: LanguageModel, heads: Sequence[str], answers: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each prompt with its answer, and the index at which each answer begins."""
    whole = model.tokenizer(
        [head + answer for head, answer in zip(heads, answers, strict=True)],
        add_special_tokens=False, padding=False, truncation=False, return_offsets_mapping=True,
    )  # fmt: skip
    rows = [ids[: model.context] for ids in whole["input_ids"]]
    starts = [
        next((place for place, (_, end) in enumerate(offsets) if end > len(head)), len(offsets))
        for head, offsets in zip(heads, whole["offset_mapping"], strict=True)
    ]
    return rows, [max(1, min(start, len(row))) for start, row in zip(starts, rows, strict=True)]


def agreement(answers: Sequence[str], reference: Sequence[str], bits: Sequence[float]) -> dict[str, Any]:
    """Return the bits per byte of the reference's answers, and the fraction of equal answers.

    bits: bits that the model needs for each answer of the reference. Empty answers count for equality only, since they
    have no bytes.
    """
    num_bytes = sum(len(answer.encode()) for answer in reference)
    return {
        "prompts": len(reference),
        "bits_per_byte": sum(bits) / num_bytes if num_bytes else None,
        "log_likelihood_per_byte": -sum(bits) * log(2) / num_bytes if num_bytes else None,
        "equal_answers": sum(a == b for a, b in zip(answers, reference, strict=True)) / len(reference),
    }
