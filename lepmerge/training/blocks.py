"""The blocks of all sources, in training order, as batches. A batch is a pure function of (seed, epoch, index)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lepmerge.errors import LepmergeError
from lepmerge.output.run import digest
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import Counts
from lepmerge.training.batch import Batch, Reading, Totals
from lepmerge.training.config import TrainingSource
from lepmerge.training.lessons import Source, read_source
from lepmerge.training.loss import IGNORED
from lepmerge.training.records import records
from lepmerge.training.setting import Setting
from lepmerge.training.tokens import Tokens, in_memory, place_of, tokenized


@dataclass(frozen=True)
class Blocks:
    """The blocks of all sources, in training order."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    block_size: int
    isolated: bool
    """Whether the documents of a block do not attend to one another."""
    seed: int
    answer_weight: float = 1.0
    answer_label_weight: float = 1.0

    @property
    def num_blocks(self) -> int:
        """Number of blocks per epoch."""
        return sum(
            self._count(source.tokens, weight) for source, weight in zip(self.sources, self.weights, strict=True)
        )

    def _count(self, tokens: Tokens, weight: float) -> int:
        return max(1, round(tokens.num_blocks * weight))

    @property
    def tokens_per_block(self) -> float:
        """Average number of text tokens per block."""
        counts = [self._count(source.tokens, weight) for source, weight in zip(self.sources, self.weights, strict=True)]
        totals = [source.tokens.num_tokens / source.tokens.num_blocks for source in self.sources]
        return sum(count * total for count, total in zip(counts, totals, strict=True)) / sum(counts)

    def order(self, epoch: int) -> torch.Tensor:
        """Return the order of the blocks in an epoch as (source, block) pairs, (num_blocks, 2) int64."""
        generator = torch.Generator().manual_seed(digest_seed(self.seed, epoch))
        chosen = []
        for number, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            tokens = source.tokens
            count = self._count(tokens, weight)
            rounds = -(-count // tokens.num_blocks)
            index = torch.cat([torch.randperm(tokens.num_blocks, generator=generator) for _ in range(rounds)])[:count]
            chosen.append(torch.stack([torch.full_like(index, number), index], dim=1))
        order = torch.cat(chosen)
        return order[torch.randperm(len(order), generator=generator)]

    def totals(self, place_B2: Iterable[Sequence[int]]) -> Totals:
        """Return the divisors of the losses over some blocks, given as (source, block) pairs."""
        num_labels, label_weight, pair_weight = 0, 0.0, 0.0
        for number, block in place_B2:
            source = self.sources[number]
            num_labels += self._num_labels(source, block)
            if source.lessons is not None:
                pieces = self._pieces(source, block)
                lengths = source.tokens.piece_P2[pieces, 1]
                for (start, count), length in zip(source.lessons.lesson_P4[pieces, 2:], lengths, strict=True):
                    answered_P = source.lessons.answered_N[start : start + count]
                    answers = int(answered_P.sum())
                    pair_weight += int(count) - answers + answers * self.answer_weight
                    is_label_P = source.lessons.pair_N2[start : start + count, 0] < length - 1  # not the piece's last
                    label_weight += int((answered_P & is_label_P).sum()) * (self.answer_label_weight - 1)
        return Totals(num_labels, num_labels + label_weight, pair_weight)

    def _num_labels(self, source: Source, block: int) -> int:
        pieces = source.tokens.piece_P2[self._pieces(source, block)]
        if source.answer_T is not None:
            return sum(int(source.answer_T[start + 1 : start + length].sum()) for start, length in pieces)
        prefix = len(source.prefix_ids)
        used = int(pieces[:, 1].sum()) + len(pieces) * prefix
        return used - len(pieces) * max(1, prefix) if self.isolated else used - 1

    def batch(self, place_B2: Sequence[Sequence[int]]) -> Batch:
        id_BL = torch.zeros(len(place_B2), self.block_size, dtype=torch.int64)
        position_BL = torch.zeros_like(id_BL)
        label_BL = torch.full_like(id_BL, IGNORED)
        reading = Reading(self.answer_weight, self.answer_label_weight)
        for row, (number, block) in enumerate(place_B2):
            source = self.sources[number]
            prefix = torch.tensor(source.prefix_ids, dtype=torch.int64)
            place = 0
            reading.begin_row()
            for piece in range(*self._pieces(source, block).indices(len(source.tokens.piece_P2))):
                start, length = source.tokens.piece_P2[piece]
                part = torch.from_numpy(source.tokens.token_T[start : start + length].astype(np.int64))
                part = torch.cat([prefix, part])
                stop = place + len(part)
                id_BL[row, place:stop] = part
                position_BL[row, place:stop] = torch.arange(len(part))
                first = max(1, len(prefix))
                label_BL[row, place + first - 1 : stop - 1] = part[first:]
                if source.answer_T is not None:
                    is_asked = torch.from_numpy(source.answer_T[start + 1 : start + length] == 0)
                    label_BL[row, place : stop - 1][is_asked] = IGNORED
                if source.lessons is not None:
                    reading.add(source.lessons, piece, row * self.block_size + place + len(prefix))
                place = stop
            if not self.isolated:
                position_BL[row] = torch.arange(self.block_size)
                label_BL[row, : place - 1] = id_BL[row, 1:place]
            else:
                position_BL[row, place:] = torch.arange(self.block_size - place)
        return Batch(id_BL, position_BL, label_BL, reading.lesson() if reading.pairs else None)

    def _pieces(self, source: Source, block: int) -> slice:
        return slice(*source.tokens.block_B1[block : block + 2].tolist())


def digest_seed(*numbers: int) -> int:
    return int(digest(numbers)[:15], 16)


def blocks_of(setting: Setting, folder: Path | None, progress: Progress = no_progress) -> Blocks:
    """Return the blocks of a setting's data. Tokens are stored in `folder`, or in memory if it is None."""
    config = setting.config
    if len(setting.prefix_ids) + 2 > config.block_size:
        raise LepmergeError(f"block_size: {config.block_size} has no room for text after the tokenizer's prefix")
    return blocks_from(setting, [_source(setting, source, folder, progress) for source in config.data])


def check_readable(setting: Setting, folder: Path) -> None:
    """Read all text whose tokens are not in `folder` yet, so that a bad row is reported before anything is written.

    Reading takes a small part of the time of tokenizing.

    Raises:
        CorpusError: a file, row or chat cannot be read, or a source has no text.
    """
    for source in setting.config.data:
        if not place_of(setting, source, folder).exists():
            template = setting.template if source.is_chats else None
            for _ in records(source, setting.files(source), template, no_progress, Counts()):
                pass


def blocks_from(setting: Setting, sources: Sequence[Source]) -> Blocks:
    """Return the blocks of tokenized sources, in training order."""
    config = setting.config
    weights = tuple(source.weight for source in config.data)
    isolated = config.packing == "documents"
    distill = config.distill
    weigh = distill.answer_weight, distill.answer_label_weight
    return Blocks(tuple(sources), weights, config.block_size, isolated, config.seed, *weigh)


def source_in_memory(setting: Setting, source: TrainingSource) -> Source:
    """Return the blocks of a source, in memory only."""
    return _source(setting, source, None, no_progress)


def _source(setting: Setting, source: TrainingSource, folder: Path | None, progress: Progress) -> Source:
    if setting.config.objective != "text":
        return read_source(setting, source, folder, progress)
    if folder is None:
        return Source(in_memory(setting, source, setting.files(source)), tuple(setting.prefix_ids))
    return Source(tokenized(setting, source, folder, progress), tuple(setting.prefix_ids))
