"""The checkpoint of a training: its parameters and optimizer moments in one safetensors file, replaced atomically.

The file does not depend on the number of processes. Each process writes and reads the rows that it owns.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lepmerge.models.safetensors_io import SafetensorsFile, StoredTensor, build_header, to_bytes
from lepmerge.output.staging import write_all
from lepmerge.tensors import Workspace
from lepmerge.training.learner import Learner
from lepmerge.training.optimizer import row_blocks

MASTER = "master"
PARTS = (MASTER, "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Position:
    """The state of a training besides its tensors: finished steps, micro batch, size of the metrics file in bytes."""

    step: int
    micro_batch: int
    metrics_bytes: int


def save_checkpoint(path: Path, learner: Learner, position: Position) -> None:
    """Write everything that the next step depends on. The old checkpoint is kept until the new one is on the disk.

    The order of the data, the learning rate and the seeds of dropout follow from the step number, so they are not
    stored. If several processes share out the state, all of them call this and write into the same file.
    """
    group = learner.group
    if group.rank > 0 and not group.sharded:
        return
    temporary = path.with_name(path.name + ".new")
    if group.rank == 0:
        shapes = {name: ("F32", (num_rows, tensor.shape[1])) for name, tensor, _, num_rows in _state(learner)}
        header = build_header(shapes, {"position": json.dumps(asdict(position))})
        temporary.write_bytes(header.encoded)
        os.truncate(temporary, max(entry.stop for entry in header.entries.values()))
    if group.sharded:
        group.wait()
    entries = SafetensorsFile(temporary).entries
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for name, tensor, own, _ in _state(learner):
            if own.start > 0 or group.rank == 0:  # the main process writes the beginnings and what is not shared out
                os.lseek(descriptor, entries[name].start + own.start * 4 * tensor.shape[1], os.SEEK_SET)
                for block in row_blocks(tensor):
                    write_all(descriptor, to_bytes(tensor[block]))
        os.fsync(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    if group.sharded:
        group.wait()
    if group.rank == 0:
        temporary.replace(path)


def load_checkpoint(path: Path, learner: Learner) -> Position:
    """Load a checkpoint into the learner and return its position."""
    file = SafetensorsFile(path)
    with torch.no_grad():
        for name, tensor, own, _ in _state(learner):
            stored = StoredTensor.of(name, file)
            for block in row_blocks(tensor):
                rows = range(*block.indices(len(tensor)))
                rows = range(own.start + rows.start, own.start + rows.stop)
                tensor[block] = stored.read(rows, Workspace())
    for table in learner.tables.values():
        table.update()
    return Position(**json.loads(file.metadata["position"]))


def masters_in(path: Path, name: str) -> StoredTensor:
    """Return the masters of all trained rows of a table, or a matrix of an adapter, from a checkpoint."""
    return StoredTensor.of(f"{name}.{MASTER}", SafetensorsFile(path))


def position_of(path: Path) -> Position | None:
    """Return the position of a checkpoint, read from its header; None if there is no checkpoint."""
    return Position(**json.loads(SafetensorsFile(path).metadata["position"])) if path.exists() else None


def _state(learner: Learner) -> Iterator[tuple[str, torch.Tensor, range, int]]:
    """Yield the tensors of the state: name, rows of this process, their place in the whole, rows of the whole."""
    for name, trainable in learner.trainables.items():
        table = learner.tables.get(name)
        own = range(len(trainable.parameter)) if table is None else table.own_rows
        num_rows = len(own) if table is None else len(table.rows)
        tensors = (trainable.parameter.detach(), trainable.exp_avg, trainable.exp_avg_sq)
        for part, tensor in zip(PARTS, tensors, strict=True):
            yield f"{name}.{part}", tensor, own, num_rows
