"""Checkpoints that lack weights, which transformers would fill with random numbers: refused before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import pico
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lepmerge.models.missing_weights import FINAL_NORM, LAYOUTS, missing_weights
from lepmerge.models.tables import without_weights

RECIPE = "models: {instruct: ./instruct}\nsteps: []\noutput: {path: out}\n"


@pytest.fixture
def folder(tmp_path: Path, setting: dict[str, Path]) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


MISSING = {
    "of a layer": (["model.layers.1.mlp.up_proj.weight"], ""),
    "of every layer": (["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"], " and 1 more"),
    "a whole layer": (
        [f"model.layers.0.{name}" for name in ("input_layernorm", "mlp", "self_attn", "post_attention")],
        ".weight and 8 more",
    ),
    "the final norm": (["model.norm.weight"], ""),
}


def take_out(tensors: dict[str, torch.Tensor], beginnings: list[str]) -> None:
    for name in [name for name in tensors if name.startswith(tuple(beginnings))]:
        del tensors[name]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_weight_is_named_by_the_plan(tmp_path: Path, folder: Path, name: str) -> None:
    """transformers would fill it with random numbers."""
    beginnings, more = MISSING[name]
    change_tensors(folder, lambda tensors: take_out(tensors, beginnings))
    before = pico.tree(tmp_path)
    for command in ("plan", "run"):
        result = pico.command(command, tmp_path / "recipe.yaml")
        message = f"instruct ({folder}): its files lack the weight {beginnings[0]}{more}; download"
        pico.assert_one_line_error(result, 1, message)
    assert pico.tree(tmp_path) == before


WRAPPED = {
    "text_config": {**pico.SMALL, "model_type": "llama"},
    "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "image_size": 8, "patch_size": 4, "model_type": "clip_vision_model", "projection_dim": 16},
}  # fmt: skip
OF_EVERY_LAYER = {
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, "attn.c_attn.bias"),
    "gpt_neox": (pico.SMALL, "attention.dense.weight"),
    "llama": ({**pico.SMALL, "attention_bias": True}, "self_attn.o_proj.bias"),
    "llava": (WRAPPED, "self_attn.q_proj.weight"),
    "mixtral": ({**pico.SMALL, "num_local_experts": 2}, "self_attn.q_proj.weight"),
    "olmo2": (pico.SMALL, "self_attn.k_norm.weight"),
    "qwen2": (pico.SMALL, "self_attn.k_proj.bias"),
    "qwen3": (pico.SMALL, "self_attn.q_norm.weight"),
    "qwen3_moe": ({**pico.SMALL, **pico.EXPERTS}, "mlp.gate.weight"),
}
"""Model type → sizes, and a weight that is taken out of every layer."""


@pytest.mark.parametrize("model_type", OF_EVERY_LAYER)
def test_a_weight_that_no_layer_has_is_named(tmp_path: Path, english, model_type: str) -> None:
    """Then the layers are alike, and only transformers' class knows that it is missing."""
    sizes, end = OF_EVERY_LAYER[model_type]
    folder = tmp_path / "instruct"
    ids = {"vocab_size": len(pico.save_tokenizer(english, folder)), "pad_token_id": 0}
    sizes = {**sizes, "text_config": sizes["text_config"] | ids} if "text_config" in sizes else sizes | ids
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    auto = transformers.AutoModelForImageTextToText if "text_config" in sizes else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert pico.command("plan", tmp_path / "recipe.yaml").exit_code == 0
    of_the_text = [name for name in load_file(folder / "model.safetensors") if name.endswith(end)]
    of_the_text = [name for name in of_the_text if "vision" not in name]
    assert len(of_the_text) == 2
    change_tensors(folder, lambda tensors: take_out(tensors, of_the_text))
    _, found = auto.from_pretrained(folder, output_loading_info=True)
    assert len(found["missing_keys"]) == 2 and all(name.endswith(end) for name in found["missing_keys"])
    result = pico.command("plan", tmp_path / "recipe.yaml")
    pico.assert_one_line_error(result, 1, f"its files lack the weight {of_the_text[0]} and 1 more; download")


def test_a_missing_expert_is_noticed(tmp_path: Path, english) -> None:
    """transformers 5 stacks the experts, so that the names of the files are not those of the class."""
    folder = tmp_path / "instruct"
    rows = len(pico.save_tokenizer(english, folder))
    config = transformers.Qwen3MoeConfig(vocab_size=rows, **pico.SMALL, **pico.EXPERTS)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ends = [f"mlp.experts.1.{name}_proj.weight" for name in ("gate", "up", "down")]
    change_tensors(folder, lambda tensors: take_out(tensors, [f"model.layers.{n}.{e}" for n in (0, 1) for e in ends]))
    pico.assert_one_line_error(
        pico.command("inspect", folder), 1, "its files lack the weight model.layers.0.mlp.expert"
    )


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_layout_is_that_of_its_class(model_type: str) -> None:
    config: dict[str, Any] = {**pico.SMALL, "model_type": model_type, "vocab_size": 32, "pad_token_id": 0}
    network = without_weights(config)
    names = {name.removeprefix("model.") for name, _ in network.named_parameters()}
    names -= {"embed_tokens.weight", "lm_head.weight"}
    layers = {f"layers.{number}.{name}" for number in (0, 1) for name in LAYOUTS[model_type]}
    assert names == {FINAL_NORM, *layers}


