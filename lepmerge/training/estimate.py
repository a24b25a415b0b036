"""Estimate the tokens, steps, memory and floating-point operations of a training before it begins.

Legend: L tokens per block, D width of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from lepmerge.models.configs import text_configs
from lepmerge.models.model import INPUT, OUTPUT
from lepmerge.output.checks import check_place
from lepmerge.text_files import COMPRESSIONS
from lepmerge.training.blocks import blocks_from, source_in_memory
from lepmerge.training.config import TrainingSource
from lepmerge.training.fitting import Fitting, body_parameters, sizes_of
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.learner import num_steps
from lepmerge.training.lessons import Source
from lepmerge.training.lora import Adapter, planned_adapter
from lepmerge.training.memory import Sizes
from lepmerge.training.setting import Setting

SAMPLE_BYTES = 8 << 20
"""At most this much text of each source is tokenized for the estimate."""
GZIP_RATIO = 3.0
"""Assumed bytes of text per byte of a compressed file."""
PACKED = 0.97
"""Assumed fraction of a block that best-fit packing fills."""


def estimate(setting: Setting, device: torch.device, *, limit: int | None = None, processes: int = 1) -> dict[str, Any]:
    """Estimate a training: tokens and steps, bytes of memory per process, floating-point operations.

    Small sources are tokenized completely, large ones only up to SAMPLE_BYTES. `tokens_are_exact` is true if all were
    tokenized completely. limit: memory of the device in bytes; the default is known for GPUs only. processes: number of
    processes over which the body and the optimizer are sharded.

    Raises:
        CheckpointError: the config shows that the model cannot be trained.
        CorpusError: a text cannot be used.
        OutputError: the output overlaps an input.
    """
    config = setting.config
    check_place(config.target, inputs=setting.inputs, key="output")
    held_out_texts(setting)
    sizes = sizes_of(setting)
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
    fit = Fitting(setting, sizes, device, adapter=adapter, processes=processes, limit=limit)
    flop = flop_per_token(setting, sizes, adapter, checkpointing=fit.chosen.checkpointing)
    flop += round(taught / epoch * teacher_flop_per_token(setting))
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
        "micro_batch": fit.chosen.micro_batch,
        **fit.report(),
        "flop_per_token": flop,
        "flop": flop * tokens,
    }


def flop_per_token(setting: Setting, sizes: Sizes, adapter: Adapter | None, *, checkpointing: bool) -> int:
    """Return the floating-point operations per token: the forward pass, and the backward pass if it is needed.

    The backward pass through the body is needed only if the input table or an adapter is trained. A weight costs 2
    operations forward and 2 backward, since gradients of frozen weights are not computed; a weight of the adapter costs
    6. Attention is counted over half a block, the average causal context.
    """
    config, model = setting.config, setting.start
    width = sizes.width
    body = 2 * sizes.body + 2 * sizes.layers * config.block_size * width
    head = 2 * model.num_rows * width
    output_rows = len(setting.rows.get(OUTPUT, setting.rows[INPUT]))
    backward = (body + head) if setting.rows[INPUT] or adapter else 0
    of_adapter = 6 * adapter.sizes["parameters"] if adapter else 0
    again = body if checkpointing else 0
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
