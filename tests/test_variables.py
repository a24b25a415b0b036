"""`extends` and `variables`: files become one recipe; a value's file decides its path and is named in its faults."""

import json
from pathlib import Path

import pico
import pytest

import lepmerge
from lepmerge.errors import RecipeError
from lepmerge.merge.recipe import Recipe
from lepmerge.training.config import load_train_config

TEMPLATE = """\
variables: {method: conversion}
models:
  base: owner/base
  instruct: ${instruct}
  adapted: ${instruct}-${language}
steps:
  - op: propagate_embeddings
    base: base
    adapted: adapted
    method: ${method}
  - op: arithmetic
    tensors: body
    expression: instruct + ${weight} * (instruct - base)
output:
  path: out/${language}-${method}
  shard_size: 5GB
  pad_to_multiple_of: ${multiple}
"""
TEMPLATE_FILE = "common/template.yaml"
LEAF = """\
extends: common/template.yaml
variables:
  instruct: owner/instruct
  language: ru
  weight: 0.25
  multiple: 64
"""


def load(folder: Path, leaf: str = LEAF, *overrides: str, template: str = TEMPLATE) -> Recipe:
    (folder / "common").mkdir(exist_ok=True)
    (folder / "common/template.yaml").write_text(template)
    (folder / "leaf.yaml").write_text(leaf)
    return lepmerge.load_recipe(folder / "leaf.yaml", overrides)


