"""Every shape of recipe goes through the command line: plan, run, run again, inspect, diff, load with transformers."""

import json
from pathlib import Path

import pico
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

PROPAGATE = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted"}
SWAP = {"op": "swap_vocabulary", "tokenizer": "adapted"}


def propagate(method: object, **more: object) -> dict:
    return {**PROPAGATE, "method": method, **more}


def swap(init: object, **more: object) -> dict:
    return {**SWAP, "init": init, **more}


def arithmetic(tensors: object, expression: str) -> dict:
    return {"op": "arithmetic", "tensors": tensors, "expression": expression}


TASK = "instruct + 0.5 * (current - base)"
SHAPES: dict[str, tuple[list[dict], dict]] = {
    "nothing": ([], {}),
    **{method: ([propagate(method)], {}) for method in ("swap", "overlap", "conversion", "delta")},
    "method per table": ([propagate({"input": "conversion", "output": "delta"})], {}),
    "shared rows": ([propagate("delta", keep_shared_rows=True)], {}),
    **{init: ([swap(init)], {}) for init in ("mean", "weighted_mean", "norm_calibrated")},
    "init per table": ([swap({"input": "norm_calibrated", "output": "weighted_mean"})], {}),
    **{f"arithmetic on {name}": ([arithmetic(name, TASK)], {}) for name in ("embeddings", "input_embeddings", "body")},
    "arithmetic on output_embeddings": ([arithmetic("output_embeddings", "current / 2")], {}),
    "arithmetic on globs": ([arithmetic(["*.mlp.*", "*norm*"], "min(base, current) - abs(instruct) * 0.1")], {}),
    "arithmetic on everything": ([arithmetic("*", "current * norm(base) / norm(instruct)")], {}),
    "arithmetic over another vocabulary": ([arithmetic("embeddings", "0.5 * current + 0.5 * adapted")], {}),
    "a constant": ([arithmetic("model.norm.weight", "1")], {}),
    "several steps": (
        [swap("mean"), arithmetic("embeddings", "current + base - instruct"), arithmetic("body", "0.5 * current")],
        {"pad_to_multiple_of": 64, "dtype": "float32", "shard_size": "20KB"},
    ),
    "a fit on a table that needs a norm": (
        [arithmetic("embeddings", "current * norm(base) / norm(instruct)"), propagate("conversion")],
        {},
    ),
    "padding": ([], {"pad_to_multiple_of": 256}),
    "padding removed": ([], {"pad_to_multiple_of": 1, "start": "padded"}),
    "dtype": ([propagate("conversion")], {"dtype": "float16"}),
    "shard_size": ([], {"shard_size": "10KB"}),
}
TIED = {
    "nothing", "conversion", "delta", "shared rows", "mean", "norm_calibrated", "arithmetic on embeddings", "padding",
    "arithmetic over another vocabulary", "several steps", "a fit on a table that needs a norm",
}  # fmt: skip
CASES = [(name, tied) for name in SHAPES for tied in (False, True) if not tied or name in TIED]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, english, russian) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tied")
    base = pico.save_model(folder / "base", english, tied=True)
    instruct = pico.save_instruct(folder / "instruct", base, english, tied=True)
    return {"base": base, "instruct": instruct, "adapted": pico.save_adapted(folder / "adapted", base, russian)}


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory, english) -> Path:
    return pico.save_model(tmp_path_factory.mktemp("padded") / "padded", english, num_rows=448)


def run(*arguments: object) -> str:
    result = pico.command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("name", "is_tied"), CASES, ids=[f"{name}{', tied' * tied}" for name, tied in CASES])
def test_shape(tmp_path: Path, setting, tied, padded, name: str, is_tied: bool) -> None:
    steps, output = SHAPES[name]
    models = {key: str(path) for key, path in (tied if is_tied else {**setting, "padded": padded}).items()}
    start, output = output.get("start", "instruct"), {key: output[key] for key in output if key != "start"}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        yaml.safe_dump({"models": models, "start": start, "steps": steps, "output": {"path": "out", **output}})
    )

    planned = json.loads(run("plan", recipe, "--json"))
    assert not out.exists() and run("plan", recipe).startswith("output ")
    shown = run("run", recipe, "--device", "cpu").splitlines()
    assert shown[-1] == str(out) and all(shown), "an empty line"
    report = json.loads((out / "lepmerge_report.json").read_text())
    assert_tables_are_shown(report["tables"], shown, steps, output, is_tied)
    assert {file["file"]: file["bytes"] for file in planned["files"]} == {
        path.name: path.stat().st_size for path in sorted(out.glob("*.safetensors"))
    }

    again = pico.command("run", recipe, "--device", "cpu")
    assert again.exit_code == 0 and "complete already" in again.stderr and again.stdout.splitlines() == shown
    assert json.loads(run("inspect", out, "--json"))["tied"] is is_tied
    assert run("diff", models[start], out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out, dtype="auto"), AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().num_embeddings == planned["vocabulary_rows"]["after"]
    assert model.dtype == (getattr(torch, output["dtype"]) if "dtype" in output else torch.bfloat16)
    ids = torch.tensor([tokenizer.encode("The quick brown fox")])
    with torch.no_grad():
        assert bool(torch.isfinite(model(ids).logits).all())


def assert_tables_are_shown(tables: list[dict], shown: list[str], steps: list[dict], output: dict, tied: bool) -> None:
    """Assert that there is an entry, and a line in the terminal, for each table that a step or the padding changes."""
    roles = ["input_embeddings"] if tied else ["input_embeddings", "output_embeddings"]
    expected = []
    for step in [*steps, *([{"op": "pad_vocabulary"}] if "pad_to_multiple_of" in output else [])]:
        selected = {"embeddings": roles, "*": roles, "input_embeddings": roles[:1], "output_embeddings": roles[1:]}
        chosen = roles if "tensors" not in step else selected.get(str(step["tensors"]), [])
        expected += [(step["op"], role) for role in chosen]
    assert [(table["operation"], table["table"]) for table in tables] == expected
    lines = [line for line in shown[:-1] if not line.startswith(" ")]
    assert len(lines) == len(tables)
    for line, table in zip(lines, tables, strict=True):
        counts = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in table["rows"].items() if count)
        assert line == f"{table['table']} {table.get('method', table['operation'])}: {counts}"
        for value in table.get("metrics", {}).values():
            assert isinstance(value, str) or f"{value:.4g}" in "\n".join(shown)
