"""The memory of a training, from config.json alone, and what to change so that it fits a device."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pico
import pytest
import training
from huggingface_hub.utils import filter_repo_objects

from lepmerge.models.references import resolve
from lepmerge.training.fitting import Choice, settings_of
from lepmerge.training.loader import skeleton
from lepmerge.training.memory import OFFLOAD_BYTES, Demand, Sizes, host_bytes, memory_of

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {  # weights of the text model and its tables, as on the models' cards; layers; tables
    "Llama-3.2-1B": (1_235_814_400, 16, 1),
    "Llama-3.2-3B": (3_212_749_824, 28, 1),
    "Llama-3.1-8B": (8_030_261_248, 32, 2),
    "Llama-3.1-70B": (70_553_706_496, 80, 2),
    "Qwen3-4B": (4_022_468_096, 36, 1),
    "Qwen3-32B": (32_762_123_264, 64, 2),
    "Mistral-7B-v0.1": (7_241_732_096, 32, 2),
    "Gemma-3-4B": (3_880_263_168, 34, 1),
    "Gemma-3-27B": (27_009_346_304, 62, 1),
    "SmolLM2-135M": (134_515_008, 30, 1),
}
GB = 10**9
NEW = 46_560
"""New rows of the paper's Llama-3-8B: 174816 instead of 128256."""


def sizes_of(name: str, folder: Path) -> Sizes:
    shutil.copy(CONFIGS / f"{name}.json", folder / "config.json")
    return Sizes.of(skeleton(folder, name="model"), json.loads((folder / "config.json").read_text()))


def demand_of(name: str, rows: int, **options) -> Demand:
    tables = PUBLISHED[name][2]
    defaults = {"precision": "bf16", "num_rows": rows, "num_tables": tables, "trained": tables * rows, "tokens": 1024}
    return Demand(**{**defaults, "device": "cuda", **options})


@pytest.mark.parametrize(
    ("name", "all_rows", "nf4_new"),
    [
        ("Llama-3.2-1B", 9.9, 4.7),
        ("Llama-3.2-3B", 17.8, 6.9),
        ("Llama-3.1-8B", 40.5, 14.9),
        ("Llama-3.1-70B", 206.3, 57.2),
        ("Qwen3-4B", 20.4, 7.0),
        ("Qwen3-32B", 110.6, 30.8),
        ("Mistral-7B-v0.1", 25.7, 12.9),
        ("Gemma-3-4B", 24.7, 7.5),
        ("Gemma-3-27B", 94.9, 23.8),
        ("SmolLM2-135M", 2.6, 2.1),
    ],
)
def test_real_models_from_config_alone(tmp_path: Path, name: str, all_rows: float, nf4_new: float) -> None:
    """The published number of weights, and the memory on a GPU with one block of 1024 tokens at a time."""
    total, layers, tables = PUBLISHED[name]
    sizes = sizes_of(name, tmp_path)
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    rows = config.get("text_config", config)["vocab_size"]
    assert sizes.body + tables * rows * sizes.width == total and sizes.layers == layers
    assert sizes.layer * layers == pytest.approx(sizes.body, rel=0.001)
    bf16 = memory_of(sizes, demand_of(name, rows))
    assert bf16["body"] == 2 * sizes.body and bf16["tables"] == 2 * tables * rows * sizes.width
    assert bf16["masters"] + bf16["gradients"] + bf16["optimizer"] == 16 * tables * rows * sizes.width
    small = memory_of(sizes, demand_of(name, rows + NEW, precision="nf4", trained=tables * NEW, checkpointing=True))
    assert 0.5 * sizes.linear < small["body"] < 0.53 * sizes.linear + 2 * sizes.other
    found = [sum(parts.values()) / GB for parts in (bf16, small)]
    assert found == pytest.approx([all_rows, nf4_new], rel=0.02)


def test_llama_3_8b_with_new_rows_fits_16_gb(tmp_path: Path) -> None:
    sizes = sizes_of("Llama-3.1-8B", tmp_path)
    demand = demand_of("Llama-3.1-8B", 128256 + NEW, precision="nf4", trained=2 * NEW, checkpointing=True)
    assert 12 * GB < sum(memory_of(sizes, demand).values()) <= 16 * GB
    assert sum(memory_of(sizes, replace(demand, trained=2 * (128256 + NEW))).values()) > 16 * GB


