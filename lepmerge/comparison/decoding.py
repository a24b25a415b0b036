"""Answer the prompts of several measures together: greedily, in one batch that rows join and leave.

On a CPU, a step costs mostly the reading of the weights, whatever the number of rows. Drafts are checked by the forward
pass that reads the prompt, and decoding continues from its cache.

Legend: B rows of the batch, L columns of the cache, V rows of the output table.
"""

import inspect
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from lepmerge.comparison.loading import LanguageModel, batches, cross_entropy, surprisals, tokens_at_once
from lepmerge.errors import ComparisonError
from lepmerge.progress import Progress, no_progress
from lepmerge.training.group import Group

BATCH_SIZE = 32
JOINING = 8
"""Rows join the batch in groups of this size, when as many places are free."""
Layers = list[tuple[torch.Tensor, ...]]
"""Keys and values of each layer of a cache."""
Result = TypeVar("Result")
Asking = Generator[list["Row"], None, Result]
"""A measure that yields the rows that it wants answered, and returns its result when they are."""


@dataclass
class Row:
    """A prompt and what the model answers, at most `limit` ids. `what` names the measure in the progress.

    draft: the answer that is expected, may be empty. It changes only the time. With `scored`, `nats` becomes the
    surprisal of each id of the draft. Without `stop`, the answer continues after end ids.
    """

    prompt: list[int]
    limit: int
    what: str = ""
    draft: list[int] = field(default_factory=list)
    stop: bool = True
    scored: bool = False
    written: list[int] = field(default_factory=list)
    nats: np.ndarray = field(default_factory=lambda: np.empty(0))

    def is_done(self, end_ids: Sequence[int]) -> bool:
        return len(self.written) >= self.limit or (self.stop and any(id in end_ids for id in self.written))

    def finish(self, end_ids: Sequence[int]) -> None:
        """Cut what was written before the first end id and at the limit."""
        self.written = (_until_end(self.written, end_ids) if self.stop else self.written)[: self.limit]


def together(model: LanguageModel, measures: Sequence[Asking[Result]], **options: Any) -> list[Result]:
    """Return the results of measures whose prompts are answered together. The options are those of `decode`."""
    asked = [next(measure) for measure in measures]
    decode(model, [row for rows in asked for row in rows], **options)
    results: list[Result] = []
    for measure in measures:
        try:
            next(measure)
        except StopIteration as end:
            results.append(end.value)
    return results


@torch.inference_mode()
def decode(
    model: LanguageModel, rows: Sequence[Row], *, batch_size: int = BATCH_SIZE, progress: Progress = no_progress
) -> None:
    """Write the greedy answer of each row into it. The processes of the model's group share out the rows."""
    check_room(model, [row.prompt for row in rows], [row.limit for row in rows], "")
    if not _has_plain_cache(model):
        _decode_apart(model, rows, batch_size=batch_size, progress=progress)
        return
    totals = Counter(row.what for row in rows)
    order = sorted(range(len(rows)), key=lambda place: (-rows[place].limit, len(rows[place].prompt), place))
    mine = model.group.share(order)
    waiting = [rows[place] for place in mine]
    running = _Running(model)
    while waiting or running.rows:
        if waiting and (not running.rows or len(running.rows) + min(JOINING, batch_size) <= batch_size):
            size = min(JOINING, batch_size - len(running.rows))
            joining, waiting = waiting[:size], waiting[size:]
            done = running.join(joining)
        else:
            done = running.step()
        for row in done:
            row.finish(model.end_ids)
            progress(row.what, 1, totals[row.what])
    united = model.group.united({place: (rows[place].written, rows[place].nats) for place in mine})
    for place, (written, nats) in united.items():
        rows[place].written, rows[place].nats = written, nats
    for what, total in totals.items():
        progress(what, total - sum(rows[place].what == what for place in mine), total)


