"""Tokenize plain text into blocks, once and on disk.

tokens.bin    the ids of all documents, uint32
pieces.npy    (P, 2) int64: offset in tokens.bin and number of tokens of each piece of a document
blocks.npy    (B + 1,) int64: block b holds the pieces blocks[b] … blocks[b + 1]

A document is a row of a .jsonl or .parquet file, or a whole .txt file. A document that is longer than a block is cut at
the ends of lines, so that every piece begins with a document or a paragraph (paper section 2.4.1). Only a paragraph
that is longer than a block is cut inside. Pieces are packed into blocks by best fit, which leaves little room unused.
"""

import json
import shutil
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lepmerge.corpus import cut, no_text
from lepmerge.errors import CorpusError
from lepmerge.output.run import digest, identities
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import Counts, kind_of, texts_of
from lepmerge.training.config import Source
from lepmerge.training.setting import Setting

READING = 3
"""Version of the rules for reading text. Tokens that were stored under older rules are not reused."""
COLUMN_KEY = "the source's column:"
TEXTS_AT_ONCE = 1 << 18
"""Characters per tokenizer call. It uses all cores and about 150 bytes of memory per token. Longer texts are cut."""
LONGEST_DOCUMENT = 1 << 18
OPEN_BLOCKS = 1024
"""Maximum number of blocks that wait for a fitting piece. Beyond it, the fullest block is closed."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Tokens:
    """The blocks of one source."""

    token_T: np.ndarray
    piece_P2: np.ndarray
    block_B1: np.ndarray
    num_bytes: int
    """Size of the text in bytes of UTF-8."""
    skipped: str = ""
    """How many texts were skipped and why."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_B1) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_T)


def tokenized(setting: Setting, source: Source, folder: Path, progress: Progress) -> Tokens:
    """Return the blocks of a source. They are read from `folder` if an earlier run stored them there.

    Raises:
        CorpusError: a file cannot be read as text, or there is no text.
    """
    finished = stored(setting, source, folder, lambda files, partial: _write(setting, source, files, partial, progress))
    return Tokens(
        np.memmap(finished / "tokens.bin", dtype=np.uint32, mode="r"),
        np.load(finished / "pieces.npy"),
        np.load(finished / "blocks.npy"),
        **json.loads((finished / "counts.json").read_text()),
    )


def stored(setting: Setting, source: Source, folder: Path, write: Callable[[list[Path], Path], None]) -> Path:
    """Return the folder of a source's tokens. If it does not exist, call `write` with the files and a new folder."""
    finished = place_of(setting, source, folder)
    if not finished.exists():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(setting.files(source), partial)
        partial.rename(finished)
    return finished


def place_of(setting: Setting, source: Source, folder: Path) -> Path:
    """Return the folder of a source's tokens. Its name identifies everything that decides about them."""
    files, described = setting.files(source), source.model_dump(exclude={"weight"})
    return (
        folder / digest([READING, described, identities(files), setting.reading_digest, setting.config.block_size])[:16]
    )


def _write(setting: Setting, source: Source, files: Sequence[Path], folder: Path, progress: Progress) -> None:
    counts = Counts()
    with (folder / "tokens.bin").open("wb") as file:

        def written() -> Iterator[tuple[np.ndarray, int]]:
            for ids, size in documents(setting, source, files, progress, counts):
                ids.tofile(file)
                yield ids, size

        piece_P2, block_B1, num_bytes = _packed(setting, written())
    np.save(folder / "pieces.npy", piece_P2)
    np.save(folder / "blocks.npy", block_B1)
    found = {"num_bytes": num_bytes, "skipped": counts.skipped_summary()}
    (folder / "counts.json").write_text(json.dumps(found))


def in_memory(setting: Setting, source: Source, files: Sequence[Path]) -> Tokens:
    """Return the blocks of a source, in memory only."""
    counts = Counts()
    found = list(documents(setting, source, files, no_progress, counts))
    piece_P2, block_B1, num_bytes = _packed(setting, found)
    return Tokens(np.concatenate([ids for ids, _ in found]), piece_P2, block_B1, num_bytes, counts.skipped_summary())


def _packed(setting: Setting, parts: Iterable[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack documents, given as (ids, size in bytes). Return the pieces, the blocks and the total size in bytes."""
    ends_line_V = np.zeros(setting.start.vocabulary.size, dtype=bool)
    for id, data in setting.start.vocabulary.bytes_of.items():
        ends_line_V[id] = data.endswith(b"\n")
    room = setting.config.block_size - len(setting.prefix_ids)
    packer = Packer(room, per_piece=len(setting.prefix_ids))
    place = num_bytes = 0
    for ids, size in parts:
        for start, length in pieces(ids, ends_line_V, room):
            packer.add(place + start, length)
        place += len(ids)
        num_bytes += size
    blocks = packer.finish()
    piece_P2 = np.array([piece for block in blocks for piece in block], dtype=np.int64)
    return piece_P2, np.cumsum([0, *map(len, blocks)], dtype=np.int64), num_bytes


def documents(
    setting: Setting, source: Source, files: Sequence[Path], progress: Progress, counts: Counts
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (ids with the end token, size in bytes of UTF-8) of each document, and update the counts.

    A document of more than LONGEST_DOCUMENT tokens is yielded in several parts.
    """
    tokenizer = setting.start.vocabulary.tokenizer
    end = [] if setting.end_id is None else [setting.end_id]
    collected: list[int] = []
    num_bytes = 0
    for batch in batches(numbered(source, files, progress, counts)):
        texts = [text for text, _ in batch]
        # no name keeps the encodings: they are freed before the next batch is encoded
        for (text, is_last), encoding in zip(
            batch, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            collected += encoding.ids
            num_bytes += len(text.encode())
            if is_last or len(collected) > LONGEST_DOCUMENT:
                yield np.array(collected + (end if is_last else []), dtype=np.uint32), num_bytes
                collected, num_bytes = [], 0


def numbered(source: Source, files: Sequence[Path], progress: Progress, counts: Counts) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether it ends its document). The paragraphs of a .txt file, with blank lines, are one document.

    Texts of more than TEXTS_AT_ONCE bytes are yielded in several parts.
    """
    left = source.limit
    is_empty = True
    for file in files:
        is_plain = kind_of(file) == ".txt"
        before: str | None = None
        for text in texts_of(file, source.column, progress, counts=counts, column_key=COLUMN_KEY):
            if left is not None and left <= 0:
                break
            if before is not None:
                yield from _in_parts(before + "\n\n", False) if is_plain else _in_parts(before, True)
            is_empty = False
            before = text
            if left is not None:
                left -= len(text.encode())
        if before is not None:
            yield from _in_parts(before, True)
    if is_empty:
        raise CorpusError(no_text(f"data: {source.path}", counts))


def _in_parts(text: str, is_last: bool) -> Iterator[tuple[str, bool]]:
    *parts, last = cut(text, TEXTS_AT_ONCE)
    yield from ((part, False) for part in parts)
    yield last, is_last


def batches(texts: Iterable[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
    """Group (text, item) pairs into batches that are tokenized in one call."""
    waiting: list[tuple[str, Item]] = []
    size = 0
    for item in texts:
        waiting.append(item)
        size += len(item[0])
        if size >= TEXTS_AT_ONCE:
            yield waiting
            waiting, size = [], 0
    yield waiting


def pieces(id_N: np.ndarray, ends_line_V: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the pieces of a document: at most `room` tokens each, cut at the ends of lines."""
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
    """Packs pieces into blocks by best fit: each piece goes into the fullest open block with enough room."""

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
