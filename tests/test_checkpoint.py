"""A folder becomes a model: what is missing, contradictory or ambiguous is refused by name."""

import json
import shutil
from pathlib import Path

import pico
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lepmerge
from lepmerge.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path, setting) -> Path:
    return Path(shutil.copytree(setting["instruct"], tmp_path / "model"))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        lepmerge.open_model(folder)
    assert "\n" not in str(caught.value)
    for part in (str(folder), *parts):
        assert part in str(caught.value), str(caught.value)


def edit(path: Path, **changes) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def test_single_sharded_and_embeddings_only(folder: Path, setting) -> None:
    single = lepmerge.open_model(folder)
    sharded = lepmerge.open_model(pico.split(folder))
    assert single.tensors.keys() == sharded.tensors.keys() and len(set(sharded.shards.values())) == 3
    few = lepmerge.open_model(setting["adapted"])
    assert set(few.tensors) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_config_missing_or_broken(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text("{")
    refused(folder, "config.json", "JSON")
    path.write_text("[]")
    refused(folder, "config.json", "object")
    path.unlink()
    refused(folder, "config.json is missing")


def test_no_weights_and_adapters(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights", "model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "PEFT adapter", "name its base")


def test_numbered_shards_without_their_index(folder: Path, tmp_path: Path) -> None:
    pico.split(folder)
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "model.safetensors.index.json is missing", "model-00001-of-00003.safetensors")


def test_the_only_shard_is_read_without_an_index(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert lepmerge.open_model(folder).tensors.keys() == tensors.keys()
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])
    AutoModelForCausalLM.from_pretrained(out)  # the output has the index


def test_weights_in_another_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    refused(folder, "holds consolidated.safetensors", "expected model.safetensors or model.safetensors.index.json")


def test_two_layouts_at_once(folder: Path) -> None:
    copy = (folder / "model.safetensors").read_bytes()
    pico.split(folder)
    (folder / "model.safetensors").write_bytes(copy)
    refused(folder, "stale")


def test_tensor_in_two_shards(folder: Path) -> None:
    pico.split(folder)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    tensors = load_file(second)
    save_file({**tensors, **dict(list(load_file(first).items())[:1])}, second)
    refused(folder, "two files", first.name, second.name)


@pytest.mark.parametrize("damage", ["missing shard", "no weight_map", "not JSON"])
def test_index(folder: Path, damage: str) -> None:
    pico.split(folder)
    index = folder / "model.safetensors.index.json"
    if damage == "missing shard":
        (folder / "model-00002-of-00003.safetensors").unlink()
        refused(folder, "model-00002-of-00003.safetensors is missing")
    elif damage == "no weight_map":
        index.write_text("{}")
        refused(folder, index.name, "weight_map")
    else:
        index.write_text("x")
        refused(folder, index.name)


def test_config_that_promises_other_rows(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=999)
    refused(folder, "vocab_size 999")


def test_tables_that_contradict_one_another(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"][:-1].clone()}, folder / "model.safetensors")
    refused(folder, "one shape", "lm_head.weight")


def test_untied_config_without_output_table(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "says tie_word_embeddings: false", "incomplete")


def test_quantized_tables_are_refused(folder: Path) -> None:
    import torch

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "lm_head.weight", "dequantize")
