"""Read the texts of one file: the paragraphs of a .txt file, or the rows of a .jsonl or .parquet file.

The rules are the same for every format. Rows that are null, absent or empty, and texts with NUL characters or unpaired
surrogates, are skipped and counted. Any other value that is not a text is an error with file and line.
"""

import codecs
import gzip
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from lepmerge.errors import CorpusError
from lepmerge.progress import Progress, no_progress

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")
LONGEST_PARAGRAPH = 1 << 20
"""Longer paragraphs are cut at the next line end after this many characters, so that memory stays bounded."""
HEAD_BYTES = 1024
"""Number of bytes at the beginning of a file that are tested for UTF-16."""


@dataclass
class Counts:
    """The numbers of documents and texts that were read, and of texts that were skipped.

    documents: rows of .jsonl and .parquet files, and whole .txt files. texts: rows of .jsonl and .parquet files, and
    paragraphs of .txt files. skipped: reason → number of texts.
    """

    documents: int = 0
    texts: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def accepts(self, text: str | None) -> bool:
        """Count a text and return whether it is usable."""
        reason = _reason_to_skip(text)
        if reason is None:
            self.texts += 1
        else:
            self.skipped[reason] += 1
        return reason is None

    def plain(self) -> dict[str, Any]:
        """Return the counts for a report."""
        return {"documents": self.documents, "texts": self.texts, "skipped": dict(sorted(self.skipped.items()))}

    def skipped_summary(self) -> str:
        """Return a summary such as `skipped 3 of 80 texts: 2 null, 1 empty`, or an empty string if none was skipped."""
        if not self.skipped:
            return ""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        total = self.skipped.total()
        return f"skipped {total:,} of {self.texts + total:,} texts: {reasons}"


def _reason_to_skip(text: str | None) -> str | None:
    if text is None:
        return "null"
    if not text or text.isspace():
        return "empty"
    if "\0" in text:
        return "with NUL characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "with unpaired surrogates"
    return None


def kind_of(file: Path) -> str | None:
    """Return the format of a file (.txt, .jsonl or .parquet), or None if it has another one."""
    name = file.name.lower()
    endings = {kind + compression: kind for kind in FORMATS for compression in COMPRESSIONS}
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)


def texts_of(
    file: Path, column: str, progress: Progress, *, counts: Counts | None = None, column_key: str = "--column"
) -> Iterator[str]:
    """Yield the texts of one file. An empty file has none.

    column: field of the rows; `doc.text` means the field `text` inside the field `doc`. column_key: the option or key
    with which the user chooses the column, for error messages.

    Raises:
        CorpusError: the file is damaged, is not UTF-8 or lacks the column (with file and line).
    """
    counts = counts if counts is not None else Counts()
    kind = kind_of(file)
    if kind == ".txt":
        before = counts.texts
        with _translated(file), file.open("rb") as raw:
            yield from filter(counts.accepts, _paragraphs(_lines(file, raw, progress)))
        counts.documents += counts.texts > before
        return
    read = _parquet_rows if kind == ".parquet" else _jsonl_rows
    with _translated(file):
        for place, value in read(file, column, column_key, progress):
            if not isinstance(value, str | None):
                raise CorpusError(f"{place}: {column!r} holds {_kind_and_remedy(value, column, column_key)}")
            if counts.accepts(value) and value is not None:
                counts.documents += 1
                yield value


