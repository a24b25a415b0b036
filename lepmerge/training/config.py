"""The training configuration: its schema with the paper's defaults (sections 2.1.3, 2.4.1), and YAML in."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lepmerge.config.entries import InitName, InitPerTable, ModelEntry, other_command
from lepmerge.config.schema import Schema, Strict, num_bytes
from lepmerge.errors import RecipeError
from lepmerge.paths import is_path

Size = Annotated[int, BeforeValidator(num_bytes), Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


def _share(value: Any) -> float:
    """Return the part that a text such as 20% or a number such as 0.2 means."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(value).strip())
    number = float(match[1]) / 100 if match else float(value) if isinstance(value, int | float) else 0.0
    if not 0 < number < 1:
        raise ValueError("should be a share such as 20%")
    return number


class Source(Strict):
    """Text: files, folders, a glob, or a data set on the Hub."""

    path: str
    """File, folder, glob, or data set on the Hub."""
    column: str = "text"
    """Field of .jsonl and .parquet rows."""
    split: str | None = None
    """Of folders and Hub data sets, only files of this name, such as train."""
    limit: Size | None = None
    """Read at most so much of it, such as 1GB."""


class TrainingSource(Source):
    """A source of training text or chats."""

    kind: Literal["text", "chat"] = "text"
    """`text`, or `chat`: .jsonl rows with `messages`; a chat that ends with the user's message is a prompt."""
    prompt: str | None = None
    """Make a prompt of each text: a user message such as `"Summarize: {text}"`."""
    cut: Size | None = None
    """Cut texts before spaces into parts of at most this many bytes, e.g. for `prompt`."""
    weight: float = Field(default=1.0, gt=0)
    """How often each of its blocks is seen in an epoch: 0.5 takes a half of them, 2 takes each twice."""

    @property
    def is_chats(self) -> bool:
        """Whether a chat template writes what is read of it."""
        return self.kind == "chat" or self.prompt is not None

    @model_validator(mode="after")
    def _prompt_has_a_place(self) -> "TrainingSource":
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt should hold {text}, where the text goes")
        if self.kind == "chat" and (self.prompt or self.cut):
            raise ValueError("`prompt` and `cut` are for texts, not for `kind: chat`")
        return self


class Distill(Strict):
    """The loss of `objective: distill`: cross entropy of the next token + `weight` · divergence from the teacher."""

    weight: float = Field(default=2.0, gt=0)
    """Weight of the divergence, per position, beside the cross entropy, per token."""
    answer_weight: float = Field(default=20.0, gt=0)
    """Weight of a position after which an answer of the assistant comes; other positions weigh 1."""


class Trained(Strict):
    """Which parts of the embeddings learn."""

    tables: Literal["input", "output", "both"] = "both"
    """The tables that learn; tied ones are one table."""
    rows: Literal["all", "new"] = "all"
    """`all` rows, or `new`: only the contiguous ids that `tokenizer extend` or `optimize` added."""


class Evaluation(Strict):
    """Held-out text that is never trained on: bits per byte are measured on it."""

    data: dict[str, Source]
    """Name → source; a text is short for `path`; the first one decides in a sweep."""
    every: int = Field(default=200, ge=1)
    """Steps from one measurement to the next."""

    @model_validator(mode="before")
    @classmethod
    def _sources_from_text(cls, value: Any) -> Any:
        return {**value, "data": _from_text(value["data"])} if isinstance(value, dict) and "data" in value else value


