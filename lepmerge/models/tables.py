"""Find the tensors of a checkpoint that have one row per token: its two tables, whether they are tied, and others."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.configs import as_read, config_faults, first_number, ties
from lepmerge.models.safetensors_io import StoredTensor, is_computable
from lepmerge.tensors import LazyTensor, Workspace, blocks

INPUT, OUTPUT = "input_embeddings", "output_embeddings"
INPUT_SUFFIXES = (
    "embed_tokens.weight",
    "embed_in.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)
OUTPUT_SUFFIXES = ("lm_head.weight", "embed_out.weight")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_OF_TOKENS = re.compile(r"(^|[._])(embed|embeddings?|tokens?|wte|vocab|lm_head|head|logits)([._]|$)")
_OF_HEADS = re.compile(r"(^|[._])(output|head|logits)\.weight$")
_PACKED_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.(?!bias$|dense\.|layer_norm\.|decoder\.)")
"""A tensor of a quantized head. Encoders such as RoBERTa have a dense layer, a norm and a decoder in theirs."""
_OF_POSITIONS = re.compile(r"position|(^|[._])(pos|wpe)([._]|$)")


@dataclass(frozen=True)
class FoundTables:
    """The tables of a checkpoint. names: role → tensor name. reason: why they count as tied or not.

    copy: name of a stored head that has the values of the tied table. contradicted: the config ties the tables, but the
    stored head differs.
    """

    names: Mapping[str, str]
    reason: str
    copy: str | None = None
    contradicted: bool = False


def find_tables(name: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> FoundTables:
    """Return the tables, found by tensor names and config. If a tied model stores a head, its values are compared too.

    As in transformers, a stored head that differs from the input table is kept, even if the config ties the tables.

    Raises:
        CheckpointError: there is no table of input embeddings or more than one, or an untied model has no output table.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items() if not LAYER.search(name)}
    inputs, outputs = _ending(shapes, INPUT_SUFFIXES), _ending(shapes, OUTPUT_SUFFIXES)
    if len(inputs) != 1 or len(outputs) > 1:
        inputs, outputs = _asking_transformers(config, shapes)
    if len(inputs) != 1:
        raise CheckpointError(
            f"{name} ({folder}): no single tensor of input embeddings, found {inputs or 'none'}; lepmerge transforms "
            f"decoder language models (names ending in {', '.join(INPUT_SUFFIXES)})"
        )
    tied, reason = ties(config)
    if not outputs and not tied:
        outputs = _like_a_head(inputs[0], tensors)
    if not outputs:
        packed = [name for name in shapes if _PACKED_HEAD.search(name)]
        if packed:
            raise CheckpointError(
                f"{name} ({folder}): the output table is quantized ({packed[0]}), and lepmerge computes on "
                f"floating-point tables: quantize the body only, or start from the original model"
            )
        if tied is False:
            raise CheckpointError(
                f"{name} ({folder}): there is no output table ({' or '.join(OUTPUT_SUFFIXES)}), but {reason}: the "
                f"checkpoint is incomplete, download it again; if the model is tied, set tie_word_embeddings: true"
            )
        return FoundTables({INPUT: inputs[0]}, f"{reason}; no output table is stored")
    both = {INPUT: inputs[0], OUTPUT: outputs[0]}
    if not tied:
        return FoundTables(both, reason)
    if same_values(tensors[inputs[0]], tensors[outputs[0]]):
        return FoundTables({INPUT: inputs[0]}, f"{reason}; the stored {outputs[0]} equals it", copy=outputs[0])
    return FoundTables(
        both, f"{reason}, but the stored {outputs[0]} differs from {inputs[0]}; it is kept", contradicted=True
    )


