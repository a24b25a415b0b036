"""The checkpoint of a training: its parameters and optimizer moments in one safetensors file, replaced atomically."""

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

    The order of the data, the learning rate and the seeds of dropout follow from the step number, so they are not
    stored.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in learner.parameters.items():
        moments = learner.optimizer.state.get(parameter) or {}
        zeros = torch.zeros(1).expand(parameter.shape)
        tensors[f"{name}.master"] = parameter.detach()
        tensors[f"{name}.exp_avg"] = moments.get("exp_avg", zeros)
        tensors[f"{name}.exp_avg_sq"] = moments.get("exp_avg_sq", zeros)
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
    for number, (name, parameter) in enumerate(learner.parameters.items()):
        master, average, square = (StoredTensor.of(f"{name}.{part}", file).whole() for part in PARTS)
        with torch.no_grad():
            parameter.copy_(master)
        if position.step:
            step = torch.tensor(float(position.step))
            state["state"][number] = {"step": step, "exp_avg": average, "exp_avg_sq": square}
    for table in learner.tables.values():
        table.update()
    learner.optimizer.load_state_dict(state)
    return position


def position_of(path: Path) -> Position | None:
    """Return the position of a checkpoint, read from its header; None if there is no checkpoint."""
    return Position(**json.loads(SafetensorsFile(path).metadata["position"])) if path.exists() else None
