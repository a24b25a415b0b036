"""inspect and diff: what they print is what the files hold."""

import json
import shutil
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
    tokens = found["vocabulary"]
    assert (tokens["tokens"], tokens["added_tokens"], tokens["rows"]) == (num_tokens, 3, 512)
    assert (tokens["padding_rows"], tokens["id_holes"]) == (512 - num_tokens, 0)
    assert found["tied"] is True
    assert found["tied_because"] == "config.json says tie_word_embeddings: true; no output table is stored"
    assert (found["quantization"], found["chat_templates"], found["other_rows_per_token"]) == ("none", [], [])
    assert "byte_level" in text and "512" in text and str(num_tokens) in text
    assert set(found["tensors"]) == set(load_file(folder / "model.safetensors"))


def test_id_holes_are_no_padding(tmp_path: Path, english) -> None:
    num_tokens = english.get_vocab_size()
    holes = pico.with_holes(english, first=300, width=9)
    folder = pico.save_model(tmp_path / "model", holes, num_rows=512)
    tokens = inspect(lepmerge.open_model(folder))["vocabulary"]
    assert (tokens["tokens"], tokens["rows"]) == (num_tokens, 512)
    assert (tokens["id_holes"], tokens["padding_rows"]) == (9, 512 - num_tokens - 9)


def test_inspect_names_templates_quantization_and_extra_tensors(tmp_path: Path, setting) -> None:
    folder = Path(shutil.copytree(setting["instruct"], tmp_path / "model"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    (folder / "chat_template.json").write_text("{}")
    edited = {
        "tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "{{ messages }}"}]},
        "config.json": {"quantization_config": {"quant_method": "gptq"}},
    }
    for name, values in edited.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.bias": torch.zeros(len(tensors["lm_head.weight"]))}, path)
    found = pico.command("inspect", folder)
    assert found.exit_code == 0, found.stderr
    lines = [line.split(None, 1) for line in found.stdout.splitlines()]
    assert ["quantization", "gptq"] in lines
    assert "other rows per token    lm_head.bias" in found.stdout
    assert "tied                    False\ntied because            config.json says tie_word_embeddings: false" in (
        found.stdout
    )
    assert (
        "chat templates          chat_template.jinja; additional_chat_templates/tool_use.jinja; "
        "tokenizer_config.json (rag); chat_template.json"
    ) in found.stdout


def test_diff_counts_the_rows_of_added_tokens(tmp_path: Path, setting, english, russian) -> None:
    """The only changed row is that of a chat token, which has another id in B."""
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}
    swapped = pico.run_recipe(tmp_path / "run", {"instruct": setting["instruct"]}, [step])
    before = differences(setting["instruct"], swapped)["lm_head.weight"]
    both = english.get_vocab().keys() & russian.get_vocab().keys()
    assert before.state == "equal rows" and before.rows is not None
    assert before.rows == {"shared": len(both) + 3, "only_in_b": russian.get_vocab_size() - len(both)}
    path = swapped / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][-1] += 1  # <|end|>
    save_file(tensors, path, metadata={"format": "pt"})
    after = differences(setting["instruct"], swapped)["lm_head.weight"]
    assert after.state == "changed rows" and after.rows == before.rows
    old = load_file(setting["instruct"] / "model.safetensors")["lm_head.weight"].double()
    ids = [english.token_to_id(token) for token in both] + [len(old) - 3, len(old) - 2, len(old) - 1]
    delta = float((tensors["lm_head.weight"][-1].double() - old[-1]).norm())
    assert after.change == pytest.approx(delta / float(old[ids].norm()), rel=1e-6)


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
    missing = {f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 1)}
    for name in missing:
        del tensors[name]
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    pico.bring_code(b)
    found = differences(a, b)
    states = {name: d.state for name, d in found.items() if d.state != "equal"}
    assert states == {**dict.fromkeys(missing, "only in A"), "model.norm.weight": "shape"}
    assert found["model.norm.weight"].shapes == ([16], [3])


def test_tables_of_two_vocabularies_are_compared_by_shared_tokens(tmp_path: Path, setting, english, russian) -> None:
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}
    swapped = pico.run_recipe(tmp_path / "run", {"instruct": setting["instruct"]}, [step])
    found = differences(setting["instruct"], swapped)["lm_head.weight"]
    assert found.change == 0.0  # every row of a shared token is a copy
    assert found.rows and max(found.rows.values()) <= english.get_vocab_size() + 3