def same_values(first: LazyTensor, second: LazyTensor) -> bool:
    """Return whether two stored tensors have equal values. Reading stops at the first difference."""
    if first.shape != second.shape or not all(
        isinstance(tensor, StoredTensor) and is_computable(tensor) for tensor in (first, second)
    ):
        return False
    workspace, dtype = Workspace(), torch.promote_types(first.dtype, second.dtype)
    return all(
        torch.equal(*(tensor.read(block, workspace).to(dtype) for tensor in (first, second))) for block in blocks(first)
    )


def other_rows_per_token(
    tensors: Mapping[str, LazyTensor], tables: Mapping[str, str], config: Mapping[str, Any]
) -> list[str]:
    """Return the names of all tensors with one row or column per token, except the tables.

    They are found by their sizes: the number of rows of the table, or the vocabulary size in the config. If this number
    is also a possible size of the body, the tensor's name decides. Integer buffers are not weights and are skipped.
    """
    counts = {tensors[tables[INPUT]].shape[0]}
    counts |= {n for key in ("vocab_size", "vocab_size_per_layer_input") if (n := first_number(config, key))}
    ambiguous = counts & _body_sizes(config, max(counts))
    found = []
    for name, tensor in tensors.items():
        sizes = counts.intersection(tensor.shape)
        if name in tables.values() or not sizes:
            continue
        names_tokens = _OF_TOKENS.search(name) and not _OF_POSITIONS.search(name)
        is_weight = tensor.dtype.is_floating_point and (names_tokens or sizes - ambiguous)
        if is_weight or name.endswith("tid2eid"):  # DeepSeek V4 stores the experts of each token
            found.append(name)
    return found


def is_beyond_the_layers(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a tensor belongs to a layer beyond num_hidden_layers, as those of multi-token prediction do."""
    layer, count = LAYER.search(name), first_number(config, "num_hidden_layers")
    return layer is not None and count is not None and int(layer[1]) >= count


def stored_layers(names: Iterable[str]) -> set[int]:
    """Return the numbers of the layers to which tensors of these names belong."""
    return {int(layer[1]) for name in names if (layer := LAYER.search(name))}


def _body_sizes(config: Mapping[str, Any], largest: int) -> set[int]:
    """Return the possible sizes of body tensors: numbers in the config, their small multiples and products."""
    numbers: set[int] = set()

    def walk(part: Any) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                walk(value)
            elif isinstance(value, int) and "vocab" not in key and "token" not in key and 1 < value <= largest:
                numbers.add(value)

    walk(config)
    return {a * b for a in numbers for b in (1, 2, 3, 4, *numbers)}


def _ending(names: Mapping[str, tuple[int, ...]], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes))]


def _like_a_head(table: str, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Return the name of the only other tensor outside the layers with the shape of the table, such as output.weight.

    InternLM2 and its like, whose code transformers does not have, name their head so.
    """
    shape = tensors[table].shape
    found = [name for name, tensor in tensors.items() if tensor.shape == shape and tensor.dtype.is_floating_point]
    found = [name for name in found if name != table and not LAYER.search(name)]
    return found if len(found) == 1 and _OF_HEADS.search(found[0]) else []


def without_weights(config: Mapping[str, Any]) -> Any:
    """Return the network that transformers builds for a config, on the meta device, or None if it cannot build one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**as_read(config)))
    except config_faults():
        return None


def _asking_transformers(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str]]:
    """Return the stored names of the two tables of the architecture."""
    model = without_weights(config)
    if model is None:
        return [], []
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def stored(module: Any) -> Iterator[str]:
        weight = names.get(id(getattr(module, "weight", None)))
        while weight is not None:  # wrappers add or drop prefixes
            found = [name for name in shapes if f".{name}".endswith(f".{weight}")]
            if len(found) == 1:
                yield found[0]
                return
            weight = weight.partition(".")[2] or None

    inputs, outputs = (list(stored(module())) for module in (model.get_input_embeddings, model.get_output_embeddings))
    return inputs, [name for name in outputs if name not in inputs]  # tied tables are one parameter
