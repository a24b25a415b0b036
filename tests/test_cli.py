"""The commands as a user meets them: output, JSON, exit codes, help, and silence where it was asked for."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pico
import pytest

from lepmerge.commands.main import SUMMARIES, main

LEPMERGE = str(Path(sys.executable).parent / "lepmerge")


@pytest.fixture
def recipe(tmp_path: Path, setting) -> Path:
    return pico.write_recipe(tmp_path / "recipe.yaml", **setting)


def test_run(recipe: Path) -> None:
    """In a separate process without a terminal, the report is on stdout, stderr is empty, and there are no colours."""
    done = subprocess.run([LEPMERGE, "run", recipe, "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == str(recipe.parent / "out")
    assert "input_embeddings conversion: exact" in done.stdout and "relative residual" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "it/s" not in done.stderr and "B/s" not in done.stderr


def test_the_same_run_again_says_that_nothing_was_done(recipe: Path) -> None:
    first, again = (pico.command("run", recipe, "--device", "cpu") for _ in range(2))
    assert first.stdout == again.stdout and first.stderr == ""
    assert again.stderr == f"note: {recipe.parent / 'out'} is complete already: nothing was done\n"
    other = pico.command("run", recipe, "--device", "cpu", "--set", "steps.0.method=delta")
    pico.assert_one_line_error(other, 1, "not what this command would write with these inputs")


def test_json_is_the_report(recipe: Path) -> None:
    result = pico.command("run", recipe, "--device", "cpu", "--json")
    printed = json.loads(result.stdout)
    report = json.loads((recipe.parent / "out" / "lepmerge_report.json").read_text())
    assert (printed.pop("schema"), printed.pop("command")) == (1, "run")
    assert printed == {"output": str(recipe.parent / "out"), **report} and result.stderr == ""


def test_quiet(recipe: Path) -> None:
    result = pico.command("run", recipe, "--device", "cpu", "-q")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_plan_writes_nothing(recipe: Path, command: list[str]) -> None:
    before = pico.tree(recipe.parent)
    text = pico.command(*command, recipe)
    assert text.exit_code == 0 and "lm_head.weight" in text.stdout and "memory at most" in text.stdout
    described = json.loads(pico.command(*command, recipe, "--json").stdout)
    assert described["vocabulary_rows"]["after"] > described["vocabulary_rows"]["before"]
    assert pico.tree(recipe.parent) == before


def test_plan_names_what_is_computed_first(recipe: Path) -> None:
    shown = pico.command("plan", recipe).stdout
    assert "first     least squares of input embeddings of base → instruct, from " in shown
    step = "steps=[{op: swap_vocabulary, tokenizer: adapted, init: {input: norm_calibrated, output: mean}}]"
    shown = pico.command("plan", recipe, "--set", step).stdout
    assert "first     mean norms, from " in shown and "init input norm_calibrated, output mean" in shown


def test_plan_foretells_the_files(recipe: Path) -> None:
    described = json.loads(pico.command("plan", recipe, "--json").stdout)
    folder = pico.run_file(recipe, device="cpu")
    sizes = {shard["file"]: shard["bytes"] for shard in described["files"]}
    assert sizes == {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert described["bytes"]["written"] == sum(sizes.values())


def test_inspect(setting) -> None:
    text = pico.command("inspect", setting["instruct"])
    assert text.exit_code == 0 and "byte_level" in text.stdout and "lm_head.weight" in text.stdout
    found = json.loads(pico.command("inspect", setting["instruct"], "--json").stdout)
    assert found["tensors"]["lm_head.weight"]["dtype"] == "BF16"


def test_diff(recipe: Path, setting) -> None:
    folder = pico.run_file(recipe, ["steps.0.method=swap"], device="cpu")
    text = pico.command("diff", setting["instruct"], folder)
    assert text.exit_code == 0 and "lm_head.weight" in text.stdout and "tensors are equal" in text.stdout
    found = json.loads(pico.command("diff", setting["instruct"], setting["instruct"], "--json").stdout)
    assert {entry["state"] for entry in found["tensors"]} == {"equal"}


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_shows_an_example_and_the_summary(name: str) -> None:
    result = pico.command(name, "--help")
    assert result.exit_code == 0
    command = main.commands[name]
    assert inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ") == SUMMARIES[name]
    assert "Example:" in result.stdout or getattr(command, "commands", None), name


@pytest.mark.parametrize(
    ("arguments", "exit_code", "part"),
    [
        (["run", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["run"], 2, "RECIPE"),
        (["walk"], 2, "walk"),
        (["run", "{recipe}", "--link", "soft"], 2, "hard"),
        (["run", "{recipe}", "--device", "abacus"], 1, "expected auto, cpu, cuda"),
        (["run", "{recipe}", "--device", "cuda:9"], 1, "no such device"),
        (["run", "{recipe}", "--set", "output.pth=x"], 2, "did you mean path?"),
        (["plan", "{recipe}", "--set", "models.base=/nowhere/base"], 1, "no such folder: /nowhere/base"),
        (
            ["plan", "{recipe}", "--set", "models.base={recipe}x"],
            1,
            "models.base: no such folder: {recipe}x (did you mean recipe.yaml?)",
        ),
        (["inspect", "/nowhere/model"], 1, "no such folder: /nowhere/model"),
        (["diff", "/nowhere/a", "/nowhere/b"], 1, "/nowhere/a"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_exit_codes(recipe: Path, arguments: list[str], exit_code: int, part: str) -> None:
    result = pico.command(*(argument.format(recipe=recipe) for argument in arguments))
    assert result.exit_code == exit_code and result.stdout == "", result.output
    assert part.format(recipe=recipe) in result.stderr and "Traceback" not in result.stderr
    assert not (recipe.parent / "out").exists()


def test_link_and_hash(recipe: Path, setting) -> None:
    pico.run_recipe(recipe.parent / "copy", setting, [])
    copied = recipe.parent / "copy"
    result = pico.command("run", copied / "recipe.yaml", "--link", "hard", "--hash", "--overwrite", "--json")
    assert json.loads(result.stdout)["content_hashed"] is True
    assert os.path.samefile(copied / "out" / "model.safetensors", setting["instruct"] / "model.safetensors")


def test_modes_follow_the_umask(recipe: Path) -> None:
    old = os.umask(0o027)
    try:
        folder = pico.run_file(recipe, device="cpu")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert folder.stat().st_mode & 0o777 == 0o750
