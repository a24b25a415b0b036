"""Run the commands of a project in order. Complete commands are skipped, interrupted ones are resumed.

`run`, `train` and `generate` check themselves whether their output is complete. Any other command is complete if the
same command line succeeded before and no file or folder in it has changed since. The journal in the project folder
records the command lines that succeeded.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lepmerge.config.schema import Schema, Strict, Where
from lepmerge.errors import ChainError, OutputError, RecipeError
from lepmerge.output.run import digest, identities
from lepmerge.output.staging import write_durably

PROJECT, JOURNAL = "project.yaml", ".chain.json"
CHECK_THEMSELVES = ("run", "train", "generate")
State = Literal["complete", "to run", "done"]
INTERRUPTED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)


class ProjectFile(Strict):
    """The commands of a project."""

    commands: list[str] = Field(min_length=1)
    """Commands as typed after `lepmerge` in the folder of this file."""
    folder: Path = Field(default=Path(), exclude=True)


_SCHEMA = Schema(ProjectFile, what="project", parts={}, choices={}, names_a_path=lambda *_: False)


@dataclass(frozen=True)
class Step:
    """A command of a project: its text, and its words."""

    text: str
    words: tuple[str, ...]

    def signature(self, folder: Path) -> str:
        """Return a digest of the words and of every file in the paths that they name. A run in between changes it."""
        named = [part for word in self.words for part in (word, word.partition("=")[2]) if part]
        paths = [path for part in named if (path := folder / Path(part).expanduser()).exists()]
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        return digest([self.words, identities(file for file in files if file.is_file())])


@dataclass(frozen=True)
class Finished:
    """A step that is complete. state: `complete` was found so, `done` was run now."""

    step: Step
    state: State
    seconds: float


@dataclass(frozen=True)
class Chain:
    """The steps of a project, and what is known of them."""

    folder: Path
    steps: Sequence[Step]

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    def ended(self) -> dict[str, str]:
        """Return command → signature of the commands that ended well."""
        try:
            found = json.loads(self.journal.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_complete(self, step: Step) -> bool:
        """Return whether a command that does not know it itself is complete."""
        is_known = step.words[0] not in CHECK_THEMSELVES
        return is_known and self.ended().get(step.text) == step.signature(self.folder)

    def remember(self, step: Step) -> None:
        ended = {**self.ended(), step.text: step.signature(self.folder)}
        try:
            write_durably(self.journal, (json.dumps(ended, indent=2, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{self.journal} cannot be written: {error.strerror}") from error


def open_chain(project: Path, check: Callable[[Sequence[str]], str | None]) -> Chain:
    """Return the chain of a project: a folder with project.yaml, or such a file.

    check(words): returns what is wrong with a command, if anything.

    Raises:
        RecipeError: the file is missing or invalid, or a command in it is.
    """
    path = project / PROJECT if project.is_dir() else project
    if not path.exists():
        raise RecipeError(f"{path} does not exist: a project is a folder that `lepmerge init MODEL FOLDER` writes")

    def faults(loaded: ProjectFile, where: Where) -> Iterator[str]:
        for number, text in enumerate(loaded.commands):
            try:
                fault = check(shlex.split(text))
            except ValueError as error:
                fault = str(error)
            if fault is not None:
                yield f"{where(('commands', number))}: {text}: {fault}"

    loaded = replace(_SCHEMA, faults=faults).load(path)
    return Chain(loaded.folder, [Step(text, tuple(shlex.split(text))) for text in loaded.commands])


def run_chain(
    chain: Chain, *, more: Sequence[str] = (), output: Any = None, before: Callable[[int, Step, State], None]
) -> list[Finished]:
    """Run the steps that are not complete, each in its own process. Return all of them.

    more: options for every command. output: where the commands write their standard output. before: called before each
    step.

    Raises:
        ChainError: a command failed.
        KeyboardInterrupt: it was interrupted by Ctrl-C.
    """
    finished = []
    for number, step in enumerate(chain.steps):
        is_complete = chain.is_complete(step)
        before(number, step, "complete" if is_complete else "to run")
        began = time.monotonic()
        if not is_complete:
            code, interrupted = _run([*step.words, *more], chain.folder, output)
            if code in INTERRUPTED or (interrupted and code != 0):
                raise KeyboardInterrupt
            if code != 0:
                raise ChainError(
                    f"step {number + 1} of {len(chain.steps)} failed: lepmerge {step.text}. Mend what its message "
                    f"names, then run the chain again: complete steps are skipped"
                )
            chain.remember(step)
            if interrupted:  # a library may swallow a Ctrl-C while it is imported; then the command ends as usual
                raise KeyboardInterrupt
        finished.append(Finished(step, "complete" if is_complete else "done", time.monotonic() - began))
    return finished


def _run(words: Sequence[str], folder: Path, output: Any) -> tuple[int, bool]:
    """Run a lepmerge command in a folder. Return its exit code, and whether Ctrl-C was pressed.

    A signal to this process reaches the command, too.
    """
    program = "from lepmerge.commands.main import main; main(prog_name='lepmerge')"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # a project's folder may be called like a library
    command = [sys.executable, "-c", program, *words]
    with (
        subprocess.Popen(command, cwd=folder, env=environment, stdout=output) as process,
        _forwarded(process) as received,
    ):
        return process.wait(), bool(received)


@contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Let the process end by itself after Ctrl-C, which the terminal sends to both, and send it a SIGTERM on.

    Yield a list that holds the signal of each Ctrl-C so far.
    """
    received: list[int] = []

    def terminate(*_: object) -> None:
        process.send_signal(signal.SIGTERM)

    old = [
        signal.signal(signal.SIGINT, lambda number, _: received.append(number)),
        signal.signal(signal.SIGTERM, terminate),
    ]
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, old[0])
        signal.signal(signal.SIGTERM, old[1])