def json_rows(file: Path, progress: Progress = no_progress) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) from a .jsonl file, which may be compressed. Blank lines are skipped.

    Raises:
        CorpusError: the file is damaged or is not UTF-8, or a line is not JSON (with file and line).
    """
    with _translated(file), file.open("rb") as raw:
        for number, line in _lines(file, raw, progress):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{file}:{number}: {_not_json(line, error)}") from error
            if isinstance(row, list):
                raise CorpusError(f"{file}:{number}: {_not_json(line, None)}")
            yield number, row


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # includes gzip's BadGzipFile
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}") from error
    except EOFError as error:
        raise CorpusError(f"{file} is truncated") from error
    except _decompression_errors() as error:
        raise CorpusError(f"{file} is damaged and cannot be decompressed: {error}") from error


def _decompression_errors() -> tuple[type[Exception], ...]:
    zstandard = sys.modules.get("zstandard")  # not imported unless a .zst file is read
    return (zlib.error, *([zstandard.ZstdError] if zstandard else []))


def _kind_and_remedy(value: Any, column: str, column_key: str) -> str:
    if isinstance(value, Mapping):
        below = next(iter(value), "text")
        return f"an object, not a text: name a field of it, such as {column_key} {column}.{below}"
    if isinstance(value, list):
        return f"a list, not a text: join its parts into one text first, or name another field with {column_key}"
    kind = "bytes" if isinstance(value, bytes) else f"{value!r}"
    return f"{kind}, not a text: name another field with {column_key}"


def _opened(file: Path, raw: BinaryIO) -> Any:
    if file.name.lower().endswith(".gz"):
        return gzip.open(raw)
    if file.name.lower().endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise CorpusError(f"{file}: reading .zst needs a package: pip install 'lepmerge[data]'") from error
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
        )
    return raw


def _lines(file: Path, raw: BinaryIO, progress: Progress) -> Iterator[tuple[int, str]]:
    """Yield (line number, line including its end) and report progress."""
    reported = 0
    stream = _opened(file, raw)
    if encoding := _utf_16(stream.peek(HEAD_BYTES)[:HEAD_BYTES]):
        raise CorpusError(f"{file}:1: {encoding} text, not UTF-8: convert it with iconv -f {encoding} -t UTF-8")
    for number, data in enumerate(stream, 1):
        if number % 1024 == 1:
            reported, before = raw.tell(), reported
            progress(file.name, reported - before)
        try:
            yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{file}:{number}: not UTF-8 (byte 0x{data[error.start]:02X}): convert it, such as with iconv -f "
                f"WINDOWS-1251 -t UTF-8, or drop damaged bytes with iconv -c -f UTF-8 -t UTF-8"
            ) from error
    progress(file.name, raw.tell() - reported)


def _utf_16(head: bytes) -> str | None:
    """Return the UTF-16 variant that the first bytes of a file indicate, or None if they do not look like UTF-16."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    zeros = Counter(place % 2 for place, byte in enumerate(head) if byte == 0)
    if len(zeros) == 1 and zeros.total() > max(3, len(head) / 20):  # high bytes of ASCII characters such as spaces
        return "UTF-16LE" if 1 in zeros else "UTF-16BE"
    return None


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the paragraphs between blank lines. Windows line ends become Unix line ends."""
    collected: list[str] = []
    size = 0
    for _, line in chain(lines, [(0, "\n")]):
        line = line.replace("\r\n", "\n")
        if line.strip() and size < LONGEST_PARAGRAPH:
            collected.append(line)
            size += len(line)
            continue
        if collected:
            yield "".join(collected).rstrip("\r\n")
        collected, size = ([line], len(line)) if line.strip() else ([], 0)
    if collected:
        yield "".join(collected).rstrip("\r\n")


def _jsonl_rows(file: Path, column: str, column_key: str, progress: Progress) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value of the column, or None if the row lacks it)."""
    known: dict[str, None] = {}
    has_column = False
    for number, row in json_rows(file, progress):
        if not isinstance(row, dict):
            raise CorpusError(f"{file}:{number}: {row!r:.40} is not an object such as {{{json.dumps(column)}: …}}")
        is_there, value = _below(row, column)
        has_column = has_column or is_there
        if not has_column:
            known |= dict.fromkeys(row)
        yield f"{file}:{number}", value
    if known and not has_column:
        raise CorpusError(f"{file}:1: {_no_column(column, list(known), column_key)}")


def _not_json(line: str, error: Exception | None) -> str:
    if line.lstrip().startswith("["):
        return "a JSON array, not one object per line: convert it with jq -c '.[]'"
    if "\r" in line.strip():
        return "lines that end with a carriage return only: convert them with tr '\\r' '\\n'"
    if line.strip() == "{":
        return "not JSON on this line alone: convert the file to one object per line with jq -c ."
    return f"not JSON ({error}): repair or remove this line"


def _below(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether a row has a column (a key, or a dotted path of keys), and the value of the column."""
    if column in row:
        return True, row[column]
    node: Any = row
    for part in column.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


def _no_column(column: str, known: list[str], column_key: str) -> str:
    shown = ", ".join(known[:20]) or "nothing"
    return f"no column {column!r}, there is {shown}: name one with {column_key}"


def _parquet_rows(file: Path, column: str, column_key: str, progress: Progress) -> Iterator[tuple[str, Any]]:
    """Yield (file:row, value of the column)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(f"{file}: reading .parquet needs a package: pip install 'lepmerge[data]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        kind: Any = pyarrow.struct(table.schema_arrow)
        for part in [column] if column in names else column.split("."):
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
                raise CorpusError(f"{file}: {_no_column(column, names, column_key)}")
            kind = kind.field(part).type
        size, number = file.stat().st_size, 0
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.to_pylist():
                number += 1
                yield f"{file}:{number}", _below(value, column)[1]
            progress(file.name, size * batch.num_rows // max(1, table.metadata.num_rows))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(f"{file} is not a readable parquet file: {error}") from error
