"""A model that is known by its config and tokenizer only: its tensors have shapes, but no values."""

import torch

from lepmerge.models.checkpoint import PICKLED, open_checkpoint
from lepmerge.models.configs import check_values, read_json, text_configs
from lepmerge.models.model import Model
from lepmerge.models.references import Reference
from lepmerge.models.tables import INPUT, find_tables
from lepmerge.tensors import LazyTensor, Rows, Workspace
from lepmerge.training.loader import skeleton
from lepmerge.vocabulary.vocabulary import Vocabulary


class Unread(LazyTensor):
    """A tensor without values."""

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        raise AssertionError("an outline has no values")


def open_outline(reference: Reference, *, name: str) -> Model:
    """Return the model of a folder. Its tensors have no values if the folder has a config.json but no weights.

    Raises:
        CheckpointError: the folder has weights that lepmerge cannot read, or transformers does not know the config.
    """
    folder = reference.folder
    weights = ("*.safetensors", *PICKLED, "adapter_config.json")
    if not (folder / "config.json").exists() or any(any(folder.glob(pattern)) for pattern in weights):
        return open_checkpoint(reference, name=name)
    config = read_json(folder / "config.json", required=True)
    check_values(config, folder / "config.json")
    parts = (config, *text_configs(config))
    stored = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "bfloat16")
    dtype = getattr(torch, str(stored), torch.bfloat16)
    network = skeleton(folder, name=name)
    tensors = {name: Unread(shape=tuple(weight.shape), dtype=dtype) for name, weight in network.named_parameters()}
    found = find_tables(name, folder, config, tensors)
    num_rows = tensors[found.names[INPUT]].num_rows
    return Model(
        name=name,
        folder=folder,
        tensors=tensors,
        shards={},
        tables=found.names,
        config=config,
        generation_config=read_json(folder / "generation_config.json") or None,
        vocabulary=Vocabulary.in_folder(folder, num_rows=num_rows),
        tie_reason=found.reason,
    )
