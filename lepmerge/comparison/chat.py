"""Measure agreement with a reference in chats.

There are two metrics: the bits that a model needs for the reference's greedy answers, and how often its own greedy
answers equal them.
"""

from collections.abc import Sequence
from math import log
from typing import Any

from lepmerge.chats import Chat
from lepmerge.comparison.generation import BATCH_SIZE, accepted_ids, continued, generate
from lepmerge.comparison.loading import LanguageModel, Scored, scored
from lepmerge.progress import Progress, no_progress


def answers_of(
    model: LanguageModel,
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> list[str]:
    """Return the model's greedy answers, stripped. They end at `max_new_tokens` tokens or when the context is full."""
    ids = model.encode([model.chat(prompt.messages, prompt.where) for prompt in prompts])
    limits = [max(1, min(max_new_tokens, model.context - len(row))) for row in ids]
    written = generate(model, ids, limits, batch_size=batch_size, progress=progress, what=f"{model.name}: chat")
    return [model.decode(answer).strip() for answer in written]


def answers_and_bits(
    model: LanguageModel,
    prompts: Sequence[Chat],
    reference: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> tuple[list[str], list[float]]:
    """Return the model's greedy answers, and the bits that it needs for the reference's answers.

    The forward pass that gives the bits also shows up to which token the model would have given the reference's answer.
    Generation starts from that token, which saves time.
    """
    rows, starts, found = _scored_answers(model, prompts, reference, batch_size=None, progress=progress)
    ids = model.encode([model.chat(prompt.messages, prompt.where) for prompt in prompts])
    limits = [max(1, min(max_new_tokens, model.context - len(head))) for head in ids]
    begun = [
        accepted_ids(row[start:][:limit], one.best) if row[:start] == head else []
        for head, row, start, limit, one in zip(ids, rows, starts, limits, found, strict=True)
    ]
    written = continued(model, ids, limits, begun, batch_size=batch_size, progress=progress, what=f"{model.name}: chat")
    return [model.decode(answer).strip() for answer in written], _bits(found)


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
    return _bits(_scored_answers(model, prompts, answers, batch_size=batch_size, progress=progress)[2])


def _bits(found: Sequence[Scored]) -> list[float]:
    return [float(row.nats.sum()) / log(2) for row in found]


def _scored_answers(
    model: LanguageModel,
    prompts: Sequence[Chat],
    answers: Sequence[str],
    *,
    batch_size: int | None,
    progress: Progress,
) -> tuple[list[list[int]], list[int], list[Scored]]:
    """Return the ids of each prompt with its answer, the index at which each answer begins, and the model's scores."""
    heads = [model.chat(prompt.messages, prompt.where) for prompt in prompts]
    whole = model.tokenizer(
        [head + answer for head, answer in zip(heads, answers, strict=True)],
        add_special_tokens=False, padding=False, truncation=False, return_offsets_mapping=True,
    )  # fmt: skip
    rows = [ids[: model.context] for ids in whole["input_ids"]]
    starts = [
        next((place for place, (_, end) in enumerate(offsets) if end > len(head)), len(offsets))
        for head, offsets in zip(heads, whole["offset_mapping"], strict=True)
    ]
    starts = [max(1, min(start, len(row))) for start, row in zip(starts, rows, strict=True)]
    found = scored(model, rows, starts, batch_size=batch_size, progress=progress, what=f"{model.name}: answers")
    return rows, starts, found


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
