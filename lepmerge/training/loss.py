"""Cross entropy of a linear head, chunk by chunk: the logits of all tokens are never held at once.

Legend: N tokens, V rows of the output table, R trained rows of them, D width.
"""

import torch

IGNORED = -100
"""Label of a token that is not predicted."""
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}
"""Memory for a chunk's logits."""
SLAB_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Memory for the probabilities of a part of a chunk in float32; on a CPU it stays in the cache."""
SMALLEST_CHUNK = 256


def chunk_length(num_rows: int, device: torch.device, itemsize: int) -> int:
    """Return how many tokens' logits are computed at once; fewer than 256 are slow, however many rows there are."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (itemsize * num_rows))


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    table_VD: torch.Tensor,
    label_N: torch.Tensor,
    *,
    scale: float,
    grad_RD: torch.Tensor | None = None,
    first_row: int = 0,
    needs_hidden: bool = True,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed cross entropy of hidden @ tableᵀ in nats, a float64 scalar, and its gradient for hidden_ND.

    Gradients are of `scale` times the sum. That of the rows first_row … first_row + R of the table is added to grad_RD
    (float32 or wider); without grad_RD and needs_hidden nothing but the sum is computed. label_N: rows of the table, or
    IGNORED. hidden_ND and table_VD have one type; what a chunk computes is rounded to it, the sums over chunks are not.
    """
    total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    wanted = (label_N != IGNORED).nonzero().squeeze(1)
    with_gradient = needs_hidden or grad_RD is not None
    grad_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    slab = max(1, SLAB_BYTES.get(hidden_ND.device.type, SLAB_BYTES["cpu"]) // (4 * len(table_VD)))
    for index_C in wanted.split(chunk or chunk_length(len(table_VD), hidden_ND.device, hidden_ND.dtype.itemsize)):
        hidden_CD, label_C1 = hidden_ND[index_C], label_N[index_C, None]
        logit_CV = hidden_CD @ table_VD.T
        for logit_SV, label_S1 in zip(logit_CV.split(slab), label_C1.split(slab), strict=True):
            probability_SV = logit_SV.softmax(1, dtype=wide)
            # the largest probability is at least 1 / V, so its logarithm is exact where that of the label's is not
            normalizer_S = logit_SV.amax(1).to(wide) - probability_SV.amax(1).log()
            total += (normalizer_S - logit_SV.gather(1, label_S1).squeeze(1).to(wide)).sum(dtype=torch.float64)
            if with_gradient:
                probability_SV.scatter_add_(1, label_S1, torch.full_like(label_S1, -1, dtype=wide))
                logit_SV.copy_(probability_SV)
        grad_CV = logit_CV  # it holds probabilities less the labels' ones by now
        if grad_ND is not None:
            grad_ND[index_C] = grad_CV @ table_VD * scale
        if grad_RD is not None:
            grad_CR = grad_CV[:, first_row : first_row + len(grad_RD)]
            if grad_RD.dtype == hidden_ND.dtype:
                grad_RD.addmm_(grad_CR.T, hidden_CD, alpha=scale)
            else:
                grad_RD.add_(grad_CR.T @ hidden_CD, alpha=scale)
    return total, grad_ND
