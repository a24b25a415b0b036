"""The frame of all campaigns: numbered cases in watched child processes, a state that can be resumed, a JSON result.

A case depends on the seed and its number alone, so any case can be repeated: `python fuzz.py --seed 1 --only 4711`.
A child process that dies or hangs is a fault of the case that it was in; the campaign goes on with the next case.
"""

import argparse
import atexit
import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Value
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # not by torch.set_num_threads: its pool must not exist before a fork
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "peft")
MOST_EXAMPLES = 200
"""At most this many different faults are described in a state."""


class Fault(Exception):
    """A case did not end as it should."""


@dataclass
class State:
    """What a campaign has found so far, and what it goes on with.

    outcomes: outcome → number of cases. faults: signature → number of cases. examples: signature → its first case.
    details: what a case reports besides its outcome, such as a row of a table. seconds: CPU time of all cases
    and of the processes that they started.
    """

    campaign: str
    seed: int
    done: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    details: list[list[str]] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def add(self, other: "State") -> None:
        """Take up the findings of a later chunk of cases."""
        self.seconds += other.seconds
        self.outcomes.update(other.outcomes)
        self.faults.update(other.faults)
        self.details += other.details
        for signature, number in other.examples.items():
            if len(self.examples) < MOST_EXAMPLES:
                self.examples.setdefault(signature, number)

    def to_json(self) -> str:
        plain = vars(self) | {"outcomes": dict(sorted(self.outcomes.items())), "seconds": round(self.seconds, 1)}
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def of_json(cls, text: str | bytes) -> "State":
        plain = json.loads(text)
        return cls(**plain | {"outcomes": Counter(plain["outcomes"]), "faults": Counter(plain["faults"])})

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(self.to_json())
        temporary.replace(path)


Found = str | Counter[str] | tuple[str | Counter[str], list[str]]
"""What a case returns: its outcome, or outcomes with their numbers; optionally with details."""


@dataclass(frozen=True)
class Campaign:
    """case: (number, its random generator) → what it found. On a fault it raises any error.

    limit: CPU seconds that one case may take. chunk: number of cases for one child process. prepare: called once, so
    that the children have its imports. setup, teardown: called in each child.
    """

    name: str
    case: Callable[[int, random.Random], "Found"]
    limit: float = 5.0
    chunk: int = 500
    prepare: Callable[[], None] = lambda: None
    setup: Callable[[], None] = lambda: None
    teardown: Callable[[], None] = lambda: None

    def run(self, state: State, count: int, *, minutes: float | None = None, path: Path | None = None) -> State:
        """Run cases until `count` are done or the minutes are over; save the state after each chunk."""
        began = time.monotonic()
        if state.done < count:
            self.prepare()
        while state.done < count and (minutes is None or time.monotonic() - began < 60 * minutes):
            stop = min(count, state.done + self.chunk)
            found = self._watched(state.seed, state.done, stop)
            state.add(found)
            state.done = found.done
            if path is not None:
                state.save(path)
        return state

    def _watched(self, seed: int, start: int, stop: int) -> State:
        """Run a chunk of cases in a child. If it dies, repeat what it finished and count the case as a fault."""
        at = Value("q", start)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self._child(seed, start, stop, at, write)
        os.close(write)
        reason = self._wait(pid, at)
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
        if reason is None and data:
            return State.of_json(data)
        number = at.value
        found = self._watched(seed, start, number) if number > start else State(self.name, seed)
        signature = reason or "the process ended without a result"
        found.add(State(self.name, seed, faults=Counter([signature]), examples={signature: number}))
        found.outcomes["fault"] += 1
        found.done = number + 1
        return found

    def _wait(self, pid: int, at: "Value") -> str | None:
        """Wait for a child and return why it did not end well. A case is given `limit` seconds of CPU time."""
        number, began = -1, 0.0
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                if os.WIFSIGNALED(status):
                    return f"killed by signal {os.WTERMSIG(status)}"
                return None if os.WEXITSTATUS(status) == 0 else f"exit code {os.WEXITSTATUS(status)}"
            used = cpu_seconds(pid)
            if at.value != number:
                number, began = at.value, used
            elif used - began > self.limit:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return f"hung: more than {self.limit:g} CPU seconds"
            time.sleep(0.02)

    def _child(self, seed: int, start: int, stop: int, at: "Value", write: int) -> None:
        code = 1
        try:
            self.setup()
            state = State(self.name, seed, done=stop)
            before = sum(os.times()[:4])
            for number in range(start, stop):
                at.value = number
                self._one(state, number)
            state.seconds = sum(os.times()[:4]) - before
            with os.fdopen(write, "wb") as pipe:
                pipe.write(state.to_json().encode())
            code = 0
        finally:
            self.teardown()
            os._exit(code)

    def _one(self, state: State, number: int) -> None:
        try:
            outcome = self.case(number, random.Random(f"{state.seed}:{number}"))
        except BaseException as error:  # a panic of a Rust library is no Exception
            signature = signature_of(error)
            state.faults[signature] += 1
            state.examples.setdefault(signature, number)
            state.outcomes["fault"] += 1
            return
        if isinstance(outcome, tuple):
            outcome, details = outcome
            state.details.append(details)
            faults = [f"{details[0]}: {detail}" for detail in details if detail.startswith("fault: ")]
            state.faults.update(faults)
            state.examples |= dict.fromkeys(faults, number)
        state.outcomes.update([outcome] if isinstance(outcome, str) else outcome)


