"""AdamW over named parameters. Parameters on the host are updated on the device, block of rows by block of rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

BLOCK_BYTES = 64 << 20
"""Size of a block of rows in float32. A block has four tensors on the device: master, gradient and both moments."""


def row_blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Yield slices that cover all rows of a matrix, each of at most BLOCK_BYTES in float32."""
    size = max(1, BLOCK_BYTES // max(1, 4 * tensor.shape[1]))
    for start in range(0, len(tensor), size):
        yield slice(start, start + size)


@dataclass(frozen=True)
class Trainable:
    """A float32 parameter with its gradient and the moments of AdamW.

    If the parameter and the moments are on the host (`offload: optimizer`), the gradient is still on the device.
    """

    parameter: torch.nn.Parameter
    gradient: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor

    @classmethod
    def of(cls, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> "Trainable":
        moments = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
        pinned = parameter.is_pinned()
        return cls(parameter, gradient, *(moment.pin_memory() if pinned else moment for moment in moments))


@dataclass(frozen=True)
class AdamW:
    """torch's AdamW. Its state is the moments of the parameters and the number of the step."""

    betas: tuple[float, float]
    weight_decay: float

    @torch.no_grad()
    def step(self, trainables: Mapping[str, Trainable], *, rate: float, number: int) -> None:
        """Update the parameters with their gradients. number: finished steps."""
        for trainable in trainables.values():
            gradient = trainable.gradient
            tensors = (trainable.parameter.data, trainable.exp_avg, trainable.exp_avg_sq)
            for rows in row_blocks(gradient):
                parts = [tensor[rows] for tensor in tensors]
                there = [part.to(gradient.device, non_blocking=True) for part in parts]
                adamw(
                    [there[0]],
                    [gradient[rows]],
                    [there[1]],
                    [there[2]],
                    [],
                    [torch.tensor(float(number), device=gradient.device)],
                    fused=True,
                    amsgrad=False,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    lr=rate,
                    weight_decay=self.weight_decay,
                    eps=1e-8,
                    maximize=False,
                )
                if parts[0].device != gradient.device:
                    for part, updated in zip(parts, there, strict=True):
                        part.copy_(updated, non_blocking=True)
            if tensors[0].device != gradient.device and gradient.device.type == "cuda":
                torch.cuda.synchronize(gradient.device)  # the host reads what was copied to it
