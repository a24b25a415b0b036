"""Generate greedily in batches, and measure the speed of generation.

Legend: B rows of a batch, L tokens per row.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lepmerge.comparison.broken_tokens import new_tokens
from lepmerge.comparison.loading import LanguageModel, batches, scored
from lepmerge.comparison.texts import Text
from lepmerge.corpus import cut
from lepmerge.errors import ComparisonError
from lepmerge.progress import Progress, no_progress
from lepmerge.vocabulary.vocabulary import Vocabulary

BATCH_SIZE = 32
SPEED_BATCH = 8
SPEED_TOKENS = 64
SPEED_RUNS, SPEED_SECONDS = 5, 2.0
"""The batch is generated up to this many times, as long as this many seconds have not passed. The median counts."""
PREFIX_BYTES = 120


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int] | int,
    *,
    batch_size: int = BATCH_SIZE,
    stop: bool = True,
    drafts: Sequence[Sequence[int]] | None = None,
    progress: Progress = no_progress,
    what: str = "",
) -> list[list[int]]:
    """Return the greedily generated ids for each prompt, without the end token.

    Prompts of about the same length are batched and padded on the left. With stop=False, generation continues after
    end tokens. drafts: for each prompt the ids that are expected; may be empty. Drafts change only the time, not the
    result: one forward pass finds how much of a draft the model would have generated, and generation starts there.

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
    if drafts is not None and stop:
        return _from_drafts(model, prompts, limits, drafts, batch_size=batch_size, progress=progress, what=what)
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
            found[place] = (_until_end(model, row) if stop else row)[: limits[place]]
        progress(what, len(batch), len(prompts))
    return found


def _from_drafts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    drafts: Sequence[Sequence[int]],
    **options: Any,
) -> list[list[int]]:
    cut_drafts = [list(draft[:limit]) for draft, limit in zip(drafts, limits, strict=True)]
    rows = [[*ids, *draft] for ids, draft in zip(prompts, cut_drafts, strict=True)]
    checked = scored(model, rows, [len(ids) for ids in prompts])
    accepted = [accepted_ids(draft, row.best) for draft, row in zip(cut_drafts, checked, strict=True)]
    return continued(model, prompts, limits, accepted, **options)


def accepted_ids(draft: Sequence[int], best: np.ndarray) -> list[int]:
    """Return the ids of a draft up to the first one that is not the most probable; the most probable id replaces it."""
    agreed = next((place for place, id in enumerate(draft) if id != best[place]), len(draft))
    return [*draft[:agreed], int(best[agreed])]


def continued(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    begun: Sequence[Sequence[int]],
    **options: Any,
) -> list[list[int]]:
    """Return the greedily generated ids for each prompt, given the first of them in `begun`."""
    found = [_until_end(model, ids)[:limit] for ids, limit in zip(begun, limits, strict=True)]
    open_places = [
        place
        for place, (ids, limit) in enumerate(zip(begun, limits, strict=True))
        if len(found[place]) == len(ids) and len(ids) < limit
    ]
    rest = generate(
        model,
        [[*prompts[place], *begun[place]] for place in open_places],
        [limits[place] - len(begun[place]) for place in open_places],
        **options,
    )
    for place, ids in zip(open_places, rest, strict=True):
        found[place] += ids
    return found


def _until_end(model: LanguageModel, ids: Sequence[int]) -> list[int]:
    """Return the ids before the first end token."""
    end = next((place for place, id in enumerate(ids) if id in model.end_ids), len(ids))
    return list(ids[:end])


def draft_of(model: LanguageModel, head: str, text: str) -> list[int]:
    """Return the ids of a text after a prompt, or [] if a token spans the end of the prompt and the text."""
    ids, both = model.encode([head, head + text])
    return both[len(ids) :] if both[: len(ids)] == ids else []


def measure_speed(
    model: LanguageModel, text: Text, reference: Vocabulary | None = None, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Return characters and tokens per second, and the fraction of generated tokens that are new.

    A token is new if the reference's vocabulary lacks it. After a short warm-up, one batch is timed: the beginnings of
    SPEED_BATCH pieces of the text are continued greedily by SPEED_TOKENS tokens each, or until the context is full. End
    tokens do not stop the generation, so that every model writes the same number of tokens. Small models are timed
    several times (SPEED_RUNS), because a single batch takes them less than a second.
    """
    step = max(1, len(text.pieces) // SPEED_BATCH)
    num_bytes = min(PREFIX_BYTES, (model.context - len(model.prefix_ids)) // 2)
    beginnings = [next(cut(piece, num_bytes)) for piece in text.pieces[::step][:SPEED_BATCH]]
    prompts = [[*model.prefix_ids, *ids] for ids in model.encode(beginnings)]
    num_tokens = min(SPEED_TOKENS, model.context - max(map(len, prompts)))
    what = f"{model.name}: generating {text.name}"
    progress(what, 0, 1)
    generate(model, prompts, 2, batch_size=SPEED_BATCH, stop=False)
    runs: list[float] = []
    written: list[list[int]] = []
    while len(runs) < SPEED_RUNS and sum(runs) < SPEED_SECONDS:
        _wait(model.device)
        start = perf_counter()
        written = generate(model, prompts, num_tokens, batch_size=SPEED_BATCH, stop=False)
        _wait(model.device)
        runs.append(perf_counter() - start)
    seconds = median(runs)
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
