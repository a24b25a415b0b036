"""Tokenize chats, and the texts that a student and its teacher both read, once and on disk.

Student and teacher read the same pieces of text, each in its own vocabulary. The arrays on disk are:

tokens      (T,) uint32: the ids of all records
answers     (T,) uint8: 1 if all bytes of the token belong to the assistant
pieces      (P, 2) int64: first token and number of tokens of a piece
blocks      (B + 1,) int64: block b has the pieces blocks[b] … blocks[b + 1]

With a teacher also:

teacher     uint32: the teacher's ids of all records
lessons     (P, 4) int64: first token and number of tokens of a piece in `teacher`, first pair and number of its pairs
pairs       (N, 2) int32: a token of the student and a token of the teacher that end at the same byte, both counted from
            the start of the piece; (-1, -1) stands for the last tokens of both prefixes
answered    (N,) bool: the pair is followed by an answer of the assistant

A chat is one piece. If it is too long, whole messages are dropped from its end until it fits. A chat that cannot be
made to fit is left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lepmerge.errors import CorpusError
from lepmerge.models.model import Model
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import Counts
from lepmerge.training.alignment import Speller, paired_pieces, shared_boundaries
from lepmerge.training.config import TrainingSource
from lepmerge.training.records import records
from lepmerge.training.setting import Setting, context_of, prefix_of
from lepmerge.training.templates import Answer, Record
from lepmerge.training.tokens import Packer, Tokens, batches, stored

TOO_LONG, UNANSWERED = "longer than block_size or the teacher's context", "without an answer"
STUDENT, TEACHER = ("tokens", "answers", "pieces", "blocks"), ("teacher", "lessons", "pairs", "answered")


@dataclass(frozen=True)
class Lessons:
    """The teacher's tokens of a source, in the same pieces as the student's."""

    token_T: np.ndarray
    lesson_P4: np.ndarray
    pair_N2: np.ndarray
    answered_N: np.ndarray
    prefix_ids: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The blocks of a source, and the prefix that each piece gets.

    answer_T: which tokens are predicted; None if all are. lessons: the teacher's tokens; None without a teacher.
    """

    tokens: Tokens
    prefix_ids: tuple[int, ...]
    answer_T: np.ndarray | None = None
    lessons: Lessons | None = None


class Reader:
    """The student or the teacher: its tokenizer, its prefix of each text, its longest text in tokens (`room`)."""

    def __init__(self, model: Model, *, has_prefix: bool, room: int) -> None:
        self.tokenizer = model.vocabulary.tokenizer
        self.speller = Speller(model.vocabulary)
        self.prefix_ids = tuple(prefix_of(self.tokenizer)) if has_prefix else ()
        self.room = room - len(self.prefix_ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


@dataclass
class _Writer:
    """Collects the parts of the arrays while a source is read. `lessons` maps the start of a piece to its row."""

    packer: Packer
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    lessons: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def append(self, **parts: np.ndarray) -> tuple[int, ...]:
        """Append to each array. Return the offsets of the new parts."""
        starts = tuple(self.sizes.get(name, 0) for name in parts)
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part)
            self.sizes[name] = self.sizes.get(name, 0) + len(part)
        return starts

    def arrays(self) -> dict[str, np.ndarray]:
        blocks = self.packer.finish()
        pieces = np.array([piece for block in blocks for piece in block], dtype=np.int64)
        found = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        found |= {"pieces": pieces, "blocks": np.cumsum([0, *map(len, blocks)], dtype=np.int64)}
        if self.lessons:
            found["lessons"] = np.array([self.lessons[start] for start in pieces[:, 0].tolist()])
        return found


def read_source(setting: Setting, source: TrainingSource, folder: Path | None, progress: Progress) -> Source:
    """Return the blocks of a source. They are read from `folder` if an earlier run stored them there.

    Without a folder, they are kept in memory.

    Raises:
        CorpusError: a file or chat cannot be read, or the source has nothing to learn from.
    """
    readers = readers_of(setting, source)
    if folder is None:
        arrays, counts = _read(setting, source, setting.files(source), readers, no_progress)
        return _source(arrays, counts, readers)

    def write(files: Sequence[Path], partial: Path) -> None:
        arrays, counts = _read(setting, source, files, readers, progress)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        (partial / "counts.json").write_text(json.dumps(counts))

    finished = stored(setting, source, folder, write)
    names = STUDENT if setting.teacher is None else STUDENT + TEACHER
    arrays = {name: np.load(finished / f"{name}.npy", mmap_mode="r") for name in names}
    return _source(arrays, json.loads((finished / "counts.json").read_text()), readers)


def _source(arrays: Mapping[str, np.ndarray], counts: Mapping, readers: Sequence[Reader]) -> Source:
    tokens = Tokens(arrays["tokens"], arrays["pieces"], arrays["blocks"], **counts)
    if len(readers) == 1:
        return Source(tokens, readers[0].prefix_ids, arrays["answers"])
    token_T, lesson_P4, pair_N2, answered_N = (arrays[name] for name in TEACHER)
    lessons = Lessons(token_T, lesson_P4, pair_N2, answered_N, readers[1].prefix_ids)
    return Source(tokens, readers[0].prefix_ids, lessons=lessons)


def readers_of(setting: Setting, source: TrainingSource) -> list[Reader]:
    """Return the reader of the student, and with `objective: distill` also the reader of the teacher."""
    has_prefix = not source.is_chats  # a chat template writes the prefix itself
    student = Reader(setting.start, has_prefix=has_prefix, room=setting.config.block_size)
    if setting.teacher is None:
        return [student]
    return [student, Reader(setting.teacher, has_prefix=has_prefix, room=context_of(setting.teacher))]


