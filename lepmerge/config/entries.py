"""Entries that recipes and training configurations share."""

from typing import Literal

from lepmerge.config.schema import Strict

Init = Literal["mean", "weighted_mean", "norm_calibrated"]


class ModelEntry(Strict):
    """Where a model lies: a folder, or a Hub id with an optional revision."""

    path: str
    """Folder, or Hub id such as `owner/model` or `owner/model@revision`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; default: the newest."""


class TrainedEntry(Strict):
    """A model that a training configuration makes: the embeddings that `lepmerge train` writes."""

    train: str
    """The configuration's file; `lepmerge run --train` trains what is not trained yet."""


class InitPerTable(Strict):
    """An init for each table."""

    input: Init
    """Of the input embeddings."""
    output: Init
    """Of the output embeddings."""
