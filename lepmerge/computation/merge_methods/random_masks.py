"""Random numbers that depend only on a key and a position, not on device, block size or number of threads.

SplitMix64 (Steele, Lea & Flood 2014) mixes the position of an element in the tensor with a key made from seed, tensor
and model.
"""

import hashlib

import torch

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key_of(seed: int, tensor: str, model: int) -> int:
    """Return the 64-bit key of one tensor of one model."""
    digest = hashlib.sha256(f"{seed}/{model}/{tensor}".encode()).digest()
    return _signed(int.from_bytes(digest[:8], "little"))


def uniform(index_N: torch.Tensor, width: int, key: int) -> torch.Tensor:
    """Return random float32 numbers in [0, 1) for whole rows, shaped (N, width). index_N: row numbers."""
    column = torch.arange(width, device=index_N.device)
    counter = index_N[:, None] * width + column + 1
    mixed = counter * _signed(_GOLDEN) + key
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 40).to(torch.float32) / (1 << 24)


def _shifted(value: torch.Tensor, count: int) -> torch.Tensor:
    """Return the logical right shift. torch's operator `>>` is arithmetic: it keeps the sign."""
    return (value >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