def scratch_folder(name: str) -> Path:
    """Return a new folder, in memory if possible. It is removed when this process ends; children end by os._exit."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def signature_of(error: BaseException) -> str:
    """Return the kind of an error and the place in lepmerge that raised it."""
    if isinstance(error, Fault):
        return f"Fault: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lepmerge/" in frame.filename]
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())[:100]}"


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a running process has used."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the clock of a process, as pthread_getcpuclockid numbers it
    except OSError:  # it has just ended
        return 0.0


def machine() -> dict[str, str]:
    """Return processor, versions and commit."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    about = {"machine": platform.machine(), "cpus": str(os.cpu_count()), "python": platform.python_version()}
    return {**about, **versions, "commit": commit.stdout.strip()}


def _alone(campaign: Campaign, seed: int, number: int) -> int:
    """Run one case and print its outcome or its traceback, although the setup may silence the process."""
    terminal = os.dup(1)
    campaign.prepare()
    campaign.setup()
    try:
        shown, code = str(campaign.case(number, random.Random(f"{seed}:{number}"))), 0
    except BaseException:  # panics of Rust libraries derive from BaseException
        shown, code = traceback.format_exc(), 1
    finally:
        campaign.teardown()
    os.write(terminal, f"{shown}\n".encode())
    return code


def main(campaign: Campaign, arguments: Sequence[str] | None = None, *, count: int) -> int:
    """Run a campaign from the command line. Return 1 if it found a fault."""
    parser = argparse.ArgumentParser(description=sys.modules[campaign.case.__module__].__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--count", type=int, default=count, help="number of cases in all, those of earlier runs included"
    )
    parser.add_argument("--minutes", type=float, help="stop after this time; the next run goes on from there")
    parser.add_argument("--state", type=Path, help="file of the state (default: out/campaigns/NAME-SEED.json)")
    parser.add_argument("--record", action="store_true", help="write the result to tests/campaigns/results")
    parser.add_argument("--only", type=int, help="run this case alone, in this process")
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _alone(campaign, options.seed, options.only)
    path = options.state or ROOT / "out/campaigns" / f"{campaign.name}-{options.seed}.json"
    state = State.of_json(path.read_text()) if path.exists() else State(campaign.name, options.seed)
    state.machine = machine()
    campaign.run(state, options.count, minutes=options.minutes, path=path)
    if options.record:
        state.save(RESULTS / f"{campaign.name}.json")
    print(f"{campaign.name}: {state.done:,} cases in {state.seconds:,.0f} CPU s: {dict(state.outcomes)}")
    for signature, number in state.examples.items():
        print(f"  case {number} ({state.faults[signature]}): {signature}")
    return 1 if state.faults else 0