class TrainConfig(Strict):
    """What is trained, on what, and how; the defaults are the paper's."""

    objective: Literal["text", "distill", "chat"] = "text"
    """`text`: predict plain text. `distill`: learn from `teacher`, see [calibration](calibration.md). `chat`: predict
    what the assistant says in chats."""
    model: ModelEntry
    """The model that learns; a text is short for `path`."""
    teacher: ModelEntry | None = None
    """The model that `objective: distill` learns from, with a vocabulary and chat template of its own: the original
    instruct model."""
    tokenizer: str | None = None
    """Folder or Hub id with the new vocabulary; default: the model's own."""
    init: InitName | InitPerTable = "mean"
    """How the rows of new tokens begin; see swap_vocabulary."""
    data: list[TrainingSource] = Field(min_length=1)
    """What is read; one source needs no list, and a text is short for `path`."""
    distill: Distill = Distill()
    """How `objective: distill` learns."""
    train: Trained = Trained()
    """Which parts of the embeddings learn."""
    packing: Literal["documents", "concatenate"] = "documents"
    """`documents`: the documents of a block do not attend to one another; `concatenate`: they do."""
    block_size: int = Field(default=1024, ge=8)
    """Tokens in a block."""
    batch_size: int = Field(default=256, ge=1)
    """Blocks a step, over all processes."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Blocks that go through the model at once, per process; gradients are accumulated over them."""
    learning_rate: Rate | Annotated[list[Rate], Field(min_length=2)] = 2e-4
    """Highest rate, or several of them for a sweep."""
    sweep: Annotated[float, BeforeValidator(_share)] | None = None
    """Share of the steps that each learning rate of the list is trained for; the best one goes on."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's, as a share of the learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """A longer gradient is cut to this norm; null: never."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to zero after the warm-up."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the rate rises from zero."""
    epochs: float = Field(default=1.0, gt=0)
    """How often all text is seen."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Train for so many tokens, such as 300M, instead of `epochs`, going round as often as needed."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the frozen body and of what is computed; trained rows are float32 masters in any case."""
    activation_checkpointing: bool = False
    """Less memory for a third more time."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the blocks."""
    evaluate: Evaluation | None = None
    """Held-out text to measure on; a sweep needs it."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps from one checkpoint to the next."""
    output: str
    """The new folder, which a recipe takes as its adapted model."""
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
        if "data" in value:
            data = value["data"]
            value["data"] = _from_text(data if isinstance(data, list) else [data])
        return value

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        """A number of tokens, also as 300M or 1.5B."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB])", str(value).strip().upper())
        return int(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else value

    @model_validator(mode="after")
    def _sweep_is_whole(self) -> "TrainConfig":
        several = isinstance(self.learning_rate, list)
        if several != (self.sweep is not None):
            raise ValueError("a sweep needs both: several rates in learning_rate, and sweep: 20%")
        if several and self.evaluate is None:
            raise ValueError("a sweep chooses by held-out bits per byte: give evaluate.data")
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> "TrainConfig":
        if (self.objective == "distill") != (self.teacher is not None):
            raise ValueError("`objective: distill` and `teacher` need one another")
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
    def rates(self) -> list[float]:
        return self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]

    def resolve(self, path: str) -> Path:
        """Return a path of the configuration, relative to its file."""
        given = Path(path).expanduser()
        return given if given.is_absolute() else self.folder / given

    @property
    def target(self) -> Path:
        return self.resolve(self.output)

    def plain(self) -> dict[str, Any]:
        """Return everything that decides what is learned, as plain values.

        How many blocks go through the model at once, and whether activations are recomputed, change rounding at most.
        """
        how = {"output", "checkpoint_every", "micro_batch", "activation_checkpointing"}
        return self.model_dump(mode="json", exclude=how)


def _from_text(sources: Any) -> Any:
    """Return sources with the short form, a text, as a path."""
    if isinstance(sources, dict):
        return {name: {"path": source} if isinstance(source, str) else source for name, source in sources.items()}
    return [{"path": source} if isinstance(source, str) else source for source in sources]


def load_train_config(path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Return the training configuration in a YAML file, with overrides such as `learning_rate=1e-4`.

    A path is relative to the file in which it begins, one in an override to the current folder.

    Raises:
        RecipeError: naming key, line and the nearest valid key.
    """
    if other_command(Path(path), key="models", instead_of="data"):
        raise RecipeError(f"{path} is a recipe, not a training configuration: use `lepmerge run {path}`")
    return _SCHEMA.load(Path(path), overrides)[0]


def _names_a_path(key: str, text: str, folder: Path, values: Mapping[str, Any]) -> bool:
    if key == "output":
        return True
    if re.fullmatch(r"(evaluate\.)?data(\.[^.]+)?(\.path)?", key):
        return is_path(text, folder)  # no Hub id has the signs of a glob
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
        "evaluate": Evaluation,
    },
    choices={"InitPerTable": InitPerTable},
    names_a_path=_names_a_path,
    short_form={"data": lambda text, folder: {"path": text}},
)
