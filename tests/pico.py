"""Small real models and tokenizers, built at test time: trained tokenizers, Llama checkpoints with random weights."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import written
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ENGLISH = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A model is a mapping from names to tensors; an operation turns one model into another model.",
    "Numbers such as 12345 and 67.89 stand here, with  double  spaces\nand new lines\tand tabs.",
]
RUSSIAN = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Модель переводит слова в числа, а числа обратно в слова; так она понимает язык.",
    "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")
SPECIAL = ("<s>", "</s>", "<pad>")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
"""Sizes in the config of most decoders."""
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}


def byte_level(texts: Sequence[str], size: int, *, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """Return a byte-level BPE tokenizer as GPT-2, Llama-3 and SmolLM2 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentencepiece(texts: Sequence[str], size: int, *, special: Sequence[str] = ("<unk>", *SPECIAL)) -> Tokenizer:
    """Return a BPE tokenizer with ▁ and byte fallback as Llama-2 and Mistral have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*special, *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator((word for text in texts for word in text.split()), trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(spec))


def save_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, chat: bool = False, extra: Sequence[str | AddedToken] = ()
) -> PreTrainedTokenizerFast:
    """Save a tokenizer as transformers does; `extra` tokens, and the chat's, are appended as special ones."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([*(CHAT_TOKENS if chat else ()), *extra])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>" if chat else "</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE if chat else None,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast


