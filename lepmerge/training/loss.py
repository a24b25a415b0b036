"""Cross entropy of a model's head, computed chunk by chunk. The logits of all tokens are never in memory at once.

Legend: N tokens, V rows of the output table, of which R are trained, D width. A chunk has C tokens; it is processed in
slabs of S tokens.
"""

from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a token that is not predicted."""
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}
"""Memory for a chunk's logits."""
SLAB_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Memory for the float32 probabilities of a slab. On a CPU a slab should fit the cache."""
SMALLEST_CHUNK = 256


def slab_bytes(device: torch.device) -> int:
    return SLAB_BYTES.get(device.type, SLAB_BYTES["cpu"])


def chunk_length(num_rows: int, device: torch.device, itemsize: int) -> int:
    """Return the number of tokens per chunk, at least 256 because smaller chunks are slow."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (itemsize * num_rows))


@dataclass(frozen=True)
class LogitTransform:
    """Turns x = hidden @ tableᵀ into a model's logits: cap · tanh(scale · (x + bias) / cap).

    Without a cap the logits are scale · (x + bias). Cohere and Granite have a scale, Gemma 2 a cap, Phi-2 a bias.
    """

    scale: float = 1.0
    cap: float | None = None
    bias_V: torch.Tensor | None = None

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.cap is None and self.bias_V is None

    def __call__(self, product_NV: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden @ tableᵀ."""
        biased_NV = product_NV if self.bias_V is None else product_NV + self.bias_V
        if self.cap is None:
            return biased_NV * self.scale
        return (biased_NV * (self.scale / self.cap)).tanh() * self.cap

    def backward(self, grad_NV: torch.Tensor, logit_NV: torch.Tensor) -> torch.Tensor:
        """Return the gradient for hidden @ tableᵀ, given the gradient for the logits and the logits."""
        if self.cap is None:
            return grad_NV * self.scale
        return grad_NV * (1 - (logit_NV / self.cap) ** 2) * self.scale  # tanh' = 1 - tanh²


IDENTITY = LogitTransform()


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    table_VD: torch.Tensor,
    label_N: torch.Tensor,
    *,
    scale: float,
    weight_N: torch.Tensor | None = None,
    transform: LogitTransform = IDENTITY,
    grad_RD: torch.Tensor | None = None,
    first_row: int = 0,
    needs_hidden: bool = True,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed cross entropy of transform(hidden @ tableᵀ) in nats, and its gradient for hidden_ND.

    The sum is a float64 scalar. The gradient for the table rows first_row … first_row + R is added to grad_RD, which is
    float32 or wider. Both gradients are those of `scale` times the sum. If there is no grad_RD and needs_hidden is
    False, only the sum is computed. label_N holds rows of the table, or IGNORED. weight_N holds the weight of each
    token's cross entropy; None stands for ones. hidden_ND and table_VD have the same dtype. Results within a chunk are
    rounded to this dtype; sums over chunks are not.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    wanted = (label_N != IGNORED).nonzero().squeeze(1)
    with_gradient = needs_hidden or grad_RD is not None
    grad_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    slab = max(1, slab_bytes(hidden_ND.device) // (4 * len(table_VD)))
    for index_C in wanted.split(chunk or chunk_length(len(table_VD), hidden_ND.device, hidden_ND.dtype.itemsize)):
        hidden_CD, label_C1 = hidden_ND[index_C], label_N[index_C, None]
        weight_C1 = (torch.ones_like(label_C1) if weight_N is None else weight_N[index_C, None]).to(wide)
        product_CV = hidden_CD @ table_VD.T
        slabs = zip(*(part.split(slab) for part in (product_CV, label_C1, weight_C1)), strict=True)
        for product_SV, label_S1, weight_S1 in slabs:
            logit_SV = product_SV if transform.is_identity else transform(product_SV.to(wide))
            probability_SV = logit_SV.softmax(1, dtype=wide)
            # The log-probability is computed from the logits because the label's probability can underflow. The
            # largest probability is at least 1 / V, so its logarithm is accurate.
            normalizer_S = logit_SV.amax(1).to(wide) - probability_SV.amax(1).log()
            nats_S = normalizer_S - logit_SV.gather(1, label_S1).squeeze(1).to(wide)
            total += (nats_S * weight_S1.squeeze(1)).sum(dtype=torch.float64)
            if with_gradient:
                probability_SV.scatter_add_(1, label_S1, torch.full_like(label_S1, -1, dtype=wide))
                if weight_N is not None:
                    probability_SV.mul_(weight_S1)
                if not transform.is_identity:
                    probability_SV = transform.backward(probability_SV, logit_SV)
                product_SV.copy_(probability_SV)
        grad_CV = product_CV  # reuses memory: (probabilities - one-hot labels) · derivative of the transform
        if grad_ND is not None:
            grad_ND[index_C] = grad_CV @ table_VD * scale
        if grad_RD is not None:
            grad_CR = grad_CV[:, first_row : first_row + len(grad_RD)]
            if grad_RD.dtype == hidden_ND.dtype:
                grad_RD.addmm_(grad_CR.T, hidden_CD, alpha=scale)
            else:
                grad_RD.add_(grad_CR.T @ hidden_CD, alpha=scale)
    return total, grad_ND
