"""A GGUF run that is killed at any moment is resumed by the next one, and the target is never a partial file."""

import json
import random
import time
from pathlib import Path

import gguf_models
import pico
import pytest
import torch
from test_resume import crashed, slowly

from lepmerge.merge import execute


@pytest.fixture
def recipe(tmp_path: Path, english) -> Path:
    """A recipe that writes `work/out.gguf`, with its inputs in another folder."""
    instruct = pico.save_model(tmp_path / "instruct", english, width=64, chat=True, dtype=torch.float32)
    body = gguf_models.save_gguf(instruct, tmp_path / "instruct.gguf")
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "recipe.yaml"
    steps = [{"op": "arithmetic", "tensors": "embeddings", "expression": "2 * instruct"}]
    output = {"path": "out.gguf", "body": str(body)}
    path.write_text(json.dumps({"models": {"instruct": str(instruct)}, "steps": steps, "output": output}))
    return path


def contents(recipe: Path) -> dict[str, bytes]:
    """Return the files next to the recipe, except for the record, which has a time in it."""
    skipped = (recipe.name, "out.gguf.lepmerge_run.json")
    return {path.name: path.read_bytes() for path in recipe.parent.iterdir() if path.name not in skipped}


def clear(recipe: Path) -> None:
    for path in recipe.parent.glob("out.*"):
        path.unlink()


def undisturbed(recipe: Path) -> dict[str, bytes]:
    assert pico.command("run", recipe, "--device", "cpu").exit_code == 0
    found = contents(recipe)
    clear(recipe)
    return found


def crash(recipe: Path, monkeypatch: pytest.MonkeyPatch, *, first: int, step: int, overwrite: bool) -> int:
    """Crash a run before every `step`-th disk call, and let the next one recover; return the number of crashes."""
    new, old = undisturbed(recipe), b"GGUF of an earlier run"
    plan = pico.plan_file(recipe)

    def job() -> Path:
        return execute.run_plan(plan, device="cpu", overwrite=overwrite)

    for number, point in enumerate(range(first, 100_000, step)):
        clear(recipe)
        if overwrite:
            plan.target.write_bytes(old)
        is_killed = crashed(job, monkeypatch, point)
        if plan.target.exists():
            assert plan.target.read_bytes() in ([old, new["out.gguf"]] if overwrite else [new["out.gguf"]]), point
        else:
            assert not overwrite, point
        job()
        assert contents(recipe) == new, point
        if not is_killed:
            return number
    raise AssertionError("the run never ended")


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_some_crash_points_are_recovered_from(recipe: Path, overwrite: bool, monkeypatch) -> None:
    assert crash(recipe, monkeypatch, first=3, step=17, overwrite=overwrite) > 3


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_many_crash_points_are_recovered_from(recipe: Path, overwrite: bool, monkeypatch) -> None:
    assert crash(recipe, monkeypatch, first=0, step=2, overwrite=overwrite) > 25


@pytest.mark.slow
def test_kills_at_random_moments(processes, recipe: Path) -> None:
    """The run is a process of its own with slowed writes, killed by the system."""
    new = undisturbed(recipe)
    generator = random.Random(0)
    arguments = ["run", str(recipe), "--device", "cpu", "-q"]

    def start():
        started = processes.Event()
        process = processes.Process(target=slowly, args=(arguments, started))
        process.start()
        assert started.wait(60)
        return process, time.monotonic()

    process, began = start()
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0 and contents(recipe) == new
    num_killed = 0
    for number in range(5):
        clear(recipe)
        process, began = start()
        time.sleep(duration * (number + generator.random()) / 5)
        process.kill()
        process.join()
        num_killed += process.exitcode != 0
        if (recipe.parent / "out.gguf").exists():
            assert (recipe.parent / "out.gguf").read_bytes() == new["out.gguf"]
        result = pico.command(*arguments)
        assert result.exit_code == 0, result.output
        assert contents(recipe) == new
    assert num_killed >= 3
