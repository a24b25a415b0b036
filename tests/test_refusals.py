"""If `run` refuses something, `plan` refuses it with the same line, before anything is computed or written."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pico
import pytest
import torch
import written
import yaml
from safetensors.torch import load_file, save_file

from lepmerge.errors import LepmergeError
from lepmerge.models.references import resolve

PROPAGATE = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "delta"}


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def narrow(path: Path) -> None:
    tensors = {name: tensor[:, :8].contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def integers(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, path, metadata={"format": "pt"})


def arithmetic(expression: str, tensors: str = "body") -> dict:
    return {"steps": [{"op": "arithmetic", "tensors": tensors, "expression": expression}]}


Change = Callable[[Path], object]
RECIPES: dict[str, tuple[dict, str]] = {
    "unknown model": ({"start": "nobody"}, "unknown model 'nobody'"),
    "unknown operation": ({"steps": [{"op": "swap"}]}, "there is no operation 'swap'"),
    "unknown method": ({"steps": [{**PROPAGATE, "method": "dleta"}]}, "did you mean delta?"),
    "unknown tokenizer": ({"steps": [{"op": "swap_vocabulary", "tokenizer": "./none"}]}, "no such folder"),
    "no such model": ({"models": {"instruct": "./none"}, "steps": []}, "models.instruct: no such folder"),
    "expression": (arithmetic("instruct +"), "expected an operator"),
    "expression of an unknown model": (arithmetic("instuct"), "did you mean instruct?"),
    "nothing selected": (arithmetic("base", "model.nothing*"), "selects nothing"),
    "a tensor that a model lacks": (arithmetic("adapted"), "adapted"),
    "output in an input": ({"output": {"path": "instruct/out"}}, "contains or is inside the input"),
    "output over an input": ({"output": {"path": "base"}}, "contains or is inside the input"),
    "output is a file": ({"output": {"path": "recipe.yaml"}}, "is a file"),
    "not trained": ({"models": {"instruct": {"train": "none.yaml"}}, "steps": []}, "none.yaml cannot be read"),
    "a revision of a folder": (
        {"models": {"instruct": {"path": "./instruct", "revision": "main"}}, "steps": []},
        "is a local folder, so `revision: main` means nothing",
    ),
    "tables without a body": ({"output": {"path": "out", "tables": "q8_0"}}, "name a GGUF file as `body`"),
    "a body and shards": (
        {"output": {"path": "out.gguf", "body": "x.gguf", "shard_size": "1MB"}},
        "shard_size belongs to a safetensors output",
    ),
    "no such body": ({"output": {"path": "out.gguf", "body": "x.gguf"}, "steps": []}, "x.gguf"),
    "merge of too many models": (
        {"steps": [{"op": "merge", "method": "slerp", "models": dict.fromkeys(["base", "instruct", "adapted"], {})}]},
        "slerp merges 2, not 3 (adapted, base, instruct)",
    ),
    "merge without a base": (
        {"steps": [{"op": "merge", "method": "ties", "models": {"base": {}, "instruct": {}}}]},
        "ties needs a base model",
    ),
    "tokens of a model that is not merged": (
        {"steps": [{"op": "unite_vocabularies", "models": ["base"], "tokens": {"<|end|>": {"source": "adapted"}}}]},
        "adapted is not among the step's models (",
    ),
    "tables of another width": (
        {"models": {"wide": "./wide"}, "steps": [{"op": "unite_vocabularies", "models": ["wide"]}]},
        "has rows of 32 values, expected 16 as in instruct",
    ),
    "a variable that is not closed": ({"output": {"path": "out/${name"}}, "write $${ for a literal ${"),
    "a template of nobody": ({"output": {"path": "out", "chat_template": "none.jinja"}, "steps": []}, "none.jinja"),
    "base of another vocabulary": ({"steps": [{**PROPAGATE, "base": "adapted"}]}, "should share their vocabulary"),
}
FILES: dict[str, tuple[str, Change, str]] = {
    "no config": ("instruct/config.json", Path.unlink, "config.json"),
    "no tokenizer": ("adapted/tokenizer.json", Path.unlink, "tokenizer"),
    "config is not JSON": ("base/config.json", lambda path: path.write_text("{"), "config.json"),
    "cut weights": ("instruct/model.safetensors", cut, "model.safetensors"),
    "no weights": ("base/model.safetensors", Path.unlink, "base"),
    "other width": ("adapted/embeddings.safetensors", narrow, "width"),
    "quantized, with a dtype": (
        "instruct/config.json",
        lambda path: edit_json(path, quantization_config={"quant_method": "gptq"}),
        "is quantized",
    ),
}


@pytest.fixture
def work(tmp_path: Path, setting: dict[str, Path], english) -> Path:
    for name, folder in setting.items():
        shutil.copytree(folder, tmp_path / name)
    pico.save_model(tmp_path / "wide", english, width=32)
    return tmp_path


def assert_refused(work: Path, changed: dict, part: str) -> None:
    models = {"base": "base", "instruct": "instruct", "adapted": "adapted", **changed.get("models", {})}
    recipe = {"steps": [PROPAGATE], "output": {"path": "out"}, **changed, "models": models}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = pico.tree(work)
    planned = pico.command("plan", work / "recipe.yaml")
    run = pico.command("run", work / "recipe.yaml", "--device", "cpu")
    pico.assert_one_line_error(run, run.exit_code, part)
    assert planned.exit_code == run.exit_code != 0 and planned.stderr == run.stderr
    assert planned.stdout == "", "the plan showed something before it refused"
    assert pico.tree(work) == before, "something was written"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_refused(work: Path, name: str) -> None:
    assert_refused(work, *RECIPES[name])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_refused(work: Path, name: str) -> None:
    file, change, part = FILES[name]
    change(work / file)
    assert_refused(work, {"output": {"path": "out", "dtype": "float16"}}, part)


def test_an_output_that_is_there_is_noted_by_the_plan_and_refused_by_the_run(work: Path) -> None:
    recipe = pico.write_recipe(
        work / "recipe.yaml", base=Path("base"), instruct=Path("instruct"), adapted=Path("adapted")
    )
    (work / "out").mkdir()
    (work / "out" / "notes.txt").write_text("mine")
    before = pico.tree(work)
    planned = json.loads(pico.command("plan", recipe, "--json").stdout)
    assert any("is not empty" in note and "--overwrite" in note for note in planned["notes"])
    pico.assert_one_line_error(pico.command("run", recipe, "--device", "cpu"), 1, "not empty", "--overwrite")
    assert pico.tree(work) == before


def test_the_other_kind_of_file_names_its_command(work: Path) -> None:
    (work / "train.yaml").write_text("model: base\ndata: text.txt\noutput: out\n")
    recipe = pico.write_recipe(work / "recipe.yaml", base=work / "base", instruct=work / "base", adapted=work / "base")
    for command in ("run", "plan"):
        pico.assert_one_line_error(pico.command(command, work / "train.yaml"), 2, "use `lepmerge train ")
    pico.assert_one_line_error(pico.command("train", recipe), 2, "is a recipe", "use `lepmerge run ")


def test_a_model_whose_training_was_interrupted_is_named(work: Path) -> None:
    (work / ".new.lepmerge").mkdir()
    models = {"base": work / "base", "instruct": work / "instruct", "adapted": work / "new"}
    result = pico.command("run", pico.write_recipe(work / "recipe.yaml", **models))
    pico.assert_one_line_error(result, 1, "models.adapted", "is not finished", ".new.lepmerge", "lepmerge train")


def test_a_refusal_that_leaves_a_file_is_noticed_by_every_test(tmp_path: Path) -> None:
    for name in ("left", None):
        written.begin()
        try:
            if name is not None:
                (tmp_path / name).touch()
            resolve("./nowhere", relative_to=tmp_path)
        except LepmergeError:
            with pytest.raises(SystemExit) as ended:
                sys.exit(1)
        with pytest.raises(AssertionError, match="left") if name else nullcontext():
            written.end(ended.value, [])


def test_a_recipe_from_standard_input(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from lepmerge.commands.main import main

    monkeypatch.chdir(work)
    text = pico.write_recipe(work / "r.yaml", base=Path("base"), instruct=Path("instruct"), adapted=Path("adapted"))
    result = CliRunner().invoke(main, ["run", "-", "--device", "cpu"], input=text.read_text())
    assert result.exit_code == 0, result.output
    assert (work / "out" / "model.safetensors").exists()
    wrong = CliRunner().invoke(main, ["plan", "-"], input="models: {a: b}\nstart: c\noutput: {path: out}\n")
    assert wrong.exit_code == 2 and "standard input:2" in wrong.stderr
