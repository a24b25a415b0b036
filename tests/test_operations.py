"""An operation is one file: the example in CONTRIBUTING.md as it is written, and operations of other packages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pico
import pytest
import torch
import yaml
from safetensors.torch import load_file

import lepmerge
from lepmerge.computation.propagate_embeddings import METHODS
from lepmerge.errors import LepmergeError, RecipeError
from lepmerge.operations.propagate_embeddings import MethodName, propagate_embeddings
from lepmerge.operations.registry import operation, operations
from lepmerge.operations.swap_vocabulary import SwapVocabulary, swap_vocabulary

CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"
PLUG_IN = '''
from dataclasses import replace
from typing import Literal

from lepmerge.config.entries import Step
from lepmerge.config.kinds import ModelName, TokenizerReference
from lepmerge.operations.registry import operation


class NameOperands(Step):
    """Note what the operation received."""

    op: Literal["name_operands"]
    one: ModelName
    """One."""
    several: list[ModelName]
    """Several."""
    tokenizer: TokenizerReference
    """Tokenizer."""


@operation(NameOperands)
def name_operands(model, *, one, several, tokenizer, models):
    note = f"{one.name}; {', '.join(each.name for each in several)}; {tokenizer.size}; {', '.join(models)}"
    return replace(model, notes=(*model.notes, note))
'''


def test_contributings_example_and_an_operation_of_another_package(tmp_path: Path, setting: dict[str, Path]) -> None:
    (example,) = (part.partition("```")[0] for part in CONTRIBUTING.read_text().split("```python\n")[1:])
    (tmp_path / "operations").mkdir()
    (tmp_path / "operations" / "scale_embeddings.py").write_text(example)
    (tmp_path / "plug-in" / "plug_in-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "plug-in" / "plug_in.py").write_text(PLUG_IN)
    points = "[lepmerge.operations]\nname_operands = plug_in\n"
    (tmp_path / "plug-in" / "plug_in-1.0.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "plug-in" / "plug_in-1.0.dist-info" / "METADATA").write_text("Name: plug-in\nVersion: 1.0\n")
    operands = {"one": "base", "several": ["adapted", "base"], "tokenizer": str(setting["adapted"])}
    recipe = {
        "models": {name: str(path) for name, path in setting.items()},
        "steps": [{"op": "scale_embeddings", "factor": 0.5}, {"op": "name_operands", **operands}],
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    program = (
        "import sys, lepmerge.operations\n"
        f"sys.path.append({str(tmp_path / 'plug-in')!r})\n"
        f"lepmerge.operations.__path__.append({str(tmp_path / 'operations')!r})\n"
        "from lepmerge.commands.main import main\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", tmp_path / "recipe.yaml", "--device", "cpu"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "input_embeddings scale_embeddings: scaled 390" in done.stdout.splitlines()
    notes = json.loads((tmp_path / "out" / "lepmerge_report.json").read_text())["notes"]
    assert notes == ["base; adapted, base; 570; adapted, base, instruct"]
    before, after = (load_file(folder / "model.safetensors") for folder in (setting["instruct"], tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name], before[name] * 0.5)


def test_a_name_in_a_list_is_checked_where_it_stands(tmp_path: Path) -> None:
    from lepmerge.config.kinds import ModelName, marked_texts

    class Several(SwapVocabulary):
        several: list[ModelName]
        by_name: dict[ModelName, float]

    values = {"op": "swap_vocabulary", "tokenizer": "new", "several": ["a", "b"], "by_name": {"c": 1.0}}
    assert set(marked_texts(Several, values)) == {
        (("tokenizer",), "tokenizer", "new"),
        (("several", 0), "model", "a"),
        (("several", 1), "model", "b"),
        (("by_name", "c"), "model", "c"),
    }


def test_unknown_methods_and_inits_are_errors_in_python_too(setting: dict[str, Path]) -> None:
    assert set(get_args(MethodName)) == METHODS.keys()
    base, instruct, adapted = (lepmerge.open_model(setting[name]) for name in ("base", "instruct", "adapted"))
    for method in ("dleta", {"input_embeddings": "swap", "output_embeddings": "dleta"}):
        with pytest.raises(RecipeError, match="there is no method 'dleta'; did you mean delta?"):
            propagate_embeddings(instruct, base=base, adapted=adapted, method=method)
    with pytest.raises(RecipeError, match="there is no method for the table 'output_embeddings'"):
        propagate_embeddings(instruct, base=base, adapted=adapted, method={"input_embeddings": "swap"})
    with pytest.raises(RecipeError, match="there is no init 'men'; did you mean mean?"):
        swap_vocabulary(instruct, tokenizer=adapted.vocabulary, init="men")


def test_an_operation_that_does_not_fit_its_entry_or_takes_a_name_twice_is_refused() -> None:
    operations()
    with pytest.raises(TypeError, match=r"fields \['tokenizer', 'init'\], the function the keywords \['factor'\]"):
        operation(SwapVocabulary)(lambda model, *, factor: model)
    with pytest.raises(LepmergeError, match="swap_vocabulary is defined by lepmerge.operations.swap_vocabulary and by"):
        operation(SwapVocabulary)(lambda model, *, tokenizer, init: model)


def test_the_recipe_names_every_operation(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("models: {a: b}\nstart: a\nsteps: [{op: x}]\noutput: {path: out}\n")
    known = ", ".join(sorted(operations()))
    pico.assert_one_line_error(pico.command("plan", tmp_path / "recipe.yaml"), 2, "no operation 'x'", known)
