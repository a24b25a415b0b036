"""Read rows of data sets from the Hub, or from a folder of JSON lines files."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darumeru_tasks.errors import DarumeruError

Row = tuple[str, dict[str, Any]]
"""(location of the row for error messages, row)."""
REPOSITORIES = ("RefalMachine/darumeru", "RussianNLP/rucola", "dichspace/daru_treeway_eval")


@dataclass(frozen=True)
class Source:
    """A data set.

    path: its Hub id. name: its config on the Hub. revision: the pinned version on the Hub, None for the newest.
    local: folder of local data, None for the Hub. folder: name of the data set in it.
    """

    path: str
    name: str | None
    folder: str
    local: Path | None = None
    revision: str | None = None


class Documents(list):
    """A list of documents (dicts) with the attribute that the harness expects of a data set.

    version: the commit on the Hub that they come from; for local data, the sha256 of their file.
    """

    version: str

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def source_of(path: str, name: str | None, folder: str, metadata: dict[str, Any]) -> Source:
    """Return a data set with the local folder or the revision that the harness's metadata give for it.

    Raises:
        DarumeruError: a revision is not a text, is given together with a local folder, or its key is misspelled.
    """
    local, key = local_data(metadata), revision_key(path)
    known = ("darumeru_data", *map(revision_key, REPOSITORIES))
    if unknown := [given for given in metadata if given.startswith("darumeru_") and given not in known]:
        raise DarumeruError(f"--metadata {unknown[0]}: unknown key, expected one of {', '.join(known)}")
    revision = metadata.get(key)
    if revision is not None and (not isinstance(revision, str) or not revision.strip()):
        raise DarumeruError(
            f"{key} is {revision!r}, not a commit, tag or branch: digits alone need quotes, as in "
            f"""--metadata '{{"{key}": "0123…"}}'"""
        )
    if revision and local:
        raise DarumeruError(
            f"{key}={revision} pins {path} on the Hub, but the data comes from the folder {local}: give one of "
            f"{key} and darumeru_data (or DARUMERU_DATA)"
        )
    return Source(path, name, folder, local, revision)


def revision_key(path: str) -> str:
    """Return the key in the metadata that pins a data set, such as `darumeru_revision` for RefalMachine/darumeru."""
    return f"{path.split('/')[-1]}_revision"


def local_data(metadata: dict[str, Any]) -> Path | None:
    """Return the folder from `--metadata darumeru_data=DIR` or the variable DARUMERU_DATA, or None for the Hub."""
    folder = metadata.get("darumeru_data") or os.environ.get("DARUMERU_DATA")
    return Path(folder).expanduser() if folder else None


def read_rows(source: Source, split: str) -> tuple[list[Row], str]:
    """Return the rows of a split, and the commit on the Hub that they come from; for local data, the file's sha256.

    A local file is `<source.local>/<source.folder>/<split>.jsonl` or, as in a copy of the Hub's repository,
    `<source.local>/data/<source.folder>/<split>.jsonl`.

    Raises:
        DarumeruError: the file does not exist, a line is not a JSON object, the Hub cannot be reached, or only another
            revision than the pinned one is available.
    """
    if source.local is None:
        return _read_hub(source, split)
    folder, copy = source.local / source.folder, source.local / "data" / source.folder
    return _read_file((copy if copy.is_dir() and not folder.is_dir() else folder) / f"{split}.jsonl")


def _read_file(path: Path) -> tuple[list[Row], str]:
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # not splitlines(): texts may contain U+2028
    except OSError as error:
        layout = "the folder of --metadata darumeru_data=DIR or DARUMERU_DATA holds [data/]<config>/<split>.jsonl"
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
    return rows, hashlib.sha256(content).hexdigest()


def _read_hub(source: Source, split: str) -> tuple[list[Row], str]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        builder = _builder(source)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        name = f"{source.path}{f':{source.name}' if source.name else ''}"
        pinned = f", revision {source.revision}" if source.revision else ""
        raise DarumeruError(
            f"data set {name}{pinned}, split {split}, cannot be loaded from the Hub ({_first_line(error)}); connect to "
            f"the network, or give a local copy by --metadata darumeru_data=DIR or DARUMERU_DATA=DIR, with the file "
            f"DIR/{source.folder}/{split}.jsonl"
        ) from error
    places = f"{source.path}:{source.name}, {split}, row "
    return [(f"{places}{number}", dict(row)) for number, row in enumerate(rows)], str(builder.hash)


def _builder(source: Source) -> Any:
    """Return the library's object that loads a data set. Its `hash` is the commit."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    path, name, revision = source.path, source.name, source.revision
    try:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
    except RuntimeError as error:
        if revision or "scripts are no longer supported" not in str(error):
            raise
        # The data set has a loading script. The Hub's conversion to parquet has the same rows.
        return datasets.load_dataset_builder(path, name, revision="refs/convert/parquet")
    # Without a connection, the library takes the newest revision in its cache, whichever is asked for.
    if revision and isinstance(builder, Cache) and not str(builder.hash).startswith(revision):
        raise OSError(f"no connection, and the cache has commit {builder.hash}")
    return builder


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
