"""docs/: the reference is that of the schemas, what pages name is there, and the example of the method is computed."""

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from lepmerge.computation.expression import FUNCTIONS
from lepmerge.config.entries import AdaptedEntry
from lepmerge.merge.recipe import load_recipe
from lepmerge.operations.propagate_embeddings import PropagateEmbeddings
from lepmerge.vocabulary.conversion import build_conversion
from lepmerge.vocabulary.vocabulary import Vocabulary

DOCS = Path(__file__).parent.parent / "docs"
METHOD = (DOCS / "method.md").read_text(encoding="utf-8")
PAGES = sorted(DOCS.glob("*.md"))


def test_the_reference_is_that_of_the_schemas() -> None:
    reference = runpy.run_path(str(DOCS / "make_reference.py"))
    for name in reference["PAGES"]:
        text = (DOCS / name).read_text(encoding="utf-8")
        assert text == reference["page"](name), f"run: python docs/make_reference.py (docs/{name} is out of date)"


def test_the_reference_has_every_function() -> None:
    table = (DOCS / "recipe.md").read_text(encoding="utf-8").partition("## Expressions")[2]
    assert sorted(re.findall(r"`(\w+)\(", table)) == sorted(FUNCTIONS)


def test_the_recipes_shown_are_recipes(tmp_path: Path) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "recipe.md").read_text(), re.DOTALL | re.MULTILINE)
    first, common, german = shown
    (tmp_path / "first.yaml").write_text(first)
    (step,) = load_recipe(tmp_path / "first.yaml").steps
    assert isinstance(step, PropagateEmbeddings) and step.method == "conversion"
    (tmp_path / "common.yaml").write_text(common)
    (tmp_path / "german.yaml").write_text(german)
    recipe = load_recipe(tmp_path / "german.yaml")
    assert recipe.output.path == "out/de-conversion"
    assert recipe.models["adapted"] == AdaptedEntry(path="./runs/de")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_page_of_commands_is_current() -> None:
    fit = runpy.run_path(str(DOCS / "make_fit.py"))
    assert (DOCS.parent / "README.md").read_text(encoding="utf-8") == fit["page"](), "run: python docs/make_fit.py"
    made = runpy.run_path(str(DOCS / "make_cli.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run: python docs/make_cli.py"


def test_the_code_that_the_method_names_is_there() -> None:
    named = re.findall(r"\[`([\w/]+\.py): ([\w.]+)`\]\(\.\./lepmerge/([\w/]+\.py)\)", METHOD)
    assert len(named) > 12 and METHOD.count(".py: ") == len(named)
    for shown, name, linked in named:
        assert shown == linked
        body = ast.parse((DOCS.parent / "lepmerge" / linked).read_text()).body
        for part in name.split("."):
            body = next((node.body for node in body if getattr(node, "name", None) == part), None)
            assert body is not None, f"{linked} has no {name}"


def numbers(cell: str) -> list[float]:
    return [float(number) for number in cell.split(",")]


def table(first: str) -> list[list[str]]:
    """Return the cells below the row of METHOD that begins so."""
    lines = METHOD.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def save(folder: Path, tokens: list[str], rows: list[list[float]], file: str) -> Path:
    folder.mkdir()
    Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=[])).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": len(tokens),
                "hidden_size": 2,
                "num_attention_heads": 1,
            }
        )
    )
    tables = {name: torch.tensor(rows) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(tables, folder / file, metadata={"format": "pt"})
    return folder


def test_the_example_of_the_method(tmp_path: Path) -> None:
    old, results = table("old token"), {row[0]: [numbers(cell) for cell in row[1:]] for row in table("result")}
    tokens = [row[0].strip("`") for row in old]
    new = re.findall(r"`(\w+)`", METHOD.partition("| result |")[2].partition("\n")[0])
    models = {
        "base": save(tmp_path / "base", tokens, [numbers(row[1]) for row in old], "model.safetensors"),
        "instruct": save(tmp_path / "instruct", tokens, [numbers(row[2]) for row in old], "model.safetensors"),
        "adapted": save(tmp_path / "adapted", new, results["swap"], "embeddings.safetensors"),
    }
    conversion = build_conversion(
        Vocabulary.in_folder(models["base"]), Vocabulary.in_folder(models["adapted"]), num_old_rows=3
    )
    assert conversion.start_V1.tolist() == [0, 1, 2, 4] and conversion.old_N.tolist() == [0, 1, 0, 2]
    assert len(results) == 5
    for number, (name, expected) in enumerate(results.items()):
        method, _, kept = name.partition(", ")
        step: dict[str, Any] = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": method}
        if kept:
            step[kept] = True
        folder = pico.run_recipe(tmp_path / str(number), models, [step])
        for result in load_file(folder / "model.safetensors").values():
            torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_maps_of_the_example() -> None:
    rows = {row[0].strip("`"): (numbers(row[1]), numbers(row[2])) for row in table("old token")}
    base, instruct = (torch.tensor([row[part] for row in rows.values()]) for part in (0, 1))
    T = torch.tensor([[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]])
    shown = [re.findall(r"(?<!\w)\d(?:\.\d+)?", line) for line in re.findall(r"P of .*\n.*", METHOD)[0].split("\n")]
    (a, b, e, f), (c, d, g, h) = ([float(value) for value in line] for line in shown)
    for fitted, X, Y in (
        ([[a, b], [c, d]], base[:2], instruct[:2]),
        ([[e, f], [g, h]], T @ base, T @ instruct),
    ):
        torch.testing.assert_close(torch.linalg.lstsq(X, Y).solution, torch.tensor(fitted), rtol=0, atol=1e-6)
