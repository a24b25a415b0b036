"""Cross entropy of a linear head, chunk by chunk: the logits of all tokens are never held at once.

Legend: N tokens, V rows of the output table, R trained rows of them, D width.
"""

import torch

IGNORED = -100
"""Label of a token that is not predicted."""
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}
"""Memory for a chunk's logits in float32."""
SMALLEST_CHUNK = 256


def chunk_length(num_rows: int, device: torch.device) -> int:
    """Return how many tokens' logits are computed at once; fewer than 256 are slow, however many rows there are."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * num_rows))


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
    for index_C in wanted.split(chunk or chunk_length(len(table_VD), hidden_ND.device)):
        hidden_CD, label_C1 = hidden_ND[index_C], label_N[index_C, None]
        logit_CV = (hidden_CD @ table_VD.T).to(wide)
        highest_C1, wanted_C1 = logit_CV.amax(1, keepdim=True), logit_CV.gather(1, label_C1)
        exp_CV = logit_CV.sub_(highest_C1).exp_()  # one pass of exp serves the sum and the gradient
        sum_C1 = exp_CV.sum(1, keepdim=True)
        total += (highest_C1 + sum_C1.log() - wanted_C1).sum(dtype=torch.float64)
        if not with_gradient:
            continue
        grad_CV = exp_CV.mul_(scale / sum_C1)
        grad_CV.scatter_add_(1, label_C1, torch.full_like(sum_C1, -scale))
        grad_CV = grad_CV.to(hidden_ND.dtype)
        if grad_ND is not None:
            grad_ND[index_C] = grad_CV @ table_VD
        if grad_RD is not None:
            grad_CR = grad_CV[:, first_row : first_row + len(grad_RD)]
            if grad_RD.dtype == hidden_ND.dtype:
                grad_RD.addmm_(grad_CR.T, hidden_CD)
            else:
                grad_RD += grad_CR.T @ hidden_CD
    return total, grad_ND
