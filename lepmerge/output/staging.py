"""The staged output: it is written next to the target, can be resumed after a kill, and is moved when complete.

.NAME.lepmerge/manifest.json    the run's fingerprint, and which parts of it are finished
.NAME.lepmerge/output/          the finished files; this folder, or the one file in it, becomes the target
.NAME.lepmerge-old/             the folder that --overwrite replaces, for the moment of the swap
"""

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepmerge.errors import OutputError

_LOG = logging.getLogger(__name__)
MANIFEST = "manifest.json"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Staging:
    """The staging folder of one target. It is locked for this process while it is open.

    is_file: the target is a single file, the one that is written under the target's name.
    """

    def __init__(self, target: Path, *, is_file: bool = False) -> None:
        self.target = Path(os.path.realpath(target))
        self.folder = self.target.parent / f".{self.target.name}.lepmerge"
        self.old = self.target.parent / f".{self.target.name}.lepmerge-old"
        self.output = self.folder / "output"
        self._partial = self.folder / "partial"
        self.manifest: dict[str, Any] = {}
        self.is_file = is_file

    @contextmanager
    def opened(self, fingerprint: str) -> Iterator["Staging"]:
        """Lock the folder. Keep what an earlier run with the same fingerprint finished; otherwise empty the folder."""
        with self.translated():
            self.target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            with self.translated():
                self._repair()
                self.manifest = self._read_manifest()
                if self.manifest.get("fingerprint") != fingerprint:
                    self._clear()
                    self.manifest = {"fingerprint": fingerprint, "files": {}, "results": {}}
                self._partial.unlink(missing_ok=True)  # free its disk space before the space is checked
                self.output.mkdir(parents=True, exist_ok=True)
                self._save()
            yield self

    def repair(self) -> None:
        """Undo an interrupted replacement of the target, unless another run is performing it now."""
        if self.old.exists():
            with self._locked():
                self._repair()

    def _repair(self) -> None:
        """Move the old target back, or remove it if the new one is in place."""
        if self.old.exists():
            if self.target.exists() and any(self.target.iterdir()):
                shutil.rmtree(self.old)
            else:
                self.old.rename(self.target)

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the run that left files here, or None if there are none."""
        return self._read_manifest().get("fingerprint")

    def tidy(self, fingerprint: str) -> None:
        """Remove the staging folder of a run that was killed after it had moved its output into place."""
        if self.folder.exists():
            with self._locked():
                if self._read_manifest().get("fingerprint", fingerprint) == fingerprint:
                    shutil.rmtree(self.folder)

    def discard(self) -> None:
        """Remove the staging folder while it is open: a fault was found, and nothing in it is worth keeping."""
        shutil.rmtree(self.folder)

    def finished(self, name: str, size: int) -> bool:
        """Return whether an earlier run finished this file."""
        path = self.output / name
        return (
            self.manifest["files"].get(name, {}).get("size") == size and path.exists() and path.stat().st_size == size
        )

    def write_file(self, name: str, write: Callable[[int], dict[str, Any]]) -> None:
        """Create a file with `write`: descriptor → details for the manifest. It is finished once it is on disk."""
        with self.translated():
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                details = write(descriptor)
                os.fsync(descriptor)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            path = self.output / name
            path.parent.mkdir(exist_ok=True)  # needed for additional_chat_templates/
            self._partial.replace(path)
            _LOG.debug("%s: %s bytes", name, f"{size:,}")
            _sync(path.parent)
            self._record("files", name, {"size": size, **details})

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""

        def write(descriptor: int) -> dict[str, Any]:
            write_all(descriptor, data)
            return {}

        self.write_file(name, write)

    def link_file(self, name: str, source: Path) -> None:
        """Create the file as a hard link to an input file."""
        path = self.output / name
        path.unlink(missing_ok=True)
        try:
            os.link(os.path.realpath(source), path)
        except OSError as error:
            raise OutputError(f"{source} cannot be hard-linked into {self.target.parent} ({error.strerror}); "
                              f"run without --link hard to copy it") from error  # fmt: skip
        self._record("files", name, {"size": path.stat().st_size})

    def write_record(self, path: Path, data: bytes) -> None:
        """Write the run's record as the last file of an output folder, or next to an output file."""
        if self.is_file:
            with self.translated():
                write_durably(path, data)
        else:
            self.write_bytes(path.name, data)

    def save_result(self, name: str, data: bytes, report: dict[str, Any]) -> None:
        """Save the result of a reduction, so that a resumed run does not compute it again."""
        with self.translated():
            write_durably(self.folder / name, data)
            self._record("results", name, report)

    def result(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        path = self.folder / name
        return (path, self.manifest["results"][name]) if name in self.manifest["results"] and path.exists() else None

    def publish(self, *, overwrite: bool) -> None:
        """Move the finished folder or file into place."""
        if self.is_file:
            for path in sorted(self.output.iterdir(), key=lambda path: (path.name == self.target.name, path.name)):
                path.replace(self.target.parent / path.name)  # the main file last, so that it is never there alone
            _sync(self.target.parent)
            shutil.rmtree(self.folder)
            return
        expected = set(self.manifest["files"])
        for path in self.output.rglob("*"):
            if path.is_file() and path.relative_to(self.output).as_posix() not in expected:
                path.unlink()
        _sync(self.output)
        if self.target.exists() and any(self.target.iterdir()):
            assert overwrite, "the target was checked before"
            self.target.rename(self.old)
        self.output.rename(self.target)
        _sync(self.target.parent)
        if self.old.exists():
            shutil.rmtree(self.old)
        shutil.rmtree(self.folder)

    def remaining(self, sizes: Mapping[str, int]) -> int:
        """Return the number of bytes still to be written. sizes: file name → bytes."""
        return sum(size for name, size in sizes.items() if not self.finished(name, size))

    def _record(self, part: str, name: str, value: dict[str, Any]) -> None:
        self.manifest[part][name] = value
        self._save()

    def _save(self) -> None:
        write_durably(self.folder / MANIFEST, json.dumps(self.manifest).encode())

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            return manifest if isinstance(manifest, dict) else {}
        except (FileNotFoundError, ValueError):
            return {}

    def _clear(self) -> None:
        """Empty the staging folder except for the lock file. Only lepmerge writes to this folder."""
        for path in self.folder.iterdir():
            if path.name == "lock":
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.translated():
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"another run is writing {self.target} now (its lock: {self.folder}/lock)") from error
            # between open() and flock() another run may have finished and deleted the folder with this lock file
            if not os.path.exists(lock.name) or not os.path.samefile(lock.name, lock.fileno()):
                raise OutputError(f"another run has just written {self.target}: run again to see what it did")
            yield

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Convert write errors of the operating system into OutputError with a remedy."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise OutputError(
                    f"the disk of {self.target.parent} is full; what was finished is kept in {self.folder}: free some "
                    f"space and run the same command again, it continues from there"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise OutputError(f"{self.target.parent} cannot be written to: {error.strerror}") from error
            if error.errno in (errno.ENOTDIR, errno.EEXIST):
                raise OutputError(
                    f"{self.target.parent} is not a folder ({error.strerror}): choose another output"
                ) from error
            raise


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Write all bytes at the file's current position. One call of os.write may write fewer."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically, and flush it to the disk."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
