"""Measure bits per byte on held-out text, comparable across vocabularies."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from lepmerge.allocator import return_free_pages
from lepmerge.corpus import no_text
from lepmerge.errors import CorpusError
from lepmerge.pieces import paragraphs_of, piece_size, pieces_of
from lepmerge.progress import no_progress
from lepmerge.text_files import Counts, texts_of
from lepmerge.training.learner import Learner
from lepmerge.training.loss import IGNORED, linear_cross_entropy
from lepmerge.training.setting import Setting, context_of

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class HeldOut:
    """Texts as ids, each with its prefix, shortest first. num_bytes: UTF-8 bytes of all texts together.

    skipped: how many rows or paragraphs of the files were skipped and why.
    """

    texts: tuple[tuple[int, ...], ...]
    num_bytes: int
    skipped: str = ""


def held_out_texts(setting: Setting) -> dict[str, HeldOut]:
    """Return name → held-out text.

    Texts are cut into pieces that fit the model's context in every vocabulary, as `lepmerge compare` cuts them. So both
    measure the same bits per byte. The first token of a piece is predicted from the tokenizer's prefix (<s>), or from
    the end token if the tokenizer has no prefix.
    """
    found = {}
    end = [] if setting.end_id is None else [setting.end_id]
    prefix = tuple(setting.prefix_ids or end)
    tokenizer = setting.start.vocabulary.tokenizer
    piece_bytes = piece_size([context_of(setting.start) - max(1, len(prefix))])
    for name, source in (setting.config.evaluate.data if setting.config.evaluate else {}).items():
        key, counts = f"evaluate.data.{name}", Counts()
        texts = (
            text
            for file in setting.files(source)
            for text in texts_of(file, source.column, no_progress, counts=counts, column_key=f"{key}.column:")
        )
        pieces = pieces_of(paragraphs_of(texts, max_bytes=source.limit), piece_bytes)
        if not pieces:
            raise CorpusError(no_text(f"{key}: {source.path}", counts))
        encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = sorted(((*prefix, *encoding.ids) for encoding in encodings), key=len)
        found[name] = HeldOut(tuple(ids), sum(len(piece.encode()) for piece in pieces), counts.skipped_summary())
    return found


@torch.no_grad()
def bits_per_byte(learner: Learner, held_out: Mapping[str, HeldOut]) -> dict[str, float]:
    """Return name of a held-out text → bits per byte."""
    bits = {name: _bits(learner, text.texts) / text.num_bytes for name, text in held_out.items()}
    return_free_pages()  # batches of many lengths leave gaps in the heap, 100 MB each time with SmolLM2-135M
    return bits


def _bits(learner: Learner, texts: tuple[tuple[int, ...], ...]) -> float:
    group = learner.group
    total = torch.zeros((), dtype=torch.float64, device=group.device)
    for (rows,), counts in group.turns(list(_batches(texts))):
        length = len(rows[-1])
        id_BL = torch.zeros(len(rows), length, dtype=torch.int64)
        label_BL = torch.full_like(id_BL, IGNORED)
        # Rows are padded on the right, which causal attention never sees, and the padding has no labels.
        for row, ids in enumerate(rows):
            id_BL[row, : len(ids)] = torch.tensor(ids)
            label_BL[row, : len(ids) - 1] = torch.tensor(ids[1:])
        id_BL, label_BL = id_BL.to(group.device), label_BL.to(group.device)
        hidden_BLD = learner.body(learner.body.embed(learner.input.table_VD, id_BL))
        hidden_ND, label_N = hidden_BLD.flatten(0, 1), label_BL.flatten()
        entropy, _ = linear_cross_entropy(
            hidden_ND,
            learner.output.table_VD,
            label_N,
            scale=1.0,
            transform=learner.body.transform,
            needs_hidden=False,
        )
        total += entropy if counts else 0
    return float(group.sum(total)) / math.log(2)


def _batches(texts: tuple[tuple[int, ...], ...]) -> Iterator[list[tuple[int, ...]]]:
    rows: list[tuple[int, ...]] = []
    for ids in texts:
        if rows and len(ids) * (len(rows) + 1) > TOKENS_AT_ONCE:
            yield rows
            rows = []
        rows.append(ids)
    yield rows
