"""--json: every command prints one object with `schema` and `command`, and the keys that docs/json.md lists."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pico
import pytest
import training

from lepmerge.commands.console import JSON_SCHEMA
from lepmerge.commands.main import main

DOCS = (Path(__file__).parent.parent / "docs/json.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w -]+)` \| (.*?) \|", DOCS.partition("The other keys")[2], re.MULTILINE))
"""Command → the cell with its keys. A key in parentheses is not always there."""


def members(group: click.Group) -> dict[str, Any]:
    context = click.Context(group)
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def commands(group: click.Group, prefix: str = "") -> list[str]:
    found = []
    for name, command in members(group).items():
        found += commands(command, f"{name} ") if isinstance(command, click.Group) else [f"{prefix}{name}"]
    return found


def test_every_command_has_json_and_a_row() -> None:
    documented = {name.replace(" --dry-run", "").replace(" --probe", "") for name in ROWS}
    assert documented == set(commands(main))
    for name in commands(main):
        command: Any = main
        for word in name.split():
            command = members(command)[word]
        assert {"as_json", "verbose", "log_file"} <= {parameter.name for parameter in command.params}, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, english, setting) -> Path:
    folder = tmp_path_factory.mktemp("json")
    training.write_setting(folder, english)
    pico.write_recipe(folder / "recipe.yaml", **setting)
    (folder / "other").symlink_to(setting["base"].parent)
    pico.save_model(folder / "instruct", english, chat=True)
    (folder / "text.txt").write_text("слово и слово\n\nи другое слово\n")
    (folder / "mergekit.yaml").write_text(
        f"merge_method: linear\nmodels:\n- model: {setting['base']}\n  parameters: {{weight: 1}}\n"
        f"- model: {setting['base']}\n  parameters: {{weight: 1}}\ndtype: float32\n"
    )
    (folder / "untrained.yaml").write_text(
        "models: {instruct: instruct, base: base, adapted: {train: config.yaml}}\n"
        "steps: [{op: propagate_embeddings, base: base, adapted: adapted, method: delta}]\noutput: {path: new}\n"
    )
    (folder / "project.yaml").write_text("commands: [inspect base]\n")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("init", ["instruct", "project"]),
        ("chain --dry-run", ["."]),
        ("tokenizer extend", ["base", "text.txt", "--add", "2", "-o", "extended"]),
        ("tokenizer report", ["base", "--text", "text.txt"]),
        ("train --dry-run", ["config.yaml", "--device", "cpu"]),
        ("import", ["mergekit.yaml"]),
        ("plan", ["recipe.yaml"]),
        ("plan", ["untrained.yaml"]),
        ("run", ["recipe.yaml", "--device", "cpu", "-o", "merged"]),
        ("inspect", ["base"]),
        ("diff", ["base", "base"]),
        ("extract", ["other/base", "other/instruct", "-o", "adapter", "--rank", "2"]),
    ],
)
def test_the_keys_are_the_documented_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    result = pico.command(*name.split(), *words, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("schema") == JSON_SCHEMA and found.pop("command") == name.replace(" --dry-run", "")
    always = set(re.findall(r"(?<!\()`(\w+)`", ROWS[name]))
    sometimes = set(re.findall(r"\(`(\w+)`", ROWS[name]))
    assert always <= found.keys() <= always | sometimes
