"""A broken adapter, or one that does not fit its base, gives a one-line error in the plan, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import yaml
from peft_adapters import edit_config, save_adapter, save_base
from pico import assert_one_line_error, command
from safetensors.torch import load_file, save_file

import lepmerge

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def edit_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, english) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("faults")
    base = save_base(folder / "base", english)
    wide = pico.save_model(folder / "wide", english, width=32)
    body = save_adapter(folder / "body", base, target_modules=["q_proj", "v_proj"])
    tables = save_adapter(folder / "tables", base, target_modules=["q_proj"], num_rows=410,
                          modules_to_save=["embed_tokens", "lm_head"])  # fmt: skip
    tokens = save_adapter(folder / "tokens", base, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    dora = save_adapter(folder / "dora", base, target_modules=["q_proj"], use_dora=True)
    return {"base": base, "wide": wide, "body": body, "tables": tables, "tokens": tokens, "dora": dora}


def without(*parts: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if all(part in key for part in parts)]:
            del tensors[key]

    return lambda adapter: edit_weights(adapter, change)


def replaced(key: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda adapter: edit_weights(adapter, lambda tensors: tensors.update({key: tensor}))


def config(**values) -> Callable[[Path], None]:
    return lambda adapter: edit_config(adapter, **values)


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def other_tokenizer(adapter: Path) -> None:
    pico.save_tokenizer(pico.byte_level(pico.ENGLISH, 400, special=("<pad>", "<s>", "</s>")), adapter)


FAULTS = {
    "missing B": ("body", without("q_proj", "lora_B"), ["q_proj has lora_A but no lora_B", "incomplete"]),
    "missing A": ("body", without("q_proj", "lora_A"), ["q_proj has lora_B but no lora_A"]),
    "rank of the config": ("body", config(r=8), ["lora_A [4, 16]", "contradict the rank 8"]),
    "ranks of A and B": (
        "body",
        replaced(f"{Q}.lora_B.weight", torch.zeros(16, 3)),
        ["layers.0.self_attn.q_proj", "lora_B [16, 3] contradict the rank 4"],
    ),
    "no such tensor": (
        "body",
        replaced("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", torch.zeros(4, 16)),
        ["has no tensor model.layers.7.self_attn.q_proj.weight", "the nearest is model.layers.", "trained on"],
    ),
    "pickled": ("body", pickled, ["pickled weights (adapter_model.bin)", "save_pretrained"]),
    "kind": ("body", config(peft_type="LOHA"), ["the adapter is LOHA", "LORA only"]),
    "bias": ("body", config(bias="all"), ["`bias: all`"]),
    "pissa": ("body", config(init_lora_weights="pissa"), ["pissa", "path_initial_model_for_weight_conversion"]),
    "option": ("body", config(layer_replication=[[0, 2], [1, 2]]), ["`layer_replication`", "repeats layers"]),
    "experts": ("body", config(target_parameters=["mlp.experts.down_proj"]), ["`target_parameters`", "fused"]),
    "type": ("body", config(r="many"), ["adapter_config.json: r: ", "integer"]),
    "pattern": (
        "body",
        config(rank_pattern={"(": 4}),
        ["adapter_config.json: rank_pattern", "not a regular expression"],
    ),
    "rows of no table": (
        "body",
        replaced(f"{Q}.token_adapter.trainable_tokens_delta", torch.zeros(2, 16)),
        ["layers.0.self_attn.q_proj"],
    ),
    "a table with a bias": (
        "tables",
        replaced("base_model.model.lm_head.bias", torch.zeros(410)),
        ["lm_head", "a table with a bias cannot be merged"],
    ),
    "not JSON": ("body", lambda a: (a / "adapter_config.json").write_text("{"), ["not readable JSON"]),
    "no config": ("body", lambda a: (a / "adapter_config.json").unlink(), ["adapter_config.json is missing"]),
    "no weights": ("body", lambda a: (a / "adapter_model.safetensors").unlink(), ["is missing"]),
    "empty": ("body", without(""), ["holds no tensors"]),
    "unknown key": (
        "body",
        replaced(f"{Q}.lora_B.bias", torch.zeros(16)),
        [f"does not know what tensor {Q}.lora_B.bias is for"],
    ),
    "truncated": (
        "body",
        lambda a: (a / "adapter_model.safetensors").write_bytes((a / "adapter_model.safetensors").read_bytes()[:-8]),
        ["adapter_model.safetensors is truncated"],
    ),
    "moved tokens": ("body", other_tokenizer, ["in its tokenizer and", "the adapter has no tables"]),
    "no tokenizer": ("tables", lambda a: None, ["410 rows", "has no tokenizer.json", "copy the tokenizer"]),
    "one table": ("tables", without("lm_head"), ["different rows (input embeddings 410, output embeddings 387)"]),
    "width of a table": (
        "tables",
        replaced("base_model.model.lm_head.weight", torch.zeros(410, 12)),
        ["its table [410, 12] should have the width 16"],
    ),
    "token ids": ("tokens", config(trainable_token_indices=[1, 2, 3]), ["[2, 16] trained rows do not fit the 3"]),
    "token beyond": ("tokens", config(trainable_token_indices=[1, 4000]), ["the table [387, 16]"]),
    "no magnitude": ("dora", without("magnitude"), ["use_dora is set, but lora_magnitude_vector is missing"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_adapter_is_one_line_and_nothing_is_written(tmp_path: Path, saved, fault: str) -> None:
    which, damage, parts = FAULTS[fault]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in saved[which].iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    damage(adapter)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models: {{x: {saved['base']}+adapter}}\nstart: x\noutput: {{path: out}}\n")
    before = pico.tree(tmp_path)
    assert_one_line_error(command("run", recipe), 1, adapter, *parts)
    assert pico.tree(tmp_path) == before


def test_a_base_of_another_width_is_named(tmp_path: Path, saved) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({
        "models": {"x": {"path": str(saved["wide"]), "adapter": str(saved["body"])}},
        "start": "x", "output": {"path": "out"},
    }))  # fmt: skip
    shapes = "lora_A [4, 16] and lora_B [16, 4] do not fit the weight [32, 32]"
    assert_one_line_error(command("run", tmp_path / "recipe.yaml"), 1, shapes, saved["wide"], saved["base"])


def test_two_adapters_that_save_one_module_are_refused(tmp_path: Path, saved) -> None:
    norm = [save_adapter(tmp_path / str(seed), saved["base"], seed=seed, target_modules=["q_proj"],
                         modules_to_save=["input_layernorm"]) for seed in (1, 2)]  # fmt: skip
    with pytest.raises(
        lepmerge.LepmergeError, match="have both trained model.layers.0.input_layernorm.weight as a whole"
    ):
        lepmerge.open_model(f"{saved['base']}+{norm[0]}+{norm[1]}")


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("{path: base, scale: 0.5}", [":2", "models.x", "`scale` needs `adapter`"]),
        ("{path: base, adapter: [a, b], scale: [1.0]}", [":2", "models.x", "1 scales for 2 adapters"]),
        ("{path: base, adapter: body, scale: .nan}", [":2", "models.x.scale"]),
        ("{path: base, adaptr: body}", ["models.x.adaptr", "did you mean adapter?"]),
        ("base+", ["base+"]),
    ],
)
def test_faults_of_the_entry(tmp_path: Path, saved, entry: str, parts: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models:\n  x: {entry}\nstart: x\noutput: {{path: out}}\n")
    result = command("plan", recipe)
    assert_one_line_error(result, 1 if entry == "base+" else 2, *parts)


def test_what_has_no_effect_is_noted(tmp_path: Path, saved) -> None:
    adapter = save_adapter(tmp_path / "adapter", saved["base"], target_modules=["q_proj"])
    edit_config(adapter, target_modules=["q_proj", "o_proj"], layers_to_transform=[1], some_new_option=True)
    model = lepmerge.open_model(f"{saved['base']}+{adapter}")
    notes = "; ".join(model.notes)
    assert "unknown keys, which are ignored: some_new_option" in notes
    assert "1 modules have LoRA weights but are not among target_modules" in notes
    assert "1 target modules have no weights in the adapter" in notes and "layers.1.self_attn.o_proj" in notes
    q = {layer: f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    base = lepmerge.open_model(saved["base"])
    assert torch.equal(model.tensors[q[0]].rows(), base.tensors[q[0]].rows())
    assert not torch.equal(model.tensors[q[1]].rows(), base.tensors[q[1]].rows())


def test_a_relative_short_form_is_seen_from_its_file(tmp_path: Path, saved, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    for name in ("base", "body"):
        (tmp_path / "models" / name).symlink_to(saved[name])
    (tmp_path / "parent.yaml").write_text("models: {x: models/base+models/body}\nstart: x\noutput: {path: out}\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "child.yaml").write_text("extends: ../parent.yaml\nmodels: {x: {scale: 0.5}}\n")
    (tmp_path / "models" / "a+b").symlink_to(saved["base"])
    recipe = lepmerge.load_recipe(tmp_path / "below" / "child.yaml")
    assert recipe.models["x"].path == "../models/base" and recipe.models["x"].adapter == ["../models/body"]
    assert recipe.models["x"].adapters == [("../models/body", 0.5)]
    assert lepmerge.make_plan(recipe).final.tensors
    monkeypatch.chdir(tmp_path)
    plain = lepmerge.load_recipe(tmp_path / "parent.yaml", ["models.x=models/a+b"])
    assert not plain.models["x"].adapter
    assert json.loads(command("plan", "parent.yaml", "--json").stdout)["bytes"]["computed"] > 0
