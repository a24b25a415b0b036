"""Agreement with a reference in chats: what its greedy answers cost another model, and how often it gives the same."""

from collections.abc import Sequence
from math import log
from typing import Any

from lepmerge.comparison.generation import BATCH_SIZE, generate
from lepmerge.comparison.loading import LanguageModel, surprisals
from lepmerge.comparison.prompts import Prompt
from lepmerge.progress import Progress, no_progress


def answers_of(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    progress: Progress = no_progress,
) -> list[str]:
    """Return the model's greedy answers, stripped, of at most `max_new_tokens` tokens and what the context leaves."""
    ids = model.encode([model.chat(prompt.messages, prompt.where) for prompt in prompts])
    limits = [max(1, min(max_new_tokens, model.context - len(row))) for row in ids]
    written = generate(model, ids, limits, batch_size=batch_size, progress=progress, what=f"{model.name}: chat")
    return [model.decode(answer).strip() for answer in written]


def bits_of_answers(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> list[float]:
    """Return the bits that the model needs for each answer behind its prompt, all of the answer's tokens summed.

    Prompt and answer are tokenized together; a token that holds the end of the prompt counts to the answer. An answer
    is cut at the end of the context.
    """
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
    nats = surprisals(model, rows, starts, batch_size=batch_size, progress=progress, what=f"{model.name}: answers")
    return [float(row.sum()) / log(2) for row in nats]


def agreement(answers: Sequence[str], reference: Sequence[str], bits: Sequence[float]) -> dict[str, Any]:
    """Return the bits a byte of the reference's answers, and the share of equal answers.

    bits: of the reference's answers under the model. Empty answers count among the equal ones only.
    """
    num_bytes = sum(len(answer.encode()) for answer in reference)
    return {
        "prompts": len(reference),
        "bits_per_byte": sum(bits) / num_bytes if num_bytes else None,
        "log_likelihood_per_byte": -sum(bits) * log(2) / num_bytes if num_bytes else None,
        "equal_answers": sum(a == b for a, b in zip(answers, reference, strict=True)) / len(reference),
    }
