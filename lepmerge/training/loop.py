"""The training loop: steps, metrics, held-out text, checkpoints. It resumes a run that was killed.

NAME.safetensors    the checkpoint
NAME.jsonl          the metrics, one line per step; interrupting and resuming a run does not change a byte of them
NAME.speed.jsonl    seconds and memory, which differ from run to run
"""

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from lepmerge.errors import Stopped, TrainingError
from lepmerge.training.events import Note, OnEvent, StepDone
from lepmerge.training.group import Group
from lepmerge.training.held_out import HeldOut, bits_per_byte
from lepmerge.training.learner import Learner, StepResult
from lepmerge.training.state import Position, load_checkpoint, save_checkpoint

WINDOW = 10
"""The loss is averaged over this many steps to decide whether it diverges."""
OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class StopSignal:
    """Remembers a SIGTERM or Ctrl-C, so that the training can stop cleanly between two micro batches."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Listen to signals in this context. A second Ctrl-C stops at once."""
        before = {}

        def receive(number: int, frame: FrameType | None) -> None:
            self.received = number
            signal.signal(number, before[number])

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                before[number] = signal.signal(number, receive)
            except ValueError:  # Python allows signal handlers in the main thread only
                break
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def error(self, what: str) -> Stopped:
        """Return the error that ends the training, with the exit code of the signal."""
        received = signal.Signals(self.received or signal.SIGTERM)
        return Stopped(f"{received.name} received: {what}", received)

    def check(self) -> None:
        if self.received is not None:
            raise self.error("stopped before the first step; run the same command again")

    def check_together(self, group: Group) -> None:
        """Stop all processes at the same step if any of them received a signal."""
        if group.size > 1:
            received = group.sum(torch.tensor(self.received or 0, device=group.device))
            self.received = self.received or (signal.SIGTERM if int(received) else None)
        self.check()


@dataclass
class Track:
    """The files of one run of steps in the staging folder: checkpoint, metrics, speed."""

    folder: Path
    name: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def speed(self) -> Path:
        return self.folder / f"{self.name}.speed.jsonl"

    def lines(self, num_bytes: int | None = None) -> list[dict[str, Any]]:
        """Return the metrics in the first num_bytes of their file, or all of them."""
        data = self.metrics.read_bytes()[:num_bytes] if self.metrics.exists() else b""
        return [json.loads(line) for line in data.splitlines()]


