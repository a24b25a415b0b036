"""YAML files from the command line: all faults at once, files of another kind, standard input, the environment."""

from pathlib import Path

import pico
import pytest
import yaml

from lepmerge.commands.main import main

RECIPE = """models: {base: $MODELS/base, instruct: ~/instruct}
steps:
  - {op: propagate_embeddings, base: base, adapted: base, metod: delta}
  - {op: arithmetic, tensors: 5, expression: base}
  - {op: swap_vocabulry}
start: instruct
output: {path: out, dtype: float23, shard_sise: 5GB}
"""


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("$MODELS", "models"))
    result = pico.command("plan", path)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line.removeprefix(f"error: {path}:") for line in result.stderr.splitlines()]
    assert [line.split(": ")[:2] for line in lines] == [
        ["3", "steps.0.metod"],
        ["4", "steps.1.tensors"],
        ["5", "steps.2"],
        ["7", "output.dtype"],
        ["7", "output.shard_sise"],
    ]
    assert "did you mean shard_size?" in result.stderr and "did you mean method?" in result.stderr


def test_unknown_models_and_unused_variables_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "variables: {strenth: 2}\n"
        "models: {base: b, instruct: i}\n"
        "start: instrukt\n"
        "steps:\n"
        "  - {op: propagate_embeddings, base: bas, adapted: nobody, method: delta}\n"
        "output: {path: out}\n"
    )
    lines = [line.removeprefix(f"error: {path}:") for line in pico.command("plan", path).stderr.splitlines()]
    assert [line.split(";")[0] for line in lines] == [
        "1: variables.strenth: nothing uses ${strenth}",
        "3: start: unknown model 'instrukt'",
        "5: steps.0.base: unknown model 'bas'",
        "5: steps.0.adapted: unknown model 'nobody'",
    ]
    path.write_text("models: {my-base: b, current: c}\nstart: base\noutput: {path: out}\n")
    lines = [line.removeprefix(f"error: {path}:") for line in pico.command("plan", path).stderr.splitlines()]
    assert lines == [
        "1: 'current' cannot be the name of a model: it means the model before a step",
        "1: 'my-base' cannot be the name of a model: use letters, digits and _",
    ]


def test_a_file_of_another_kind_names_its_command(tmp_path: Path) -> None:
    recipe, config = tmp_path / "recipe.yaml", tmp_path / "train.yaml"
    recipe.write_text("models: {base: b}\nstart: base\noutput: {path: out}\n")
    config.write_text("model: b\ndata: corpus\noutput: out\n")
    for command in ("run", "plan"):
        pico.assert_one_line_error(
            pico.command(command, config), 2,
            f"{config} is a training configuration, not a recipe: use `lepmerge train {config}`",
        )  # fmt: skip
    pico.assert_one_line_error(
        pico.command("train", recipe), 2,
        f"{recipe} is a recipe, not a training configuration: use `lepmerge run {recipe}`",
    )  # fmt: skip


def test_a_recipe_from_standard_input(tmp_path: Path, setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    recipe = {"models": {"instruct": str(setting["instruct"])}, "steps": [], "output": {"path": "out"}}
    result = CliRunner().invoke(main, ["plan", "-"], input=yaml.safe_dump(recipe))
    assert result.exit_code == 0 and f"output    {tmp_path / 'out'}\n" in result.stdout, result.output
    fault = CliRunner().invoke(main, ["plan", "-"], input="models: {}\noutput: {pth: x}\n")
    pico.assert_one_line_error(fault, 2, "standard input:2: output.pth: unknown key; did you mean path?")
    fault = CliRunner().invoke(main, ["train", "-"], input="model: x\n")
    assert fault.stderr.startswith("error: standard input:1: data: this key is missing")


def test_environment_variables_in_paths(tmp_path: Path, setting, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("models: {instruct: $MODELS/instruct}\nsteps: []\noutput: {path: $OUTPUT/$NAME}\n")
    monkeypatch.delenv("OUTPUT", raising=False)
    monkeypatch.setenv("MODELS", str(setting["instruct"].parent))
    monkeypatch.setenv("NAME", "ru")
    fault = f"{path}:3: output.path: there is no environment variable OUTPUT"
    pico.assert_one_line_error(pico.command("plan", path), 2, fault)
    monkeypatch.setenv("OUTPUT", str(tmp_path / "results"))
    assert f"output    {tmp_path / 'results' / 'ru'}\n" in pico.command("plan", path).stdout
