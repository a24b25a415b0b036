"""inspect and diff: what they print is what the files hold."""

from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

import lepmerge
from lepmerge.models.inspection import diff, inspect

UP = "model.layers.1.mlp.up_proj.weight"


def differences(a: Path, b: Path) -> dict:
    return {d.name: d for d in diff(lepmerge.open_model(a), lepmerge.open_model(b), progress=lambda what, done: None)}


def test_inspect(tmp_path: Path, english) -> None:
    num_tokens = english.get_vocab_size()
    folder = pico.save_model(tmp_path / "model", english, tied=True, num_rows=512)
    found = inspect(lepmerge.open_model(folder))
    text = str(found)
    assert "byte_level" in text and "512" in text and str(num_tokens) in text
    assert set(found["tensors"]) == set(load_file(folder / "model.safetensors"))


def test_changed_tensor_in_a_body(tmp_path: Path, english) -> None:
    a, b = (pico.save_model(tmp_path / name, english) for name in "ab")
    tensors = load_file(b / "model.safetensors")
    tensors[UP] = tensors[UP] * 1.5
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    found = differences(a, b)
    assert {name for name, d in found.items() if d.state != "equal"} == {UP}
    assert found[UP].change == pytest.approx(0.5, rel=1e-3)


def test_missing_tensor_and_other_shape(tmp_path: Path, english) -> None:
    a, b = (pico.save_model(tmp_path / name, english) for name in "ab")
    tensors = load_file(b / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3, dtype=torch.bfloat16)
    del tensors[UP]
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    found = differences(a, b)
    states = {name: d.state for name, d in found.items() if d.state != "equal"}
    assert set(states) == {UP, "model.norm.weight"} and len(set(states.values())) == 2
    assert found["model.norm.weight"].shapes == ([16], [3])


def test_tables_of_two_vocabularies_are_compared_by_shared_tokens(tmp_path: Path, setting, english, russian) -> None:
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}
    swapped = pico.run_recipe(tmp_path / "run", {"instruct": setting["instruct"]}, [step])
    found = differences(setting["instruct"], swapped)["lm_head.weight"]
    assert found.change == 0.0  # every row of a shared token is a copy
    assert found.rows and max(found.rows.values()) <= english.get_vocab_size() + 3
