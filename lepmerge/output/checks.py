"""Checks of an output before anything is written: its place, what is there already, free space."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lepmerge.errors import OutputError
from lepmerge.vocabulary.chat_templates import TEMPLATES

SMALL_FILES = 8 << 20
"""Free disk space in bytes to reserve for configs, tokenizer and reports."""


def check_target(
    target: Path,
    *,
    inputs: Iterable[Path],
    overwrite: bool,
    key: str = "output.path",
    marker: str = "config.json",
    is_file: bool = False,
) -> None:
    """Raise OutputError if writing the target could destroy something of the user's.

    Refused are: a target that overlaps an input; a folder where a file is expected, and vice versa; without
    `overwrite`, a non-empty folder or an existing file; with it, a folder that does not look like such an output.
    key: the user's option or key for the target, for errors. marker: a file that every such output folder has.
    """
    check_place(target, inputs=inputs, key=key, is_file=is_file)
    real = Path(os.path.realpath(target))
    if not real.exists() or (not is_file and not any(real.iterdir())):
        return
    if is_file:
        if overwrite:
            return
        raise OutputError(f"the output {target} exists: choose another {key}, or replace it with --overwrite")
    if not overwrite:
        raise OutputError(
            f"the output {target} is not empty, and not what this command would write with these inputs: choose "
            f"another {key}, or replace it with --overwrite"
        )
    strangers = [path.name for path in sorted(real.iterdir()) if path.is_dir() and path.name != TEMPLATES]
    if not (real / marker).exists() or strangers:
        what = f"it holds the folder {strangers[0]}" if strangers else f"it has no {marker}"
        raise OutputError(
            f"the output {target} was not written by this command ({what}), so --overwrite refuses to delete it"
        )


def check_place(target: Path, *, inputs: Iterable[Path], key: str = "output.path", is_file: bool = False) -> None:
    """Raise OutputError if no option allows this target: it overlaps an input, or is a folder instead of a file."""
    real = Path(os.path.realpath(target))
    for path in inputs:
        other = Path(os.path.realpath(path))
        if real == other or real in other.parents or other in real.parents:
            raise OutputError(f"the output {target} is, contains or is inside the input {path}: choose another {key}")
    if real.exists() and real.is_dir() == is_file:
        raise OutputError(f"the output {target} is a {'folder' if is_file else 'file'}: choose another {key}")


def check_space(target: Path, needed: int) -> None:
    """Raise OutputError unless the target's disk has `needed` bytes and a margin of SMALL_FILES free."""
    folder = next(parent for parent in Path(os.path.realpath(target)).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed + SMALL_FILES:
        raise OutputError(
            f"the disk of {folder} has {free:,} bytes free, but the run still writes {needed:,} and keeps a margin of "
            f"{SMALL_FILES:,} for configs, tokenizer and reports: free some space"
        )
