"""Run a training: prepare, tokenize, load, sweep, train, write. Every stage resumes where it was killed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError, CorpusError, OutputError
from lepmerge.output.run import Run
from lepmerge.output.staging import Staging
from lepmerge.training.blocks import check_readable
from lepmerge.training.config import TrainConfig
from lepmerge.training.events import Note, OnEvent, ignore
from lepmerge.training.group import Group
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.learner import Learner
from lepmerge.training.loop import StopSignal, Track
from lepmerge.training.lora import planned_adapter
from lepmerge.training.output import write_output
from lepmerge.training.session import Session, fitted, open_session
from lepmerge.training.setting import Setting, prepare
from lepmerge.training.state import position_of


def train(
    config: TrainConfig,
    *,
    group: Group | None = None,
    memory: int | None = None,
    compile: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    on_event: OnEvent = ignore,
) -> Path:
    """Train the embeddings of a configuration and return the output folder.

    An interrupted training resumes; a finished one is not repeated. restart discards an unfinished training of another
    configuration at the same output. memory: bytes of the device's memory (default: what the GPU says). on_event
    receives notes, text that was read, and finished steps.

    Raises:
        LepmergeError: a fault of configuration, model or data, found before the training starts.
        TrainingError, Stopped: the training failed, or was stopped by a signal.
    """
    group = group or Group(torch.device("cpu"))
    setting = prepare(config)
    fitting = fitted(setting, group, memory)
    run = Run(
        target=config.target,
        fingerprint=setting.fingerprint,
        inputs=setting.inputs,
        key="output",
        overwrite=overwrite,
    )
    if group.rank == 0:
        run.begin()
    group.wait()
    if run.is_complete():
        if group.rank == 0:
            on_event(Note(f"{config.target} is complete already: nothing was done"))
        return config.target
    if not restart:
        _refuse_another(run.staging, setting)
    run.check({}, working=(working := _bytes_to_write(setting)))
    held_out = held_out_texts(setting)  # all texts are read first, so that a fault is reported before writing
    if group.rank == 0:
        check_readable(setting, run.staging.folder / "tokens")
    with _opened(run, setting, group, working):
        with StopSignal().listening() as stop:
            folder = run.staging.folder
            session = open_session(
                setting, folder, group, stop, on_event, held_out=held_out, compile=compile, fitting=fitting
            )
            learner, track, sweep = _trained(session, run.staging.folder)
        if group.rank == 0:
            write_output(setting, learner, run.staging, track, sweep)
    group.wait()
    return config.target


def _trained(session: Session, folder: Path) -> tuple[Learner, Track, list[dict[str, Any]]]:
    """Return the learner after the last step, its track, and the results of the sweep."""
    config = session.setting.config
    track = Track(folder, "train")
    sweep: list[dict[str, Any]] = []
    rate = config.rates[0]
    if config.sweep is not None:
        sweep = _swept(session, folder, until=max(1, round(session.steps * config.sweep)))
        first = next(iter(session.held_out))
        best = min(sweep, key=lambda entry: entry["bits_per_byte"][first])
        rate = best["learning_rate"]
        # The best run of the sweep is the beginning of the training, so its steps are not repeated.
        if not track.checkpoint.exists() and session.group.rank == 0:
            _copy_track(_sweep_track(folder, rate), track)
        session.group.wait()
    learner = session.learner(rate)
    session.run(learner, track, until=session.steps)
    return learner, track, sweep


def _swept(session: Session, folder: Path, *, until: int) -> list[dict[str, Any]]:
    """Train with every learning rate up to step `until`. Return each learning rate with its held-out bits per byte."""
    found = []
    for rate in session.setting.config.rates:
        track = _sweep_track(folder, rate)
        position = position_of(track.checkpoint)
        if position is None or position.step < until:
            session.on_event(Note(f"tries learning_rate {rate:g} for {until} of {session.steps} steps"))
            session.run(session.learner(rate), track, until=until)
        last = track.lines()[-1]
        found.append({"learning_rate": rate, "steps": last["step"], "bits_per_byte": last["bits_per_byte"]})
    return found


def _sweep_track(folder: Path, rate: float) -> Track:
    return Track(folder, f"rate-{rate:g}")


def _copy_track(source: Track, target: Track) -> None:
    """Copy the files of a run of steps. The checkpoint is copied last, because its presence makes the copy valid."""
    shutil.copyfile(source.metrics, target.metrics)
    shutil.copyfile(source.speed, target.speed)
    temporary = target.checkpoint.with_name("copy.new")
    shutil.copyfile(source.checkpoint, temporary)
    temporary.replace(target.checkpoint)


@contextmanager
def _opened(run: Run, setting: Setting, group: Group, working: int) -> Iterator[None]:
    """Open the run in the main process while the others wait. At the end, the main process publishes the output."""
    with run.opened({}, working=working) if group.rank == 0 else nullcontext():
        if group.rank == 0:
            (run.staging.folder / "config.json").write_text(json.dumps(setting.config.plain()))
        group.wait()
        try:
            yield
        except (CheckpointError, CorpusError):
            if group.rank == 0 and not _finished_parts(run.staging.folder):
                run.staging.discard()
            raise


def _finished_parts(folder: Path) -> list[Path]:
    """Return what a killed training would reuse: checkpoints, and the tokens of sources."""
    return [*folder.glob("*.safetensors"), *(path for path in folder.glob("tokens/*") if path.name != "partial")]


def _refuse_another(staging: Staging, setting: Setting) -> None:
    """Raise OutputError if the staging folder holds steps of another configuration, which would be lost."""
    tracks = [path for path in sorted(staging.folder.glob("*.safetensors"))]
    if not tracks or staging.fingerprint() == setting.fingerprint:
        return
    step = max((position.step for path in tracks if (position := position_of(path))), default=0)
    raise OutputError(
        f"{staging.folder} holds {step} step{'s' * (step != 1)} of a training that differs "
        f"({_difference(staging.folder, setting)}): continue that training, choose another output, or discard its "
        f"steps with --restart"
    )


def _difference(folder: Path, setting: Setting) -> str:
    """Return the first key whose value differs from the configuration of the staging folder."""
    try:
        before = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return "its configuration is not known"
    for key, value in setting.config.plain().items():
        if before.get(key) != value:
            return f"{key} was {json.dumps(before.get(key), ensure_ascii=False)}"
    return "a file of the model, the tokenizer or the data has changed"


def _bytes_to_write(setting: Setting) -> int:
    """Return the bytes of the output and of two checkpoints: the current one and the one that replaces it.

    Raises:
        LepmergeError: the model cannot have the adapter of the configuration.
    """
    tables = sum(setting.start.table(role).num_bytes for role in setting.rows)
    trained = sum(len(rows) for rows in setting.rows.values()) * setting.start.table("input_embeddings").row_width
    adapter = planned_adapter(setting.base.folder, setting.config.lora)
    of_adapter = adapter.sizes["parameters"] if adapter else 0
    return tables + 4 * of_adapter + 2 * 12 * (trained + of_adapter)
