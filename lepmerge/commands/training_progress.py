"""Training progress on stderr: a bar on a terminal, otherwise log lines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lepmerge.commands.console import LogClock, human_seconds, show_note
from lepmerge.progress import human_bytes
from lepmerge.training.events import Note, OnEvent, StepDone, TextRead, TrainingEvent

LEAST_BYTES = 1_000_000
"""Less text is not counted in the log: the first line is written after the first text of a file."""


@contextmanager
def training_progress(quiet: bool) -> Iterator[OnEvent]:
    """Yield the training's event callback. It shows notes, and steps as a bar on a terminal or as log lines, which
    the log file always gets."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    with tqdm(unit="tok", unit_scale=True, disable=quiet or not is_terminal, leave=False, file=sys.stderr) as bar:
        shows = [_Bar(bar), _Lines(echo=False)] if is_terminal else [_Lines(echo=not quiet)]

        def on_event(event: TrainingEvent) -> None:
            if isinstance(event, Note):
                bar.clear()
                show_note(event.text, quiet=quiet)
            for show in shows:
                if isinstance(event, TextRead):
                    show.text_read(event)
                elif isinstance(event, StepDone):
                    show.step_done(event)

        yield on_event


class _Bar:
    """A bar with tokens per second, time left, loss, bits per byte and memory."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._shown: dict[str, str] = {}

    def text_read(self, event: TextRead) -> None:
        self._bar.set_description_str(f"reading {event.file}"[:48], refresh=False)
        self._bar.refresh()

    def step_done(self, event: StepDone) -> None:
        bar = self._bar
        bar.total = bar.n + event.step_tokens * (event.until - event.step + 1)
        bar.set_description_str(f"step {event.step}/{event.until}", refresh=False)
        self._shown["loss"] = f"{event.loss:.3f}"
        for name, bits in event.bits_per_byte.items():
            self._shown[f"{name} bits/byte"] = f"{bits:.3f}"
        self._shown["memory"] = human_bytes(event.gpu_memory or event.memory)
        bar.set_postfix(self._shown, refresh=False)
        bar.update(event.step_tokens)


class _Lines:
    """Log lines: one for the first step, for every step that measures held-out text, and every 30 seconds.

    Speed and time left are averages since the first step, so that a step that measures does not distort them.
    """

    def __init__(self, *, echo: bool) -> None:
        self._clock = LogClock(echo=echo)
        self._num_bytes = 0
        self._first: StepDone | None = None
        self._last: StepDone | None = None

    def text_read(self, event: TextRead) -> None:
        self._num_bytes += event.num_bytes
        if self._clock.is_due():
            amount = f": {human_bytes(self._num_bytes)} read" if self._num_bytes >= LEAST_BYTES else ""
            self._clock.write(f"reading {event.file}{amount}")

    def step_done(self, event: StepDone) -> None:
        last = self._last
        if last is not None and (event.step <= last.step or event.seconds < last.seconds):
            last = None  # a new run of steps began (sweep or probe), whose seconds start at 0
        self._last = event
        if last is None or self._first is None:
            self._first = event
        elif not event.bits_per_byte and not self._clock.is_due():
            return
        first = self._first
        tokens = event.tokens - first.tokens + first.step_tokens
        left = (event.until - event.step) * event.seconds / (event.step - first.step + 1)
        bits = "".join(f", {name} {value:.3f} bits per byte" for name, value in event.bits_per_byte.items())
        self._clock.write(
            f"step {event.step}/{event.until}: loss {event.loss:.3f}{bits}, "
            f"{tokens / max(event.seconds, 1e-9):,.0f} tokens/s, {human_seconds(left)} left"
        )
