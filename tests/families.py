"""Configs of published models, and a Hub cache that holds them without weights, with small tokenizers.

python tests/families.py     writes the snapshots of `lepmerge init` in recipes/ready again
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pico  # noqa: E402 -- transformers reads HF_HUB_OFFLINE when it is imported

ROOT = Path(__file__).parent.parent
READY = ROOT / "recipes/ready"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _llama(width: int, inner: int, layers: int, heads: int, kv: int, rows: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": rows,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        **more,
    }  # fmt: skip


def _qwen(width: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    names = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "tie_word_embeddings": tied}
    return _llama(width, inner, layers, heads, 8, 151936, **names) | {"max_position_embeddings": 40960}


def _gemma(width: int, inner: int, layers: int, heads: int, kv: int, head_dim: int) -> dict[str, Any]:
    text = {
        "model_type": "gemma3_text", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 1024,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
    }  # fmt: skip
    return {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text,
        "vision_config": vision, "mm_tokens_per_image": 256, "torch_dtype": "bfloat16",
    }  # fmt: skip


MISTRAL = _llama(4096, 14336, 32, 32, 8, 32768, model_type="mistral", architectures=["MistralForCausalLM"])
FAMILIES: dict[str, tuple[dict[str, Any], str, float]] = {
    "meta-llama/Llama-3.2-1B-Instruct": (
        _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True), "Llama-3.2-1B", 1.24),
    "meta-llama/Llama-3.2-3B-Instruct": (
        _llama(3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True), "Llama-3.2-3B", 3.21),
    "meta-llama/Llama-3.1-8B-Instruct": (_llama(4096, 14336, 32, 32, 8, 128256), "Llama-3.1-8B", 8.03),
    "meta-llama/Llama-3.1-70B-Instruct": (_llama(8192, 28672, 80, 64, 8, 128256), "Llama-3.1-70B", 70.55),
    "Qwen/Qwen3-4B": (_qwen(2560, 9728, 36, 32, tied=True), "Qwen3-4B-Base", 4.02),
    "Qwen/Qwen3-32B": (_qwen(5120, 25600, 64, 64, tied=False), "", 32.76),
    "mistralai/Mistral-7B-Instruct-v0.3": (MISTRAL, "Mistral-7B-v0.3", 7.25),
    "google/gemma-3-4b-it": (_gemma(2560, 10240, 34, 8, 4, 256), "gemma-3-4b-pt", 3.88),
    "google/gemma-3-27b-it": (_gemma(5376, 21504, 62, 32, 16, 128), "gemma-3-27b-pt", 27.01),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (
        _llama(2048, 8192, 24, 32, 32, 49152, tie_word_embeddings=True), "SmolLM2-1.7B", 1.71),
}  # fmt: skip
"""Instruct model → config, name of its base (empty: none was published), billions of weights that text needs."""
SNAPSHOTS = {  # instruct model → memory
    "Qwen/Qwen3-4B": "24GB",
    "meta-llama/Llama-3.2-1B-Instruct": "16GB",
    "mistralai/Mistral-7B-Instruct-v0.3": "24GB",
    "google/gemma-3-4b-it": "24GB",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "16GB",
}


def save_hub(cache: Path, models: Sequence[str]) -> None:
    """Write a Hub cache with these instruct models and their bases: configs and small tokenizers, no weights."""
    byte_level = pico.byte_level(pico.ENGLISH, 400)
    sentencepiece = pico.sentencepiece(pico.ENGLISH, 400)
    for model in models:
        config, base, _ = FAMILIES[model]
        tokenizer = sentencepiece if model.startswith(("google", "mistralai")) else byte_level
        for name in [model, *([f"{model.split('/')[0]}/{base}"] if base else [])]:
            repo = cache / f"models--{name.replace('/', '--')}"
            folder = repo / "snapshots" / COMMIT
            pico.save_tokenizer(tokenizer, folder, chat=name == model)
            (folder / "config.json").write_text(json.dumps(config))
            (repo / "refs").mkdir()
            (repo / "refs" / "main").write_text(COMMIT)


def write_project(folder: Path, model: str, *options: str) -> None:
    done = pico.command("init", model, folder, "--memory", SNAPSHOTS.get(model, "200GB"), *options)
    assert done.exit_code == 0, done.stderr


def project_name(model: str) -> str:
    return f"{model.split('/')[1].lower().removesuffix('-instruct').removesuffix('-it')}-ru"


def main() -> None:
    import huggingface_hub.constants

    with tempfile.TemporaryDirectory() as cache:
        huggingface_hub.constants.HF_HUB_CACHE = cache
        save_hub(Path(cache), list(SNAPSHOTS))
        shutil.rmtree(READY, ignore_errors=True)
        for model in SNAPSHOTS:
            write_project(READY / project_name(model), model)
            print(READY / project_name(model))


if __name__ == "__main__":
    sys.exit(main())