def test_memory_of_a_sharded_or_offloaded_training(tmp_path: Path) -> None:
    """Eight processes share out the body, masters and states; the host takes masters and states."""
    sizes = sizes_of("Llama-3.1-8B", tmp_path)
    demand = demand_of("Llama-3.1-8B", 128256)
    trained = 2 * 128256 * 4096
    whole, sharded = memory_of(sizes, demand), memory_of(sizes, replace(demand, shards=8))
    layer = 2 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336 + 2 * 4096)
    assert sharded["body"] == 2 * sizes.body // 8 + 2 * layer
    assert (sharded["masters"], sharded["optimizer"]) == (4 * trained // 8, 8 * trained // 8)
    assert all(sharded[part] == whole[part] for part in whole.keys() - {"body", "masters", "optimizer"})
    nf4 = [memory_of(sizes, replace(demand, precision="nf4", shards=n))["body"] for n in (1, 8)]
    assert nf4[1] < nf4[0] / 4  # the scales are in every process
    offloaded = replace(demand, offload=True)
    assert sum(whole.values()) - sum(memory_of(sizes, offloaded).values()) == 12 * trained - OFFLOAD_BYTES
    assert host_bytes(sizes, offloaded) == 12 * trained == 8 * host_bytes(sizes, replace(offloaded, shards=8))
    assert host_bytes(sizes, demand) == 0
    changes = Choice(1, True, "bf16").changes(Choice(1, True, "bf16", offload=True, processes=8))
    assert settings_of(changes) == "offload=optimizer, 8 processes and --shard"


def outline(tmp_path: Path, english) -> Path:
    """Write a training of Llama-3.1-8B of which only config and tokenizer are there; return its configuration."""
    path = training.write_setting(
        tmp_path, english, precision=None, micro_batch=None, block_size=1024, batch_size=64, train={"rows": "new"}
    )
    (tmp_path / "base" / "model.safetensors").unlink()
    shutil.copy(CONFIGS / "Llama-3.1-8B.json", tmp_path / "base" / "config.json")
    return path


def test_dry_run_needs_no_weights_and_says_what_to_change(tmp_path: Path, english) -> None:
    path = outline(tmp_path, english)
    before = pico.tree(tmp_path)

    def dry(*options: str) -> dict:
        result = pico.command("train", path, "--dry-run", "--memory", "12GB", "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    found = dry()
    assert found["rows"]["old"] == 128256 and found["tokens"] > 1000 and pico.tree(tmp_path) == before
    assert found["memory"]["body"] == 2 * 6_979_588_096 and found["memory_limit"] == 12 * GB
    # without a size for the micro batch and checkpointing, the smallest is tried
    assert not found["fits"] and found["micro_batch"] == 1 and found["activation_checkpointing"]
    assert found["changes"] == {"precision": "int8"} and found["memory_with_changes"] < 12 * GB
    entries = found["memory_with_one_block"]
    others = {(e["precision"], e["rows"]): e["bytes"] for e in entries if e["processes"] == 1 and not e["offload"]}
    assert others["nf4", "new"] < others["int8", "new"] == found["memory_with_changes"] < others["bf16", "new"]
    assert others["bf16", "all"] > others["bf16", "new"] == found["memory"]["total"]
    places = {(e["processes"], e["offload"]) for e in entries if e["precision"] == "nf4"}
    assert places == {(1, False), (1, True), (2, False), (4, False), (8, False), (8, True)}
    assert {e["processes"] for e in entries if e["precision"] == "int8"} == {1}  # it cannot be sharded
    changed = dry("--set", "precision=int8")
    assert changed["fits"] and found["memory_with_changes"] <= changed["memory"]["total"] <= 12 * GB
    roomy = dry("--memory", "80GB")
    assert roomy["fits"] and roomy["micro_batch"] > 1 and not roomy["activation_checkpointing"]
    text = pico.command("train", path, "--dry-run", "--memory", "12GB").stdout
    assert "fit       12.0 GB: no, " in text and "with precision=int8\n" in text
    assert (
        "no change of the configuration would make it fit"
        in pico.command("train", path, "--dry-run", "--memory", "1GB").stdout
    )
    pico.assert_one_line_error(pico.command("train", path, "--device", "cpu"), 1, "holds no weights")


def test_a_device_that_is_too_small_is_told_before_loading(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, activation_checkpointing=False)
    before = pico.tree(tmp_path)
    result = pico.command("train", path, "--device", "cpu", "--memory", "100MB")
    pico.assert_one_line_error(result, 1, "needs about", "the device (cpu) has 100.0 MB", "no change")
    assert pico.tree(tmp_path) == before
    wrong = pico.command("train", path, "--memory", "much")
    assert wrong.exit_code == 2 and "should be a number of bytes such as 5GB" in wrong.stderr


def test_plan_says_whether_run_and_training_fit(tmp_path: Path, english) -> None:
    training.write_setting(tmp_path, english)
    (tmp_path / "recipe.yaml").write_text(
        "models: {base: ./base, adapted: {train: config.yaml}}\nstart: base\n"
        "steps: [{op: swap_vocabulary, tokenizer: adapted}]\noutput: {path: merged}\n"
    )
    result = pico.command("plan", tmp_path / "recipe.yaml", "--memory", "64GB")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("fit       64.0 GB: yes") == 2
    assert "fit       100.0 MB: no" in pico.command("plan", tmp_path / "recipe.yaml", "--memory", "100MB").stdout


def test_of_a_hub_id_only_the_small_files_are_downloaded(tmp_path: Path, monkeypatch) -> None:
    listed = ["config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors", "a.jinja"]
    downloaded: list[str] = []

    def snapshot_download(hub_id: str, *, revision, allow_patterns, ignore_patterns=None) -> str:
        downloaded.extend(filter_repo_objects(listed, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve("someone/model", weights=False)
    assert sorted(set(downloaded)) == ["a.jinja", "config.json", "tokenizer.json"]


def test_bitsandbytes_missing(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, precision={"body": "nf4"})
    program = (
        "import sys\nsys.modules['bitsandbytes'] = None\nfrom lepmerge.commands.main import main\n"
        f"main(['train', {str(path)!r}, '--device', 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: precision.body: nf4 needs bitsandbytes, which is not installed: pip install 'lepmerge[quant]'"
    )
    assert not (tmp_path / "out").exists()
