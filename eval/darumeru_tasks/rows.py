"""Read rows of data sets from the Hub, or from a folder of JSON lines files."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darumeru_tasks.errors import DarumeruError

Row = tuple[str, dict[str, Any]]
"""(location of the row for error messages, row)."""


@dataclass(frozen=True)
class Source:
    """A data set. path: its Hub id. name: its config on the Hub. folder: its name in a folder of local data."""

    path: str
    name: str | None
    folder: str


class Documents(list):
    """A list of documents (dicts) with the attribute that the harness expects of a data set."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def local_data(metadata: dict[str, Any]) -> Path | None:
    """Return the folder from `--metadata darumeru_data=DIR` or the variable DARUMERU_DATA, or None for the Hub."""
    folder = metadata.get("darumeru_data") or os.environ.get("DARUMERU_DATA")
    return Path(folder).expanduser() if folder else None


def read_rows(source: Source, split: str, folder: Path | None) -> list[Row]:
    """Return the rows of a split, from `folder/<source.folder>/<split>.jsonl` or, without a folder, from the Hub.

    Raises:
        DarumeruError: the file does not exist, a line is not a JSON object, or the Hub cannot be reached.
    """
    return _read_file(folder / source.folder / f"{split}.jsonl") if folder else _read_hub(source, split)


def _read_file(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines(): texts may contain U+2028
    except OSError as error:
        layout = "the folder of --metadata darumeru_data=DIR or DARUMERU_DATA holds <config>/<split>.jsonl"
        raise DarumeruError(f"{path} cannot be read ({error.strerror}); {layout}") from error
    except UnicodeDecodeError as error:
        raise DarumeruError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DarumeruError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise DarumeruError(f"{path}:{number}: a row is a JSON object, this is a {type(row).__name__}")
        rows.append((f"{path}:{number}", row))
    if not rows:
        raise DarumeruError(f"{path} has no rows")
    return rows


def _read_hub(source: Source, split: str) -> list[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        try:
            rows = datasets.load_dataset(source.path, source.name, split=split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # The data set has a loading script. The Hub's conversion to parquet has the same rows.
            rows = datasets.load_dataset(source.path, source.name, split=split, revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        name = f"{source.path}{f':{source.name}' if source.name else ''}"
        raise DarumeruError(
            f"data set {name}, split {split}, cannot be loaded from the Hub ({_first_line(error)}); connect to the "
            f"network, or give a local copy by --metadata darumeru_data=DIR or DARUMERU_DATA=DIR, with the file "
            f"DIR/{source.folder}/{split}.jsonl"
        ) from error
    return [(f"{source.path}:{source.name}, {split}, row {number}", dict(row)) for number, row in enumerate(rows)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
