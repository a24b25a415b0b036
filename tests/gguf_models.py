"""Pico GGUF files, written by the `gguf` package from pico checkpoints as llama.cpp's converter writes them."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lepmerge.models.gguf_file import Field, GgufFile, build_gguf_header, field_of

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """Return the GGUF name of a Llama tensor."""
    stem = name.removeprefix("model.").removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, part = stem.split(".", 2)
        return f"blk.{layer}.{PARTS[part]}.weight"
    return f"{NAMES[stem]}.weight"


def permuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return a query or key projection in llama.cpp's order of rotary dimensions."""
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def save_gguf(
    folder: Path, path: Path, *, type: GGMLQuantizationType = GGMLQuantizationType.F32, pre: str = "gpt-2"
) -> Path:
    """Write the Llama checkpoint in `folder` as a GGUF file; matrices in `type`, vectors in float32."""
    config = json.loads((folder / "config.json").read_text())
    spec = json.loads((folder / "tokenizer.json").read_text())
    is_bytes = "<0x00>" not in spec["model"]["vocab"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("pico")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    rope = config.get("rope_parameters") or config  # transformers 4 has the key at the top
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_vocabulary(writer, folder, spec, config, is_bytes=is_bytes, pre=pre)
    for name, weight in load_file(folder / "model.safetensors").items():
        weight = weight.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            weight = permuted(weight, config[key])
        kind = type if weight.dim() == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantize(np.ascontiguousarray(weight.numpy()), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewrite(path: Path, target: Path, fields: dict[str, Field], names: list[str] | None = None) -> Path:
    """Write a GGUF file again with these metadata, and only the named tensors."""
    file, data = GgufFile(path), path.read_bytes()
    entries = {name: file.entries[name] for name in names or file.entries}
    header, offsets = build_gguf_header(file.version, fields, {n: (e.type, e.shape) for n, e in entries.items()})
    with target.open("wb") as out:
        out.write(header)
        for name, entry in entries.items():
            out.write(bytes(offsets[name] - out.tell()))
            out.write(data[entry.start : entry.start + entry.num_bytes])
    return target


def split(path: Path, folder: Path) -> list[Path]:
    """Split a GGUF file in two, as llama-gguf-split does: all metadata is in the first part."""
    file = GgufFile(path)
    names = list(file.entries)
    paths = []
    for part, chosen in enumerate((names[:5], names[5:])):
        fields = {**(file.fields if part == 0 else {}), "split.no": field_of(2, part), "split.count": field_of(2, 2)}
        paths.append(rewrite(path, folder / f"m-0000{part + 1}-of-00002.gguf", fields, chosen))
    return paths


def _add_vocabulary(writer: GGUFWriter, folder: Path, spec: dict, config: dict, *, is_bytes: bool, pre: str) -> None:
    tokens = [f"[PAD{id}]" for id in range(config["vocab_size"])]
    types = [5] * len(tokens)
    for token, id in spec["model"]["vocab"].items():
        tokens[id], types[id] = token, 6 if not is_bytes and token.startswith("<0x") else 1
    for entry in spec["added_tokens"]:
        tokens[entry["id"]], types[entry["id"]] = entry["content"], 3 if entry["special"] else 4
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2" if is_bytes else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if is_bytes:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    else:
        rank = {merge.replace(" ", "", 1): place for place, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(rank.get(token, len(rank))) for token in tokens])
        writer.add_add_space_prefix(True)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    template = AutoTokenizer.from_pretrained(folder).chat_template
    if template:
        writer.add_chat_template(template)
