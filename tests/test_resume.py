"""A run that is killed at any moment is resumed by the next one, and the target never shows a partial model."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

from lepmerge.commands.main import main
from lepmerge.merge import execute


class Killed(BaseException):
    """Stands for SIGKILL: nothing in lepmerge catches it."""


@pytest.fixture
def recipe(tmp_path: Path, setting: dict[str, Path]) -> Path:
    """A recipe on three shards, two of which are copied, in its own folder. Afterwards the inputs must be unchanged."""
    models = {name: Path(shutil.copytree(folder, tmp_path / "in" / name)) for name, folder in setting.items()}
    pico.split(models["instruct"])
    before = pico.tree(tmp_path / "in")
    (tmp_path / "work").mkdir()
    yield pico.write_recipe(tmp_path / "work" / "recipe.yaml", **models)
    if not (tmp_path / "inputs_were_changed").exists():
        assert pico.tree(tmp_path / "in") == before


def neighbours(recipe: Path) -> list[str]:
    return sorted(path.name for path in recipe.parent.iterdir())


def run(recipe: Path, **options) -> Path:
    return pico.run_file(recipe, device="cpu", **options)


def reference_of(recipe: Path, tmp_path: Path) -> dict[str, bytes]:
    """Return the output of an undisturbed run into another folder."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    shutil.copy(recipe, folder / "recipe.yaml")
    return pico.contents(run(folder / "recipe.yaml"))


class Crash:
    """Raises Killed before the call number `point` that changes something on the disk, counted from 0."""

    CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "link", "copy_file_range")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
        self.left = point
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call):
        def counted(*arguments, **keywords):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return call(*arguments, **keywords)

        return counted


def crashed(job: Callable[[], object], monkeypatch: pytest.MonkeyPatch, point: int) -> bool:
    """Run a job that is killed before this disk call. Return False if it ends without having such a call."""
    with monkeypatch.context() as patch:
        Crash(patch, point)
        try:
            job()
        except Killed:
            return True
    return False


def crash_everywhere(recipe: Path, tmp_path: Path, monkeypatch, *, overwrite: bool, first: int, step: int) -> int:
    """Crash a run before every `step`-th disk call, and let the next one recover; return the number of crashes."""
    new = reference_of(recipe, tmp_path)
    old = {"config.json": b"{}", "model-00009-of-00009.safetensors": b"old weights"}
    plan = pico.plan_file(recipe)
    target, aside = plan.target, plan.target.with_name(".out.lepmerge-old")

    def job() -> Path:
        return execute.run_plan(plan, device="cpu", overwrite=overwrite)

    for number, point in enumerate(range(first, 100_000, step)):
        shutil.rmtree(target, ignore_errors=True)
        if overwrite:
            target.mkdir()
            for name, data in old.items():
                (target / name).write_bytes(data)
        is_killed = crashed(job, monkeypatch, point)
        if target.exists():
            assert pico.contents(target) in ([old, new] if overwrite else [new]), point
        elif overwrite:
            assert pico.contents(aside) == old, point
        job()
        assert pico.contents(target) == new, point
        assert neighbours(recipe) == ["out", "recipe.yaml"], point
        if not is_killed:  # the run has no such call any more
            return number
    raise AssertionError("the run never ended")


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_some_crash_points_are_recovered_from(recipe: Path, tmp_path: Path, overwrite: bool, monkeypatch) -> None:
    assert crash_everywhere(recipe, tmp_path, monkeypatch, overwrite=overwrite, first=3, step=11) > 8


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_every_crash_point_is_recovered_from(recipe: Path, tmp_path: Path, overwrite: bool, monkeypatch) -> None:
    assert crash_everywhere(recipe, tmp_path, monkeypatch, overwrite=overwrite, first=0, step=1) > 100


def test_a_swap_that_was_interrupted_is_undone_for_a_run_that_may_not_overwrite(recipe: Path) -> None:
    target, aside = recipe.parent / "out", recipe.parent / ".out.lepmerge-old"
    aside.mkdir()
    (aside / "config.json").write_text("{}")
    pico.assert_one_line_error(
        pico.command("run", recipe, "--device", "cpu", repairs=True), 1, "not empty", "--overwrite"
    )
    assert pico.contents(target) == {"config.json": b"{}"} and not aside.exists()


def test_an_empty_folder_at_the_target_does_not_cost_the_old_model(recipe: Path) -> None:
    target, aside = recipe.parent / "out", recipe.parent / ".out.lepmerge-old"
    aside.mkdir()
    (aside / "config.json").write_text("{}")
    target.mkdir()
    pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu", repairs=True), 1, "not empty")
    assert pico.contents(target) == {"config.json": b"{}"}


