"""Fuzz: mutated inputs of every kind are read as by the reference reader, or refused with one clear line.

python tests/campaigns/fuzz.py --seed 1 --count 1000000 --record

A fault is any other exception, a result that differs from the reference reader's, a file that is opened outside the
case's folder, more memory than 500 MiB, a case of more than 5 CPU seconds, or a dead process.
"""

import os
import random
import resource
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from frame import ROOT, Campaign, Fault, main

from readers import CORPUS, KINDS, Kind  # isort: skip  (after frame, which sets the environment)

MEMORY = 500 << 20
LONGEST_MESSAGE = 12_000
PLAIN_FILES = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, ROOT, "/proc", "/dev", "/usr", "/etc", "/sys")))
"""Folders in which files may be read: packages and the system. /etc/passwd, which inputs name, is no exception."""


class Watch:
    """Remembers which files outside the allowed folders were opened."""

    def __init__(self) -> None:
        self.folder = ""
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if event != "open" or not self.folder or not isinstance(arguments[0], str | bytes):
            return
        path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
        is_read = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path.startswith((self.folder, TEMPORARY)) or (
            is_read and path.startswith(PLAIN_FILES) and path != "/etc/passwd"
        ):
            return
        self.outside.append(path)


TEMPORARY = os.path.realpath("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
WATCH: Watch | None = None


def prepare() -> None:
    """Read one seed of each kind, which imports everything."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=TEMPORARY) as folder:
        for kind in KINDS:
            outcome_of(kind, kind.seeds[0], kind.seeds[0].read_bytes(), Path(folder) / kind.name)


def setup() -> None:
    """Give the process a folder of its own, and silence the libraries."""
    global WATCH
    tempfile.tempdir = tempfile.mkdtemp(prefix="fuzz-", dir=TEMPORARY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    devnull = os.open(os.devnull, os.O_WRONLY)  # Rust libraries print warnings and panics
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    WATCH = Watch()


def teardown() -> None:
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@lru_cache
def _seeds(name: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((CORPUS / name).iterdir()))


def kind_of(number: int) -> Kind:
    """Return the kind of a case. 1000 consecutive cases have each kind as often as its weight says."""
    place = number * 617 % 1000  # coprime to 1000, so that the kinds alternate
    for kind in KINDS:
        place -= kind.weight
        if place < 0:
            return kind
    raise AssertionError


def case(number: int, rng: random.Random) -> str:
    """Mutate one seed and read it."""
    kind = kind_of(number)
    chosen = rng.randrange(len(kind.seeds))
    data = kind.mutate(_seeds(kind.name)[chosen], rng, _seeds(kind.name))
    folder = Path(tempfile.gettempdir()) / kind.name
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    return f"{kind.name}: {outcome_of(kind, kind.seeds[chosen], data, folder)}"


def outcome_of(kind: Kind, seed: Path, data: bytes, folder: Path) -> str:
    from lepmerge.errors import LepmergeError

    if kind.file == "":
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    for name, place in kind.beside:
        if not (folder / name).exists():
            shutil.copy(CORPUS / place, folder / name)
    (folder / (kind.file or seed.name)).write_bytes(data)
    if WATCH is not None:
        WATCH.folder, WATCH.outside = str(folder), []
    try:
        outcome = kind.read(folder, data)
    except LepmergeError as error:
        outcome = "refused"
        message = str(error)
        lines = message.splitlines()
        if not message.strip() or len(message) > LONGEST_MESSAGE * len(lines):
            raise Fault(f"{kind.name}: an empty or endless message: {message[:80]!r}") from error
        if len(lines) > 1 and kind.name not in ("recipe", "training"):
            raise Fault(f"{kind.name}: a message of several lines: {message[:80]!r}") from error
    finally:
        outside = WATCH.outside if WATCH is not None else []
        if WATCH is not None:
            WATCH.folder = ""
    if outside:
        raise Fault(f"{kind.name}: opened {outside[0]}")
    return outcome


CAMPAIGN = Campaign("fuzz", case, limit=5.0, chunk=2000, prepare=prepare, setup=setup, teardown=teardown)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=1_000_000))
