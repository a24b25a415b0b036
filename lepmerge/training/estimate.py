"""Estimate the tokens, steps, memory and floating-point operations of a training before it begins.

Legend: L tokens per block, D width of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch

from lepmerge.models.configs import text_configs
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.output.checks import check_place
from lepmerge.text_files import COMPRESSIONS
from lepmerge.training.blocks import blocks_from, source_in_memory
from lepmerge.training.body import check_architecture
from lepmerge.training.config import TrainConfig, TrainingSource
from lepmerge.training.distill import divergence_chunk
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.learner import num_steps
from lepmerge.training.lessons import Source
from lepmerge.training.lora import Adapter, planned_adapter
from lepmerge.training.loss import SLAB_BYTES, chunk_length
from lepmerge.training.setting import Setting
from lepmerge.training.teacher import alike

SAMPLE_BYTES = 8 << 20
"""At most this much text of each source is tokenized for the estimate."""
GZIP_RATIO = 3.0
"""Assumed bytes of text per byte of a compressed file."""
PACKED = 0.97
"""Assumed fraction of a block that best-fit packing fills."""
PROCESS_BYTES = 560 << 20
"""Resident memory of Python with torch, transformers and the model's code, plus the work space of matrix products."""
AUTO_TOKENS = 4096
"""Tokens per micro batch on a CPU if nothing else limits it."""


