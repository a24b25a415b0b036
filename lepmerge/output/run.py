"""A run owns its output: it has an identity, checks target and disk space, locks, resumes and publishes.

Every command that writes models, trainings, tokenizers or single files uses it in this way:

    run = Run(target, fingerprint=…, inputs=…)
    if run.begin():                      # the output is already complete
        return target
    run.check(sizes)                     # refuses before anything is computed or written
    with run.opened(sizes) as staging:   # locks; keeps files that an earlier run with this fingerprint finished
        staging.write_file(…)            # leaving the block publishes the output
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lepmerge.errors import OutputError
from lepmerge.models.references import CARD
from lepmerge.output.checks import check_space, check_target
from lepmerge.output.staging import Staging

_LOG = logging.getLogger(__name__)
RUN_FILE = "lepmerge_run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run and its output: a folder, or a single file with is_file.

    fingerprint: the identity of everything that determines the contents. inputs: files and folders that the output must
    not touch. key: the option or key with which the user chooses the target, for error messages. overwrite: replace an
    existing target once the new output is complete.
    """

    target: Path
    fingerprint: str
    inputs: tuple[Path, ...] = field(default=(), repr=False)
    key: str = "output.path"
    overwrite: bool = False
    marker: str = "config.json"
    """A file that every such output folder has. --overwrite deletes only folders that contain it."""
    is_file: bool = False
    files: tuple[Path, ...] = field(default=(), repr=False)
    """Files that are read until the output is complete. If one of them changes meanwhile, nothing is published."""
    staged: str = ""
    """Identity of the staging folder, if a killed run may be resumed even with another fingerprint."""

    def __post_init__(self) -> None:
        _ = self._identities  # as they are before anything is read

    @cached_property
    def _identities(self) -> list[list[Any]]:
        return identities(self.files)

    @cached_property
    def staging(self) -> Staging:
        return Staging(self.target, is_file=self.is_file)

    @property
    def record(self) -> Path:
        """The file that records which run made the output. It is inside an output folder, or next to a single file."""
        return self.target.with_name(f"{self.target.name}.{RUN_FILE}") if self.is_file else self.target / RUN_FILE

    def is_complete(self) -> bool:
        """Return whether the target contains the complete output of this run."""
        folder = self.target.parent if self.is_file else self.target
        try:
            record = json.loads(self.record.read_text())
            return record["fingerprint"] == self.fingerprint and all(
                _matches(folder / name, expected) for name, expected in record["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def begin(self) -> bool:
        """Clean up after a killed run. Return whether the output is already complete."""
        self.staging.repair()
        if not self.is_complete():
            return False
        _LOG.info("%s is complete already", self.target)
        self.staging.tidy(self.staged or self.fingerprint)
        return True

    def check(self, sizes: Mapping[str, int], *, working: int = 0) -> None:
        """Check the target and the free disk space. Nothing is written.

        sizes: file name → bytes to write. working: bytes that the run needs in addition, such as checkpoints.

        Raises:
            OutputError: writing could cost the user something, or the disk is too small.
        """
        self._check_target()
        if not self.staging.folder.exists():  # otherwise opened() checks the space for the rest
            check_space(self.target, sum(sizes.values()) + working)

    @contextmanager
    def opened(self, sizes: Mapping[str, int], *, working: int = 0) -> Iterator[Staging]:
        """Lock the target and yield the staging folder. Publish the output if the block ends without an error.

        Raises:
            OutputError: as check(); another run writes this target; the disk is full or cannot be written to; an input
            changed.
        """
        began, began_cpu = time.time(), time.process_time()
        with self.staging.opened(self.staged or self.fingerprint), self.staging.translated():
            self._check_target()
            check_space(self.target, self.staging.remaining(sizes) + working)
            _LOG.info("writing %s, staged in %s", self.target, self.staging.folder)
            yield self.staging
            if _identities_or_none(self.files) != self._identities:
                raise OutputError(
                    f"an input changed while {self.target} was written, so the output would be a mixture of old and "
                    f"new: nothing was published; run the same command again when the inputs are complete"
                )
            self._write_record(seconds=time.time() - began, cpu_seconds=time.process_time() - began_cpu)
            self.staging.publish(overwrite=self.overwrite)
            _LOG.info("%s is complete after %.1f s", self.target, time.time() - began)

    def _check_target(self) -> None:
        check_target(
            self.target,
            inputs=self.inputs,
            overwrite=self.overwrite,
            key=self.key,
            marker=self.marker,
            is_file=self.is_file,
        )

    def _write_record(self, *, seconds: float, cpu_seconds: float) -> None:
        """Write the record of this run. An interrupted run that was resumed counts the time since the resumption."""
        output = self.staging.output
        written = [path for path in sorted(output.rglob("*")) if path.is_file() and not _may_change(path)]
        record: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            **_threads(),
            "files": {
                path.relative_to(output).as_posix(): _identity(path) if self.is_file else path.stat().st_size
                for path in written
            },
        }
        self.staging.write_record(self.record, (json.dumps(record, indent=2) + "\n").encode())


def _threads() -> dict[str, int]:
    """Return the number of threads that torch used, or nothing if the run did not need torch."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"threads": torch.get_num_threads()}


def _may_change(path: Path) -> bool:
    """Return whether a file does not belong to the record: the record itself, and the card, which people complete."""
    return path.name == RUN_FILE or path.name.endswith(CARD)


def _identity(path: Path) -> list[int]:
    """Return size and modification time. A rename keeps both, and the time distinguishes files of equal size."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _matches(path: Path, expected: Any) -> bool:
    return _identity(path) == expected if isinstance(expected, list) else path.stat().st_size == expected


def identities(paths: Iterable[Path]) -> list[list[Any]]:
    """Return path, inode, size and modification time of files. They change when a file is written again."""
    return [
        [os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns]
        for path in paths
        for status in [os.stat(path)]
    ]


def _identities_or_none(paths: Iterable[Path]) -> list[list[Any]] | None:
    """Return identities(), or None if a file is gone."""
    try:
        return identities(paths)
    except FileNotFoundError:
        return None


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
