"""Resolve a model reference, `folder` or `hub/id[@revision]`, to a local folder."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lepmerge.errors import ReferenceNotFound
from lepmerge.paths import HUB_ID, did_you_mean, split_adapters

WEIGHTS = "*.safetensors"
CARD = "README.md"
_LOG = logging.getLogger(__name__)
DOWNLOADED = [WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
NOT_DOWNLOADED = [
    "*/*",
    "consolidated*",
    "params.json",
    "model.*.safetensors",
    "model.*-of-*.safetensors",
    "*.index.*.json",
]
"""Folders, other formats, and variants such as model.fp16.safetensors. lepmerge reads nothing from them."""
TEMPLATES = ["additional_chat_templates/*.jinja"]


@dataclass(frozen=True)
class Reference:
    """The location of a model: its local folder and, if it came from the Hub, its Hub id and commit."""

    text: str
    folder: Path
    hub_id: str | None = None
    file: Path | None = None
    """The model's GGUF file in `folder`, if it is one."""
    commit: str | None = None
    adapters: tuple[tuple["Reference", float], ...] = ()
    """PEFT adapters to merge into the model, each with its scale."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The model's folder or GGUF file, and the folders of its adapters."""
        return (self.file or self.folder, *(adapter.folder for adapter, _ in self.adapters))


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    relative_to: Path | None = None,
    gguf: bool = False,
    weights: bool = True,
) -> Reference:
    """Return the local folder of `reference`.

    A relative path is resolved against `relative_to` (default: the current folder). An existing folder is used without
    network access. Otherwise a reference of the form `owner/name[@revision]` is downloaded with huggingface_hub
    (safetensors, tokenizer and JSON files only).

    gguf: accept a GGUF file, where only vocabulary and embeddings are needed. weights: if False, the model
    card is downloaded instead of the weights (which are used if they are in the cache).

    Raises:
        ReferenceNotFound: it is neither a folder nor a model on the Hub, or the Hub cannot be reached.
    """
    found = _resolved(reference, revision, relative_to, gguf, weights)
    _LOG.info("%s: %s%s", reference, found.file or found.folder, f", commit {found.commit}" if found.commit else "")
    return found


def _resolved(reference: str, revision: str | None, relative_to: Path | None, gguf: bool, weights: bool) -> Reference:
    path = Path(reference).expanduser()
    folder = path if path.is_absolute() else (relative_to or Path.cwd()) / path
    if folder.is_dir():
        if revision is not None:
            raise ReferenceNotFound(
                f"{reference} is a local folder, so `revision: {revision}` means nothing: remove it"
            )
        return Reference(reference, folder)
    if folder.exists() and folder.suffix == ".gguf":
        if gguf:
            return Reference(reference, folder.parent, file=folder)
        raise ReferenceNotFound(
            f"{folder} is a GGUF file, and a model folder is needed here: write one with "
            f"`lepmerge convert {reference} FOLDER` and name it"
        )
    if folder.exists():
        raise ReferenceNotFound(f"{folder} is a file; a model is a folder with config.json, tokenizer and safetensors")
    match = HUB_ID.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise ReferenceNotFound(f"no such folder: {folder}{did_you_mean(folder)}")
    return _download(reference, match["id"], revision or match["revision"], folder, weights)


def resolve_adapted(
    reference: str,
    adapters: Sequence[tuple[str, float]],
    *,
    revision: str | None = None,
    relative_to: Path | None = None,
    gguf: bool = True,
) -> Reference:
    """Resolve a model and its PEFT adapters. adapters: (folder or Hub id, scale)."""
    found = tuple((resolve(adapter, relative_to=relative_to), scale) for adapter, scale in adapters)
    model = resolve(reference, revision=revision, relative_to=relative_to, gguf=gguf)
    return replace(model, adapters=found)


def resolve_text(reference: str, *, revision: str | None = None, gguf: bool = True) -> Reference:
    """Resolve the text `model` or `model+adapter`, relative to the current folder."""
    path, adapters = split_adapters(reference, Path.cwd())
    return resolve_adapted(path, [(adapter, 1.0) for adapter in adapters], revision=revision, gguf=gguf)


def _download(reference: str, hub_id: str, revision: str | None, folder: Path, weights: bool) -> Reference:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = DOWNLOADED if weights else [CARD, *(pattern for pattern in DOWNLOADED if pattern != WEIGHTS)]
    try:
        snapshot = snapshot_download(hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_DOWNLOADED)
        snapshot = Path(snapshot_download(hub_id, revision=Path(snapshot).name, allow_patterns=TEMPLATES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ReferenceNotFound(
            f"{reference}: folder {folder} does not exist{did_you_mean(folder)}, and it cannot be downloaded from "
            f"the Hub ({reason}). Check the name, or download the model first and name its folder"
        ) from error
    commit = snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else None
    return Reference(reference, snapshot, hub_id=hub_id, commit=commit)
