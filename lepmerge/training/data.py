"""Text becomes blocks of tokens, once and on disk; a batch is a pure function of (seed, epoch, index).

tokens.bin    the ids of all documents, uint32
pieces.npy    (P, 2) int64: where a piece of a document begins in tokens.bin, and how many tokens it has
blocks.npy    (B + 1,) int64: block b holds the pieces blocks[b] … blocks[b + 1]

A document is a row of .jsonl and .parquet files, and a whole .txt file. One that is longer than a block is cut where a
line ends, so that every piece begins a document or a paragraph (paper section 2.4.1); only a paragraph that is longer
than a block is cut within. Pieces are packed into blocks so that little room is left (best fit).
"""

import json
import shutil
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lepmerge.errors import CorpusError, LepmergeError
from lepmerge.tokenization.corpus import kind_of, texts_of
from lepmerge.training.config import Source
from lepmerge.training.loss import IGNORED
from lepmerge.training.setting import Setting, digest, identities

TEXTS_AT_ONCE = 1 << 20
"""Characters that are tokenized in one call, on all cores."""
LONGEST_DOCUMENT = 1 << 20
OPEN_BLOCKS = 1024
"""Blocks that wait for a piece that fits; the fullest one is closed when there are more."""
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Tokens:
    """The blocks of one source, on disk."""

    token_T: np.ndarray
    piece_P2: np.ndarray
    block_B1: np.ndarray
    num_bytes: int
    """Bytes of UTF-8 text."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_B1) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_T)


def tokenized(setting: Setting, source: Source, folder: Path, progress: Progress) -> Tokens:
    """Return the blocks of a source, from `folder` where an earlier run left them.

    Raises:
        CorpusError: a file that cannot be read as text, or no text at all.
    """
    files = setting.files(source)
    described = source.model_dump(exclude={"weight"})
    key = digest([described, identities(files), setting.vocabulary_digest, setting.config.block_size])[:16]
    finished = folder / key
    if not finished.exists():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(setting, source, files, partial, progress)
        partial.rename(finished)
    return Tokens(
        np.memmap(finished / "tokens.bin", dtype=np.uint32, mode="r"),
        np.load(finished / "pieces.npy"),
        np.load(finished / "blocks.npy"),
        json.loads((finished / "counts.json").read_text())["bytes"],
    )


def _write(setting: Setting, source: Source, files: Sequence[Path], folder: Path, progress: Progress) -> None:
    ends_line_V = np.zeros(setting.start.vocabulary.size, dtype=bool)
    for id, data in setting.start.vocabulary.bytes_of.items():
        ends_line_V[id] = data.endswith(b"\n")
    room = setting.config.block_size - len(setting.prefix_ids)
    packer = Packer(room, per_piece=len(setting.prefix_ids))
    place = num_bytes = 0
    with (folder / "tokens.bin").open("wb") as file:
        for ids, size in documents(setting, source, files, progress):
            ids.tofile(file)
            for start, length in pieces(ids, ends_line_V, room):
                packer.add(place + start, length)
            place += len(ids)
            num_bytes += size
    blocks = packer.finish()
    np.save(folder / "pieces.npy", np.array([piece for block in blocks for piece in block], dtype=np.int64))
    np.save(folder / "blocks.npy", np.cumsum([0, *map(len, blocks)], dtype=np.int64))
    (folder / "counts.json").write_text(json.dumps({"bytes": num_bytes}))


def documents(
    setting: Setting, source: Source, files: Sequence[Path], progress: Progress
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the ids of each document, its end token included, with its size in bytes of UTF-8.

    A document of more than LONGEST_DOCUMENT tokens comes in several parts.
    """
    tokenizer = setting.start.vocabulary.tokenizer
    end = [] if setting.end_id is None else [setting.end_id]
    collected: list[int] = []
    num_bytes = 0
    for batch in _batches(_numbered(source, files, progress)):
        encodings = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
        for (text, is_last), encoding in zip(batch, encodings, strict=True):
            collected += encoding.ids
            num_bytes += len(text.encode())
            if is_last or len(collected) > LONGEST_DOCUMENT:
                yield np.array(collected + (end if is_last else []), dtype=np.uint32), num_bytes
                collected, num_bytes = [], 0


def _numbered(source: Source, files: Sequence[Path], progress: Progress) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether its document ends); the paragraphs of a .txt file are one document, with blank lines."""
    left = source.limit
    is_empty = True
    for file in files:
        is_plain = kind_of(file) == ".txt"
        before: str | None = None
        for text in texts_of(file, source.column, progress):
            if left is not None and left <= 0:
                break
            if before is not None:
                yield (before + "\n\n", False) if is_plain else (before, True)
            is_empty = False
            before = text
            if left is not None:
                left -= len(text.encode())
        if before is not None:
            yield before, True
    if is_empty:
        raise CorpusError(f"data: {source.path}: the corpus is empty: no text in {', '.join(map(str, files[:3]))}")


def _batches(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    waiting: list[tuple[str, bool]] = []
    size = 0
    for item in texts:
        waiting.append(item)
        size += len(item[0])
        if size >= TEXTS_AT_ONCE:
            yield waiting
            waiting, size = [], 0
    yield waiting


def pieces(id_N: np.ndarray, ends_line_V: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the pieces of a document, each of at most `room` tokens, cut where lines end."""
    if len(id_N) <= room:
        yield 0, len(id_N)
        return
    line_start_N = np.flatnonzero(ends_line_V[id_N]) + 1
    start = 0
    while start < len(id_N):
        stop = start + room
        if stop < len(id_N):
            place = np.searchsorted(line_start_N, stop, side="right") - 1
            if place >= 0 and line_start_N[place] > start:
                stop = int(line_start_N[place])
        stop = min(stop, len(id_N))
        yield start, stop - start
        start = stop


class Packer:
    """Packs pieces into blocks: each goes into the fullest open block that has room for it."""

    def __init__(self, room: int, *, per_piece: int) -> None:
        self.room = room
        self.per_piece = per_piece
        self.blocks: list[list[tuple[int, int]]] = []
        self._open: list[tuple[int, int]] = []  # (room left, number of the block), ascending

    def add(self, start: int, length: int) -> None:
        place = bisect_left(self._open, (length, -1))
        if place < len(self._open):
            left, number = self._open.pop(place)
            self.blocks[number].append((start, length))
        else:
            left, number = self.room, len(self.blocks)
            self.blocks.append([(start, length)])
        left -= length + self.per_piece
        if left > 0:
            insort(self._open, (left, number))
            if len(self._open) > OPEN_BLOCKS:
                self._open.pop(0)

    def finish(self) -> list[list[tuple[int, int]]]:
        return self.blocks


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


def blocks_of(setting: Setting, folder: Path, progress: Progress | None = None) -> Blocks:
    """Return the blocks of a setting's data; what is tokenized is kept in `folder`."""
    config = setting.config
    if len(setting.prefix_ids) + 2 > config.block_size:
        raise LepmergeError(f"block_size: {config.block_size} has no room beside the tokenizer's prefix")
    silent: Progress = lambda what, count: None  # noqa: E731
    sources = tuple(tokenized(setting, source, folder, progress or silent) for source in config.data)
    weights = tuple(source.weight for source in config.data)
    isolated = config.packing == "documents"
    return Blocks(sources, weights, tuple(setting.prefix_ids), config.block_size, isolated, config.seed)