def estimate(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Estimate a training: tokens and steps, bytes of memory, floating-point operations.

    Small sources are tokenized completely, large ones only up to SAMPLE_BYTES. `tokens_are_exact` is true if all were
    tokenized completely.

    Raises:
        CheckpointError: the config shows that the model cannot be trained.
        CorpusError: a text cannot be used.
        OutputError: the output overlaps an input.
    """
    config = setting.config
    check_place(config.target, inputs=setting.inputs, key="output")
    held_out_texts(setting)
    check_architecture(setting.base.folder, isolated=config.packing == "documents", num_rows=setting.start.num_rows)
    adapter = planned_adapter(setting.base.folder, config.lora)
    sampled = [_sampled(setting, source) for source in config.data]
    counts = [_num_tokens(setting, *pair) for pair in zip(config.data, sampled, strict=True)]
    epoch, taught = (
        sum(count[n] * source.weight for count, source in zip(counts, config.data, strict=True)) for n in (0, 1)
    )
    tokens = config.max_tokens or epoch * config.epochs
    is_exact = all(sample.is_whole for sample in sampled)
    if is_exact:
        steps = num_steps(config, blocks_from(setting, [sample.read for sample in sampled]))
    else:
        steps = ceil(tokens / (config.batch_size * config.block_size * PACKED))
    micro = first_micro_batch(config, device)
    parts = memory_parts(setting, micro, device, adapter)
    flop = flop_per_token(setting, adapter) + round(taught / epoch * teacher_flop_per_token(setting))
    return {
        "objective": config.objective,
        "model": str(setting.base.folder),
        **_teacher(setting, round(tokens * taught / epoch)),
        "rows": {"old": setting.base.num_rows, "new": setting.start.num_rows, **_trained(setting)},
        **({"lora": adapter.sizes} if adapter else {}),
        "sources": [
            {"path": source.path, "tokens": round(count)}
            for source, (count, _) in zip(config.data, counts, strict=True)
        ],
        "tokens": round(tokens),
        "tokens_are_exact": is_exact,
        "steps": steps,
        "tokens_per_step": config.batch_size * config.block_size,
        "micro_batch": micro,
        "memory": {**parts, "total": sum(parts.values())},
        "flop_per_token": flop,
        "flop": flop * tokens,
    }


def first_micro_batch(config: TrainConfig, device: torch.device) -> int:
    """Return the number of blocks per forward pass: as configured, or a number that is large enough to be fast.

    It is about AUTO_TOKENS tokens on a CPU, where more do not make a step faster, and four times as many on a GPU. They
    keep the GPU busy if the model has a billion weights or more.
    """
    if config.micro_batch != "auto":
        return min(config.micro_batch, config.batch_size)
    tokens = AUTO_TOKENS * (4 if device.type == "cuda" else 1)
    return max(1, min(config.batch_size, tokens // config.block_size))


def memory_parts(setting: Setting, micro: int, device: torch.device, adapter: Adapter | None = None) -> dict[str, int]:
    """Return the memory that a training needs, by part, in bytes."""
    config, model = setting.config, setting.start
    size = 2 if config.precision == "bf16" else 4
    width = model.table(INPUT).row_width
    trained = sum(len(rows) for rows in setting.rows.values()) * width
    tokens = micro * config.block_size
    logits = min(chunk_length(model.num_rows, device, size), tokens) * model.num_rows * size + SLAB_BYTES["cpu"]
    vocabularies = sum(v.num_bytes for v in {id(m.vocabulary): m.vocabulary for m in (setting.base, model)}.values())
    body = size * body_parameters(setting.base)
    old_tables = size * sum(prod(setting.base.table(role).shape) for role in setting.base.tables)
    tables = size * len(setting.rows) * model.num_rows * width
    kept = activation_elements(model) * (0.25 if config.activation_checkpointing else 1)
    parts = {
        "process": PROCESS_BYTES + vocabularies if device.type == "cpu" else 0,
        "body": body,
        "tables": tables,
        "masters": 0 if size == 4 else 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": int(tokens * size * kept),
        "logits": logits,
    }
    if adapter is not None:  # its matrices, their gradients and moments, and the inputs that it keeps, in float32
        kept_inputs = adapter.num_activations * (0.25 if config.activation_checkpointing else 1)
        parts["lora"] = 16 * adapter.sizes["parameters"] + int(4 * tokens * kept_inputs)
    if setting.teacher is not None:
        parts |= teacher_memory(setting, setting.teacher, micro, device, size)
    loading = parts["process"] + 2 * body + old_tables if device.type == "cpu" else 0
    return parts | ({"loading": max(0, loading - sum(parts.values()))} if device.type == "cpu" else {})


def teacher_memory(setting: Setting, teacher: Model, micro: int, device: torch.device, size: int) -> dict[str, int]:
    """Return the memory that a teacher needs, by part, in bytes: tables, body, and logits of the divergence.

    The body needs no memory if the student's can be shared.
    """
    tables = sum(prod(teacher.table(role).shape) for role in teacher.tables)
    body = 0 if alike(teacher, setting.base) else body_parameters(teacher)
    positions = min(micro * setting.config.block_size, divergence_chunk(teacher.num_rows, device))
    return {"teacher": size * (tables + body), "divergence": 4 * 4 * positions * teacher.num_rows}


def activation_elements(model: Model) -> float:
    """Return the number of activations per token that the layers keep for the backward pass.

    A frozen weight does not need its input kept. Measured on Llamas, each layer keeps about 10 hidden widths and 3.5
    MLP widths.
    """
    config = next(iter(text_configs(model.config)), model.config)
    width = model.table(INPUT).row_width
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 1
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    return layers * (10 * width + 3.5 * inner) + 4 * width


def body_parameters(model: Model) -> int:
    """Return the number of weights outside the embedding tables."""
    tables = set(model.tables.values())
    return sum(
        prod(tensor.shape)
        for name, tensor in model.tensors.items()
        if name not in tables and tensor.dtype.is_floating_point
    )


def flop_per_token(setting: Setting, adapter: Adapter | None = None) -> int:
    """Return the floating-point operations per token: the forward pass, and the backward pass if it is needed.

    The backward pass through the body is needed only if the input table or an adapter is trained. A weight costs 2
    operations forward and 2 backward, since gradients of frozen weights are not computed; a weight of the adapter costs
    6. Attention is counted over half a block, the average causal context.
    """
    config, model = setting.config, setting.start
    width = model.table(INPUT).row_width
    text = next(iter(text_configs(model.config)), model.config)
    layers = text.get("num_hidden_layers") or text.get("n_layer") or 1
    body = 2 * body_parameters(setting.base) + 2 * layers * config.block_size * width
    head = 2 * model.num_rows * width
    output_rows = len(setting.rows.get(OUTPUT, setting.rows[INPUT]))
    backward = (body + head) if setting.rows[INPUT] or adapter else 0
    of_adapter = 6 * adapter.sizes["parameters"] if adapter else 0
    again = body if config.activation_checkpointing else 0
    return body + head + backward + again + 2 * output_rows * width + of_adapter


@dataclass(frozen=True)
class _Sample:
    read: Source
    is_whole: bool
    """Whether the sample is the complete source."""


def _sampled(setting: Setting, source: TrainingSource) -> _Sample:
    """Return the blocks of a source. Of a large source, only the beginning is read."""
    limit = min(SAMPLE_BYTES, source.limit or SAMPLE_BYTES)
    read = source_in_memory(setting, source.model_copy(update={"limit": limit}))
    return _Sample(read, is_whole=read.tokens.num_bytes < limit or limit == source.limit)


def _num_tokens(setting: Setting, source: TrainingSource, sample: _Sample) -> tuple[float, float]:
    """Return the number of tokens of a source for the model and for the teacher.

    If only a part was read, the numbers are scaled up by the size in bytes.
    """
    counts = sample.read.tokens.num_tokens, len(sample.read.lessons.token_T) if sample.read.lessons else 0
    if sample.is_whole:
        return counts
    files, num_bytes = setting.files(source), sample.read.tokens.num_bytes
    size = sum(f.stat().st_size * (1 if f.suffix not in COMPRESSIONS[1:] else GZIP_RATIO) for f in files)
    size = max(min(size, source.limit or size), num_bytes)
    return counts[0] * size / num_bytes, counts[1] * size / num_bytes


def teacher_flop_per_token(setting: Setting) -> int:
    """Return the floating-point operations per token of the teacher: its forward pass and the divergence.

    At each shared boundary of the two tokenizations, the divergence takes three products with the teacher's output
    table. There is at most one shared boundary per token.
    """
    if setting.teacher is None:
        return 0
    model = setting.teacher
    width = model.table(INPUT).row_width
    text = next(iter(text_configs(model.config)), model.config)
    layers = text.get("num_hidden_layers") or text.get("n_layer") or 1
    body = 2 * body_parameters(model) + 2 * layers * setting.config.block_size * width
    return body + 6 * model.num_rows * width


def _teacher(setting: Setting, tokens: int) -> dict[str, Any]:
    return {"teacher": {"model": str(setting.teacher.folder), "tokens": tokens}} if setting.teacher else {}


def _trained(setting: Setting) -> Mapping[str, str]:
    rows = {role: f"{rows.start}-{rows.stop - 1}" for role, rows in setting.rows.items() if rows}
    return {"trained": ", ".join(f"{role.split('_')[0]} {span}" for role, span in rows.items())}
