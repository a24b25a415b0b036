"""Progress and tables as they reach the terminal or a log."""

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pico
import pytest
from click.testing import CliRunner

from lepmerge.commands.console import CommandGroup, human_seconds, table
from lepmerge.commands.logs import with_log_options
from lepmerge.commands.main import main
from lepmerge.commands.training_progress import training_progress
from lepmerge.errors import LepmergeError
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
        on_event(step(1, 5.0))  # and a slower one
    assert capsys.readouterr().err.splitlines() == [
        "reading ru.txt: 3.0 MB read",
        "reading ru.txt: 9.0 MB read",
        "note: resuming",
        "step 1/100: loss 5.250, 50 tokens/s, 16m30s left",
        "step 4/100: loss 5.250, 50 tokens/s, 16m00s left",
        "step 6/100: loss 5.250, ru 2.500 bits per byte, 50 tokens/s, 15m40s left",
        "step 1/100: loss 5.250, 250 tokens/s, 3m18s left",
        "step 1/100: loss 5.250, 100 tokens/s, 8m15s left",
    ]


def test_a_step_that_measures_slowly_does_not_distort_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The evaluation after step 11 takes 90 seconds. The training was resumed after step 9."""
    with training_progress(quiet=False) as on_event:
        on_event(step(10, 10.0))
        on_event(step(11, 110.0, ru=2.5))
        on_event(step(19, 190.0))  # within 30 seconds of the log
        on_event(step(20, 200.0, ru=2.4))
    assert capsys.readouterr().err.splitlines() == [
        "step 10/100: loss 5.250, 50 tokens/s, 15m00s left",
        "step 11/100: loss 5.250, ru 2.500 bits per byte, 9 tokens/s, 1h21m left",
        "step 20/100: loss 5.250, ru 2.400 bits per byte, 28 tokens/s, 24m15s left",
    ]


def test_the_first_line_of_reading_counts_no_single_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(quiet=False) as on_event:
        on_event(TextRead("ru.txt", 1))
        on_event(TextRead("ru.txt", 3_000_000))  # within 30 seconds of the log
    assert capsys.readouterr().err.splitlines() == ["reading ru.txt"]


def test_quiet_shows_no_events(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(quiet=True) as on_event:
        on_event(Note("resuming"))
        on_event(step(1, 1.0, ru=2.0))
    assert capsys.readouterr().err == ""


def test_ctrl_c_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(reference: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lepmerge.models.adapters.open_model", interrupted)  # no other module imports it by name
    result = pico.command("inspect", tmp_path)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped by Ctrl-C: run the same command again to continue\n"


@pytest.mark.parametrize(("value", "is_coloured"), [("1", False), ("", True)])
def test_no_color(tmp_path: Path, value: str, is_coloured: bool) -> None:
    command = ["inspect", str(tmp_path / "nowhere")]
    result = CliRunner().invoke(main, command, color=True, env={"NO_COLOR": value})
    assert ("\x1b[" in result.stderr) == is_coloured and "no such folder" in result.stderr


def test_a_wide_table_continues_below_itself() -> None:
    header = ["tokenizer", *(f"column number {number}" for number in range(9))]
    rows = [["old", *range(9)], ["new", *range(10, 19)]]
    parts = table(rows, header=header).split("\n\n")
    assert len(parts) == 2 and max(len(line) for part in parts for line in part.splitlines()) <= 100
    words = [line.split() for part in parts for line in part.splitlines() if line.startswith("new")]
    assert words == [["new", "10", "11", "12", "13", "14"], ["new", "15", "16", "17", "18"]]
    assert table([["a", 1.5]], header=["name", "value"]) == "name  value\na       1.5"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0s"), (59.4, "59s"), (200, "3m20s"), (18_420, "5h07m")])
def test_durations(seconds: float, shown: str) -> None:
    assert human_seconds(seconds) == shown


def test_verbose_and_log_file(tmp_path: Path, setting) -> None:
    log = tmp_path / "log.txt"
    plain = pico.command("inspect", setting["base"])
    told = pico.command("inspect", setting["base"], "-v", "--log-file", log)
    assert plain.stdout == told.stdout and plain.stderr == ""
    assert f"{setting['base']}: {setting['base']}" in told.stderr and "lepmerge " in told.stderr.splitlines()[0]
    missing = tmp_path / "nowhere"
    assert "Traceback" not in pico.command("inspect", missing, "-v", "--log-file", log).stderr
    detailed = pico.command("inspect", missing, "-vv").stderr
    assert "Traceback" in detailed and f"error: no such folder: {missing}" in detailed.splitlines()[-1]
    lines = log.read_text().splitlines()
    assert [line.split()[0][:2] for line in lines if line[0].isdigit()] == ["20"] * len(
        [x for x in lines if x[0].isdigit()]
    )
    assert any(f"ERROR error: no such folder: {missing}" in line for line in lines)
    kinds = {type(handler) for name in ("lepmerge", "lepmerge.shown") for handler in logging.getLogger(name).handlers}
    assert not kinds & {logging.StreamHandler, logging.FileHandler}
    refused = pico.command("inspect", setting["base"], "--log-file", tmp_path / "no" / "log.txt")
    pico.assert_one_line_error(refused, 1, "--log-file", "cannot be written: No such file or directory")


def test_the_log_of_a_training_has_its_lines_even_on_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    @click.command()
    def trained() -> None:
        with training_progress(quiet=True) as on_event:
            on_event(Note("resuming"))
            on_event(step(1, 1.0, ru=2.0))

    result = CliRunner().invoke(with_log_options(trained), ["--log-file", str(log)])
    assert result.output == ""
    assert [line.split(" ", 3)[3] for line in log.read_text().splitlines()[1:]] == [
        "note: resuming",
        "step 1/100: loss 5.250, ru 2.000 bits per byte, 500 tokens/s, 1m39s left",
    ]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("lepmerge to", ["tokenizer"]), ("lepmerge tokenizer ext", ["extend"]), ("lepmerge train --pro", ["--probe"])],
)
def test_shell_completion(typed: str, expected: list[str]) -> None:
    words = typed.split()
    environment = {"_LEPMERGE_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(main, [], prog_name="lepmerge", env=environment)
    assert [line.split(",")[1] for line in result.stdout.splitlines()] == expected


@pytest.fixture
def listening() -> Iterator[None]:
    """Listen to Ctrl-C, which a test run in the background of a shell ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [LepmergeError("the tokenizer cannot be loaded"), AttributeError("half imported")])
def test_an_error_that_a_library_made_of_ctrl_c_is_told_as_ctrl_c(listening: None, error: Exception) -> None:
    """transformers answers a Ctrl-C during one of its lazy imports with `Could not import module`."""

    @click.group(cls=CommandGroup)
    def group() -> None:
        pass

    @group.command()
    @click.argument("interrupted", type=bool)
    def read(interrupted: bool) -> None:
        try:
            if interrupted:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise error

    result = CliRunner().invoke(group, ["read", "yes"])
    assert result.exit_code == 130
    assert result.output == "stopped by Ctrl-C: run the same command again to continue\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = CliRunner().invoke(group, ["read", "no"])
    assert result.exit_code == 1 and "Ctrl-C" not in result.output
    assert isinstance(result.exception, SystemExit if isinstance(error, LepmergeError) else AttributeError)