class _Running:
    """The rows that are being decoded. The cache is padded on the left: a row's columns are its last `lengths`."""

    def __init__(self, model: LanguageModel) -> None:
        from transformers import DynamicCache

        self.model = model
        self.rows: list[Row] = []
        self.lengths: list[int] = []
        self.cache: Any = DynamicCache()
        self.drafts: dict[str, tuple[int, int]] = {}  # what → ids of checked drafts, accepted ids

    def join(self, joining: Sequence[Row]) -> list[Row]:
        """Read prompts with their drafts. Return the rows that are done, the others run."""
        for row in joining:
            checked, accepted = self.drafts.get(row.what, (0, 0))
            if not row.scored and 2 * accepted < checked:  # a wrong draft costs more than it saves
                row.draft = []
        heads = [[*row.prompt, *row.draft] for row in joining]
        layers: list[Layers] = []  # of each open row
        done = []
        for batch in batches([len(ids) for ids in heads], tokens=tokens_at_once(self.model)):
            cache = self._read([heads[place] for place in batch], [joining[place] for place in batch])
            for number, row in enumerate(joining[place] for place in batch):
                if row.is_done(self.model.end_ids):
                    done.append(row)
                    continue
                length = len(row.prompt) + len(row.written) - 1  # the last id is not read yet
                own = slice(number, number + 1)
                layers.append([(k[own, :, :length], v[own, :, :length]) for k, v in cache])
                self.rows.append(row)
                self.lengths.append(length)
        if layers:
            _rearrange(self.cache, [*range(len(self.rows) - len(layers))], layers, max(self.lengths))
        return done

    def _read(self, ids: Sequence[Sequence[int]], rows: Sequence[Row]) -> Layers:
        """Read a batch of prompts with drafts, write what is accepted into the rows, and return the cache's layers."""
        length = len(ids[0])
        id_BL = torch.tensor([[*row, *[row[0]] * (length - len(row))] for row in ids], device=self.model.device)
        kept = length - min(len(row.prompt) for row in rows) + 1
        out = self.model.network(input_ids=id_BL, use_cache=True, logits_to_keep=kept)
        for number, row in enumerate(rows):
            start = len(row.prompt) - 1 - (length - kept)
            logit_LV = out.logits[number, start : start + len(row.draft) + 1]
            if row.scored:
                draft = torch.tensor(row.draft, device=self.model.device)
                row.nats = cross_entropy(logit_LV[None, :-1], draft[None])[0].cpu().double().numpy()
            row.written = accepted_ids(row.draft, logit_LV.argmax(-1).tolist())
            checked, accepted = self.drafts.get(row.what, (0, 0))
            self.drafts[row.what] = checked + len(row.draft), accepted + len(row.written) - 1
        return _layers(out.past_key_values)

    def step(self) -> list[Row]:
        """Write one more id into each row. Return the rows that are done; they leave the batch."""
        device, longest = self.model.device, max(self.lengths)
        length_B1 = torch.tensor(self.lengths, device=device)[:, None]
        out = self.model.network(
            input_ids=torch.tensor([row.written[-1:] for row in self.rows], device=device),
            attention_mask=(torch.arange(longest + 1, device=device) >= longest - length_B1).long(),
            position_ids=length_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        for row, id in zip(self.rows, out.logits[:, -1].argmax(-1).tolist(), strict=True):
            row.written.append(id)
        is_done = [row.is_done(self.model.end_ids) for row in self.rows]
        done = [row for row, ends in zip(self.rows, is_done, strict=True) if ends]
        stays = [place for place, ends in enumerate(is_done) if not ends]
        self.rows, self.lengths = [self.rows[p] for p in stays], [self.lengths[p] + 1 for p in stays]
        if done:
            _rearrange(self.cache, stays, [], max(self.lengths, default=0))
        return done


def _layers(cache: Any) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rearrange(cache: Any, stays: list[int], joining: Sequence[Layers], length: int) -> None:
    """Keep some rows of a cache and add others, each with its last `length` columns. One layer at a time is copied."""
    for number in range(len(cache.layers) or len(joining[0])):
        layer = cache.layers[number] if number < len(cache.layers) else None
        kept = [] if layer is None else [(layer.keys[stays], layer.values[stays])]
        parts = [*kept, *(layers[number] for layers in joining)]
        keys, values = (torch.cat([_fitted(part[side], length) for part in parts]) for side in (0, 1))
        if layer is None:
            cache.update(keys, values, number)
        else:
            layer.keys, layer.values = keys, values


def _fitted(state: torch.Tensor, length: int) -> torch.Tensor:
    """Return the last columns of keys or values, padded on the left to `length`."""
    return F.pad(state[:, :, -length:], (0, 0, max(0, length - state.shape[2]), 0))


def accepted_ids(draft: Sequence[int], best: Sequence[int]) -> list[int]:
    """Return the ids of a draft up to the first one that is not the most probable; the most probable id replaces it."""
    agreed = next((place for place, id in enumerate(draft) if id != best[place]), len(draft))
    return [*draft[:agreed], int(best[agreed])]


def draft_of(model: LanguageModel, head: str, text: str) -> list[int]:
    """Return the ids of a text after a prompt, or [] if a token spans the end of the prompt and the text."""
    ids, both = model.encode([head, head + text])
    return both[len(ids) :] if both[: len(ids)] == ids else []


def _has_plain_cache(model: LanguageModel) -> bool:
    """Return whether the network keeps a plain cache of keys and values, whose rows can join and leave."""
    parameters = inspect.signature(model.network.forward).parameters
    if not {"position_ids", "logits_to_keep"} <= parameters.keys():
        return False
    with torch.inference_mode():
        out = model.network(input_ids=torch.tensor([[0]], device=model.device), use_cache=True)
    cache = getattr(out, "past_key_values", None)
    return type(cache).__name__ == "DynamicCache" and all(
        type(layer).__name__ == "DynamicLayer" for layer in getattr(cache, "layers", [None])
    )


def _decode_apart(model: LanguageModel, rows: Sequence[Row], **options: Any) -> None:
    """Write the answer of each row into it with transformers' own generation, one measure after another."""
    scored_rows = [row for row in rows if row.scored]
    nats = surprisals(model, [[*r.prompt, *r.draft] for r in scored_rows], [len(r.prompt) for r in scored_rows])
    for row, found in zip(scored_rows, nats, strict=True):
        row.nats = found
    for what, stop in dict.fromkeys((row.what, row.stop) for row in rows):
        some = [row for row in rows if (row.what, row.stop) == (what, stop)]
        limits = [row.limit for row in some]
        written = generate(model, [row.prompt for row in some], limits, stop=stop, what=what, **options)
        for row, ids in zip(some, written, strict=True):
            row.written = ids


def check_room(model: LanguageModel, prompts: Sequence[Sequence[int]], limits: Sequence[int], what: str) -> None:
    """Raise ComparisonError if a prompt with its answer is longer than the model's context."""
    for ids, limit in zip(prompts, limits, strict=True):
        if len(ids) + limit > model.context:
            raise ComparisonError(
                f"{what or model.name}: a prompt of {len(ids)} tokens and an answer of {limit} do not fit the context "
                f"of {model.context} tokens"
            )


def _until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Return the ids before the first end token."""
    end = next((place for place, id in enumerate(ids) if id in end_ids), len(ids))
    return list(ids[:end])


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int] | int,
    *,
    batch_size: int = BATCH_SIZE,
    stop: bool = True,
    group: Group | None = None,
    progress: Progress = no_progress,
    what: str = "",
) -> list[list[int]]:
    """Return the greedily generated ids for each prompt, without the end token.

    Prompts of about the same length are batched and padded on the left. With stop=False, generation continues after
    end tokens. group: the processes that share out the batches and all return the same; by default the model's.

    Raises:
        ComparisonError: a prompt with its answer is longer than the model's context.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    check_room(model, prompts, limits, what)
    pad = model.end_ids[0] if model.end_ids else 0
    group = group or model.group
    found: dict[int, list[int]] = {}
    for batch in group.share(list(batches([len(ids) for ids in prompts], rows=batch_size))):
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
            found[place] = (_until_end(row, model.end_ids) if stop else row)[: limits[place]]
        progress(what, len(batch), len(prompts))
    united = group.united(found)
    progress(what, len(united) - len(found), len(prompts))
    return [united[place] for place in range(len(prompts))]