def kill_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kill the next run when it begins to write this file."""

    def write_file(self, name_, write, original=execute.Staging.write_file):
        if name_ == name:
            raise Killed
        original(self, name_, write)

    monkeypatch.setattr(execute.Staging, "write_file", write_file)


LAST_SHARD = "model-00003-of-00003.safetensors"


def test_what_was_finished_is_not_done_again(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    expected = reference_of(recipe, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, LAST_SHARD)
        run(recipe)
    output = recipe.parent / ".out.lepmerge" / "output"
    finished = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert len(finished) == 2
    with monkeypatch.context() as patch:
        patch.setattr("lepmerge.least_squares.Fit.compute", None)  # its result is taken from the staging folder
        folder = run(recipe)
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished
    assert pico.contents(folder) == expected


def rewrite(path: Path) -> None:
    """Train the model a little further: same shapes, same header, other bytes."""
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace_by_equal_size(path: Path) -> None:
    """Replace a file by another one with the same size and time, so that only the inode differs."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    new = path.with_name("new")
    new.write_bytes(data)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


@pytest.mark.parametrize("change", [rewrite, touch, replace_by_equal_size])
@pytest.mark.parametrize("model", ["instruct", "adapted"])
def test_an_input_that_changed_starts_the_staging_over(recipe, tmp_path: Path, monkeypatch, change, model) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, LAST_SHARD)
        run(recipe)
    (tmp_path / "inputs_were_changed").touch()
    change(min((tmp_path / "in" / model).glob("*.safetensors")))
    folder = run(recipe)
    assert pico.contents(folder) == reference_of(recipe, tmp_path)
    assert neighbours(recipe) == ["out", "recipe.yaml"]


def test_an_input_that_changes_during_a_run_is_not_mixed_in(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "inputs_were_changed").touch()
    shards = sorted((tmp_path / "in" / "instruct").glob("*.safetensors"))
    fsync = os.fsync

    def change_one(descriptor: int) -> None:
        if shards:
            rewrite(shards.pop())
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", change_one)
        pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu"), 1, "an input changed", "again")
    assert not (recipe.parent / "out").exists()
    assert pico.contents(run(recipe)) == reference_of(recipe, tmp_path)


def test_another_recipe_starts_the_staging_over(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, LAST_SHARD)
        run(recipe)
    recipe.write_text(recipe.read_text().replace("conversion", "swap"))
    assert pico.contents(run(recipe)) == reference_of(recipe, tmp_path)


def test_a_run_without_link_does_not_take_up_the_links_of_a_killed_one(
    recipe: Path, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, "config.json")
        run(recipe, link="hard")
    staged = recipe.parent / ".out.lepmerge" / "output"
    assert any(path.stat().st_nlink == 2 for path in staged.iterdir())
    assert {path.stat().st_nlink for path in run(recipe).iterdir()} == {1}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": "other"}'])
def test_a_damaged_manifest_starts_the_staging_over(recipe: Path, tmp_path: Path, monkeypatch, damage: str) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, LAST_SHARD)
        run(recipe)
    (recipe.parent / ".out.lepmerge" / "manifest.json").write_text(damage)
    assert pico.contents(run(recipe)) == reference_of(recipe, tmp_path)


def test_a_finished_file_that_was_cut_is_written_again(recipe: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, LAST_SHARD)
        run(recipe)
    shard = recipe.parent / ".out.lepmerge" / "output" / "model-00001-of-00003.safetensors"
    os.truncate(shard, 100)
    assert pico.contents(run(recipe)) == reference_of(recipe, tmp_path)


def test_a_finished_run_is_left_alone(recipe: Path) -> None:
    folder = run(recipe)
    before = pico.tree(folder)
    for options in ([], ["--overwrite"]):
        result = pico.command("run", recipe, "--device", "cpu", *options)
        assert result.exit_code == 0 and str(folder) in result.stdout
    assert pico.tree(folder) == before and neighbours(recipe) == ["out", "recipe.yaml"]


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json"])
def test_a_finished_output_that_lost_a_file_is_no_longer_complete(recipe: Path, name: str) -> None:
    expected = pico.contents(run(recipe))
    (recipe.parent / "out" / name).unlink()
    pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu", repairs=True), 1, "not empty")
    assert pico.contents(run(recipe, overwrite=True)) == expected


# Real kills: the run is a separate process, forked from a server that has imported everything, slowed, and killed.


