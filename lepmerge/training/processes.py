"""The processes of one run, as started by `accelerate launch`, and accelerate's trackers."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lepmerge.errors import TrainingError
from lepmerge.launch import is_launched
from lepmerge.training.config import TrainConfig
from lepmerge.training.events import StepDone, TrainingEvent
from lepmerge.training.group import Group


def launched_group(device: torch.device) -> Group:
    """Return the process group of the launcher, with a device for each process, or this process alone on `device`."""
    if not is_launched():
        return Group(device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    own = device if device.type == "cpu" or state.device is None else state.device  # accelerate numbers CPUs: cpu:0
    return Group(own, state.process_index, state.num_processes)


class Processes:
    """This process and its process group. Without `accelerate launch` it is the only one, on `device`.

    shard: let the processes share out the body, the masters and the states of the optimizer. FSDP in accelerate's own
    configuration has the same effect.

    Raises:
        TrainingError: there is only one process to shard over.
    """

    def __init__(self, device: torch.device, trackers: Sequence[str] = (), *, shard: bool = False) -> None:
        self.group = Group(device)
        self.accelerator: Any = None
        by_accelerate = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        several = is_launched()
        if (shard or by_accelerate) and not several:
            what = "--shard" if shard else "FSDP (in accelerate's configuration)"
            raise TrainingError(
                f"{what} needs several processes, and this is the only one: start them with `accelerate launch "
                f"--num_processes 2 -m lepmerge train …`, or train without sharding"
            )
        if several or trackers:
            from accelerate import Accelerator
            from accelerate.utils import disable_fsdp_ram_efficient_loading

            disable_fsdp_ram_efficient_loading()  # otherwise transformers loads weights in one process only
            self.accelerator = Accelerator(cpu=device.type == "cpu", log_with=list(trackers) or None)
            state = self.accelerator.state
            self.group = Group(state.device, state.process_index, state.num_processes, shard or by_accelerate)

    @contextmanager
    def noticing_losses(self) -> Iterator[None]:
        """Turn torch's errors about a process that cannot be reached into ProcessLost."""
        with self.group.noticing_losses("training", "The same command continues from the last checkpoint"):
            yield

    def track(self, config: TrainConfig) -> None:
        """Start the trackers. TensorBoard writes to NAME.logs next to the output folder NAME."""
        if self.accelerator is None or not self.accelerator.log_with:
            return
        self.accelerator.project_configuration.set_directories(str(config.target) + ".logs")
        settings = {key: value for key, value in config.plain().items() if isinstance(value, int | float | str)}
        self.accelerator.init_trackers("lepmerge", settings)

    def log(self, event: TrainingEvent) -> None:
        """Log the metrics of a step to the trackers."""
        if self.accelerator is None or not isinstance(event, StepDone):
            return
        values = event.metrics()
        step = values.pop("step")
        bits = values.pop("bits_per_byte", {})
        self.accelerator.log({**values, **{f"bits_per_byte/{name}": bits[name] for name in bits}}, step=step)

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise TrainingError if accelerate does not know a tracker or it is not installed."""
    if not trackers:
        return
    from accelerate.tracking import get_available_trackers

    there = [str(tracker) for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in there:
            raise TrainingError(f"--log-with {tracker}: not installed or not known to accelerate; there is "
                                f"{', '.join(there) or 'none'}")  # fmt: skip
