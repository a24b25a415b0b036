"""The training configuration: its schema, with the paper's defaults (sections 2.1.3, 2.4.1), and its YAML loader."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lepmerge.config.entries import InitName, InitPerTable, ModelEntry, other_command
from lepmerge.config.schema import Schema, Strict, count_of
from lepmerge.errors import RecipeError
from lepmerge.paths import is_path
from lepmerge.training.sources import Source, TrainingSource, sources_from_text

Rate = Annotated[float, Field(gt=0, lt=1)]
BodyPrecision = Literal["bf16", "fp32", "int8", "nf4"]


def _fraction(value: Any) -> float:
    """Parse a fraction such as 20% or 0.2."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(value).strip())
    number = float(match[1]) / 100 if match else float(value) if isinstance(value, int | float) else 0.0
    if not 0 < number < 1:
        raise ValueError("should be a fraction such as 20%")
    return number


class Distill(Strict):
    """The loss of `objective: distill` is the next-token cross entropy + `weight` · the divergence from the teacher."""

    weight: float = Field(default=2.0, gt=0)
    """Weight of the divergence in the loss. The divergence is averaged per position, the cross entropy per token."""
    answer_weight: float = Field(default=20.0, gt=0)
    """Weight in the divergence of positions that predict an answer of the assistant. Other positions have weight 1."""
    answer_label_weight: float = Field(default=1.0, gt=0)
    """Weight in the cross entropy of the tokens of answers, where chats have answers. Other tokens have weight 1."""