def fault(folder: Path, *arguments: str, **options: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, *arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_variables_stand_in_texts_and_for_whole_values(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.models["instruct"].path == "owner/instruct" and recipe.models["adapted"].path == "owner/instruct-ru"
    assert recipe.steps[0].method == "conversion" and "0.25" in recipe.steps[1].expression
    assert recipe.output.pad_to_multiple_of == 64 and recipe.output.path == "common/out/ru-conversion"
    assert recipe.folder == tmp_path.resolve()


def test_written_it_is_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, LEAF.replace("weight: 0.25", "weight: 0.25\n  language: ru$${x}").replace("  language: ru\n", "")
    )
    text = recipe.to_yaml()
    assert "extends" not in text and "variables" not in text and recipe.output.path.endswith("out/ru${x}-conversion")
    (tmp_path / "again.yaml").write_text(text)
    assert lepmerge.load_recipe(tmp_path / "again.yaml") == recipe


def test_mappings_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    more = LEAF + "models: {base: {revision: v2}, other: some/other}\noutput: {shard_size: null, dtype: float16}\n"
    recipe = load(tmp_path, more)
    assert recipe.models["base"].path == "owner/base" and recipe.models["base"].revision == "v2"
    assert list(recipe.models) == ["base", "instruct", "adapted", "other"]
    assert recipe.output.shard_size is None and recipe.output.dtype == "float16"
    assert recipe.output.pad_to_multiple_of == 64
    recipe = load(tmp_path, LEAF + "steps: []\n")
    assert recipe.steps == []  # method and weight are unused now, but by the leaf's own doing


def test_yaml_merges_are_carried_out_in_their_own_file(tmp_path: Path) -> None:
    template = (
        "models:\n  a: &a {path: owner/a, revision: v1}\n  b: {<<: *a, path: owner/b}\nstart: a\noutput: {path: out}\n"
    )
    leaf = "extends: common/template.yaml\nmodels:\n  a: &a {path: owner/x, revision: v2}\n  b: {<<: *a}\n"
    recipe = load(tmp_path, leaf, template=template)
    assert [(entry.path, entry.revision) for entry in recipe.models.values()] == [("owner/x", "v2")] * 2


def test_three_files_deep_the_last_wins(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "last.yaml").write_text("extends: leaf.yaml\nvariables: {language: de, method: delta}\n")
    recipe = lepmerge.load_recipe(tmp_path / "last.yaml", ["variables.method=swap", "variables.weight=7"])
    assert recipe.output.path == "common/out/de-swap" and recipe.steps[0].method == "swap"
    assert "7 *" in recipe.steps[1].expression


def test_a_variable_may_hold_others_lists_and_mappings(tmp_path: Path) -> None:
    template = "models: {a: some/a}\nstart: a\nsteps: ${steps}\noutput: ${output}\n"
    leaf = (
        "extends: common/template.yaml\nvariables:\n  steps:\n"
        "    - {op: arithmetic, tensors: body, expression: '${x}'}\n"
        "  x: 2 * ${y}\n  y: a\n  output: {path: here}\n"
    )
    recipe = load(tmp_path, leaf, template=template)
    assert recipe.steps[0].expression == "2 * a" and recipe.output.path == "here"


def test_a_path_belongs_to_the_file_in_which_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("common/owner/base", "owner/instruct", "owner/instruct-ru", "common/owner/instruct", "cwd/mine"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    recipe = load(tmp_path, LEAF)
    assert recipe.models["base"].path == "common/owner/base"  # begins in the template
    assert recipe.models["instruct"].path == "owner/instruct"  # begins in the leaf
    assert recipe.models["adapted"].path == "owner/instruct-ru"
    recipe = load(tmp_path, LEAF, "variables.instruct=mine", "output.path=${language}/x")
    assert recipe.models["instruct"].path == str(tmp_path / "cwd/mine")
    assert recipe.resolve(recipe.output.path) == tmp_path / "ru/x"  # `ru` is set in the leaf
    assert load(tmp_path, LEAF, "output.path=x-${language}").output.path == str(tmp_path / "cwd/x-ru")


def test_what_cannot_be_a_hub_id_is_a_path_that_need_not_be_there(tmp_path: Path) -> None:
    template = TEMPLATE.replace("owner/base", "./runs/base").replace("adapted: ${", "adapted: runs/a/${")
    recipe = load(tmp_path, LEAF, template=template)
    assert recipe.models["base"].path == "common/runs/base"
    assert recipe.models["adapted"].path == "common/runs/a/owner/instruct-ru"
    assert recipe.models["instruct"].path == "owner/instruct"
    assert load(tmp_path, LEAF, template=template.replace("runs/base", "base")).models["base"].path == "common/base"
    template = template.replace("adapted: runs/a/${instruct}-", "adapted:\n    train: ${method}/")
    assert load(tmp_path, LEAF, template=template).trainings() == {"adapted": tmp_path / "common/conversion/ru"}


def test_a_tokenizer_that_is_a_models_name_is_no_path(tmp_path: Path) -> None:
    template = (
        "models: {a: some/a, b: some/b}\nstart: a\nsteps: [{op: swap_vocabulary, tokenizer: b}]\noutput: {path: x}\n"
    )
    (tmp_path / "common/b").mkdir(parents=True)
    assert load(tmp_path, "extends: common/template.yaml\n", template=template).steps[0].tokenizer == "b"
    other = template.replace("tokenizer: b", "tokenizer: ./b")
    assert load(tmp_path, "extends: common/template.yaml\n", template=other).steps[0].tokenizer == "common/b"


@pytest.mark.parametrize(
    ("leaf", "template", "file", "line", "parts"),
    [
        (("ru\n", "ru\n  metod: swap\n"), None, "leaf.yaml", 5, ["variables.metod", "mean method?"]),
        (None, ("${weight}", "${wight}"), TEMPLATE_FILE, 13, ["steps.1.expression", "did you mean weight?"]),
        (("  language: ru\n", ""), None, TEMPLATE_FILE, 5, ["models.adapted", "no variable 'language'"]),
        (("64", "many"), None, TEMPLATE_FILE, 17, ["output.pad_to_multiple_of", "integer", "leaf.yaml:6"]),
        (None, ("shard_size", "shard_sise"), TEMPLATE_FILE, 16, ["output.shard_sise", "did you mean shard_size?"]),
        (("64\n", "64\noutput: {pth: x}\n"), None, "leaf.yaml", 7, ["output.pth", "did you mean path?"]),
        (("extends", "extend"), None, "leaf.yaml", 1, ["extend", "did you mean extends?"]),
        (("extends: common/", "extends: comon/"), None, "leaf.yaml", 1, ["extends", "there is no file"]),
        ((TEMPLATE_FILE, "[a, b]"), None, "leaf.yaml", 1, ["extends", "one file"]),
        ((TEMPLATE_FILE, "leaf.yaml"), None, "leaf.yaml", 1, ["extends this file again"]),
        (None, ("variables:", "extends: ../leaf.yaml\nvariables:"), TEMPLATE_FILE, 1, ["extends this file again"]),
        (("0.25", "[1, 2]"), None, TEMPLATE_FILE, 13, ["${weight}", "not a text or number", "leaf.yaml:5"]),
        (("language: ru", "language: x${language}"), None, "leaf.yaml", 4, ["variables.language", "refers to itself"]),
        (None, ("${language}-", "${language -"), TEMPLATE_FILE, 15, ["output.path", "$${"]),
        (("language:", "my-language:"), None, "leaf.yaml", 4, ["'my-language' is not a valid name"]),
        (("variables:", "variables: 5\nother:"), None, "leaf.yaml", 2, ["names with their values"]),
        (("variables:", "variables:\n  instruct: twice"), None, "leaf.yaml", 4, ["occurs twice"]),
        (None, ("base: base", "base: bass"), TEMPLATE_FILE, 8, ["steps.0.base", "did you mean base?"]),
        (("weight: 0.25", "weight: &a [*a]"), None, "leaf.yaml", 5, ["an alias refers to a list"]),
    ],
    ids=lambda value: value[1][:24].strip() if isinstance(value, tuple) else None,
)  # fmt: skip
def test_faults_name_their_file_and_line(
    tmp_path: Path,
    leaf: tuple[str, str] | None,
    template: tuple[str, str] | None,
    file: str,
    line: int,
    parts: list[str],
) -> None:
    for text, change in ((LEAF, leaf), (TEMPLATE, template)):
        assert change is None or change[0] in text
    message = fault(
        tmp_path,
        LEAF.replace(*leaf, 1) if leaf else LEAF,
        template=TEMPLATE.replace(*template, 1) if template else TEMPLATE,
    )
    assert message.startswith(f"{tmp_path.resolve() / file}:{line}: "), message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("variables.metod=swap", ["--set variables.metod=swap: ", "did you mean method?"]),
        ("output.dtype=float12", ["--set output.dtype=float12: output.dtype", "bfloat16"]),
        ("variables.method=delt", ["template.yaml:10: steps.0.method", "given at --set variables.method=delt"]),
        ("extends=other.yaml", ["--set extends=other.yaml: name the file"]),
        ("output.path=${nobody}", ["output.path", "no variable 'nobody'"]),
    ],
)
def test_faults_of_set(tmp_path: Path, override: str, parts: list[str]) -> None:
    message = fault(tmp_path, LEAF, override)
    for part in parts:
        assert part in message, message