def _read(
    setting: Setting, source: TrainingSource, files: Sequence[Path], readers: Sequence[Reader], progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, int | str]]:
    """Return the arrays of a source, its size in bytes, and a note of what was skipped."""
    writer = _Writer(Packer(readers[0].room, per_piece=len(readers[0].prefix_ids)))
    counts, num_bytes, num_shortened = Counts(), 0, 0
    for record, ids, is_shortened in _fitting(setting, source, files, readers, counts, progress):
        text = record.text.encode()
        ends = [reader.speller.ends(text, part) for reader, part in zip(readers, ids, strict=True)]
        if setting.teacher is not None:
            _teach(writer, record, ids, ends, readers)
        elif (answer_N := is_answer(ends[0], record.answers)).any():
            (start,) = writer.append(tokens=np.array(ids[0], dtype=np.uint32))
            writer.append(answers=answer_N.astype(np.uint8))
            writer.packer.add(start, len(answer_N))
        else:
            counts.texts -= 1
            counts.skipped[UNANSWERED] += 1
            continue
        num_bytes += len(text)
        num_shortened += is_shortened
    if not writer.parts:
        skipped = counts.skipped_summary()
        raise CorpusError(f"data: {source.path}: nothing to learn from{f' ({skipped})' if skipped else ''}")
    notes = [counts.skipped_summary(), f"shortened {num_shortened:,} chats" if num_shortened else ""]
    return writer.arrays(), {"num_bytes": num_bytes, "skipped": "; ".join(filter(None, notes))}


def _fitting(
    setting: Setting,
    source: TrainingSource,
    files: Sequence[Path],
    readers: Sequence[Reader],
    counts: Counts,
    progress: Progress,
) -> Iterator[tuple[Record, list[list[int]], bool]]:
    """Yield (record, ids of each reader, whether it was shortened). Chats are shortened until they fit every reader."""
    template = setting.template if source.is_chats else None
    for batch in batches((record.text, record) for record in records(source, files, template, progress, counts)):
        encoded = [reader.encode([text for text, _ in batch]) for reader in readers]
        for (_, record), *ids in zip(batch, *encoded, strict=True):
            fitting: Record | None = record
            while fitting is not None and fitting.shorter is not None and _too_long(ids, readers):
                fitting = fitting.shorter()
                ids = [reader.encode([fitting.text])[0] if fitting else [] for reader in readers]
            if fitting is None:
                counts.texts -= 1
                counts.skipped[TOO_LONG] += 1
            else:
                yield fitting, ids, fitting is not record


def _too_long(ids: Sequence[Sequence[int]], readers: Sequence[Reader]) -> bool:
    return any(len(part) > reader.room for part, reader in zip(ids, readers, strict=True))


def is_answer(end_N: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
    """Return which tokens belong entirely to the assistant, including its header and end token, (N,) bool."""
    start_N = np.concatenate([[0], end_N[:-1]])
    known_N = end_N >= 0
    found_N = np.zeros(len(end_N), dtype=bool)
    for answer in answers:
        found_N |= known_N & (start_N >= answer.header) & (end_N <= answer.end) & (answer.header < answer.end)
    return found_N


def answer_follows(end_N: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
    """Return which tokens are followed by a part of an answer, (N,) bool.

    A part is its content, its end token, or an answer that is still to be given.
    """
    found_N = np.zeros(len(end_N), dtype=bool)
    for answer in answers:
        found_N |= (end_N >= answer.content) & ((end_N < answer.end) | (end_N == answer.content))
    return found_N


def _teach(
    writer: _Writer, record: Record, ids: Sequence[Sequence[int]], ends: Sequence[np.ndarray], readers: Sequence[Reader]
) -> None:
    """Add the pieces of a record for student and teacher."""
    student, teacher = (np.array(part, dtype=np.int64) for part in ids)
    pair_P2 = shared_boundaries(*ends)
    end_P = ends[0][pair_P2[:, 0]]
    answered_P = answer_follows(end_P, record.answers)
    text = np.frombuffer(record.text.encode(), np.uint8)
    ends_line_P = (end_P > 0) & (text[np.maximum(end_P, 1) - 1] == ord("\n")) if len(text) else end_P < 0
    rooms = readers[0].room, readers[1].room
    both_prefixes = all(reader.prefix_ids for reader in readers)
    is_chat = record.shorter is not None
    parts = (
        [(slice(0, len(student)), slice(0, len(teacher)), slice(0, len(pair_P2)))]
        if is_chat
        else paired_pieces(pair_P2, ends_line_P, (len(student), len(teacher)), rooms)
    )
    for own, others, pairs in parts:
        (start,) = writer.append(tokens=student[own].astype(np.uint32))
        writer.append(answers=np.zeros(own.stop - own.start, dtype=np.uint8))
        writer.packer.add(start, own.stop - own.start)
        pair_N2, answered_N = pair_P2[pairs] - [own.start, others.start], answered_P[pairs]
        if both_prefixes:
            pair_N2, answered_N = np.concatenate([[[-1, -1]], pair_N2]), np.append(False, answered_N)
        taught, first = writer.append(teacher=teacher[others].astype(np.uint32), pairs=pair_N2.astype(np.int32))
        writer.append(answered=answered_N)
        writer.lessons[start] = (taught, others.stop - others.start, first, len(pair_N2))
