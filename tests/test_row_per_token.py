"""Every tensor with one row per token is found by its shape, and is converted, carried over or refused by name."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lepmerge
from lepmerge.errors import CheckpointError

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
MTP_TABLE, MTP_HEAD = "model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"


@pytest.fixture
def folder(tmp_path: Path, setting) -> Path:
    return Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))


@pytest.fixture
def swap(tmp_path: Path, russian) -> dict:
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    return {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}


def with_tensors(folder: Path, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    path = folder / "model.safetensors"
    before = load_file(path)
    save_file({**before, **tensors}, path, metadata={"format": "pt"})
    return before


def refused(tmp_path: Path, folder: Path, swap: dict, name: str, shape: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        pico.run_recipe(tmp_path / "run", {"instruct": folder}, [swap])
    assert f"tensor {name} {shape} also has one row per token (an output bias or an extra head?). lepmerge cannot" in (
        str(caught.value)
    )
    assert not (tmp_path / "run" / "out").exists()


def test_copies_beyond_the_layers_are_converted_with_the_tables(tmp_path: Path, folder: Path, swap: dict) -> None:
    """Multi-token prediction, as GLM-4.5 and DeepSeek-V3 store it: one equal copy, one trained head."""
    before = load_file(folder / "model.safetensors")
    trained = before[HEAD] + 1
    with_tensors(folder, **{MTP_TABLE: before[TABLE].clone(), MTP_HEAD: trained})
    assert lepmerge.open_model(folder).tables == {"input_embeddings": TABLE, "output_embeddings": HEAD}
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [swap])
    got = load_file(out / "model.safetensors")
    assert torch.equal(got[MTP_TABLE], got[TABLE]) and got[MTP_HEAD].shape == got[HEAD].shape
    old, new = (json.loads((path / "tokenizer.json").read_text()) for path in (folder, out))
    ids = [(id, new["model"]["vocab"][token]) for token, id in old["model"]["vocab"].items()
           if token in new["model"]["vocab"]]  # fmt: skip
    assert len(ids) > 250
    for old_id, new_id in ids:
        assert torch.equal(got[MTP_HEAD][new_id], trained[old_id])
    notes = json.loads((out / "lepmerge_report.json").read_text())["notes"]
    assert f"{MTP_TABLE} is a copy of {TABLE} and is converted with it" in notes
    assert f"{MTP_HEAD} is beyond num_hidden_layers; its new rows are means of its old rows" in notes
    transformers.AutoModelForCausalLM.from_pretrained(out)


def test_without_a_new_vocabulary_everything_is_carried(tmp_path: Path, folder: Path) -> None:
    rows = len(load_file(folder / "model.safetensors")[HEAD])
    with_tensors(folder, **{"lm_head.bias": torch.ones(rows), "medusa.0.weight": torch.ones(rows, 4)})
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "width"), [("lm_head.bias", None), ("model.odd.name", 3), ("model.layers.0.ple", 7)])
def test_any_other_tensor_with_a_row_per_token_is_refused(
    tmp_path: Path, folder: Path, swap: dict, name: str, width: int | None
) -> None:
    rows = len(load_file(folder / "model.safetensors")[HEAD])
    shape = (rows,) if width is None else (rows, width)
    with_tensors(folder, **{name: torch.ones(shape)})
    assert lepmerge.open_model(folder).other_rows_per_token == [name]
    refused(tmp_path, folder, swap, name, str(list(shape)))


def test_a_transposed_head_is_refused_by_the_plan(tmp_path: Path, folder: Path, swap: dict) -> None:
    head = load_file(folder / "model.safetensors")[HEAD]
    with_tensors(folder, **{"head.weight": head.T.contiguous()})
    recipe = {"models": {"instruct": str(folder)}, "steps": [swap], "output": {"path": "out"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    shape = f"tensor head.weight {[head.shape[1], head.shape[0]]} also has one column per token"
    before = pico.tree(tmp_path)
    for command in ("plan", "run"):
        pico.assert_one_line_error(pico.command(command, tmp_path / "recipe.yaml"), 1, str(folder), shape)
    assert pico.tree(tmp_path) == before
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])  # without a new vocabulary it is carried over
    assert torch.equal(load_file(out / "model.safetensors")["head.weight"], head.T)


def test_rows_that_only_the_config_counts(tmp_path: Path, folder: Path, swap: dict) -> None:
    """Gemma 3n has a table per layer of fewer rows than its main one."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size_per_layer_input": 301}))
    with_tensors(folder, **{"model.embed_tokens_per_layer.weight": torch.ones(301, 4)})
    refused(tmp_path, folder, swap, "model.embed_tokens_per_layer.weight", "[301, 4]")


def test_integer_buffers_are_not_weights(tmp_path: Path, folder: Path, swap: dict) -> None:
    rows = len(load_file(folder / "model.safetensors")[HEAD])
    with_tensors(folder, **{"model.token_map": torch.arange(rows)})
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [swap])
    assert torch.equal(load_file(out / "model.safetensors")["model.token_map"], torch.arange(rows))


@pytest.mark.parametrize("key", ["intermediate_size", "max_position_embeddings"])
def test_a_size_of_the_body_that_equals_the_vocabulary_by_chance(tmp_path: Path, english, swap: dict, key: str) -> None:
    """With 400 tokens and an MLP width of 400, the gate and up projections have 400 rows too, but are not tables."""
    folder = tmp_path / "model"
    fast = pico.save_tokenizer(english, folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(
        **{**sizes, key: len(fast)}, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(fast)
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    with_tensors(folder, **{"model.embed_positions.weight": torch.ones(len(fast), 16)})
    model = lepmerge.open_model(folder)
    assert model.other_rows_per_token == []
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [swap])
    got, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {name for name in got if got[name].shape != before[name].shape} == {TABLE, HEAD}
    with_tensors(folder, **{"extra_head.weight": torch.ones(len(fast), 16)})
    assert lepmerge.open_model(folder).other_rows_per_token == ["extra_head.weight"]  # its name decides
