"""Terminal output: one-line errors, progress bars, tables."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from lepmerge.commands.logs import LOGGER, failed, shown
from lepmerge.errors import LepmergeError
from lepmerge.progress import Progress

TABLE_WIDTH = 100
JSON_SCHEMA = 1
"""Version of what --json prints. It grows if a key is removed or changes its meaning."""


class CommandGroup(click.Group):
    """A click group that prints each LepmergeError without a traceback and lists commands in the order added."""

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        with _interruptions() as interruptions:
            try:
                return super().invoke(ctx)
            except (KeyboardInterrupt, Exception) as error:  # a library may turn a Ctrl-C into an error of its own
                if interruptions or isinstance(error, KeyboardInterrupt):
                    click.echo("stopped by Ctrl-C: run the same command again to continue", err=True)
                    sys.exit(130)
                if not isinstance(error, LepmergeError | OSError) or _is_broken_pipe(error):
                    raise
                failed(error)
                for line in _lines_of(error):
                    click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
                sys.exit(getattr(error, "exit_code", 1))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _is_broken_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE  # click ends quietly, as with `| head`


def _lines_of(error: LepmergeError | OSError) -> list[str]:
    """Return the message of an error, a line per problem. The operating system's own errors get a remedy."""
    if isinstance(error, LepmergeError):
        return str(error).splitlines()
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return [f"{what}: check the file and its disk, then run the same command again".replace("\n", " ")]


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Yield a list that holds the signals of each Ctrl-C so far. Each raises KeyboardInterrupt as usual."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield received
        return
    signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def progress_bar(total: int, *, quiet: bool) -> Iterator[Progress]:
    """Yield a progress callback that shows bytes, rate and ETA on stderr. It is silent if quiet or not a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, unit="B", unit_scale=True, disable=True if quiet else None, leave=False, file=sys.stderr
    ) as bar:
        current = ""

        def advance(what: str, num_done: int, total: int | None = None, /) -> None:
            nonlocal current
            if what != current:
                LOGGER.info(what)
                current = what
            bar.set_description_str(what[:48], refresh=False)
            bar.update(num_done)

        yield advance


class LogClock:
    """Limit log lines: the first is due at once, then one every 30 seconds.

    They go to the log file and, if `echo` is true, to stderr.
    """

    SECONDS = 30

    def __init__(self, *, echo: bool = True) -> None:
        self._echo = echo
        self._written: float | None = None

    def is_due(self) -> bool:
        return self._written is None or time.monotonic() - self._written >= self.SECONDS

    def write(self, line: str) -> None:
        self._written = time.monotonic()
        shown(line)
        if self._echo:
            click.echo(line, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print what a command found as JSON: its keys after `schema`, the version of all outputs, and `command`.

    docs/json.md describes them.
    """
    command = click.get_current_context().command_path.split(" ", 1)[-1]
    click.echo(json.dumps({"schema": JSON_SCHEMA, "command": command, **value}, indent=2, ensure_ascii=False))


def show_note(text: str, *, quiet: bool = False) -> None:
    """Write a note for the user to stderr, unless quiet, and to the log file."""
    shown(f"note: {text}")
    if quiet:
        return
    click.echo(f"{click.style('note:', fg='yellow')} {text}", err=True)


def human_seconds(seconds: float) -> str:
    """Format a duration for people: 40s, 3m20s, 5h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"


def table(rows: Sequence[Sequence[Any]], *, header: Sequence[str]) -> str:
    """Format rows as aligned columns, numbers to the right. A table that is too wide is split into parts.

    The parts are printed one below the other; each repeats the first column.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [
        all(isinstance(row[column], (int, float)) or row[column] is None for row in rows)
        for column in range(len(header))
    ]

    def line(values: Sequence[str], columns: Sequence[int]) -> str:
        padded = (values[c].rjust(widths[c]) if right[c] else values[c].ljust(widths[c]) for c in columns)
        return "  ".join(padded).rstrip()

    parts = _parts(widths)
    return "\n\n".join("\n".join(line(row, part) for row in [list(header), *cells]) for part in parts)


def _parts(widths: Sequence[int]) -> list[list[int]]:
    """Split columns into parts of at most TABLE_WIDTH characters. Every part begins with the first column."""
    parts = [[0]]
    for column in range(1, len(widths)):
        width = sum(widths[each] + 2 for each in parts[-1]) + widths[column]
        if width > TABLE_WIDTH and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pairs(values: dict[str, Any] | None) -> str:
    """Format a dictionary as `key value, key value`, nested dictionaries too."""
    plain = {key: pairs(value) if isinstance(value, dict) else value for key, value in (values or {}).items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())
