"""The parts of a training that all its runs of steps share: body, teacher, data, the fit into memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lepmerge.training.blocks import Blocks, blocks_of
from lepmerge.training.body import Body, load_body
from lepmerge.training.events import Note, OnEvent, TextRead
from lepmerge.training.fitting import Fitting, sizes_of
from lepmerge.training.group import Group
from lepmerge.training.held_out import HeldOut
from lepmerge.training.learner import Learner, num_steps
from lepmerge.training.loop import StopSignal, Track, run_steps
from lepmerge.training.lora import planned_adapter
from lepmerge.training.quantized import check_installed
from lepmerge.training.setting import Setting
from lepmerge.training.sharding import check_sharding
from lepmerge.training.teacher import Teacher, load_teacher


@dataclass(frozen=True)
class Session:
    """The parts that all runs of steps of one training share."""

    setting: Setting
    body: Body
    blocks: Blocks
    held_out: dict[str, HeldOut]
    group: Group
    stop: StopSignal
    on_event: OnEvent
    micro_batch: int
    teacher: Teacher | None = None

    @property
    def steps(self) -> int:
        return num_steps(self.setting.config, self.blocks)

    def learner(self, rate: float) -> Learner:
        return Learner(
            self.setting, self.body, self.blocks, self.group, rate=rate, steps=self.steps, teacher=self.teacher
        )

    def run(self, learner: Learner, track: Track, *, until: int) -> None:
        """Train up to step `until`, starting from the track's checkpoint."""
        run_steps(
            learner,
            track,
            until=until,
            micro_batch=self.micro_batch,
            held_out=self.held_out,
            stop=self.stop,
            on_event=self.on_event,
        )


def fitted(setting: Setting, group: Group, memory: int | None = None) -> Fitting:
    """Return how a setting is fitted into the memory of the device. No weights are read.

    Raises:
        CheckpointError: the config shows that the model cannot be trained.
        TrainingError: the training needs more memory than the device has.
    """
    check_installed(setting.config.precision.body)
    if group.sharded:
        check_sharding(setting.config.precision.body)
    adapter = planned_adapter(setting.base.folder, setting.config.lora)
    processes = group.size if group.sharded else 1
    found = Fitting(setting, sizes_of(setting), group.device, adapter=adapter, limit=memory, processes=processes)
    found.check()
    return found


def open_session(
    setting: Setting,
    folder: Path,
    group: Group,
    stop: StopSignal,
    on_event: OnEvent,
    *,
    held_out: dict[str, HeldOut],
    compile: bool = False,
    fitting: Fitting | None = None,
) -> Session:
    """Load the body and the teacher, tokenize the data if needed.

    The body is loaded first, so that a model that cannot be trained is refused before hours of tokenizing.
    """
    config = setting.config
    choice = (fitting or fitted(setting, group)).chosen
    tokens = folder / "tokens"
    dtype = torch.float32 if config.is_float32 else torch.bfloat16
    body = load_body(
        setting.base.folder,
        dtype=dtype,
        device=group.device,
        isolated=config.packing == "documents",
        num_rows=setting.start.num_rows,
        lora=config.lora,
        precision=config.precision.body,
        activation_checkpointing=choice.checkpointing,
        group=group,
    )
    teacher = None
    if setting.teacher is not None:
        teacher = load_teacher(
            setting.teacher, setting.base, body, dtype=dtype, device=group.device, precision=config.precision.body,
            group=group,
        )  # fmt: skip

    def reading(what: str, num_bytes: int, total: int | None = None, /) -> None:
        on_event(TextRead(what, num_bytes))
        stop.check()

    if group.rank > 0:  # the main process tokenizes; the others wait and read its files
        group.wait()
    blocks = blocks_of(setting, tokens, reading)
    if group.rank == 0:
        group.wait()
    skipped = {f"data: {s.path}": r.tokens.skipped for s, r in zip(config.data, blocks.sources, strict=True)}
    skipped |= {f"evaluate.data.{name}": text.skipped for name, text in held_out.items()}
    for where, summary in skipped.items():
        if summary:
            on_event(Note(f"{where}: {summary}"))
    if setting.end_id is None and config.objective == "text":
        on_event(Note("neither config.json nor generation_config.json names an eos token: documents end without one"))
    if compile:
        body.compile()
    session = Session(setting, body, blocks, held_out, group, stop, on_event, choice.micro_batch, teacher)
    if session.steps < 10:
        of = f"{config.batch_size} blocks ({blocks.num_blocks} an epoch)"
        on_event(Note(f"only {session.steps} steps of {of}: a smaller batch_size gives more"))
    return session