def test_a_whole_llama_is_checked_without_its_class(folder: Path) -> None:
    """Importing it takes seconds."""
    module = "transformers.models.llama.modeling_llama"
    done = fresh.command(["plan", folder.parent / "recipe.yaml"], module)
    assert done.code == 0 and done.imported == []


PACKED = {"qweight": (torch.int32, (2, 32)), "scales": (torch.float16, (1, 32))}


@pytest.mark.parametrize("is_missing", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_of_a_quantized_body(tmp_path: Path, english, model_type: str, is_missing: bool) -> None:
    """The tensors of a quantized layer stand for its weight."""
    folder = tmp_path / "instruct"
    rows = len(pico.save_tokenizer(english, folder))
    config = transformers.AutoConfig.for_model(model_type, vocab_size=rows, pad_token_id=0, **pico.SMALL)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    def quantized(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name]:
            del tensors[name]
            if not (is_missing and "up_proj" in name):
                packed = {end: torch.zeros(shape, dtype=dtype) for end, (dtype, shape) in PACKED.items()}
                tensors.update({name.replace("weight", end): tensor for end, tensor in packed.items()})

    change_tensors(folder, quantized)
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    result = pico.command("inspect", folder)
    if is_missing:
        pico.assert_one_line_error(result, 1, "lack the weight model.layers.0.mlp.up_proj.weight and 1 more; download")
    else:
        assert result.exit_code == 0 and "lack" not in result.stdout


def as_unknown(folder: Path) -> None:
    edit(folder / "config.json", model_type="internlm2", architectures=["InternLM2ForCausalLM"])


@pytest.mark.parametrize("change", [as_unknown, pico.bring_code])
def test_a_missing_weight_of_an_unknown_architecture_is_a_note(folder: Path, change: Callable[[Path], None]) -> None:
    change_tensors(folder, lambda tensors: take_out(tensors, MISSING["of a layer"][0]))
    change(folder)
    result = pico.command("plan", folder.parent / "recipe.yaml")
    assert result.exit_code == 0, result.stderr
    name = MISSING["of a layer"][0][0]
    assert f"its files lack the weight {name}, though other layers have such weights" in result.stdout


@pytest.mark.parametrize("change", [as_unknown, pico.bring_code])
def test_what_no_layer_of_an_unknown_architecture_has_is_no_fault(folder: Path, change: Callable[[Path], None]) -> None:
    change_tensors(folder, lambda tensors: take_out(tensors, MISSING["of every layer"][0]))
    change(folder)
    result = pico.command("plan", folder.parent / "recipe.yaml")
    assert result.exit_code == 0 and "lack" not in result.stdout, result.stderr


@pytest.mark.skipif(transformers.__version__.startswith("4"), reason="transformers 4 gives every layer all weights")
def test_layers_that_differ_by_their_class_lack_nothing() -> None:
    """Gemma 3n computes no keys and values in its last layers."""
    config = {
        "model_type": "gemma3n_text",
        "vocab_size": 32,
        "vocab_size_per_layer_input": 32,
        "hidden_size": 8,
        "hidden_size_per_layer_input": 4,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "laurel_rank": 2,
        "altup_num_inputs": 2,
    }
    names = without_weights(config).state_dict()
    assert not any(name.startswith("model.layers.2.self_attn.k_proj") for name in names)
    tables = {"input_embeddings": "model.embed_tokens.weight"}
    assert missing_weights(config, names, tables) == ([], True)
    key = "model.layers.0.self_attn.k_proj.weight"
    del names[key]
    assert missing_weights(config, names, tables) == ([key], True)


def test_weights_that_only_transformers_misses_are_not_measured(tmp_path: Path, folder: Path) -> None:
    """The model brings its own code, which may need no such weights, but transformers' class is loaded."""
    change_tensors(folder, lambda tensors: take_out(tensors, MISSING["of every layer"][0]))
    pico.bring_code(folder)
    (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 9))
    result = pico.command("compare", folder, "--text", tmp_path / "text.txt", "--device", "cpu", "-q")
    pico.assert_one_line_error(
        result, 1, "its files lack the weight model.layers.0.mlp.up_proj.weight and 1 more; download"
    )
