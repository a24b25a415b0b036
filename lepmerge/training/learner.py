"""One training step: compute the gradients of what is trained over a batch, then update it with AdamW.

Trained are rows of the tables, and the matrices of the body's LoRA adapter if it has one.

Legend: B rows of a micro batch, L tokens per row, D width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from lepmerge.models.model import INPUT, OUTPUT
from lepmerge.tensors import ahead
from lepmerge.training.batch import Batch, Lesson, Totals
from lepmerge.training.blocks import Blocks, digest_seed
from lepmerge.training.body import Body
from lepmerge.training.config import TrainConfig
from lepmerge.training.distill import head_divergence
from lepmerge.training.group import Group
from lepmerge.training.loss import linear_cross_entropy
from lepmerge.training.optimizer import AdamW, Trainable
from lepmerge.training.setting import Setting
from lepmerge.training.tables import TrainedTable
from lepmerge.training.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """Metrics of a step: the loss in nats per token, the gradient's norm before clipping, tokens, terms of the loss."""

    loss: float
    grad_norm: float
    num_tokens: int
    terms: Mapping[str, float]


class Learner:
    """The body, tables and optimizer of a training at one learning rate.

    trainables: name → what is trained. A new learner resets the adapter of the body.
    """

    def __init__(
        self,
        setting: Setting,
        body: Body,
        blocks: Blocks,
        group: Group,
        *,
        rate: float,
        steps: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.config: TrainConfig = setting.config
        self.body, self.blocks, self.group, self.teacher = body, blocks, group, teacher
        self.rate, self.steps = rate, steps
        dtype = torch.float32 if setting.config.is_float32 else torch.bfloat16
        offload = setting.config.offload == "optimizer"
        self.tables = {
            role: TrainedTable.of(setting.start.table(role), rows, dtype=dtype, group=group, offload=offload)
            for role, rows in setting.rows.items()
        }
        self.trainables = {
            role: Trainable.of(table.master_RD, table.grad_RD[table.own_rows.start : table.own_rows.stop])
            for role, table in self.tables.items()
            if table.grad_RD is not None
        }
        if body.adapter is not None:
            body.adapter.reset(self.config.seed)
            self.trainables |= {
                name: Trainable.of(parameter, _gradient_of(parameter))
                for name, parameter in body.adapter.parameters.items()
            }
        self.optimizer = AdamW(self.config.betas, self.config.weight_decay)
        self._order: dict[int, torch.Tensor] = {}

    @property
    def input(self) -> TrainedTable:
        return self.tables[INPUT]

    @property
    def output(self) -> TrainedTable:
        return self.tables.get(OUTPUT, self.input)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (counted from 0): a linear warm-up, then the schedule."""
        warmup = min(self.config.warmup_steps, self.steps)
        if step < warmup:
            return self.rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        if self.config.schedule == "cosine":
            return self.rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.rate * (1 - progress if self.config.schedule == "linear" else 1)

    def step(self, number: int, *, micro_batch: int, between: Callable[[], None]) -> StepResult:
        """Run step `number`, counted from 0. `between` is called between micro batches and may raise.

        If it raises, or if memory runs out, parameters and optimizer remain as they were after the previous step.
        """
        places = self.places(number)
        # Every micro batch is divided by the totals of the whole step, so that the gradient is the same for any size of
        # the micro batch and any number of processes.
        totals = self.blocks.totals(places)
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        turns = self.group.turns(places, micro_batch)
        batches = ahead(self._batch(part, counts).to(self.group.device) for part, counts in turns)
        for index, batch in enumerate(batches):
            between()
            with self._dropping(number, index):
                sums += self.accumulate(batch, totals)
        self.group.sum(sums)
        norm = self._clipped_norm()
        cross_entropy, divergence = (sums / sums.new_tensor(totals.divisors)).tolist()
        terms = {} if self.teacher is None else {"cross_entropy": cross_entropy, "divergence": divergence}
        loss = cross_entropy + self.config.distill.weight * divergence
        result = StepResult(loss, float(norm), totals.num_labels, terms)
        # An update with NaN would ruin the parameters. Without it they stay good, and the caller reports the step.
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            self.optimizer.step(self.trainables, rate=self.learning_rate(number), number=number)
            for table in self.tables.values():
                table.update()
        self.forget_gradients()
        return result

    def _batch(self, places: Sequence[list[int]], counts: bool) -> Batch:
        batch = self.blocks.batch(places)
        return batch if counts else batch.without_loss()

    def _clipped_norm(self) -> torch.Tensor:
        """Sum the gradients over the processes and clip them. Return their norm before clipping."""
        for table in self.tables.values():
            if table.grad_RD is not None:
                self.group.reduce_rows(table.grad_RD)
        square = torch.zeros((), device=self.group.device)
        for name, trainable in self.trainables.items():
            if name not in self.tables:
                self.group.sum(trainable.gradient)
            # a sharded table has a part of the norm in each process, an adapter has the same norm in all
            if name in self.tables or self.group.rank == 0 or not self.group.sharded:
                square += torch.linalg.vector_norm(trainable.gradient) ** 2
        norm = (self.group.sum(square) if self.group.sharded else square).sqrt()
        if self.config.max_grad_norm is not None:
            factor = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1)  # as torch's clip_grad_norm_
            for trainable in self.trainables.values():
                trainable.gradient.mul_(factor)
        return norm

    def _dropping(self, step: int, micro_batch: int) -> AbstractContextManager[None]:
        """Return a context with the dropout of the adapter. What is dropped depends only on the seed and the place."""
        if not (self.body.adapter and self.config.lora and self.config.lora.dropout):
            return nullcontext()
        return self.body.adapter.dropping(digest_seed(self.config.seed, step, self.group.rank, micro_batch))

    def accumulate(self, batch: Batch, totals: Totals) -> torch.Tensor:
        """Add the gradients of a micro batch. Return the summed cross entropy and divergence, (2,) float64."""
        learns_input = self.input.is_trained
        needs_hidden = learns_input or self.body.adapter is not None
        embedded_BLD = self.body.embed(self.input.table_VD, batch.id_BL).requires_grad_(learns_input)
        with torch.set_grad_enabled(needs_hidden):
            hidden_BLD = self.body(embedded_BLD, batch.position_BL)
        hidden_ND = hidden_BLD.detach().flatten(0, 1)
        cross_entropy, grad_ND = linear_cross_entropy(
            hidden_ND,
            self.output.table_VD,
            batch.label_BL.flatten(),
            scale=1 / totals.divisors[0],
            weight_N=self._label_weights(batch),
            transform=self.body.transform,
            grad_RD=self.output.grad_RD,
            first_row=self.output.rows.start,
            needs_hidden=needs_hidden,
        )
        divergence = torch.zeros_like(cross_entropy)
        if self.teacher is not None and batch.lesson is not None:
            divergence, grad_PD = self._divergence(
                self.teacher, batch.lesson, hidden_ND, self.config.distill.weight / totals.divisors[1]
            )
            if grad_ND is not None:
                grad_ND.index_add_(0, batch.lesson.student_P, grad_PD)
        if grad_ND is not None:
            hidden_BLD.backward(grad_ND.view_as(hidden_BLD))
        if learns_input:
            assert embedded_BLD.grad is not None
            self.input.add_gradient(batch.id_BL.flatten(), embedded_BLD.grad.flatten(0, 1) * self.body.scale)
        return torch.stack([cross_entropy, divergence])

    def _label_weights(self, batch: Batch) -> torch.Tensor | None:
        """Return the weights of the flattened labels in the cross entropy, or None if all are 1."""
        if batch.lesson is None or self.config.distill.answer_label_weight == 1:
            return None
        return batch.lesson.label_weights(batch.label_BL.numel())

    @torch.no_grad()
    def _divergence(
        self, teacher: Teacher, lesson: Lesson, hidden_ND: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted divergence from the teacher, and the gradient of `scale` times it at each pair."""
        teacher_PD = teacher.hidden(lesson.id_BT, lesson.position_BT).flatten(0, 1)[lesson.teacher_P]
        student_PD = hidden_ND[lesson.student_P]
        return head_divergence(
            student_PD, teacher_PD, teacher.output_VD, lesson.weight_P, scale=scale, transform=teacher.body.transform
        )

    def forget_gradients(self) -> None:
        for table in self.tables.values():
            if table.grad_RD is not None:
                table.grad_RD.zero_()
        for trainable in self.trainables.values():
            trainable.gradient.zero_()

    def places(self, number: int) -> list[list[int]]:
        """Return the (source, block) of every block of a step. An epoch may end within a step."""
        size = self.blocks.num_blocks
        first = number * self.config.batch_size
        last = min(first + self.config.batch_size, num_blocks_in_all(self.config, self.blocks))
        epochs = range(first // size, (last - 1) // size + 1)
        self._order = {epoch: self._order[epoch] if epoch in self._order else self.blocks.order(epoch)
                       for epoch in epochs}  # fmt: skip
        return [self._order[place // size][place % size].tolist() for place in range(first, last)]


def _gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def num_blocks_in_all(config: TrainConfig, blocks: Blocks) -> int:
    """Return the number of blocks that a training reads in all epochs, or until max_tokens."""
    if config.max_tokens is None:
        return max(1, round(blocks.num_blocks * config.epochs))
    return max(1, math.ceil(config.max_tokens / blocks.tokens_per_block))


def num_steps(config: TrainConfig, blocks: Blocks) -> int:
    return math.ceil(num_blocks_in_all(config, blocks) / config.batch_size)
