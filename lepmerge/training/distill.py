"""The divergence of a student from its teacher through the teacher's output table, computed chunk by chunk.

Legend: P pairs of positions, V rows of the teacher's output table, D width.
"""

import torch

from lepmerge.training.loss import IDENTITY, LogitTransform, chunk_length


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
    size = chunk or divergence_chunk(len(table_VD), student_PD.device)
    parts = zip(*(part.split(size) for part in (student_PD, teacher_PD, weight_P, grad_PD)), strict=True)
    for student_CD, teacher_CD, weight_C, grad_CD in parts:
        logit_CV, target_CV = (transform((part @ table_VD.T).to(wide)) for part in (student_CD, teacher_CD))
        log_q_CV, log_p_CV = logit_CV.log_softmax(1), target_CV.log_softmax(1)
        p_CV = log_p_CV.exp()
        total += ((p_CV * (log_p_CV - log_q_CV)).sum(1) * weight_C).sum(dtype=torch.float64)
        # The gradient of KL(p ‖ q) for the student's logits is q - p.
        error_CV = transform.backward(log_q_CV.exp_().sub_(p_CV).mul_(weight_C[:, None] * scale), logit_CV)
        grad_CD.copy_(error_CV.to(table_VD.dtype) @ table_VD)
    return total, grad_PD


def divergence_chunk(num_rows: int, device: torch.device) -> int:
    """Return the number of positions per chunk. A chunk needs four float32 matrices of logits."""
    return max(1, chunk_length(num_rows, device, 4) // 4)
