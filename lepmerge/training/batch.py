"""Batches as the inputs of the model and the teacher.

Legend: B rows of a batch, L tokens per row of the model, T tokens per row of the teacher, P pairs of tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from lepmerge.training.lessons import Lessons
from lepmerge.training.loss import IGNORED


@dataclass(frozen=True)
class Batch:
    """The blocks of a batch, as (B, L) tensors: ids, positions in the document, labels (the next id, or IGNORED)."""

    id_BL: torch.Tensor
    position_BL: torch.Tensor
    label_BL: torch.Tensor
    lesson: "Lesson | None" = None

    def without_loss(self) -> "Batch":
        """Return the same inputs, such that nothing is learned from them."""
        lesson = self.lesson and replace(self.lesson, weight_P=torch.zeros_like(self.lesson.weight_P))
        return replace(self, label_BL=torch.full_like(self.label_BL, IGNORED), lesson=lesson)

    def to(self, device: torch.device) -> "Batch":
        if device.type != "cuda":
            return self
        parts = (_sent(part, device) for part in (self.id_BL, self.position_BL, self.label_BL))
        lesson = self.lesson and Lesson(*(_sent(part, device) for part in vars(self.lesson).values()))
        return Batch(*parts, lesson=lesson)


@dataclass(frozen=True)
class Lesson:
    """The teacher's input for a batch, (B, T), and the P pairs of tokens that end at the same byte.

    student_P and teacher_P index the flattened rows of student and teacher. weight_P holds the weight of each pair in
    the divergence, label_weight_P the weight of the next token in the cross entropy.
    """

    id_BT: torch.Tensor
    position_BT: torch.Tensor
    student_P: torch.Tensor
    teacher_P: torch.Tensor
    weight_P: torch.Tensor
    label_weight_P: torch.Tensor

    def label_weights(self, num_tokens: int) -> torch.Tensor:
        """Return the weight of each label of the student's flattened rows. It is 1 where no pair is."""
        weight_N = self.label_weight_P.new_ones(num_tokens)
        weight_N[self.student_P] = self.label_weight_P
        return weight_N


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Totals:
    """The number of predicted tokens of a step, and the divisors of its losses: total weight of labels and of pairs."""

    num_labels: int
    label_weight: float
    pair_weight: float

    @property
    def divisors(self) -> tuple[float, float]:
        """The two totals, with 1 in place of 0."""
        return self.label_weight or 1.0, self.pair_weight or 1.0


class Reading:
    """Builds the teacher's rows of a batch, padded to the longest row."""

    def __init__(self, answer_weight: float, answer_label_weight: float) -> None:
        self.answer_weight, self.answer_label_weight = answer_weight, answer_label_weight
        self.rows: list[list[np.ndarray]] = []
        self.positions: list[list[np.ndarray]] = []
        self.pairs: list[tuple[int, np.ndarray, np.ndarray]] = []

    def begin_row(self) -> None:
        self.rows.append([])
        self.positions.append([])

    def add(self, lessons: Lessons, piece: int, student: int) -> None:
        """Add a piece to the last row. `student` is the index of its first token in the student's flattened rows."""
        start, length, first, count = lessons.lesson_P4[piece].tolist()
        ids = np.concatenate([lessons.prefix_ids, lessons.token_T[start : start + length]]).astype(np.int64)
        place = sum(map(len, self.rows[-1])) + len(lessons.prefix_ids)
        self.rows[-1].append(ids)
        self.positions[-1].append(np.arange(len(ids)))
        pair_P2 = lessons.pair_N2[first : first + count].astype(np.int64) + [student, place]
        self.pairs.append((len(self.rows) - 1, pair_P2, lessons.answered_N[first : first + count]))

    def lesson(self) -> Lesson:
        length = max(sum(map(len, row)) for row in self.rows)
        id_BT = torch.zeros(len(self.rows), length, dtype=torch.int64)
        position_BT = torch.zeros_like(id_BT)
        for row, (ids, positions) in enumerate(zip(self.rows, self.positions, strict=True)):
            used = sum(map(len, ids))
            if used:
                id_BT[row, :used] = torch.from_numpy(np.concatenate(ids))
                position_BT[row, :used] = torch.from_numpy(np.concatenate(positions))
            position_BT[row, used:] = torch.arange(length - used)
        student_P = np.concatenate([pair_P2[:, 0] for _, pair_P2, _ in self.pairs])
        teacher_P = np.concatenate([row * length + pair_P2[:, 1] for row, pair_P2, _ in self.pairs])
        answered_P = np.concatenate([answered_P for *_, answered_P in self.pairs])
        weights = (np.where(answered_P, weight, 1.0) for weight in (self.answer_weight, self.answer_label_weight))
        return Lesson(id_BT, position_BT, torch.from_numpy(student_P), torch.from_numpy(teacher_P),
                      *(torch.from_numpy(weight_P).float() for weight_P in weights))  # fmt: skip
