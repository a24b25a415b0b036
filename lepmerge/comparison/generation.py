"""Measure the speed of generation."""

from collections import Counter
from statistics import median
from time import perf_counter
from typing import Any

import torch

from lepmerge.comparison.broken_tokens import new_tokens
from lepmerge.comparison.decoding import generate
from lepmerge.comparison.loading import LanguageModel
from lepmerge.comparison.texts import Text
from lepmerge.corpus import cut
from lepmerge.progress import Progress, no_progress
from lepmerge.training.group import Group
from lepmerge.vocabulary.vocabulary import Vocabulary

SPEED_BATCH = 8
SPEED_TOKENS = 64
SPEED_RUNS, SPEED_SECONDS = 5, 2.0
"""The batch is generated up to this many times, as long as this many seconds have not passed. The median counts."""
PREFIX_BYTES = 120


def measure_speed(
    model: LanguageModel, text: Text, reference: Vocabulary | None = None, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Return characters and tokens per second, and the fraction of generated tokens that are new.

    A token is new if the reference's vocabulary lacks it. After a short warm-up, one batch is timed: the beginnings of
    SPEED_BATCH pieces of the text are continued greedily by SPEED_TOKENS tokens each, or until the context is full. End
    tokens do not stop the generation, so that every model writes the same number of tokens. Small models are timed
    several times (SPEED_RUNS), because a single batch takes them less than a second. Every process of a group times its
    own device.
    """
    step = max(1, len(text.pieces) // SPEED_BATCH)
    num_bytes = min(PREFIX_BYTES, (model.context - len(model.prefix_ids)) // 2)
    beginnings = [next(cut(piece, num_bytes)) for piece in text.pieces[::step][:SPEED_BATCH]]
    prompts = [[*model.prefix_ids, *ids] for ids in model.encode(beginnings)]
    num_tokens = min(SPEED_TOKENS, model.context - max(map(len, prompts)))
    what = f"{model.name}: generating {text.name}"
    progress(what, 0, 1)
    warmed_up = prompts if model.device.type == "cuda" else prompts[:1]  # a GPU has kernels for each shape
    alone = Group(model.device)
    generate(model, warmed_up, 2, batch_size=SPEED_BATCH, stop=False, group=alone)
    runs: list[float] = []
    written: list[list[int]] = []
    while len(runs) < SPEED_RUNS and sum(runs) < SPEED_SECONDS:
        _wait(model.device)
        start = perf_counter()
        written = generate(model, prompts, num_tokens, batch_size=SPEED_BATCH, stop=False, group=alone)
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
