"""A model that is known by its config and tokenizer only: its tensors have shapes, but no values."""

from pathlib import Path

import torch

from lepmerge.models.checkpoint import PICKLED, SINGLE, open_checkpoint
from lepmerge.models.configs import check_values, read_json, text_configs
from lepmerge.models.model import Model
from lepmerge.models.references import Reference
from lepmerge.models.tables import INPUT, find_tables
from lepmerge.tensors import Unread
from lepmerge.training.loader import skeleton
from lepmerge.vocabulary.vocabulary import Vocabulary


def has_no_weights(folder: Path) -> bool:
    """Return whether a folder has a config.json but no weights of any kind."""
    weights = ("*.safetensors", "*.gguf", *PICKLED, "adapter_config.json")
    return (folder / "config.json").exists() and not any(any(folder.glob(pattern)) for pattern in weights)


def open_outline(reference: Reference, *, name: str) -> Model:
    """Return the model of a folder. Its tensors have no values if the folder has a config.json but no weights.

    Such a model is in a single file.

    Raises:
        CheckpointError: the folder has weights that lepmerge cannot read, or transformers does not know the config.
    """
    folder = reference.folder
    if not has_no_weights(folder):
        return open_checkpoint(reference, name=name)
    config = read_json(folder / "config.json", required=True)
    check_values(config, folder / "config.json")
    parts = (config, *text_configs(config))
    stored = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "bfloat16")
    dtype = getattr(torch, str(stored), torch.bfloat16)
    network = skeleton(folder, name=name)
    tensors = {
        name: Unread(shape=tuple(weight.shape), dtype=dtype) for name, weight in sorted(network.named_parameters())
    }
    found = find_tables(name, folder, config, tensors)
    num_rows = tensors[found.names[INPUT]].num_rows
    return Model(
        name=name,
        folder=folder,
        tensors=tensors,
        shards=dict.fromkeys(tensors, SINGLE),
        tables=found.names,
        config=config,
        generation_config=read_json(folder / "generation_config.json") or None,
        vocabulary=Vocabulary.in_folder(folder, num_rows=num_rows),
        tie_reason=found.reason,
    )
