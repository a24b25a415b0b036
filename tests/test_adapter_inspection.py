"""inspect and diff of adapters: ranks, targets, and norms equal to those of the merged update."""

import json
from pathlib import Path

import pytest
import torch
from peft_adapters import save_adapter, save_base
from pico import assert_one_line_error, command
from safetensors.torch import load_file, save_file

import lepmerge


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, english) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inspection")
    base = save_base(folder / "base", english)
    first = save_adapter(folder / "first", base, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2},
                         modules_to_save=["input_layernorm"])  # fmt: skip
    second = save_adapter(folder / "second", base, seed=2, target_modules=["q_proj", "v_proj"],
                          modules_to_save=["input_layernorm"])  # fmt: skip
    return {"base": base, "first": first, "second": second}


def updates(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return module → what the adapter adds to its weight."""
    old, new = lepmerge.open_model(base), lepmerge.open_model(f"{base}+{adapter}")
    added = {
        name.removesuffix(".weight"): new.tensors[name].rows().double() - tensor.rows().double()
        for name, tensor in old.tensors.items()
        if "norm" not in name
    }
    return {module: update for module, update in added.items() if bool(update.any())}


def test_inspect_shows_rank_targets_and_norms(folders) -> None:
    found = json.loads(command("inspect", folders["first"], "--json").stdout)
    assert (found["kind"], found["rank"], found["alpha"]) == ("LoRA", 4, 6)
    assert found["targets"] == ["down_proj", "q_proj"] and found["base"] == str(folders["base"])
    assert found["saved_modules"] == [f"model.layers.{layer}.input_layernorm" for layer in (0, 1)]
    expected = updates(folders["base"], folders["first"])
    assert found["modules"].keys() == expected.keys()
    for module, entry in found["modules"].items():
        assert entry["norm"] == pytest.approx(float(expected[module].norm()), rel=1e-5)
        assert entry["shape"] == list(expected[module].shape)
        assert (entry["rank"], entry["scaling"]) == ((2, 3.0) if "q_proj" in module else (4, 1.5))
    of_layer = [update for module, update in expected.items() if ".1." in module]
    norm = float(torch.cat([update.flatten() for update in of_layer]).norm())
    assert list(found["layers"]) == ["0", "1"] and found["layers"]["1"] == pytest.approx(norm, rel=1e-5)
    numbers = [tensor.numel() for tensor in load_file(folders["first"] / "adapter_model.safetensors").values()]
    assert found["parameters"] == sum(numbers)
    shown = command("inspect", folders["first"]).stdout
    assert "down_proj, q_proj" in shown and f"{norm:.4g}" in shown


def test_diff_compares_updates_and_saved_modules(folders) -> None:
    printed = json.loads(command("diff", folders["first"], folders["second"], "--json").stdout)
    found = {d["name"]: d for d in printed["tensors"]}
    a, b = (updates(folders["base"], folders[name]) for name in ("first", "second"))
    q, v, down = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))
    assert found[q]["state"] == "changed"
    assert found[q]["change"] == pytest.approx(float((b[q] - a[q]).norm() / a[q].norm()), rel=1e-4)
    assert found[v]["state"] == "only in B" and found[down]["state"] == "only in A"
    key = "base_model.model.model.layers.0.input_layernorm.weight"
    norms = [load_file(folders[name] / "adapter_model.safetensors")[key] for name in ("first", "second")]
    saved = found["model.layers.0.input_layernorm.weight"]
    assert saved["change"] == pytest.approx(float((norms[1] - norms[0]).norm() / norms[0].norm()), rel=1e-5)
    same = command("diff", folders["first"], folders["first"])
    assert same.stdout.strip() == "6 further tensors are equal"


def test_diff_of_a_base_and_the_base_with_its_adapter(folders) -> None:
    both = command("diff", folders["base"], f"{folders['base']}+{folders['first']}", "--json")
    changed = {d["name"] for d in json.loads(both.stdout)["tensors"] if d["state"] == "changed"}
    norms = {f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1)}
    assert changed == {f"{module}.weight" for module in updates(folders["base"], folders["first"])} | norms


def test_half_of_a_pair_is_one_line(tmp_path: Path, folders) -> None:
    (tmp_path / "adapter_config.json").write_bytes((folders["first"] / "adapter_config.json").read_bytes())
    tensors = load_file(folders["first"] / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert_one_line_error(command("inspect", tmp_path), 1, "layers.0.self_attn.q_proj lacks one of lora_A and lora_B")
