"""LEP works for the decoders of transformers, found by config and tensor names: the results load and compute.

For each architecture, transformers saves a random base, an instruct model near it, and an adapted model with a larger
vocabulary. The result must load without a warning. Its logits must equal those of a model into which transformers has
put the reference's tables.
"""

import json
import shutil
from pathlib import Path

import pico
import pytest
import reference
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import lepmerge
from lepmerge.errors import CheckpointError

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip
ARCHITECTURES = {
    "llama": ("LlamaConfig", pico.SMALL, False),
    "llama-tied": ("LlamaConfig", pico.SMALL, True),
    "mistral": ("MistralConfig", pico.SMALL, False),
    "qwen2": ("Qwen2Config", pico.SMALL, True),
    "qwen2-untied": ("Qwen2Config", pico.SMALL, False),
    "qwen3": ("Qwen3Config", pico.SMALL, True),
    "gemma2": ("Gemma2Config", pico.SMALL, True),
    "gemma3": ("Gemma3TextConfig", pico.SMALL, True),
    "phi3": ("Phi3Config", {**pico.SMALL, "pad_token_id": 0}, False),
    "gpt-neox": ("GPTNeoXConfig", pico.SMALL, False),
    "gpt2": ("GPT2Config", GPT2, True),
    "olmo2": ("Olmo2Config", pico.SMALL, False),
    "mixtral": ("MixtralConfig", {**pico.SMALL, "num_local_experts": 2}, False),
    "qwen3-moe": ("Qwen3MoeConfig", {**pico.SMALL, **pico.EXPERTS}, False),
    "llava": ("LlavaConfig", {"text_config": {**pico.SMALL, "model_type": "llama"},
                              "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}},
              False),  # fmt: skip
}  # fmt: skip


def saved(folder: Path, name: str, tokenizer, *, seed: int, near: Path | None = None) -> Path:
    """Save a random model, or one near another, with a tokenizer."""
    fast = pico.save_tokenizer(tokenizer, folder)
    config_class, values, tied = ARCHITECTURES[name]
    values = json.loads(json.dumps(values))
    ids = {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id, "tie_word_embeddings": tied}
    values.get("text_config", values)["vocab_size"] = len(fast)
    if "text_config" in values:
        values["image_token_index"] = 5
        values["text_config"]["tie_word_embeddings"] = tied
    config = getattr(transformers, config_class)(**{**values, **ids})
    torch.manual_seed(seed)
    auto = transformers.AutoModelForImageTextToText if "text_config" in values else transformers.AutoModelForCausalLM
    model = auto.from_config(config).to(torch.bfloat16)
    if near is not None:
        model.load_state_dict(auto.from_pretrained(near, dtype=torch.bfloat16).state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def as_qwen(tokenizer):
    """Return the tokenizer as transformers 5 loads it for Qwen2 models: with Qwen's way to split and its end token."""
    spec = json.loads(tokenizer.to_str())
    end = {**spec["added_tokens"][0], "id": tokenizer.get_vocab_size(), "content": "<|endoftext|>"}
    split = {"type": "Split", "pattern": {"Regex": PRETOKENIZE_REGEX}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return pico.edited(
        tokenizer,
        added_tokens=[*spec["added_tokens"], end],
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lep(tmp_path: Path, english, russian, name: str) -> None:
    if name.startswith("qwen2"):
        english, russian = as_qwen(english), as_qwen(russian)
    base = saved(tmp_path / "base", name, english, seed=0)
    instruct = saved(tmp_path / "instruct", name, english, seed=1, near=base)
    adapted = saved(tmp_path / "adapted", name, russian, seed=2)
    models = {"base": base, "instruct": instruct, "adapted": adapted}
    step = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "conversion"}
    folder = pico.run_recipe(tmp_path / "run", models, [step])
    tables = lepmerge.open_model(instruct).tables
    assert len(tables) == (1 if ARCHITECTURES[name][2] else 2)
    is_wrapper = "text_config" in ARCHITECTURES[name][1]
    auto = transformers.AutoModelForImageTextToText if is_wrapper else transformers.AutoModelForCausalLM
    result, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    expected = auto.from_pretrained(instruct)
    num_rows = russian.get_vocab_size()
    expected.resize_token_embeddings(num_rows, mean_resizing=False)
    for role, module in (("input_embeddings", expected.get_input_embeddings()),
                         ("output_embeddings", expected.get_output_embeddings())):  # fmt: skip
        if role in tables:
            wanted = reference.propagated(models, "conversion", role=tables[role]).table_VD
            module.weight.data = wanted.to(module.weight.dtype)
    torch.manual_seed(0)
    ids = torch.randint(6, num_rows, (2, 12))
    with torch.no_grad():
        got, wanted = result(input_ids=ids).logits.float(), expected(input_ids=ids).logits.float()
    assert got.shape == (2, 12, num_rows)
    assert torch.allclose(got, wanted, atol=0.03 * float(wanted.abs().max())), float((got - wanted).abs().max())
    assert torch.equal(got.argmax(-1), wanted.argmax(-1)) or float((got - wanted).abs().mean()) < 0.01


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_prefixed_names_of_wrappers(tmp_path: Path, setting, prefix: str) -> None:
    """Names are found by their ends, whatever a wrapper has put before them; the output keeps them."""
    models = {}
    for name, folder in setting.items():
        models[name] = Path(shutil.copytree(folder, tmp_path / name))
        path = next(models[name].glob("*.safetensors"))
        tensors = {key.replace("model.", prefix): tensor for key, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        config = json.loads((models[name] / "config.json").read_text())
        config["text_config"] = {"vocab_size": config.pop("vocab_size"), "tie_word_embeddings": False}
        (models[name] / "config.json").write_text(json.dumps(config))
    step = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "swap"}
    folder = pico.run_recipe(tmp_path / "run", models, [step])
    table = load_file(folder / "model.safetensors")[f"{prefix}embed_tokens.weight"]
    assert json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"] == len(table)


def test_output_bias_is_refused(tmp_path: Path, english, russian) -> None:
    config = transformers.PhiConfig(
        vocab_size=english.get_vocab_size(), **{k: v for k, v in pico.SMALL.items() if k != "head_dim"}
    )
    for name in ("base", "instruct"):
        pico.save_tokenizer(english, tmp_path / name)
        transformers.PhiForCausalLM(config).save_pretrained(tmp_path / name)
    models = {name: tmp_path / name for name in ("base", "instruct")}
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(CheckpointError, match=r"lm_head\.bias .* row per token"):
        pico.run_recipe(tmp_path / "run", models, [step])
    assert not (tmp_path / "run" / "out").exists()
