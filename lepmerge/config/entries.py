"""Entries that recipes and training configurations share."""

from typing import Any, ClassVar, Literal, get_args

from lepmerge.config.kinds import FilePath, Reference
from lepmerge.config.schema import Strict

InitName = Literal["mean", "weighted_mean", "norm_calibrated"]


class ModelEntry(Strict):
    """Where a model lies: a folder, or a Hub id with an optional revision."""

    SHORT_FORM: ClassVar[str] = "path"

    path: Reference
    """Folder, or Hub id such as `owner/model` or `owner/model@revision`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; default: the newest."""


class TrainedEntry(Strict):
    """A model that a training configuration makes: the embeddings that `lepmerge train` writes."""

    train: FilePath
    """The configuration's file; `lepmerge run --train` trains what is not trained yet."""


class PerTable(Strict):
    """A value for each of the two embedding tables; an operation receives table role → value."""

    input: Any
    """For the input embeddings."""
    output: Any
    """For the output embeddings."""

    def by_table(self) -> dict[str, Any]:
        return {"input_embeddings": self.input, "output_embeddings": self.output}


class InitPerTable(PerTable):
    """An init for each table."""

    input: InitName
    """For the input embeddings."""
    output: InitName
    """For the output embeddings."""


class Step(Strict):
    """The recipe entry of an operation. Its field `op` is a Literal of the operation's name."""

    @classmethod
    def operation(cls) -> str:
        """Return the operation's name."""
        (name,) = get_args(cls.model_fields["op"].annotation)
        return name
