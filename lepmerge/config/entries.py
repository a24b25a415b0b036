"""Entries that both recipes and training configurations use."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import Field, model_validator

from lepmerge.config.kinds import FilePath, Reference
from lepmerge.config.schema import Strict

Finite = Annotated[float, Field(allow_inf_nan=False)]
InitName = Literal["mean", "weighted_mean", "norm_calibrated"]


class ModelEntry(Strict):
    """The location of a model: a folder, or a Hub id with an optional revision."""

    SHORT_FORM: ClassVar[str] = "path"

    path: Reference
    """Folder or Hub id, such as `owner/model` or `owner/model@revision`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub (default: the newest)."""


class AdaptedEntry(ModelEntry):
    """The location of a model, and PEFT adapters to merge into it. The text `model+adapter` is short for both."""

    adapter: Reference | list[Reference] = []
    """Folder or Hub id of a PEFT adapter (LoRA or DoRA), or a list of them."""
    scale: Finite | list[Finite] = 1.0
    """Factor of the adapter's low-rank update, or a list with one factor per adapter. Modules saved as a whole are not
    scaled."""

    @model_validator(mode="after")
    def _one_scale_per_adapter(self) -> "AdaptedEntry":
        if "scale" in self.model_fields_set and not self.adapter:
            raise ValueError("`scale` needs `adapter`")
        number = 1 if isinstance(self.adapter, str) else len(self.adapter)
        if isinstance(self.scale, list) and len(self.scale) != number:
            raise ValueError(f"{len(self.scale)} scales for {number} adapters")
        return self

    @property
    def adapters(self) -> list[tuple[str, float]]:
        """Each adapter with its scale."""
        adapters = [self.adapter] if isinstance(self.adapter, str) else self.adapter
        scales = self.scale if isinstance(self.scale, list) else [self.scale] * len(adapters)
        return list(zip(adapters, scales, strict=True))


class TrainedEntry(Strict):
    """A model that `lepmerge train` makes from a training configuration."""

    train: FilePath
    """File of the training configuration. `lepmerge run --train` trains the model first if it is not trained yet."""


def other_command(path: Path, *, key: str, instead_of: str) -> bool:
    """Return whether a YAML file is of the other kind of configuration: it has `key` but not `instead_of`."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    keys = [name.value for name, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    return key in keys and instead_of not in keys


class PerTable(Strict):
    """A value for each of the two embedding tables. An operation receives it as table role → value."""

    input: Any
    """Value for the input embeddings."""
    output: Any
    """Value for the output embeddings."""

    def by_table(self) -> dict[str, Any]:
        return {"input_embeddings": self.input, "output_embeddings": self.output}


class InitPerTable(PerTable):
    """A separate init for each table."""

    input: InitName
    """Init of the input embeddings."""
    output: InitName
    """Init of the output embeddings."""


class Step(Strict):
    """Base class of recipe entries of operations. The field `op` is a Literal with the operation's name."""

    @classmethod
    def operation(cls) -> str:
        """Return the operation's name."""
        (name,) = get_args(cls.model_fields["op"].annotation)
        return name
