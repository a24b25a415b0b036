"""The divergence of a student from its teacher through the teacher's output table, computed chunk by chunk.

Legend: P pairs of positions, V rows of the teacher's output table, D width.
"""

import torch

from lepmerge.training.loss import IDENTITY, LogitTransform, chunk_length, slab_bytes

SLAB_MATRICES = 5
"""Float32 matrices of the logits' shape that are in memory at the same time."""


def head_divergence(
    student_PD: torch.Tensor,
    teacher_PD: torch.Tensor,
    table_VD: torch.Tensor,
    weight_P: torch.Tensor,
    *,
    scale: float,
    transform: LogitTransform = IDENTITY,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Σ weight · KL(p ‖ q), a float64 scalar in nats, and the gradient of `scale` times it for student_PD.

    p is the next-token distribution that the teacher's output table gives for the teacher's hidden state; q is the one
    it gives for the student's. The vocabularies may differ, because only the teacher's table is used. The teacher and
    its table are constants. The logits of all positions are never in memory at once.
    """
    total = torch.zeros((), dtype=torch.float64, device=student_PD.device)
    grad_PD = torch.empty_like(student_PD)
    wide = torch.promote_types(student_PD.dtype, torch.float32)
    size = chunk or divergence_chunk(len(table_VD), student_PD.device, table_VD.dtype.itemsize)
    slab = max(1, slab_bytes(student_PD.device) // (4 * SLAB_MATRICES * len(table_VD)))
    parts = zip(*(part.split(size) for part in (student_PD, teacher_PD, weight_P, grad_PD)), strict=True)
    for student_CD, teacher_CD, weight_C, grad_CD in parts:
        student_CV, teacher_CV = student_CD @ table_VD.T, teacher_CD @ table_VD.T
        slabs = zip(*(part.split(slab) for part in (student_CV, teacher_CV, weight_C)), strict=True)
        for student_SV, teacher_SV, weight_S in slabs:
            logit_SV = transform(student_SV.to(wide))
            log_q_SV, log_p_SV = logit_SV.log_softmax(1), transform(teacher_SV.to(wide)).log_softmax(1)
            p_SV = log_p_SV.exp()
            nats_S = log_p_SV.sub_(log_q_SV).mul_(p_SV).sum(1)
            total += (nats_S * weight_S).sum(dtype=torch.float64)
            # The gradient of KL(p ‖ q) for the student's logits is q - p.
            error_SV = log_q_SV.exp_().sub_(p_SV).mul_(weight_S[:, None] * scale)
            student_SV.copy_(transform.backward(error_SV, logit_SV))
        grad_CD.copy_(student_CV @ table_VD)  # reuses memory: the gradient for the student's products
    return total, grad_PD


def divergence_chunk(num_rows: int, device: torch.device, itemsize: int) -> int:
    """Return the number of positions per chunk, for which both models' products with the table are in memory."""
    return chunk_length(num_rows, device, 2 * itemsize)


def divergence_bytes(num_rows: int, device: torch.device, itemsize: int, positions: int) -> int:
    """Return the memory that the divergence needs at most. itemsize: of the table's dtype. positions: pairs."""
    chunk = min(positions, divergence_chunk(num_rows, device, itemsize))
    return 2 * itemsize * chunk * num_rows + min(slab_bytes(device), 4 * SLAB_MATRICES * chunk * num_rows)
