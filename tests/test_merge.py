"""`op: merge` through the command line: the result, numbers by layer, other vocabularies, a second run, wrong uses."""

import json
import shutil
from pathlib import Path
from random import randrange
from typing import Any

import merge_reference
import pico
import pytest
import reference
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_resume import crash_everywhere

from lepmerge.merge import execute

WORDS = "model.embed_tokens.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory, setting, english) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("merge")
    second = pico.save_instruct(folder / "second", setting["base"], english, seed=7)
    return {"base": setting["base"], "first": setting["instruct"], "second": second, "start": setting["instruct"]}


def write(folder: Path, models: dict[str, Path], step: dict[str, Any], *, start: str = "start") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "models": {name: str(path) for name, path in models.items()},
        "start": start,
        "steps": [{"op": "merge", **step}],
        "output": {"path": "out"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def run(recipe: Path, *options: str) -> dict[str, torch.Tensor]:
    done = pico.command("run", recipe, "--device", "cpu", *options)
    assert done.exit_code == 0, done.stderr
    return reference.weights(recipe.parent / "out")


TIES = {"method": "ties", "base": "base", "models": {"first": {"weight": 0.5, "density": 0.6}, "second": {}}}


def test_a_merge_is_planned_run_and_left_alone_when_it_is_complete(tmp_path: Path, models) -> None:
    recipe = write(tmp_path, models, {**TIES, "tensors": "body"})
    planned = pico.command("plan", recipe)
    assert planned.exit_code == 0 and "first     thresholds" in planned.stdout and "method ties" in planned.stdout
    got = run(recipe)
    base, first, second = (reference.weights(models[name]) for name in ("base", "first", "second"))
    for name, tensor in got.items():
        if name in (WORDS, "lm_head.weight"):
            assert reference.same_bits(tensor, first[name])
            continue
        operands = [each[name].double() for each in (base, first, second)]
        wanted = merge_reference.ties(operands[0], operands[1:], weight=[0.5, 1.0], density=[0.6, 1.0])
        assert torch.allclose(tensor.double(), wanted, rtol=2**-8, atol=1e-7), name
    before = pico.tree(tmp_path / "out")
    again = pico.command("run", recipe, "--device", "cpu")
    assert again.exit_code == 0 and "complete already" in again.stderr and pico.tree(tmp_path / "out") == before


def test_numbers_by_layer_and_by_filter(tmp_path: Path, models) -> None:
    """A list is spread over the layers, tensors outside them take its first number; the first rule that fits holds."""
    t = [{"filter": "up_proj", "value": [0, 1]}, {"filter": "norm", "value": 1}, {"value": [0, 0.5]}]
    got = run(write(tmp_path, models, {"method": "slerp", "models": {"first": None, "second": None}, "t": t}))
    first, second = (reference.weights(models[name]) for name in ("first", "second"))
    assert reference.same_bits(got[UP.format(0)], first[UP.format(0)])
    assert reference.same_bits(got[UP.format(1)], second[UP.format(1)])
    assert reference.same_bits(got["model.norm.weight"], second["model.norm.weight"])
    assert reference.same_bits(got["lm_head.weight"], first["lm_head.weight"])
    down = UP.format(1).replace("up_proj", "down_proj")
    wanted = merge_reference.slerp(None, [first[down].double(), second[down].double()], 0.5)
    assert torch.allclose(got[down].double(), wanted, rtol=2**-8, atol=1e-7)


def test_models_of_another_vocabulary_are_converted_to_the_output_s(tmp_path: Path, english, russian, models) -> None:
    """Half of one model and half of another: ids and template are the start's, each row the mean of the two rows."""
    other = pico.save_model(tmp_path / "other", russian, seed=5, chat=True)
    all_models = {"first": models["first"], "other": other}
    step = {"method": "linear", "models": {"first": {"weight": 0.5}, "other": {"weight": 0.5}}}
    recipe = write(tmp_path / "run", all_models, step, start="other")
    got = run(recipe)
    old, new = reference.tokens_in(models["first"]), reference.tokens_in(other)
    first, second = (reference.weights(folder)[WORDS] for folder in (models["first"], other))
    rows = reference.conversion(old, new, len(second))
    wanted = (reference.applied(rows, first) + second.double()) / 2
    stays = [id for id, row in enumerate(rows) if not row.ids]
    stays += [id for content, id in new.added.items() if content not in old.added]
    wanted[stays] = second[stays].double()
    assert torch.allclose(got[WORDS].double(), wanted, rtol=2**-8, atol=1e-7)
    exact = [id for id, row in enumerate(rows) if len(row.ids) == 1 and id not in stays]
    assert len(exact) > 300
    means = torch.stack([(first[rows[id].ids[0]].float() + second[id].float()) / 2 for id in exact])
    assert reference.same_bits(got[WORDS][exact], means.to(torch.bfloat16))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(recipe.parent / "out")
    assert loaded.chat_template == pico.CHAT_TEMPLATE
    assert loaded.encode(pico.RUSSIAN[0]) == AutoTokenizer.from_pretrained(other).encode(pico.RUSSIAN[0])
    assert AutoModelForCausalLM.from_pretrained(recipe.parent / "out").config.vocab_size == len(second)
    report = json.loads((recipe.parent / "out" / "lepmerge_report.json").read_text())
    (table, _) = report["tables"]
    assert table["method"] == "linear" and table["operands"].keys() == {"first"}
    assert table["rows"] == {"merged": len(second) - len(set(stays)), "kept": len(set(stays))}


STEPS = {
    "della": {"method": "della", "base": "base", "models": {"first": {"density": 0.5}, "second": {"density": 0.7}}},
    "dare": {"method": "dare_ties", "base": "base", "models": {"first": {"density": 0.3}, "second": {"density": 0.7}}},
    "ties": TIES,
    "sce": {"method": "sce", "base": "base", "models": {"first": {}, "second": {}}, "select_topk": 0.3},
    "stock": {"method": "model_stock", "base": "base", "models": {"first": {}, "second": {}}, "tokenizer": "union"},
}


@pytest.mark.parametrize("name", ["della", *(pytest.param(n, marks=pytest.mark.slow) for n in STEPS if n != "della")])
def test_the_bytes_depend_neither_on_blocks_nor_on_threads(tmp_path: Path, models, monkeypatch, name: str) -> None:
    step = STEPS[name]
    once = run(write(tmp_path / "once", models, step))
    threads = torch.get_num_threads()
    monkeypatch.setattr("lepmerge.tensors.BLOCK_BYTES", 1000)
    torch.set_num_threads(1)
    try:
        again = run(write(tmp_path / "again", models, step))
    finally:
        torch.set_num_threads(threads)
    assert all(reference.same_bits(again[name], tensor) for name, tensor in once.items())


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_run_continues_and_computes_no_threshold_twice(tmp_path: Path, models, monkeypatch) -> None:
    undisturbed = pico.contents(tmp_path / "a" / "out") if run(write(tmp_path / "a", models, TIES)) else {}
    recipe = write(tmp_path / "b", models, TIES)

    def killed(*arguments, **keywords):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(execute, "_write_shard", killed)
        with pytest.raises(Killed):
            pico.run_file(recipe, device="cpu")
    monkeypatch.setattr("lepmerge.computation.merge_methods.reductions.RankThresholds.compute", killed)
    run(recipe)
    assert pico.contents(tmp_path / "b" / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dare", "stock"])
def test_a_merge_that_is_killed_anywhere_is_resumed(tmp_path: Path, models, monkeypatch, name: str) -> None:
    recipe = write(tmp_path / "work", models, STEPS[name])
    assert crash_everywhere(recipe, tmp_path, monkeypatch, overwrite=False, first=randrange(9), step=9) > 4


def with_another_layer(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    more = {name.replace("layers.1.", "layers.2."): t.clone() for name, t in tensors.items() if "layers.1." in name}
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without_a_tensor(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in (0, 1):
        del tensors[UP.format(layer)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pico.bring_code(folder)
    return folder


@pytest.mark.parametrize(
    ("step", "exit_code", "parts"),
    [
        ({"models": {"first": {}, "deeper": {}}, "method": "linear"}, 1, ["deeper", "layers.2.", "architectures"]),
        ({"models": {"first": {}, "gap": {}}, "method": "linear"}, 1, ["gap", "lacks tensor", UP.format(0)]),
        ({**TIES, "models": {"first": {"density": 0}}}, 2, ["models.first.density", "above 0 and at most 1"]),
        ({**TIES, "models": {"first": {"density": [0.5, 1.5]}}}, 2, ["models.first.density", "at most 1"]),
        (
            {"models": {"first": {}, "second": {}, "base": {}}, "method": "slerp", "t": 0.5},
            2,
            ["slerp merges 2, not 3"],
        ),
        ({**TIES, "method": "tise"}, 2, ["no merge method 'tise'", "did you mean ties?"]),
        ({**TIES, "models": {"first": {"gamma": 0.1}}}, 2, ["models.first.gamma", "ties has no such parameter"]),
        ({**TIES, "models": {"first": {"wieght": 0.1}}}, 2, ["models.first.wieght", "did you mean weight?"]),
        ({**TIES, "base": None}, 2, ["base", "ties needs a base model"]),
        ({"models": {"first": {}}, "method": "linear", "base": "base"}, 2, ["linear has none"]),
        ({"models": {"first": {}, "second": {}}, "method": "slerp"}, 2, ["t: slerp needs this parameter"]),
        ({**TIES, "models": {"first": {}, "base": {}}}, 2, ["models.base", "remove it from `models`"]),
        ({**TIES, "lambda": [{"filter": "mlp", "value": 1}]}, 2, ["lambda", "last rule should have no filter"]),
        ({**TIES, "layers": [1, 3]}, 2, ["layers: [1, 3] is not a range of the 2 layers"]),
        ({**TIES, "models": {"first": {}, "third": {}}}, 2, ["unknown model 'third'"]),
        ({"models": {"first": {"weight": 1}, "second": {"weight": -1}}, "method": "linear"}, 2, ["add up to 0"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_use_is_one_line_at_plan_time(tmp_path: Path, models, step, exit_code: int, parts) -> None:
    more = {}
    if "deeper" in step["models"]:
        more["deeper"] = with_another_layer(tmp_path / "deeper", models["second"])
    if "gap" in step["models"]:
        more["gap"] = without_a_tensor(tmp_path / "gap", models["second"])
    recipe = write(tmp_path / "run", {**models, **more}, step)
    pico.assert_one_line_error(pico.command("plan", recipe), exit_code, *parts)
