"""Choose the device that computes."""

import torch

from lepmerge.errors import LepmergeError


def choose_device(name: str) -> torch.device:
    """Return the device with this name. `auto` means CUDA if available, else MPS if available, else the CPU.

    Raises:
        LepmergeError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LepmergeError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise LepmergeError(f"--device {name}: there is no such device here; use --device cpu")
    return device
