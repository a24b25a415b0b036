"""Progress and tables as they reach the terminal or a log."""

import time

import pytest

from lepmerge.commands.console import human_seconds
from lepmerge.commands.training_progress import training_progress
from lepmerge.training.events import Note, StepDone, TextRead


def step(number: int, seconds: float, **bits: float) -> StepDone:
    return StepDone(
        step=number,
        until=100,
        loss=5.25,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=500 * number,
        step_tokens=500,
        seconds=seconds,
        memory=10**9,
        gpu_memory=None,
        micro_batch=4,
        bits_per_byte=bits,
    )


def test_a_log_has_the_first_step_then_a_line_every_30_seconds_with_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with training_progress(quiet=False) as on_event:
        on_event(TextRead("ru.txt", 3_000_000))
        on_event(TextRead("ru.txt", 3_000_000))
        now += 31
        on_event(TextRead("ru.txt", 3_000_000))
        on_event(Note("resuming"))
        for number in range(1, 8):
            now += 10
            on_event(step(number, 10.0 * number, **({"ru": 2.5} if number == 6 else {})))
        on_event(step(1, 2.0))  # another run of steps, as in a sweep
    assert capsys.readouterr().err.splitlines() == [
        "reading ru.txt: 3.0 MB read",
        "reading ru.txt: 9.0 MB read",
        "note: resuming",
        "step 1/100: loss 5.250, 50 tokens/s, 16m30s left",
        "step 4/100: loss 5.250, 50 tokens/s, 16m00s left",
        "step 6/100: loss 5.250, ru 2.500 bits per byte, 50 tokens/s, 15m40s left",
        "step 1/100: loss 5.250, 250 tokens/s, 3m18s left",
    ]


def test_quiet_shows_no_events(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(quiet=True) as on_event:
        on_event(Note("resuming"))
        on_event(step(1, 1.0, ru=2.0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0s"), (59.4, "59s"), (200, "3m20s"), (18_420, "5h07m")])
def test_durations(seconds: float, shown: str) -> None:
    assert human_seconds(seconds) == shown