class Lora(Strict):
    """A LoRA adapter of the body, trained together with the tables by PEFT. The defaults are PEFT's."""

    rank: int = Field(default=8, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=8, gt=0)
    """Each update is multiplied by alpha / rank."""
    layers: Literal["all", "first_last"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = "all"
    """The layers that are adapted: `all`, `first_last`, or their numbers, counted from 0."""
    modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the adapted linear modules such as `q_proj`, or `all-linear`. Default: PEFT's choice for the
    architecture, usually the query and value projections."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input of the adapter is set to zero in training."""


class Trained(Strict):
    """Which embedding tables and rows are trained."""

    tables: Literal["input", "output", "both", "none"] = "both"
    """The embedding tables that are trained. Tied tables count as one. `none` needs `lora`."""
    rows: Literal["all", "new"] = "all"
    """`all` rows, or only the `new` ones: the contiguous ids that `tokenizer extend` or `optimize` added."""


class Precision(Strict):
    """Precision of the body. The tables and the computation are float32 with `fp32`, otherwise bfloat16."""

    body: BodyPrecision = "bf16"
    """`int8` and `nf4` take about a half and a quarter of the memory of `bf16`. They need bitsandbytes:
    `pip install 'lepmerge[quant]'`."""


class Evaluation(Strict):
    """Held-out text for measuring bits per byte. It is never trained on."""

    data: dict[str, Source]
    """Name → source. A string is short for `path`. A sweep is decided by the first one."""
    every: int = Field(default=200, ge=1)
    """Measure after every this many steps."""

    @model_validator(mode="before")
    @classmethod
    def _sources_from_text(cls, value: Any) -> Any:
        return (
            {**value, "data": sources_from_text(value["data"])}
            if isinstance(value, dict) and "data" in value
            else value
        )


class TrainConfig(Strict):
    """What to train, on which data, and how. The defaults are the paper's."""

    objective: Literal["text", "distill", "chat"] = "text"
    """`text`: predict plain text. `distill`: learn from `teacher`, see [calibration](calibration.md). `chat`: predict
    the assistant's messages in chats."""
    model: ModelEntry
    """The model to train. A string is short for `path`."""
    teacher: ModelEntry | None = None
    """The model that `objective: distill` learns from, usually the original instruct model. It keeps its own vocabulary
    and its own chat template."""
    tokenizer: str | None = None
    """Folder or Hub id of the new vocabulary. Default: the model's own vocabulary."""
    init: InitName | InitPerTable = "mean"
    """How the rows of new tokens are initialized, as in `swap_vocabulary`."""
    data: list[TrainingSource] = Field(min_length=1)
    """The training data. A single source needs no list, and a string is short for `path`."""
    distill: Distill = Distill()
    """Settings of `objective: distill`."""
    train: Trained = Trained()
    """Which embedding tables and rows to train."""
    lora: Lora | None = None
    """Also train a LoRA adapter of the body. Default: the body is frozen. The output is then a PEFT adapter, which
    includes the tables."""
    packing: Literal["documents", "concatenate"] = "documents"
    """Whether documents in the same block attend to one another: with `documents` they do not, with `concatenate` they
    do."""
    block_size: int = Field(default=1024, ge=8)
    """Tokens per block, the sequence length of the training."""
    batch_size: int = Field(default=256, ge=1)
    """Blocks per step, summed over all processes."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Blocks per forward pass in each process. The gradients of a step are accumulated over them."""
    learning_rate: Rate | Annotated[list[Rate], Field(min_length=2)] = 2e-4
    """Peak learning rate, or a list of them for a sweep."""
    sweep: Annotated[float, BeforeValidator(_fraction)] | None = None
    """Train each learning rate of the list for this fraction of the steps, e.g. 20%, then continue with the best."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW weight decay. As usual it is multiplied by the learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Clip the gradient to this norm; null: never."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up: `cosine` and `linear` fall to zero, `constant` stays."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the learning rate rises linearly from zero."""
    epochs: float = Field(default=1.0, gt=0)
    """Number of passes over the data."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Stop after this many tokens (e.g. 300M) instead of after `epochs`; the data is repeated as needed."""
    precision: Precision = Precision()
    """Precision of the frozen body. A string such as `bf16` is short for `body`. The trained rows are always kept in
    float32 too."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third more time. `auto`: only if the training
    would not fit the memory of its GPU otherwise."""
    offload: Literal["optimizer"] | None = None
    """`optimizer`: keep the float32 masters and the optimizer states of the tables in the memory of the host, and
    update them on the device block by block. The result is exactly the same, and each step takes longer."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of the blocks."""
    evaluate: Evaluation | None = None
    """Held-out text to measure on. A sweep needs it."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Save a checkpoint after every this many steps."""
    output: str
    """The new folder for the trained embeddings, or for the adapter. A recipe uses it as its adapted model."""
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _entries_from_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for key in ("model", "teacher"):
            if isinstance(value.get(key), str):
                value[key] = {"path": value[key]}
        if isinstance(value.get("precision"), str):
            value["precision"] = {"body": value["precision"]}
        if "data" in value:
            data = value["data"]
            value["data"] = sources_from_text(data if isinstance(data, list) else [data])
        return value

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        """Accept a number of tokens such as 300M or 1.5B."""
        return count_of(value)

    @model_validator(mode="after")
    def _sweep_is_whole(self) -> "TrainConfig":
        several = isinstance(self.learning_rate, list)
        if several != (self.sweep is not None):
            raise ValueError("a sweep needs both: several rates in learning_rate, and sweep: 20%")
        if several and self.evaluate is None:
            raise ValueError("a sweep chooses by held-out bits per byte: give evaluate.data")
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> "TrainConfig":
        if self.train.tables == "none" and self.lora is None:
            raise ValueError("`train.tables: none` needs `lora`: otherwise nothing is trained")
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> "TrainConfig":
        if (self.objective == "distill") != (self.teacher is not None):
            raise ValueError("`objective: distill` and `teacher` need each other")
        if self.objective == "text" and any(source.is_chats or source.cut for source in self.data):
            raise ValueError("`kind: chat`, `prompt` and `cut` need another objective than text")
        if self.objective == "chat" and any(source.kind != "chat" for source in self.data):
            raise ValueError("`objective: chat` reads chats: set `kind: chat` for each source of `data`")
        if self.objective != "text" and self.packing != "documents":
            raise ValueError(
                f"`packing: {self.packing}` is for plain text: `objective: {self.objective}` needs documents"
            )
        return self

    @property
    def is_float32(self) -> bool:
        """Whether the tables and the computation are float32. Otherwise they are bfloat16."""
        return self.precision.body == "fp32"

    @property
    def rates(self) -> list[float]:
        return self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]

    def resolve(self, path: str) -> Path:
        """Resolve a path of the configuration relative to the folder of its file."""
        given = Path(path).expanduser()
        return given if given.is_absolute() else self.folder / given

    @property
    def target(self) -> Path:
        return self.resolve(self.output)

    def plain(self) -> dict[str, Any]:
        """Return every setting that decides what is learned, as plain values.

        `micro_batch`, `activation_checkpointing` and `offload` are left out: at most they change rounding.
        """
        how = {"output", "checkpoint_every", "micro_batch", "activation_checkpointing", "offload"}
        return {**self.model_dump(mode="json", exclude=how), "precision": self.precision.body}


def load_train_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Load a training configuration from a YAML file, with overrides such as `learning_rate=1e-4`.

    Paths are relative to the file that contains them. Paths in overrides are relative to the current folder.

    Raises:
        RecipeError: the configuration is not valid. The message names the key, its line and the nearest valid key.
    """
    if other_command(Path(path), key="models", instead_of="data"):
        raise RecipeError(f"{path} is a recipe, not a training configuration: use `lepmerge run {path}`")
    return _SCHEMA.load(Path(path), overrides)


def _names_a_path(key: str, text: str, folder: Path, values: Mapping[str, Any]) -> bool:
    if key == "output":
        return True
    if re.fullmatch(r"(evaluate\.)?data(\.[^.]+)?(\.path)?", key):
        return is_path(text, folder)  # a glob, because Hub ids never contain such characters
    return key in ("model", "model.path", "teacher", "teacher.path", "tokenizer") and is_path(text, folder)


_SCHEMA = Schema(
    TrainConfig,
    what="training configuration",
    parts={
        "model": ModelEntry,
        "teacher": ModelEntry,
        "distill": Distill,
        "data": TrainingSource,
        "train": Trained,
        "lora": Lora,
        "precision": Precision,
        "evaluate": Evaluation,
    },
    choices={"InitPerTable": InitPerTable},
    names_a_path=_names_a_path,
    short_form={"data": lambda text, folder: {"path": text}},
)