def slowly(arguments: list[str], started) -> None:
    """Run the command with writes, copies and reads cut into small slow pieces."""
    write, copy, fsync, rename = os.write, os.copy_file_range, os.fsync, os.rename

    def slow(call, seconds):
        def slowed(*arguments, **keywords):
            time.sleep(seconds)
            return call(*arguments, **keywords)

        return slowed

    os.write = slow(lambda fd, data: write(fd, memoryview(data)[: 256 << 10]), 0.001)
    os.copy_file_range = slow(lambda source, target, n, **where: copy(source, target, min(n, 1 << 20), **where), 0.004)
    os.fsync, os.rename = slow(fsync, 0.004), slow(rename, 0.03)
    os.rmdir, os.unlink = slow(os.rmdir, 0.02), slow(os.unlink, 0.005)
    torch.manual_seed(0)
    started.set()
    main(arguments, standalone_mode=False)


@pytest.fixture
def large(tmp_path: Path, setting: dict[str, Path]) -> Path:
    """A recipe on a model of 40 MB in five shards, of which it copies some and computes the others."""
    models = {name: Path(shutil.copytree(folder, tmp_path / "in" / name)) for name, folder in setting.items()}
    weights = models["instruct"] / "model.safetensors"
    generator = torch.Generator().manual_seed(5)
    extra = {
        f"model.extra.{n}.weight": torch.randn(1000, 2048, generator=generator).to(torch.bfloat16) for n in range(10)
    }
    save_file({**load_file(weights), **extra}, weights, metadata={"format": "pt"})
    pico.split(models["instruct"], 5)
    before = pico.tree(tmp_path / "in")
    (tmp_path / "work").mkdir()
    recipe = pico.write_recipe(tmp_path / "work" / "recipe.yaml", **models)
    halved = "  - op: arithmetic\n    tensors: model.extra.[02].weight\n    expression: current * 0.5\noutput:"
    recipe.write_text(recipe.read_text().replace("output:", halved))
    yield recipe
    assert pico.tree(tmp_path / "in") == before


def killed_runs(
    processes, recipe: Path, tmp_path: Path, *, num_kills: int, overwrite: bool, rng: random.Random
) -> None:
    new = reference_of(recipe, tmp_path)
    old = {"config.json": b"{}", "model-00009-of-00009.safetensors": b"old weights"}
    target, aside = recipe.parent / "out", recipe.parent / ".out.lepmerge-old"
    arguments = ["run", str(recipe), "--device", "cpu", "-q", *(["--overwrite"] if overwrite else [])]
    good = [old, new] if overwrite else [new]

    def prepare() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if overwrite:
            target.mkdir()
            for name, data in old.items():
                (target / name).write_bytes(data)

    def start():
        started = processes.Event()
        process = processes.Process(target=slowly, args=(arguments, started))
        process.start()
        assert started.wait(60)
        return process, time.monotonic()

    prepare()
    process, began = start()
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0 and pico.contents(target) == new
    landed = []
    for number in range(num_kills):
        prepare()
        process, began = start()
        moment = began + duration * (number + rng.random()) / num_kills  # one in each of equal parts of the run
        while time.monotonic() < moment and process.is_alive():
            if names := names_in(target):
                assert any(names - {"lepmerge_run.json"} == set(each) for each in good), names
            time.sleep(0.002)
        process.kill()
        process.join()
        state = manifest_of(recipe)
        landed.append("done" if process.exitcode == 0 else state)
        if target.exists():
            assert pico.contents(target) in good
        elif overwrite:
            assert not aside.exists() or pico.contents(aside) == old
        result = pico.command(*arguments)
        assert result.exit_code == 0 and result.output == "", result.output
        assert pico.contents(target) == new
        assert neighbours(recipe) == ["out", "recipe.yaml"]
    print("kills landed in:", landed)
    assert len(set(landed)) >= min(4, num_kills) - 1


def manifest_of(recipe: Path) -> str:
    """Describe where a run was killed: the number of files and results that it had finished."""
    try:
        manifest = json.loads((recipe.parent / ".out.lepmerge" / "manifest.json").read_text())
    except FileNotFoundError:
        return "no staging"
    return f"{len(manifest['results'])} results, {len(manifest['files'])} files"


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; none while an overwriting run swaps it."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_kill_at_some_moments(processes, large: Path, tmp_path: Path, overwrite: bool) -> None:
    killed_runs(processes, large, tmp_path, num_kills=4, overwrite=overwrite, rng=random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("seed", [2, 3])
def test_kill_at_many_moments(processes, large: Path, tmp_path: Path, overwrite: bool, seed: int) -> None:
    killed_runs(processes, large, tmp_path, num_kills=20, overwrite=overwrite, rng=random.Random(seed))
