"""A run owns its output: trainings, tokenizers and single files survive a crash at any disk call, as merges do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import training
from test_resume import Killed, crashed
from test_training_run import SPEED

from lepmerge.corpus import Corpus
from lepmerge.errors import OutputError
from lepmerge.output.run import Run
from lepmerge.tokenization.build import Extend, build_tokenizer
from lepmerge.training.config import load_train_config
from lepmerge.training.run import train

ROWS = b"".join(json.dumps({"text": f"row {number}"}).encode() + b"\n" for number in range(50))


def write_rows(target: Path, data: bytes = ROWS, *, fingerprint: str = "rows", overwrite: bool = False) -> bool:
    """Write a file as a run; return whether there was anything to do."""
    run = Run(target=target, fingerprint=fingerprint, key="--output", overwrite=overwrite, is_file=True)
    if run.begin():
        return False
    run.check({target.name: len(data)})
    with run.opened({target.name: len(data)}) as staging:
        staging.write_file(target.name, lambda descriptor: {"written": os.write(descriptor, data)})
    return True


def crashes(job: Callable[[], object], target: Path, monkeypatch: pytest.MonkeyPatch, *, first: int, step: int) -> int:
    """Crash a job before every `step`-th disk call and let the next one recover; return the number of crashes."""
    job()
    expected, neighbours = contents(target), sorted(os.listdir(target.parent))
    assert expected is not None
    for number, point in enumerate(range(first, 100_000, step)):
        remove(target)
        is_killed = crashed(job, monkeypatch, point)
        assert contents(target) in (None, expected), point
        job()
        assert contents(target) == expected, point
        assert sorted(os.listdir(target.parent)) == neighbours, point
        if not is_killed:
            return number
    raise AssertionError("the job never ended")


def contents(target: Path) -> object:
    if target.is_dir():
        return {path.name: path.read_bytes() for path in sorted(target.iterdir()) if path.name not in SPEED}
    return target.read_bytes() if target.exists() else None


def remove(target: Path) -> None:
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def training_job(tmp_path: Path, english) -> tuple[Callable[[], object], Path]:
    path = training.write_setting(tmp_path, english, repeat=1, max_tokens=600, evaluate=None)
    config = load_train_config(path)
    return lambda: train(config), config.target


def test_some_crash_points_of_a_training_are_recovered_from(tmp_path: Path, english, monkeypatch) -> None:
    job, target = training_job(tmp_path, english)
    assert crashes(job, target, monkeypatch, first=7, step=29) > 2


@pytest.mark.slow
def test_every_crash_point_of_a_training_is_recovered_from(tmp_path: Path, english, monkeypatch) -> None:
    job, target = training_job(tmp_path, english)
    assert crashes(job, target, monkeypatch, first=0, step=1) > 50


def tokenizer_job(tmp_path: Path, english, monkeypatch) -> tuple[Callable[[], object], Path]:
    """Return the building of a tokenizer. Its checks are real, but on few random strings: they write nothing."""
    monkeypatch.setattr("lepmerge.tokenization.checks.NUM_RANDOM_TEXTS", 10)
    base = pico.save_model(tmp_path / "base", english)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "ru.txt").write_text("\n\n".join(pico.RUSSIAN), encoding="utf-8")
    job = Extend(model=str(base), corpus=Corpus([str(tmp_path / "ru.txt")]), num_tokens=5)
    (tmp_path / "out").mkdir()
    return lambda: build_tokenizer(job, tmp_path / "out" / "new"), tmp_path / "out" / "new"


def test_some_crash_points_of_a_tokenizer_are_recovered_from(tmp_path: Path, english, monkeypatch) -> None:
    job, target = tokenizer_job(tmp_path, english, monkeypatch)
    assert crashes(job, target, monkeypatch, first=3, step=9) > 4


@pytest.mark.slow
def test_every_crash_point_of_a_tokenizer_is_recovered_from(tmp_path: Path, english, monkeypatch) -> None:
    job, target = tokenizer_job(tmp_path, english, monkeypatch)
    assert crashes(job, target, monkeypatch, first=0, step=1) > 30


def test_every_crash_point_of_a_single_file_is_recovered_from(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "rows.jsonl"
    assert crashes(lambda: write_rows(target), target, monkeypatch, first=0, step=1) > 10
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl", "rows.jsonl.lepmerge_run.json"]


def test_a_single_file_that_is_complete_is_left_alone_and_another_is_not_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    assert write_rows(target) and not write_rows(target)
    with pytest.raises(OutputError, match="rows.jsonl exists: choose another --output, or replace it with --overwrite"):
        write_rows(target, b"other", fingerprint="other")
    assert target.read_bytes() == ROWS
    assert write_rows(target, b"other", fingerprint="other", overwrite=True) and target.read_bytes() == b"other"
    assert not write_rows(target, b"other", fingerprint="other")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder is a folder: choose another --output"):
        write_rows(tmp_path / "folder")


def test_an_old_file_of_the_same_size_is_not_taken_for_the_new_one(tmp_path: Path, monkeypatch) -> None:
    """The record is written before the file is moved into place: a kill between them leaves the old file."""
    target = tmp_path / "rows.jsonl"
    write_rows(target)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("lepmerge.output.staging.Staging.publish", raise_killed)
        write_rows(target, ROWS.upper(), fingerprint="upper", overwrite=True)
    assert target.read_bytes() == ROWS
    assert write_rows(target, ROWS.upper(), fingerprint="upper", overwrite=True) and target.read_bytes() == ROWS.upper()


def raise_killed(*arguments: object, **keywords: object) -> None:
    raise Killed


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": "rows"}', '{"fingerprint": "rows", "files": []}'])
def test_a_damaged_record_is_not_complete(tmp_path: Path, damage: str) -> None:
    write_rows(tmp_path / "rows.jsonl")
    run = Run(target=tmp_path / "rows.jsonl", fingerprint="rows", is_file=True)
    assert run.is_complete()
    run.record.write_text(damage)
    assert not run.is_complete()


def test_a_full_disk_is_refused_with_the_margin_that_is_kept_free(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**7, 0, 3_000_000))
    run = Run(target=tmp_path / "out", fingerprint="x")
    with pytest.raises(OutputError) as caught:
        run.check({"model.safetensors": 2_000_000})
    for part in ("3,000,000 bytes free", "still writes 2,000,000", "a margin of 8,388,608 for configs"):
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == []
