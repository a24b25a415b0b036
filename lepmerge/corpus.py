"""Read a corpus as a stream of texts.

A corpus is .txt, .jsonl and .parquet files, optionally compressed (.gz, .zst), given as files, folders, globs or Hub
data sets. In a .txt file the whole file is one document, and each paragraph (text between blank lines) is one text. In
the other formats each row is one document and one text. Files are read in sorted order, so the stream is always the
same.
"""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lepmerge.errors import CorpusError
from lepmerge.paths import did_you_mean
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import COMPRESSIONS, FORMATS, Counts, kind_of, texts_of

REMEDIES = {
    ".json": "; convert it with jq -c '.[]' to .jsonl",
    ".csv": "; convert it with pandas.read_csv(…).to_parquet(…)",
    ".tsv": "; convert it with pandas.read_table(…).to_parquet(…)",
    ".ndjson": "; rename it to .jsonl",
    ".md": "; rename it to .txt",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Corpus:
    """Sources of text, and what to read of them: the parameters of `texts`."""

    sources: Sequence[str]
    column: str = "text"
    split: str | None = None
    limit: int | None = None

    def files(self) -> list[Path]:
        return find_files(self.sources, split=self.split)

    def texts(self, *, progress: Progress = no_progress, counts: Counts | None = None) -> Iterator[str]:
        return texts(
            self.sources, column=self.column, split=self.split, limit=self.limit, progress=progress, counts=counts
        )


def find_files(sources: Iterable[str | Path], *, split: str | None = None) -> list[Path]:
    """Return the corpus files that the sources name: files, folders (searched recursively), globs or Hub data sets.

    A source that does not exist locally and looks like a data set's `owner/name` is downloaded from the Hub. split: in
    folders and data sets, use only files whose name or folder begins with this word.

    Raises:
        CorpusError: a source names nothing, or a file is not .txt, .jsonl or .parquet.
    """
    found: list[Path] = []
    for source in map(str, sources):
        path = Path(source).expanduser()
        if not path.exists() and is_dataset(source):
            path = _downloaded(source)
        if path.is_dir():
            found_files = (file for file in path.rglob("*") if file.is_file() or not file.exists())  # or a broken link
            files = sorted(file for file in found_files if kind_of(file))
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
        if not file.exists():
            raise CorpusError(f"{file} is a link to {file.readlink()}, which does not exist")
        if kind_of(file) is None:
            remedy = REMEDIES.get(file.suffix.lower(), "")
            raise CorpusError(
                f"{file} is not a text corpus: expected {', '.join(FORMATS)}, also with .gz or .zst{remedy}"
            )
    return list(dict.fromkeys(found))


def texts(
    sources: Iterable[str | Path],
    *,
    column: str = "text",
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    counts: Counts | None = None,
) -> Iterator[str]:
    """Yield the texts of the sources in order, at most `limit` bytes of UTF-8 in total.

    column: field of .jsonl and .parquet rows. progress: receives each file and the bytes read from disk. counts:
    receives the numbers of texts read and skipped.

    Raises:
        CorpusError: a file is damaged, is not UTF-8 or lacks the column (with file and line), or there is no text.
    """
    left = limit
    is_empty = True
    counts = counts if counts is not None else Counts()
    for file in find_files(sources, split=split):
        for text in texts_of(file, column, progress or no_progress, counts=counts):
            is_empty = False
            if left is not None:
                left -= len(text.encode())
                if left < 0:
                    return
            yield text
    if is_empty:
        raise CorpusError(no_text(f"{', '.join(map(str, sources))}", counts))


def no_text(where: str, counts: Counts) -> str:
    """Return the error message for a corpus without texts."""
    skipped = counts.skipped_summary()
    return f"{where}: the corpus is empty: no text in it{f' ({skipped})' if skipped else ''}"


def cut(text: str, num_bytes: int) -> Iterator[str]:
    """Yield the text in pieces of at most `num_bytes` bytes of UTF-8. Pieces begin at whitespace where possible."""
    data = text.encode()
    start = 0
    while start < len(data):
        stop = start + num_bytes
        if stop < len(data):
            space = max(data.rfind(b" ", start + 1, stop), data.rfind(b"\n", start + 1, stop))
            stop = space if space > start else stop
            while data[stop] & 0xC0 == 0x80:  # do not cut within a character
                stop -= 1
        yield data[start:stop].decode()
        start = stop


def is_dataset(source: str) -> bool:
    """Return whether a source may be a Hub data set: it has the form `owner/name` and no file extension of a corpus."""
    return HUB_ID.fullmatch(source) is not None and kind_of(Path(source)) is None


def _downloaded(dataset: str) -> Path:
    """Download a data set from the Hub and return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{kind}{compression}" for kind in FORMATS for compression in COMPRESSIONS]
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CorpusError(f"{dataset}: no such file or folder, and the Hub has no such data set ({reason})") from error


def _is_of_split(file: Path, split: str) -> bool:
    return any(re.split(r"[-_.]", part)[0] == split for part in file.parts)