@dataclass
class History:
    """The losses and the number of tokens of all steps so far, including those before a resumption."""

    learner: Learner
    until: int
    losses: list[float]
    num_tokens: int
    began: float = field(default_factory=time.perf_counter)

    def add(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.num_tokens += result.num_tokens

    def done(self, result: StepResult, step: int, bits: dict[str, float], micro_batch: int) -> StepDone:
        """Return the event of the newest step."""
        return StepDone(
            step=step,
            until=self.until,
            loss=_rounded(result.loss),
            learning_rate=self.learner.learning_rate(step - 1),
            grad_norm=_rounded(result.grad_norm),
            tokens=self.num_tokens,
            step_tokens=result.num_tokens,
            bits_per_byte=bits,
            terms=_rounded(result.terms),
            seconds=time.perf_counter() - self.began,
            micro_batch=micro_batch,
            memory=process_memory(),
            gpu_memory=gpu_memory(self.learner.group.device),
        )


def run_steps(
    learner: Learner,
    track: Track,
    *,
    until: int,
    micro_batch: int,
    held_out: Mapping[str, HeldOut],
    stop: StopSignal,
    on_event: OnEvent,
) -> None:
    """Train up to step `until`, starting from the track's checkpoint if there is one.

    Raises:
        TrainingError: the loss is not finite or diverges, or memory runs out even for a single block.
        Stopped: a signal was received; a checkpoint was written before.
    """
    config, is_main = learner.config, learner.group.rank == 0
    position = _resumed(learner, track, micro_batch, on_event)
    before = track.lines(position.metrics_bytes)
    losses = [line["loss"] for line in before if "loss" in line]
    learner.group.wait()
    if is_main and track.metrics.exists():
        os.truncate(track.metrics, position.metrics_bytes)  # drop metrics of steps that the checkpoint lacks
    if position.step == 0 and held_out:
        _append(track.metrics, {"step": 0, "bits_per_byte": _rounded(bits_per_byte(learner, held_out))}, is_main)
    history = History(learner, until, losses, before[-1].get("tokens", 0) if before else 0)
    # A micro batch that was halved when memory ran out stays halved.
    step, micro_batch = position.step, min(micro_batch, position.micro_batch)
    saved = position.step
    while step < until:
        try:
            stop.check_together(learner.group)
            result, micro_batch = _step(learner, step, micro_batch, stop, on_event)
        except Stopped:
            save_checkpoint(track.checkpoint, learner, Position(step, micro_batch, _size(track.metrics)))
            raise stop.error(f"stopped after step {step} of {until}; the same command continues from there") from None
        step += 1
        history.add(result)
        _check_health(result, losses, step, saved, track)
        is_measured = held_out and config.evaluate and (step % config.evaluate.every == 0 or step == until)
        bits = _rounded(bits_per_byte(learner, held_out)) if is_measured else {}
        done = history.done(result, step, bits, micro_batch)
        _append(track.metrics, done.metrics(), is_main)
        _append(track.speed, done.speed(), is_main)
        on_event(done)
        if step % config.checkpoint_every == 0 or step == until:
            save_checkpoint(track.checkpoint, learner, Position(step, micro_batch, _size(track.metrics)))
            saved = step


def _resumed(learner: Learner, track: Track, micro_batch: int, on_event: OnEvent) -> Position:
    """Restore the track's checkpoint, if there is one; return the position to continue from."""
    if not track.checkpoint.exists():
        return Position(0, micro_batch, 0)
    position = load_checkpoint(track.checkpoint, learner)
    on_event(Note(f"resuming after step {position.step}"))
    if micro_batch < position.micro_batch:
        changed = f"micro_batch is now {micro_batch}, it was {position.micro_batch}"
        on_event(Note(f"{changed}: losses may differ in the last digits"))
    return position


def _step(learner: Learner, step: int, micro_batch: int, stop: StopSignal, on_event: OnEvent) -> tuple[StepResult, int]:
    """Run a step. While memory runs out, retry with smaller micro batches."""
    while True:
        try:
            between = stop.check if learner.group.size == 1 else _do_nothing
            return learner.step(step, micro_batch=micro_batch, between=between), micro_batch
        except OutOfMemory as error:
            problem = str(error).splitlines()[0]
        learner.forget_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if micro_batch == 1 or learner.group.sharded:  # sharded, the other processes wait for this one's weights
            blocks = f"{micro_batch} blocks" if micro_batch > 1 else "a single block"
            smaller = "a smaller micro_batch or block_size" if micro_batch > 1 else "a smaller block_size"
            raise TrainingError(
                f"out of memory with {blocks} of {learner.config.block_size} tokens ({problem}): {smaller}, "
                f"train.rows: new, or activation_checkpointing: true need less"
            )
        micro_batch = (micro_batch + 1) // 2
        on_event(Note(f"out of memory: micro_batch is now {micro_batch}"))


def _check_health(result: StepResult, losses: list[float], step: int, saved: int, track: Track) -> None:
    """Raise TrainingError if the loss or the gradient is not finite, or if the loss grows."""
    kept = (
        f"the last good checkpoint is of step {saved} ({track.checkpoint})" if saved else "there is no checkpoint yet"
    )
    for what, value in (("loss", result.loss), ("norm of the gradient", result.grad_norm)):
        if not math.isfinite(value):
            raise TrainingError(f"step {step}: the {what} is {value}; {kept}; lower learning_rate and start again")
    # The beginning is the first loss or the mean of the first steps, whichever is lower: losses that shoot up at once
    # would hide in the mean.
    before, now = min(losses[0], sum(losses[:WINDOW]) / WINDOW), sum(losses[-WINDOW:]) / WINDOW
    if len(losses) >= 2 * WINDOW and now > before + max(1.0, 0.5 * before):
        raise TrainingError(
            f"step {step}: the loss diverges, from {before:.2f} to {now:.2f} nats per token; {kept}; lower "
            f"learning_rate and start again"
        )


def process_memory() -> int:
    """Return the peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gpu_memory(device: torch.device) -> int | None:
    """Return the peak memory of a GPU in bytes, or None for other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.9g}")


def _append(path: Path, line: dict[str, Any], is_main: bool) -> None:
    if is_main:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _size(path: Path) -> int:
    """Flush a file to the disk and return its size, 0 if there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _do_nothing() -> None:
    """Do nothing between micro batches.

    With several processes, stopping here would leave the others waiting for this one's gradients forever. They stop
    between steps instead.
    """