def save_model(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    tied: bool = False,
    width: int = 16,
    num_rows: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    chat: bool = False,
    extra: Sequence[str | AddedToken] = (),
    shard_size: str = "5GB",
) -> Path:
    """Save a random two-layer Llama with its tokenizer; num_rows pads the tables beyond the tokenizer."""
    fast = save_tokenizer(tokenizer, folder, chat=chat, extra=extra)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=num_rows or len(fast),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=fast.bos_token_id,
        eos_token_id=[fast.eos_token_id],
        pad_token_id=fast.pad_token_id,
        max_new_tokens=9,
    )
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_instruct(
    folder: Path,
    base: Path,
    tokenizer: Tokenizer,
    *,
    seed: int = 1,
    noise: float = 0.02,
    extra: Sequence[str] = (),
    **kwargs,
) -> Path:
    """Save a model near `base`: every weight moved a little, new rows for its chat tokens."""
    save_model(folder, tokenizer, chat=True, extra=extra, seed=seed, **kwargs)
    moved = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, old in load_file(base / "model.safetensors").items():
        if name in moved:
            rows = slice(0, old.shape[0])
            drift = noise * torch.randn(old.shape, generator=generator)
            moved[name][rows] = (old.float() + drift).to(old.dtype)
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_adapted(
    folder: Path, base: Path, tokenizer: Tokenizer, *, seed: int = 2, num_rows: int | None = None, extra=()
) -> Path:
    """Save an embeddings-only folder: random tables for `tokenizer`, with the config of `base`."""
    fast = save_tokenizer(tokenizer, folder, extra=extra)
    config = json.loads((base / "config.json").read_text())
    config["vocab_size"] = num_rows or len(fast)
    (folder / "config.json").write_text(json.dumps(config))
    tables = {
        name: tensor
        for name, tensor in load_file(base / "model.safetensors").items()
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    generator = torch.Generator().manual_seed(seed)
    shape = (config["vocab_size"], config["hidden_size"])
    tables = {name: (0.1 * torch.randn(shape, generator=generator)).to(old.dtype) for name, old in tables.items()}
    save_file(tables, folder / "embeddings.safetensors", metadata={"format": "pt"})
    return folder


def write_recipe(path: Path, method: str = "conversion", **models: Path) -> Path:
    """Write a propagation recipe next to its models; the output is `out` next to the recipe."""
    lines = ["models:", *(f"  {name}: {folder}" for name, folder in models.items())]
    lines += [
        "steps:",
        "  - op: propagate_embeddings",
        "    base: base",
        "    adapted: adapted",
        f"    method: {method}",
    ]
    path.write_text("\n".join([*lines, "output:", "  path: out", ""]))
    return path


def plan_file(path: Path, overrides: Iterable[str] = ()) -> Any:
    """Return the plan of a recipe's file."""
    import lepmerge

    return lepmerge.make_plan(lepmerge.load_recipe(path, overrides))


def run_file(path: Path, overrides: Iterable[str] = (), **options) -> Path:
    """Run a recipe's file and return the output folder."""
    import lepmerge

    return lepmerge.run_plan(plan_file(path, overrides), **options)


def run_recipe(folder: Path, models: dict[str, Path], steps: list[dict], **output) -> Path:
    """Write a recipe with these models and steps into `folder`, run it from its YAML on the CPU, return the output."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    start = output.pop("start", "instruct")
    recipe = {"models": {name: str(path) for name, path in models.items()}, "start": start, "steps": steps}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output": {"path": "out", **output}}))
    return run_file(folder / "recipe.yaml", device="cpu")


def edited(tokenizer: Tokenizer, **parts) -> Tokenizer:
    """Return the tokenizer with these parts of its tokenizer.json replaced; `model` is merged."""
    spec = json.loads(tokenizer.to_str())
    model = parts.pop("model", {})
    return Tokenizer.from_str(json.dumps({**spec, **parts, "model": {**spec["model"], **model}}))


def with_holes(tokenizer: Tokenizer, *, first: int, width: int) -> Tokenizer:
    """Return the tokenizer with the ids from `first` on moved up by `width`, which leaves `width` unused ids."""
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] = {token: id + width * (id >= first) for token, id in spec["model"]["vocab"].items()}
    for entry in spec["added_tokens"]:
        entry["id"] += width * (entry["id"] >= first)
    return Tokenizer.from_str(json.dumps(spec))


def unigram(texts: Sequence[str], size: int, *, special: Sequence[str] = ("<unk>", *SPECIAL)) -> Tokenizer:
    """Return a Unigram tokenizer with ▁ (Metaspace) as T5 and XLM-R have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: Sequence[str], size: int, *, special: Sequence[str] = ("[UNK]", *SPECIAL)) -> Tokenizer:
    """Return a WordPiece tokenizer with ## as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def bpe_of(merges: Sequence[tuple[str, str]], *, letters: Sequence[str] = (), **model) -> Tokenizer:
    """Return a bare BPE tokenizer (no normalizer, no pre-tokenizer) of the letters and these merges, in order."""
    vocab: dict[str, int] = {}
    for token in (*letters, *(part for pair in merges for part in (*pair, "".join(pair)))):
        vocab.setdefault(token, len(vocab))
    return Tokenizer(models.BPE(vocab=vocab, merges=list(merges), **model))


def alphabet() -> list[str]:
    """Return the characters of byte-level vocabularies, sorted."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def split(folder: Path, num_shards: int = 3) -> Path:
    """Split a model's single file into shards with an index, as save_pretrained does for large models."""
    tensors = load_file(folder / "model.safetensors")
    names = list(tensors)
    weight_map = {}
    for number in range(num_shards):
        file_name = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        chosen = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({name: tensors[name] for name in chosen}, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file_name))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def bring_code(folder: Path) -> None:
    """Let a model bring its own class, which may need other weights than transformers' class of its model type."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))


def contents(folder: Path) -> dict[str, bytes]:
    """Return file name → bytes of a folder, without the file of timings."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lepmerge_run.json"}


def tree(*folders: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return inode, size, time of change and content hash of every file and folder below these folders."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, digest)
    return found


def command(*arguments, repairs: bool = False):
    """Return the result of a lepmerge command that was run in this process: exit_code, stdout, stderr.

    Assert that it left nothing behind if it refused its input (tests/written.py), unless it `repairs` what an
    interrupted run left.
    """
    from click.testing import CliRunner

    from lepmerge.commands.main import main

    words = [str(argument) for argument in arguments]
    written.begin()
    result = CliRunner().invoke(main, words)
    written.end(None if repairs else result.exception, words)
    return result


def assert_one_line_error(result, exit_code: int, *parts) -> None:
    """Assert that a command failed with one line on stderr that holds these parts, and nothing on stdout.

    The line with which `lepmerge train` begins does not count.
    """
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.stdout == ""
    assert result.exit_code == exit_code, result.stderr
    lines = [line for line in result.stderr.splitlines() if not re.fullmatch("train .*: loading", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert str(part) in lines[0], (part, result.stderr)
