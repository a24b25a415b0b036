"""Greedy generation in batches, and how fast a model writes.

Legend: B rows of a batch, L tokens in a row.
"""

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from lepmerge.comparison.broken_tokens import new_tokens
from lepmerge.comparison.loading import LanguageModel, batches
from lepmerge.comparison.texts import Text
from lepmerge.errors import ComparisonError
from lepmerge.progress import Progress, no_progress
from lepmerge.training.held_out import cut
from lepmerge.vocabulary.vocabulary import Vocabulary

BATCH_SIZE = 32
SPEED_BATCH = 8
SPEED_TOKENS = 64
PREFIX_BYTES = 120


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int] | int,
    *,
    batch_size: int = BATCH_SIZE,
    stop: bool = True,
    progress: Progress = no_progress,
    what: str = "",
) -> list[list[int]]:
    """Return the greedily generated ids of each prompt, up to and without the end token.

    Prompts of about the same length make a batch, padded at the left. stop=False goes on behind end tokens.

    Raises:
        ComparisonError: a prompt with its answer is longer than the model's context.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    for ids, limit in zip(prompts, limits, strict=True):
        if len(ids) + limit > model.context:
            raise ComparisonError(
                f"{what or model.name}: a prompt of {len(ids)} tokens and an answer of {limit} do not fit the context "
                f"of {model.context} tokens"
            )
    pad = model.end_ids[0] if model.end_ids else 0
    found: list[list[int]] = [[] for _ in prompts]
    for batch in batches([len(ids) for ids in prompts], rows=batch_size):
        length = len(prompts[batch[0]])
        lead = [length - len(prompts[place]) for place in batch]
        id_BL = torch.tensor([[pad] * gap + list(prompts[place]) for gap, place in zip(lead, batch, strict=True)])
        mask_BL = (torch.arange(length) >= torch.tensor(lead)[:, None]).long()
        out_BL = model.network.generate(
            input_ids=id_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(limits[place] for place in batch),
            eos_token_id=list(model.end_ids) if stop and model.end_ids else None,
            pad_token_id=pad,
        )
        for row, place in zip(out_BL[:, length:].tolist(), batch, strict=True):
            ends = (number for number, id in enumerate(row) if stop and id in model.end_ids)
            found[place] = row[: min(next(ends, len(row)), limits[place])]
        progress(what, len(batch), len(prompts))
    return found


def measure_speed(
    model: LanguageModel, text: Text, reference: Vocabulary | None = None, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Return characters and tokens a second, and the share of generated tokens that the reference's vocabulary lacks.

    SPEED_BATCH beginnings of pieces of the text are continued at once by SPEED_TOKENS tokens each, greedily, behind
    end tokens too, after a short warm-up. The time is that of one batch on the model's device.
    """
    step = max(1, len(text.pieces) // SPEED_BATCH)
    beginnings = [next(cut(piece, PREFIX_BYTES)) for piece in text.pieces[::step][:SPEED_BATCH]]
    num_tokens = min(SPEED_TOKENS, model.context - PREFIX_BYTES - len(model.prefix_ids))
    prompts = [[*model.prefix_ids, *ids] for ids in model.encode(beginnings)]
    what = f"{model.name}: generating {text.name}"
    progress(what, 0, 1)
    generate(model, prompts, 2, batch_size=SPEED_BATCH, stop=False)
    _wait(model.device)
    start = perf_counter()
    written = generate(model, prompts, num_tokens, batch_size=SPEED_BATCH, stop=False)
    _wait(model.device)
    seconds = perf_counter() - start
    progress(what, 1, 1)
    bytes_of = model.vocabulary.text_bytes_of
    characters = sum(len(b"".join(bytes_of.get(id, b"") for id in ids).decode(errors="ignore")) for ids in written)
    counts = Counter(id for ids in written for id in ids)
    new = new_tokens(model.vocabulary, reference) if reference is not None else set()
    return {
        "characters_per_second": characters / seconds,
        "tokens_per_second": counts.total() / seconds,
        "new_tokens_share": sum(counts[id] for id in new) / max(1, counts.total()),
        "batch": len(prompts),
        "tokens": counts.total(),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
