"""What a plan says of bytes and files, and what reductions decide, value by value."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

import lepmerge
from lepmerge.computation.inits import FEWEST_ROWS
from lepmerge.merge.plan import Plan
from lepmerge.tensors import BLOCK_BYTES, INTERPRETER_BYTES

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def planned(folder: Path, models: dict[str, Path], method: str, *overrides: str) -> Plan:
    return pico.plan_file(pico.write_recipe(folder / "recipe.yaml", method, **models), overrides)


def test_bytes_read_and_memory_of_a_plan(tmp_path: Path, setting: dict[str, Path]) -> None:
    table = {name: load_file(next(folder.glob("*.safetensors")))[TABLES[0]].nbytes for name, folder in setting.items()}
    delta, conversion = (planned(tmp_path, setting, method) for method in ("delta", "conversion"))
    # per table: A + T (E_i - E_b) with the kept rows of E_i, then the drift between T E_b and T E_i
    assert delta.sizes["read"] == 2 * (table["adapted"] + 3 * table["instruct"] + 2 * table["base"])
    # per table: A P with the kept rows of E_i, then the fit on T E_b and T E_i
    fit = table["base"] + table["instruct"]
    assert conversion.sizes["read"] == 2 * (table["adapted"] + table["instruct"] + fit) + 2 * fit
    vocabularies = {id(model.vocabulary): model.vocabulary.num_bytes for model in conversion.models.values()}
    vocabularies[id(conversion.final.vocabulary)] = conversion.final.vocabulary.num_bytes
    width = 16
    expected = INTERPRETER_BYTES + sum(vocabularies.values()) + 8 * BLOCK_BYTES + 5 * 8 * width**2
    assert conversion.sizes["memory"] == expected
    assert delta.sizes["memory"] == expected - 5 * 8 * width**2
    for plan in (delta, conversion):
        assert plan.sizes["written"] == plan.sizes["computed"] + plan.sizes["copied"]
        assert plan.sizes["computed"] == sum(plan.final.tensors[name].num_bytes for name in TABLES)
    fitted = conversion.reductions[0]
    assert fitted.bytes_read == len(fitted.row_N) * 2 * width * 2  # two bfloat16 rows of width 16 each


def test_a_plan_without_weights_equals_the_plan_with_them(tmp_path: Path, setting: dict[str, Path]) -> None:
    for name, folder in setting.items():
        shutil.copytree(folder, tmp_path / name)
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", "conversion", **{name: tmp_path / name for name in setting})

    def shown(*options: str) -> dict[str, Any]:
        result = pico.command("plan", recipe, "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    expected = shown()
    for name in ("base", "instruct"):
        (tmp_path / name / "model.safetensors").unlink()
    before = pico.tree(tmp_path)
    pico.assert_one_line_error(pico.command("plan", recipe), 1, "holds no weights")
    found = shown("--without-weights")
    notes = [note for note in found["notes"] if note not in expected["notes"]]
    assert [note.split(" (")[0] for note in notes] == ["base", "instruct"] and all("has no weights" in n for n in notes)
    for plan in (found, expected):
        plan.pop("notes")
        plan.pop("free_disk")
    assert found == expected and min(found["bytes"]["copied"], found["bytes"]["computed"]) > 0
    text = pico.command("plan", recipe, "--without-weights", "--memory", "1GB").stdout
    assert "fit       1.0 GB: yes" in text and text.count("has no weights") == 2
    assert pico.tree(tmp_path) == before


def test_a_tensor_larger_than_shard_size_has_a_file_alone(tmp_path: Path, setting: dict[str, Path]) -> None:
    size = 6_000
    plan = planned(tmp_path, setting, "swap", f"output.shard_size={size}")
    large = {name for name, tensor in plan.final.tensors.items() if tensor.num_bytes > size}
    assert large >= set(TABLES) and len(plan.shards) > len(large)
    for shard in plan.shards:
        held = sum(tensor.num_bytes for tensor in shard.tensors.values())
        assert held <= size or set(shard.tensors) <= large and len(shard.tensors) == 1
    assert [name for shard in plan.shards for name in shard.tensors] == list(plan.final.tensors)
    names = [f"model-{number:05}-of-{len(plan.shards):05}.safetensors" for number in range(1, len(plan.shards) + 1)]
    assert [shard.name for shard in plan.shards] == names


def test_a_fit_on_a_table_that_needs_a_norm_equals_two_runs(tmp_path: Path, setting: dict[str, Path]) -> None:
    scale = {"op": "arithmetic", "tensors": "embeddings", "expression": "current * 3 / norm(instruct)"}
    fit = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "conversion"}
    first = pico.run_recipe(tmp_path / "first", setting, [scale], dtype="float32")
    before = load_file(setting["instruct"] / "model.safetensors")[TABLES[0]].double()
    expected = before * 3 / before.norm()
    assert torch.allclose(load_file(first / "model.safetensors")[TABLES[0]].double(), expected, rtol=1e-6)
    second = pico.run_recipe(tmp_path / "second", {**setting, "instruct": first}, [fit], dtype="float32")
    at_once = pico.run_recipe(tmp_path / "at_once", setting, [scale, fit], dtype="float32")
    for name in TABLES:
        one, two = (load_file(folder / "model.safetensors")[name] for folder in (at_once, second))
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
        adapted = load_file(setting["adapted"] / "embeddings.safetensors")[name].float()
        assert not torch.allclose(one[6 : len(adapted)], adapted[6:], atol=1e-3)
    reports = [json.loads((folder / "lepmerge_report.json").read_text())["tables"] for folder in (at_once, second)]
    for one, two in zip(reports[0][2:], reports[1], strict=True):
        assert one["metrics"]["drift"] == pytest.approx(two["metrics"]["drift"], rel=1e-5)


def script_of(data: bytes) -> str:
    letter = next((character for character in data.decode(errors="ignore") if character.isalpha()), None)
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""


def test_norm_calibrated_takes_the_mean_norm_of_the_tokens_script(tmp_path: Path) -> None:
    old = pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 500)
    new = pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 700)
    models = {"instruct": pico.save_model(tmp_path / "old", old, dtype=torch.float32)}
    pico.save_tokenizer(new, tmp_path / "new")
    weights = load_file(models["instruct"] / "model.safetensors")
    vocabulary = lepmerge.open_model(models["instruct"]).vocabulary
    scripts = {id: script_of(data) for id, data in vocabulary.bytes_of.items()}
    for number, name in enumerate(TABLES):  # Cyrillic rows three times as long as the others
        weights[name][[id for id, script in scripts.items() if script == "CYRILLIC"]] *= 3 + number
    save_file(weights, models["instruct"] / "model.safetensors", metadata={"format": "pt"})
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "new"), "init": "norm_calibrated"}
    out = pico.run_recipe(tmp_path / "run", models, [step])
    after, made = load_file(out / "model.safetensors"), lepmerge.open_model(out).vocabulary
    checked = {"CYRILLIC": 0, "LATIN": 0}
    for name in TABLES:
        norms = weights[name].norm(dim=1)
        of_script = {s: norms[[id for id, script in scripts.items() if script == s]] for s in checked}
        assert all(len(found) >= FEWEST_ROWS for found in of_script.values())
        for id, data in made.bytes_of.items():
            if data not in vocabulary.bytes_of.values() and script_of(data) in checked:
                script = script_of(data)
                assert float(after[name][id].norm()) == pytest.approx(float(of_script[script].mean()), rel=1e-4)
                checked[script] += 1
    assert all(checked.values())


@pytest.mark.parametrize(("condition", "by_eigenvalues"), [(3e5, False), (5e6, True)])
def test_cholesky_up_to_a_condition_of_a_million(monkeypatch, condition: float, by_eigenvalues: bool) -> None:
    from test_least_squares import fitted, randn

    calls = []
    original = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or original(matrix))
    left, _ = torch.linalg.qr(randn(400, 16))
    right, _ = torch.linalg.qr(randn(16, 16, seed=1))
    X = left @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 16).double()) @ right
    P, metrics = fitted(X, X @ (torch.eye(16).double() + 0.1 * randn(16, 16, seed=2)))
    assert bool(calls) is by_eigenvalues
    assert metrics["rank"] == 16 and metrics["condition"] > condition / 30
