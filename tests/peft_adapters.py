"""Pico models with adapters that PEFT makes, and what PEFT computes with them."""

import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import pico
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {key: value for key, value in pico.SMALL.items() if key != "head_dim"}
ARCHITECTURES = {
    "llama": SMALL,
    "qwen2": SMALL,
    "gemma": {**SMALL, "head_dim": 8, "num_key_value_heads": 1},
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "phi3": {**SMALL, "pad_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "qwen3_moe": {**SMALL, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


@contextmanager
def quiet():
    """Ignore warnings of PEFT and transformers about things that these tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_base(
    folder: Path, tokenizer: Tokenizer, kind: str = "llama", *, tied: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """Save a random model of an architecture, with a tokenizer."""
    fast = pico.save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(fast), tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, **ARCHITECTURES[kind]
    )
    with quiet():
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    base: Path,
    *,
    tokenizer: Tokenizer | None = None,
    num_rows: int | None = None,
    seed: int = 1,
    **options,
) -> Path:
    """Let PEFT save an adapter with random weights; num_rows: of the tables that it was trained with."""
    from peft import LoraConfig, get_peft_model

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(seed)
        if num_rows is not None:
            model.resize_token_embeddings(num_rows, mean_resizing=False)
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter.data, std=0.2)
        adapted.save_pretrained(folder)
    if tokenizer is not None:
        pico.save_tokenizer(tokenizer, folder)
    return folder


def with_peft(base: Path, *adapters: Path, num_rows: int | None = None, scale: float = 1.0):
    """Return the base with its adapters active, as PEFT loads them, in float64."""
    from peft import PeftModel

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        if num_rows is not None:
            model.resize_token_embeddings(num_rows, mean_resizing=False)
        first, *others = adapters
        adapted = PeftModel.from_pretrained(model, first, adapter_name="0", autocast_adapter_dtype=False)
        for number, adapter in enumerate(others, 1):
            adapted.load_adapter(adapter, adapter_name=str(number), autocast_adapter_dtype=False)
        adapted.base_model.set_adapter([str(number) for number in range(len(adapters))])
        for module in adapted.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(scale)
    return adapted.double().eval()


def logits(model, ids=range(40)) -> torch.Tensor:
    """Return what a model computes for these tokens."""
    with torch.no_grad(), quiet():
        return model(torch.tensor([list(ids)])).logits


def loaded(folder: Path):
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def edit_config(adapter: Path, **values) -> None:
    """Change keys of adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
