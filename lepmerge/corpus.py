"""A corpus as a stream of texts: .txt, .jsonl and .parquet files, also .gz and .zst, in folders, globs or on the Hub.

Texts are the paragraphs of a .txt file (parts between blank lines), and the rows of the others. Files are read in
sorted order, whatever order the file system has them in, so the stream is always the same.
"""

import glob
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from lepmerge.errors import CorpusError
from lepmerge.paths import did_you_mean
from lepmerge.progress import Progress, no_progress

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LONGEST_PARAGRAPH = 1 << 20
"""Characters after which a paragraph without an end is cut at a line, so that memory stays bounded."""


def find_files(sources: Iterable[str | Path], *, split: str | None = None) -> list[Path]:
    """Return the corpus files that the sources name: files, folders (searched to the bottom), globs, Hub data sets.

    What is no file or folder and looks like a data set's `owner/name` is downloaded from the Hub. Of a data set and of
    a folder, only files whose name or folder begins with `split` are taken.

    Raises:
        CorpusError: a source that names nothing, or a file of another kind.
    """
    found: list[Path] = []
    for source in map(str, sources):
        path = Path(source).expanduser()
        if not path.exists() and is_dataset(source):
            path = _downloaded(source)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file))
            files = [file for file in files if split is None or _is_of_split(file.relative_to(path), split)]
            if not files:
                of_split = f" of split {split!r}" if split else ""
                raise CorpusError(f"{path} holds no {', '.join(FORMATS)} file{of_split} (also .gz, .zst)")
        elif path.exists():
            files = [path]
        else:
            files = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not files:
                raise CorpusError(f"{source}: no such file, folder or glob{did_you_mean(path)}")
        found += files
    for file in found:
        if kind_of(file) is None:
            raise CorpusError(f"{file} is not a text corpus: expected {', '.join(FORMATS)}, also with .gz or .zst")
    return list(dict.fromkeys(found))


def texts(
    sources: Iterable[str | Path],
    *,
    column: str = "text",
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Yield the texts of the sources in order; at most `limit` bytes of UTF-8 in all.

    column names the field of .jsonl and .parquet rows. progress is told the file and the bytes read from disk.

    Raises:
        CorpusError: a file that is damaged, binary, not UTF-8 or without the column, by file and line; no text at all.
    """
    left = limit
    is_empty = True
    for file in find_files(sources, split=split):
        for text in texts_of(file, column, progress or no_progress):
            is_empty = False
            if left is not None:
                left -= len(text.encode())
                if left < 0:
                    return
            yield text
    if is_empty:
        raise CorpusError(f"the corpus is empty: no text in {', '.join(map(str, sources))}")


def is_dataset(source: str) -> bool:
    """Tell whether a source may be a data set on the Hub: `owner/name`, not ending as a text file does."""
    return HUB_ID.fullmatch(source) is not None and kind_of(Path(source)) is None


def _downloaded(dataset: str) -> Path:
    """Return the folder of a data set on the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{kind}{compression}" for kind in FORMATS for compression in COMPRESSIONS]
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CorpusError(
            f"{dataset}: no such file or folder, and no data set that the Hub gives ({reason})"
        ) from error


def _is_of_split(file: Path, split: str) -> bool:
    return any(re.split(r"[-_.]", part)[0] == split for part in file.parts)


def kind_of(file: Path) -> str | None:
    """Return .txt, .jsonl or .parquet, None for another file."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        for kind in FORMATS:
            if name.endswith(kind + compression):
                return kind
    return None


def texts_of(file: Path, column: str, progress: Progress) -> Iterator[str]:
    """Yield the texts of one file; none of an empty one."""
    if kind_of(file) == ".parquet":
        with _translated(file):
            yield from _parquet_rows(file, column, progress)
    elif kind_of(file) == ".jsonl":
        yield from _texts_of_rows(file, json_rows(file, progress), column)
    else:
        with _translated(file), file.open("rb") as raw:
            yield from _paragraphs(_lines(file, raw, progress))


def json_rows(file: Path, progress: Progress = no_progress) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of each line of a .jsonl file, also .gz or .zst, that is not empty.

    Raises:
        CorpusError: the file cannot be read, or a line is not JSON, by file and line.
    """
    with _translated(file), file.open("rb") as raw:
        for number, line in _lines(file, raw, progress):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise CorpusError(f"{file}:{number}: not JSON ({error})") from error
                yield number, row


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # gzip raises BadGzipFile, an OSError
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}") from error
    except EOFError as error:
        raise CorpusError(f"{file} is truncated") from error


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
    """Yield (line number, line with its end) and tell the progress."""
    told = 0
    for number, data in enumerate(_opened(file, raw), 1):
        if number % 1024 == 1:
            told, before = raw.tell(), told
            progress(file.name, told - before)
        if b"\0" in data:
            raise CorpusError(f"{file}:{number}: a NUL byte: this is a binary file, not text")
        try:
            yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{file}:{number}: not UTF-8 (byte 0x{data[error.start]:02X}): convert it first, for example with iconv"
            ) from error
    progress(file.name, raw.tell() - told)


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    collected: list[str] = []
    size = 0
    for _, line in chain(lines, [(0, "\n")]):
        if line.strip() and size < LONGEST_PARAGRAPH:
            collected.append(line)
            size += len(line)
            continue
        if collected:
            yield "".join(collected).rstrip("\r\n")
        collected, size = ([line], len(line)) if line.strip() else ([], 0)
    if collected:
        yield "".join(collected).rstrip("\r\n")


def _texts_of_rows(file: Path, rows: Iterable[tuple[int, Any]], column: str) -> Iterator[str]:
    for number, row in rows:
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise CorpusError(f"{file}:{number}: no text under {column!r}, there is {known}; name it with --column")
        if text:
            yield text


def _parquet_rows(file: Path, column: str, progress: Progress) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(f"{file}: reading .parquet needs a package: pip install 'lepmerge[data]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if column not in table.schema_arrow.names:
            known = ", ".join(table.schema_arrow.names)
            raise CorpusError(f"{file}: no column {column!r}, there is {known}; name it with --column")
        size = file.stat().st_size
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str | None):
                    raise CorpusError(f"{file}: column {column!r} holds {type(text).__name__}, not text")
                if text:
                    yield text
            progress(file.name, size * batch.num_rows // max(1, table.metadata.num_rows))
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{file} is not a readable parquet file: {error}") from error
