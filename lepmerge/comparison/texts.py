"""Measure bits per byte on texts. Every model predicts the same bytes from the same context, whatever its vocabulary.

A text is cut into pieces as in trainings (pieces.py). Each piece is predicted alone, after the model's prefix (<s>).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np

from lepmerge.comparison.loading import LanguageModel, surprisals
from lepmerge.corpus import find_files
from lepmerge.errors import ComparisonError
from lepmerge.pieces import PIECE_BYTES, paragraphs_of, piece_size, pieces_of
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import Counts, texts_of

LEAST_CONTEXT = 32
"""Shortest context, in tokens, that has room for a text and its continuation."""
LEAST_BYTES = 1000
"""A text with fewer bytes is refused, because its metrics would be mostly noise."""


@dataclass(frozen=True)
class Text:
    """A text to measure on. pieces: the parts that are predicted. paragraphs: what they were cut from.

    skipped: how many rows or paragraphs of the files were skipped and why.
    """

    name: str
    pieces: tuple[str, ...]
    paragraphs: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(len(piece.encode()) for piece in self.pieces)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def num_words(self) -> int:
        return sum(len(piece.split()) for piece in self.pieces)


@dataclass(frozen=True)
class Predicted:
    """A text as predicted by a model.

    For each piece: its ids, the bits that the model needed for each token (T,), and the byte offset in the piece at
    which each token ends (T,).
    """

    text: Text
    ids: tuple[tuple[int, ...], ...]
    bits: tuple[np.ndarray, ...]
    ends: tuple[np.ndarray, ...]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def bits_per_byte(self) -> float:
        return float(sum(bits.sum() for bits in self.bits)) / self.text.num_bytes

    def metrics(self) -> dict[str, Any]:
        """Return characters per token, tokens per word (between whitespace), bits per UTF-8 byte, number of tokens."""
        return {
            "tokens": self.num_tokens,
            "symbols_per_token": self.text.num_characters / self.num_tokens,
            "tokens_per_word": self.num_tokens / max(1, self.text.num_words),
            "bits_per_byte": self.bits_per_byte,
        }


def read_text(
    name: str,
    sources: Sequence[str],
    *,
    column: str = "text",
    max_bytes: int | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Text:
    """Return the first `max_bytes` bytes of some files (.txt, .jsonl, .parquet, …) in pieces of `piece_bytes`.

    Raises:
        CorpusError: a file is missing, damaged, not UTF-8, or lacks the column.
        ComparisonError: there is less than LEAST_BYTES of text.
    """
    counts = Counts()
    texts = (text for file in find_files(sources) for text in texts_of(file, column, no_progress, counts=counts))
    paragraphs = paragraphs_of(texts, max_bytes=max_bytes)
    text = replace(text_of(name, paragraphs, piece_bytes=piece_bytes), skipped=counts.skipped_summary())
    if text.num_bytes < LEAST_BYTES:
        raise ComparisonError(
            f"--text {name}: {', '.join(map(str, sources))}: {text.num_bytes} bytes of text are too few to measure on, "
            f"give {LEAST_BYTES} or more"
        )
    return text


def text_of(name: str, paragraphs: Sequence[str], *, piece_bytes: int = PIECE_BYTES) -> Text:
    """Return a text made of paragraphs, cut into pieces of at most `piece_bytes` bytes."""
    return Text(name, tuple(pieces_of(paragraphs, piece_bytes)), tuple(paragraphs))


def piece_bytes_for(models: Sequence[LanguageModel], most: int = PIECE_BYTES) -> int:
    """Return the largest size of a piece, in bytes, that fits every model's context even with one token per byte."""
    for model in models:
        if model.context < LEAST_CONTEXT:
            raise ComparisonError(
                f"{model.name} ({model.folder}): a context of {model.context} tokens is too short to measure on, "
                f"{LEAST_CONTEXT} or more are needed"
            )
    return piece_size([model.context - len(model.prefix_ids) for model in models], most)


def measure_texts(
    model: LanguageModel, texts: Sequence[Text], *, batch_size: int | None = None, progress: Progress = no_progress
) -> Mapping[str, Predicted]:
    """Return name → text as predicted by the model.

    >>> measure_texts(load_model("out/conversion"), [read_text("ru", ["ru.txt"])])["ru"].bits_per_byte
    1.259

    Raises:
        ComparisonError: a piece is longer than the model's context.
    """
    found = {}
    num_prefix = len(model.prefix_ids)
    for text in texts:
        ids = [tuple(row) for row in model.encode(text.pieces)]
        longest = max(map(len, ids), default=0) + num_prefix
        if longest > model.context:
            raise ComparisonError(
                f"text {text.name}: a piece of {longest} tokens does not fit the context of {model.name} "
                f"({model.context}): cut it into smaller pieces"
            )
        rows = [(*model.prefix_ids, *row) for row in ids]
        nats = surprisals(
            model,
            rows,
            [num_prefix] * len(rows),
            batch_size=batch_size,
            progress=progress,
            what=f"{model.name}: {text.name}",
        )
        ends = tuple(_ends(model, row, piece) for row, piece in zip(ids, text.pieces, strict=True))
        found[text.name] = Predicted(text, tuple(ids), tuple(row / log(2) for row in nats), ends)
    return found


def _ends(model: LanguageModel, ids: Sequence[int], piece: str) -> np.ndarray:
    """Return the byte offset in a piece at which each token ends.

    It follows from the bytes of the tokens. If they do not spell the piece, the tokenizer's offsets are used.
    """
    bytes_of = model.vocabulary.text_bytes_of
    data = piece.encode()
    spelled = [bytes_of.get(id) for id in ids]
    if None not in spelled:
        joined = b"".join(part for part in spelled if part is not None)
        lead = len(joined) - len(data)  # a prefix space that the tokenizer inserted
        if lead in (0, 1) and joined == b" " * lead + data:
            return np.maximum(np.cumsum([len(part) for part in spelled if part is not None]) - lead, 0)
    offsets = model.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    before = np.concatenate([[0], np.cumsum([len(character.encode()) for character in piece])])
    return np.maximum.accumulate(before[[end for _, end in offsets]]) if offsets else np.empty(0, dtype=np.int64)


def bits_up_to(predicted: Predicted) -> Iterator[np.ndarray]:
    """Yield for each piece the cumulative bits of its first n bytes, for n = 0 … its length.

    The bits of a token are spread evenly over its bytes. So the bits of any span of bytes are the difference of two
    values, in every vocabulary.
    """
    for piece, bits, ends in zip(predicted.text.pieces, predicted.bits, predicted.ends, strict=True):
        length = len(piece.encode())
        known, place = np.unique(np.concatenate([[0], ends]), return_index=True)
        total = np.concatenate([[0.0], np.cumsum(bits)])
        # Several tokens can end at one byte (offsets cannot split a character). The last of them counts.
        last = np.concatenate([place[1:] - 1, [len(total) - 1]])
        yield np.interp(np.arange(length + 1), known, total[last])
