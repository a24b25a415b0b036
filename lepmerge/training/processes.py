"""The processes of one training, as started by `accelerate launch`, and accelerate's trackers."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from lepmerge.errors import TrainingError
from lepmerge.training.config import TrainConfig
from lepmerge.training.events import StepDone, TrainingEvent
from lepmerge.training.learner import Group


class Processes:
    """This process and its process group. Without `accelerate launch` it is the only one, on `device`."""

    def __init__(self, device: torch.device, trackers: Sequence[str] = ()) -> None:
        self.group = Group(device)
        self.accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or trackers:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device.type == "cpu", log_with=list(trackers) or None)
            state = self.accelerator.state
            self.group = Group(state.device, state.process_index, state.num_processes)

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