def test_run_card_and_fingerprint_see_the_resolved_recipe(tmp_path: Path, setting: dict[str, Path]) -> None:
    template = pico.write_recipe(tmp_path / "template.yaml", **setting).read_text()
    (tmp_path / "template.yaml").write_text(template.replace("method: conversion", "method: ${method}"))
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text("extends: template.yaml\nvariables: {method: delta}\n")
    folder = pico.run_file(leaf, device="cpu")
    recipe = json.loads((folder / "lepmerge_report.json").read_text())["recipe"]
    assert recipe["steps"][0]["method"] == "delta" and "extends" not in recipe and "variables" not in recipe
    assert "method: delta" in (folder / "README.md").read_text()
    plain = tmp_path / "plain.yaml"
    plain.write_text(template.replace("method: conversion", "method: delta"))
    from lepmerge.merge.execute import fingerprint_of

    plans = [pico.plan_file(path, [f"output.path={tmp_path / 'other'}"]) for path in (leaf, plain)]
    swapped = lepmerge.make_plan(
        lepmerge.load_recipe(leaf, ["variables.method=swap", f"output.path={tmp_path / 'other'}"])
    )
    assert fingerprint_of(plans[0], {}) == fingerprint_of(plans[1], {}) != fingerprint_of(swapped, {})


def test_training_configurations_too(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/train.yaml").write_text(
        "model: owner/base\ntokenizer: tokenizers/${name}\ndata: [{path: corpus/*.txt, weight: 0.5}]\n"
        "learning_rate: ${rates}\nsweep: 20%\nevaluate: {data: {ru: held_out}}\noutput: runs/${name}\n"
    )
    (tmp_path / "common/tokenizers/ru").mkdir(parents=True)
    leaf = tmp_path / "ru.train.yaml"
    leaf.write_text("extends: common/train.yaml\nvariables: {name: ru, rates: [1e-4, 2e-4]}\n")
    config = load_train_config(leaf)
    assert config.model.path == "owner/base" and config.tokenizer == "common/tokenizers/ru"
    assert config.data[0].path == "common/corpus/*.txt" and config.rates == [1e-4, 2e-4]
    assert config.target == tmp_path / "common/runs/ru"
    with pytest.raises(RecipeError, match="variables.rats: nothing uses"):
        load_train_config(leaf, ["variables.rats=1"])
