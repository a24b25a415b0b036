"""The checkpoint of a training: trained rows and optimizer moments in one safetensors file, replaced atomically."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lepmerge.models.safetensors_io import DTYPE_NAMES, SafetensorsFile, StoredTensor, build_header, to_bytes, write_all
from lepmerge.training.learner import Learner

PARTS = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Position:
    """The state of a training besides its tensors: finished steps, micro batch, size of the metrics file in bytes."""

    step: int
    micro_batch: int
    metrics_bytes: int


def save_checkpoint(path: Path, learner: Learner, position: Position) -> None:
    """Write everything that the next step depends on. The old checkpoint is kept until the new one is on the disk.

    The order of the data and the learning rate follow from the step number, so they are not stored. Steps draw no
    random numbers, so there is no generator state either.
    """
    tensors: dict[str, torch.Tensor] = {}
    for role, table in learner.tables.items():
        if table.is_trained:
            moments = learner.optimizer.state.get(table.master_RD) or {}
            zeros = torch.zeros(1).expand(table.master_RD.shape)
            tensors[f"{role}.master"] = table.master_RD.detach()
            tensors[f"{role}.exp_avg"] = moments.get("exp_avg", zeros)
            tensors[f"{role}.exp_avg_sq"] = moments.get("exp_avg_sq", zeros)
    shapes = {name: (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    header = build_header(shapes, {"position": json.dumps(asdict(position))})
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(descriptor, header.encoded)
        for tensor in tensors.values():
            for rows in tensor.split(max(1, (64 << 20) // max(1, 4 * tensor.shape[1]))):
                write_all(descriptor, to_bytes(rows))
        os.fsync(descriptor)
    except BaseException:
        temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    temporary.replace(path)


def load_checkpoint(path: Path, learner: Learner) -> Position:
    """Load a checkpoint into the learner and return its position."""
    file = SafetensorsFile(path)
    position = Position(**json.loads(file.metadata["position"]))
    state = learner.optimizer.state_dict()
    number = 0
    for role, table in learner.tables.items():
        if table.is_trained:
            master, average, square = (StoredTensor.of(f"{role}.{part}", file).whole() for part in PARTS)
            with torch.no_grad():
                table.master_RD.copy_(master)
            table.update()
            if position.step:
                step = torch.tensor(float(position.step))
                state["state"][number] = {"step": step, "exp_avg": average, "exp_avg_sq": square}
                number += 1
    learner.optimizer.load_state_dict(state)
    return position


def position_of(path: Path) -> Position | None:
    """Return the position of a checkpoint, read from its header; None if there is no checkpoint."""
    return Position(**json.loads(SafetensorsFile(path).metadata["position"])) if path.exists() else None
