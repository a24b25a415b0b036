"""The real task manager with the miniature data, and tiny models for it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pico
import torch
from tokenizers import Tokenizer, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).with_name("darumeru_data")
NAMES = (
    "multiq parus rcb rwsd use ruopenbookqa ruworldtree rucola rummlu mmlu_ru mmlu_en sum_abstractive sum_extractive "
    "cp_sent_en cp_para_en cp_sent_ru cp_para_ru"
).split()


def load(names: Sequence[str] = ("darumeru",), *, data: Path | str = DATA, **metadata: Any) -> dict[str, Any]:
    """Return name without `darumeru_` → task, from the YAML files of this checkout."""
    loaded = manager(data=data, **metadata).load(list(names))["tasks"]
    return {name.removeprefix("darumeru_"): task for name, task in loaded.items()}


def manager(*, data: Path | str = DATA, **metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(
        include_path=str(ROOT / "eval" / "darumeru_tasks"),
        include_defaults=False,
        metadata={"darumeru_data": str(data), **metadata},
    )


def write_commits(folder: Path, rows: dict[str, int]) -> None:
    """Write RefalMachine/darumeru for `hub.hub(folder)`. rows: commit → how many rows of rcb's test split it has."""
    for commit, number in rows.items():
        where = folder / "RefalMachine/darumeru" / commit
        shutil.copytree(DATA / "rcb", where / "data/rcb")
        lines = (DATA / "rcb/test.jsonl").read_text(encoding="utf-8").split("\n")
        (where / "data/rcb/test.jsonl").write_text("\n".join(lines[:number]) + "\n", encoding="utf-8")
        files = [f"  - {{split: {split}, path: data/rcb/{split}.jsonl}}\n" for split in ("test", "prompt")]
        (where / "README.md").write_text(f"---\nconfigs:\n- config_name: rcb\n  data_files:\n{''.join(files)}---\n")


def texts() -> list[str]:
    """Return what tiny tokenizers are trained on: the miniature data's own texts."""
    parts = [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("c*/test.jsonl"))]
    return [*parts, *pico.RUSSIAN, *pico.ENGLISH]


def byte_level(size: int = 900) -> Tokenizer:
    """Return a tokenizer as Llama-3 has it: " 1" is one token, and texts begin with <s>."""
    tokenizer = pico.byte_level([*texts(), " 0 1 2 3 A B C D Да Нет\n" * 200], size)
    return pico.edited(tokenizer, post_processor=begin_with(tokenizer))


def sentencepiece(size: int = 900) -> Tokenizer:
    """Return a tokenizer like Mistral's: each digit is a separate token, so " 1" is the two tokens " " and "1"."""
    tokenizer = pico.sentencepiece([*texts(), " A B C D Да Нет\n" * 200], size)
    spec = json.loads(tokenizer.to_str())["model"]
    merges = [pair for pair in spec["merges"] if not any(character.isdigit() for character in "".join(pair))]
    return pico.edited(tokenizer, post_processor=begin_with(tokenizer), model={"merges": merges})


def begin_with(tokenizer: Tokenizer) -> dict[str, Any]:
    processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return json.loads(processor.__getstate__())


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A chat template with a begin token and trimmed messages, as in many models."""


def save_model(folder: Path, tokenizer: Tokenizer, *, context: int = 4096, seed: int = 0) -> Path:
    """Save a random float32 Llama with a chat template. Its large output weights make its choices clearly different."""
    fast = pico.save_tokenizer(tokenizer, folder, chat=True)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    ids = {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    return folder
