"""Record what a command writes: a command that refuses its input leaves nothing behind, whatever the test is about."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import lepmerge
from lepmerge.errors import LepmergeError

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PACKAGE = Path(lepmerge.__file__).parent
AFTER_THE_START = {
    "projects/chain.run_chain": "the journal of the steps that are complete",
    "merge/execute._write_shard": "the staging with the files that are finished",
    "merge/execute._reduce": "the staging; whether values are finite is seen when they are read",
    "output/run.opened": "the staging; an input changed during the run, or the disk is full",
    "extraction/extract._compared": "the staging; whether values are finite is seen when they are read",
    "training/loop.run_steps": "the staging with the last checkpoint",
    "generation/run.answered": "the staging with the answers and grades so far",
}
"""Function from which an error comes after the work has begun → what it leaves on purpose."""

_recorded: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _recorded is None:
        return
    if event == "open":
        path, _, flags = arguments
        paths = [path] if flags & WRITES else []
    elif event == "os.mkdir":
        paths = [arguments[0]] if not os.path.exists(arguments[0]) else []
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = [arguments[1]]
    else:
        return
    _recorded.extend(
        os.path.abspath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)
    )


sys.addaudithook(_record)


def begin() -> None:
    global _recorded
    _recorded = []


def end(error: BaseException | None, arguments: Iterable[str]) -> None:
    """Assert that a command that ended with this error left nothing, unless the error comes after the start.

    A file that an argument names, such as that of --log-file, is not counted.
    """
    global _recorded
    written, _recorded = _recorded or [], None
    cause = error.__context__ if isinstance(error, SystemExit) and error.code in (1, 2) else None
    if not isinstance(cause, LepmergeError | click.ClickException) or raised_in(cause) & AFTER_THE_START.keys():
        return
    asked_for = {os.path.abspath(argument) for argument in arguments}
    left = {path for path in written if os.path.exists(path) and not path.startswith(("/dev/", "/proc/"))} - asked_for
    left = {path for path in left if not path.endswith((".pyc", "__pycache__"))}
    assert not left, f"{cause}\nraised in {sorted(raised_in(cause))}\nleft {sorted(left)}"


def raised_in(error: BaseException) -> set[str]:
    """Return the functions of lepmerge that an error, or its cause, went through, such as `merge/execute._reduce`."""
    found: set[str] = set()
    each: BaseException | None = error
    while each is not None:
        traceback = each.__traceback__
        while traceback is not None:
            code, traceback = traceback.tb_frame.f_code, traceback.tb_next
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE):
                found.add(f"{path.relative_to(PACKAGE).with_suffix('')}.{code.co_name}")
        each = each.__cause__
    return found
