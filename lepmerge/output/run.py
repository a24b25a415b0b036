"""A run owns its output: identity, complete already?, checks of target and space, lock, resume, publish.

Every command that writes models, trainings, tokenizers or single files does it in this way:

    run = Run(target, fingerprint=…, inputs=…)
    if run.begin():                      # complete already: nothing to do
        return target
    run.check(sizes)                     # refuses before anything is computed or written
    with run.opened(sizes) as staging:   # locked; what an earlier run of this fingerprint finished is kept
        staging.write_file(…)            # leaving the block publishes the output
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lepmerge.output.staging import Staging, check_space, check_target

RUN_FILE = "lepmerge_run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run and its output: a folder, or a single file with is_file.

    fingerprint: the identity of everything that decides the contents. inputs: files and folders that the output must
    not touch. key: where the user names the target, for errors. overwrite: replace what is at the target, once the new
    output is complete.
    """

    target: Path
    fingerprint: str
    inputs: tuple[Path, ...] = field(default=(), repr=False)
    key: str = "output.path"
    overwrite: bool = False
    marker: str = "config.json"
    """A file that every such output folder has: --overwrite deletes no other folder."""
    is_file: bool = False
    staged: str = ""
    """Identity of what a killed run leaves in the staging folder, when it outlives a change of the fingerprint."""

    @cached_property
    def staging(self) -> Staging:
        return Staging(self.target, is_file=self.is_file)

    @property
    def record(self) -> Path:
        """The file that says which run made the output, inside a folder and beside a single file."""
        return self.target.with_name(f"{self.target.name}.{RUN_FILE}") if self.is_file else self.target / RUN_FILE

    def is_complete(self) -> bool:
        """Return whether the target holds the whole output of this run."""
        folder = self.target.parent if self.is_file else self.target
        try:
            record = json.loads(self.record.read_text())
            return record["fingerprint"] == self.fingerprint and all(
                _matches(folder / name, expected) for name, expected in record["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def begin(self) -> bool:
        """Clean up after a killed run; return whether the output is complete already."""
        self.staging.repair()
        if not self.is_complete():
            return False
        self.staging.tidy(self.staged or self.fingerprint)
        return True

    def check(self, sizes: Mapping[str, int], *, working: int = 0) -> None:
        """Check target and free space; nothing is written.

        sizes: file name → bytes to write. working: bytes that the run needs beside the output, such as checkpoints.

        Raises:
            OutputError: writing could cost the user something, or the disk is too small.
        """
        self._check_target()
        if not self.staging.folder.exists():  # else opened() knows what is left to write
            check_space(self.target, sum(sizes.values()) + working)

    @contextmanager
    def opened(self, sizes: Mapping[str, int], *, working: int = 0) -> Iterator[Staging]:
        """Lock the target and yield the staging folder; publish the output when the block ends without an error.

        Raises:
            OutputError: as check(); another run writes this target; the disk is full or cannot be written to.
        """
        began = time.time()
        with self.staging.opened(self.staged or self.fingerprint), self.staging.translated():
            self._check_target()
            check_space(self.target, self.staging.remaining(sizes) + working)
            yield self.staging
            self._write_record(seconds=time.time() - began)
            self.staging.publish(overwrite=self.overwrite)

    def _check_target(self) -> None:
        check_target(
            self.target,
            inputs=self.inputs,
            overwrite=self.overwrite,
            key=self.key,
            marker=self.marker,
            is_file=self.is_file,
        )

    def _write_record(self, *, seconds: float) -> None:
        output = self.staging.output
        written = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != RUN_FILE]
        record: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "seconds": round(seconds, 3),
            "threads": torch.get_num_threads(),
            "files": {
                path.relative_to(output).as_posix(): _identity(path) if self.is_file else path.stat().st_size
                for path in written
            },
        }
        self.staging.write_record(self.record, (json.dumps(record, indent=2) + "\n").encode())


def _identity(path: Path) -> list[int]:
    """Return size and time of change, which a rename keeps: an older file of the same size is told apart."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _matches(path: Path, expected: Any) -> bool:
    return _identity(path) == expected if isinstance(expected, list) else path.stat().st_size == expected


def identities(paths: Iterable[Path]) -> list[list[Any]]:
    """Return path, inode, size and time of change of files: a file that was written anew is another one."""
    return [
        [os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns]
        for path in paths
        for status in [os.stat(path)]
    ]


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
