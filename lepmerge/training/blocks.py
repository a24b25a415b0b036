"""The blocks of all sources as batches; a batch is a pure function of (seed, epoch, index)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lepmerge.errors import LepmergeError
from lepmerge.progress import Progress, no_progress
from lepmerge.training.loss import IGNORED
from lepmerge.training.setting import Setting, digest
from lepmerge.training.tokens import Tokens, tokenized


@dataclass(frozen=True)
class Batch:
    """Blocks as the model takes them, each (B, L): ids, positions in the document, labels (the next id or IGNORED)."""

    id_BL: torch.Tensor
    position_BL: torch.Tensor
    label_BL: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        if device.type != "cuda":
            return self
        return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in vars(self).values()))


@dataclass(frozen=True)
class Blocks:
    """The blocks of all sources in the order of training."""

    sources: tuple[Tokens, ...]
    weights: tuple[float, ...]
    prefix_ids: tuple[int, ...]
    block_size: int
    isolated: bool
    """Whether the documents of a block know nothing of one another."""
    seed: int

    @property
    def num_blocks(self) -> int:
        """Blocks in an epoch."""
        return sum(self._count(tokens, weight) for tokens, weight in zip(self.sources, self.weights, strict=True))

    def _count(self, tokens: Tokens, weight: float) -> int:
        return max(1, round(tokens.num_blocks * weight))

    @property
    def tokens_per_block(self) -> float:
        """Tokens of text in a block, on average."""
        counts = [self._count(tokens, weight) for tokens, weight in zip(self.sources, self.weights, strict=True)]
        totals = [tokens.num_tokens / tokens.num_blocks for tokens in self.sources]
        return sum(count * total for count, total in zip(counts, totals, strict=True)) / sum(counts)

    def order(self, epoch: int) -> torch.Tensor:
        """Return (num_blocks, 2) int64: source and block, in the order of an epoch."""
        generator = torch.Generator().manual_seed(digest_seed(self.seed, epoch))
        chosen = []
        for number, (tokens, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            count = self._count(tokens, weight)
            rounds = -(-count // tokens.num_blocks)
            index = torch.cat([torch.randperm(tokens.num_blocks, generator=generator) for _ in range(rounds)])[:count]
            chosen.append(torch.stack([torch.full_like(index, number), index], dim=1))
        order = torch.cat(chosen)
        return order[torch.randperm(len(order), generator=generator)]

    def num_labels(self, place_B2: Iterable[Sequence[int]]) -> int:
        """Return how many tokens of these blocks are predicted."""
        total = 0
        for source, block in place_B2:
            length_P = self._pieces(source, block)[:, 1]
            used = int(length_P.sum()) + len(length_P) * len(self.prefix_ids)
            total += used - len(length_P) * max(1, len(self.prefix_ids)) if self.isolated else used - 1
        return total

    def batch(self, place_B2: Sequence[Sequence[int]]) -> Batch:
        id_BL = torch.zeros(len(place_B2), self.block_size, dtype=torch.int64)
        position_BL = torch.zeros_like(id_BL)
        label_BL = torch.full_like(id_BL, IGNORED)
        prefix = torch.tensor(self.prefix_ids, dtype=torch.int64)
        for row, (source, block) in enumerate(place_B2):
            tokens = self.sources[source]
            place = 0
            for start, length in self._pieces(source, block):
                part = torch.from_numpy(tokens.token_T[start : start + length].astype(np.int64))
                part = torch.cat([prefix, part])
                stop = place + len(part)
                id_BL[row, place:stop] = part
                position_BL[row, place:stop] = torch.arange(len(part))
                first = max(1, len(prefix))
                label_BL[row, place + first - 1 : stop - 1] = part[first:]
                place = stop
            if not self.isolated:
                position_BL[row] = torch.arange(self.block_size)
                label_BL[row, : place - 1] = id_BL[row, 1:place]
            else:
                position_BL[row, place:] = torch.arange(self.block_size - place)
        return Batch(id_BL, position_BL, label_BL)

    def _pieces(self, source: int, block: int) -> np.ndarray:
        tokens = self.sources[source]
        return tokens.piece_P2[tokens.block_B1[block] : tokens.block_B1[block + 1]]


def digest_seed(seed: int, epoch: int) -> int:
    return int(digest([seed, epoch])[:15], 16)


def blocks_of(setting: Setting, folder: Path, progress: Progress = no_progress) -> Blocks:
    """Return the blocks of a setting's data; what is tokenized is kept in `folder`."""
    config = setting.config
    if len(setting.prefix_ids) + 2 > config.block_size:
        raise LepmergeError(f"block_size: {config.block_size} has no room beside the tokenizer's prefix")
    return blocks_from(setting, [tokenized(setting, source, folder, progress) for source in config.data])


def blocks_from(setting: Setting, sources: Sequence[Tokens]) -> Blocks:
    """Return the blocks of tokenized sources in the order of training."""
    config = setting.config
    weights = tuple(source.weight for source in config.data)
    isolated = config.packing == "documents"
    return Blocks(tuple(sources), weights, tuple(setting.prefix_ids), config.block_size, isolated, config.seed)
