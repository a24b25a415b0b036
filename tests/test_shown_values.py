"""What `run`, `plan`, `inspect` and `diff` show, whole, against values computed from the files."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

import lepmerge

TABLES = ["model.embed_tokens.weight", "lm_head.weight"]


@pytest.fixture
def models(tmp_path: Path, setting: dict[str, Path]) -> dict[str, Path]:
    """base, adapted, and an instruct model in three files."""
    instruct = Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))
    return {**setting, "instruct": pico.split(instruct)}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_report_and_card_count_bytes_files_and_values_that_are_not_finite(tmp_path: Path, models) -> None:
    adapted = Path(shutil.copytree(models["adapted"], tmp_path / "adapted"))
    tables = load_file(adapted / "embeddings.safetensors")
    tables["lm_head.weight"][300, :3] = float("nan")
    save_file(tables, adapted / "embeddings.safetensors", metadata={"format": "pt"})
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", "swap", **{**models, "adapted": adapted})
    sizes = pico.plan_file(recipe).sizes
    out = pico.run_file(recipe, device="cpu")
    report, card = json.loads((out / "lepmerge_report.json").read_text()), (out / "README.md").read_text()
    assert report["bytes"] == {key: sizes[key] for key in ("read", "copied", "computed", "written")}
    assert report["bytes"]["written"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    note = "lm_head.weight: 3 NaN or infinite values"
    assert report["not_finite"] == {"lm_head.weight": 3} and note in report["notes"] and f"\n- {note}\n" in card
    shards = sorted(models["instruct"].glob("*.safetensors"))
    size = sum(path.stat().st_size for path in shards)
    assert len(shards) == 3 and f"- `instruct`: instruct (3 files, {size:,} bytes)" in card
    files = report["inputs"]["instruct"]["files"]
    assert {name: file["size"] for name, file in files.items()} == {path.name: path.stat().st_size for path in shards}


def test_a_run_shows_its_report(tmp_path: Path, models) -> None:
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", "delta", **models)
    step = "  - {op: arithmetic, tensors: output_embeddings, expression: current + base - base}\noutput:"
    recipe.write_text(recipe.read_text().replace("output:", step))
    result = pico.command("run", recipe, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "out" / "lepmerge_report.json").read_text())
    expected = []

    def counted(rows: dict[str, int]) -> str:
        return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in rows.items() if count)

    for table in report["tables"]:
        expected.append(f"{table['table']} {table['method']}: {counted(table['rows'])}")
        expected += [f"    {model}: {counted(rows)}" for model, rows in table.get("operands", {}).items()]
        metrics = {key: value for key, value in table.get("metrics", {}).items() if not isinstance(value, str)}
        if metrics:
            shown = (f"{key.replace('_', ' ')} {value:.4g}" for key, value in metrics.items())
            expected.append(f"    {', '.join(shown)}")
    assert any(0 in table["rows"].values() for table in report["tables"])
    assert any(table.get("operands") for table in report["tables"])
    assert result.stdout.splitlines() == [*expected, str(tmp_path / "out")]


def test_a_plan_describes_its_files(tmp_path: Path, models) -> None:
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", "delta", **models)
    found = json.loads(pico.command("plan", recipe, "--json").stdout)
    rows = {name: tensors_of(folder)[TABLES[0]].shape[0] for name, folder in models.items()}
    counts = {name: len(tensors_of(folder)) for name, folder in models.items()}
    assert found["models"] == {
        name: {"folder": str(folder), "rows": rows[name], "tied": False, "tensors": counts[name]}
        for name, folder in models.items()
    }
    out = pico.run_file(recipe, device="cpu")
    after = tensors_of(out)[TABLES[0]].shape[0]
    assert found["vocabulary_rows"] == {"before": rows["instruct"], "after": after} and after > rows["instruct"]
    for file in found["files"]:
        old, new = (load_file(folder / file["file"]) for folder in (models["instruct"], out))
        computed = [name for name in new if name in TABLES]
        assert file["action"] == ("write" if computed else "copy") and sorted(file["computed"]) == sorted(computed)
        assert all(torch.equal(new[name], old[name]) for name in old if name not in TABLES)
    assert {file["action"] for file in found["files"]} == {"write", "copy"}
    disk = shutil.disk_usage(tmp_path)
    assert abs(found["free_disk"] - disk.free) < min(1 << 30, disk.used / 2)
    small = {name: path for name, path in found["small_files"].items() if path == "copy"}
    assert small and all((out / name).read_bytes() == (models["instruct"] / name).read_bytes() for name in small)
    assert set(found["small_files"]) <= {path.name for path in out.iterdir()}


def test_inspect_shows_the_files(models) -> None:
    folder = models["instruct"]
    found = json.loads(pico.command("inspect", folder, "--json").stdout)
    tensors = tensors_of(folder)
    assert found["architecture"] == "LlamaForCausalLM" and found["embeddings_only"] is False
    assert found["folder"] == str(folder) and found["tables"] == {
        "input_embeddings": TABLES[0],
        "output_embeddings": TABLES[1],
    }
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["files"] == {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert found["tensors"] == {
        name: {"dtype": "BF16", "shape": list(tensor.shape), "file": where[name]} for name, tensor in tensors.items()
    }
    assert json.loads(pico.command("inspect", models["adapted"], "--json").stdout)["embeddings_only"] is True


def test_diff_counts_the_equal_tensors_and_measures_relative_to_the_first(tmp_path: Path, models) -> None:
    other = Path(shutil.copytree(models["base"], tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = "model.norm.weight"
    tensors[name] = tensors[name] * 3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    lines = pico.command("diff", models["base"], other).stdout.splitlines()
    assert [line.split()[:2] for line in lines if name in line] == [[name, "changed"]]
    assert lines[-1] == f"{len(tensors) - 1} further tensors are equal"
    every = pico.command("diff", models["base"], other, "--all").stdout.splitlines()
    assert every[-1] == f"{len(tensors)} tensors" and len(every) > len(tensors)
    changes = [
        {
            entry["name"]: entry["change"]
            for entry in json.loads(pico.command("diff", *pair, "--json").stdout)["tensors"]
        }
        for pair in ((models["base"], other), (other, models["base"]))
    ]
    assert changes[0][name] == pytest.approx(2) and changes[1][name] == pytest.approx(2 / 3)
    assert lepmerge.open_model(other).tensors.keys() == changes[0].keys()
