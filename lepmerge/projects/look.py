"""Look at a model without its weights: config and tokenizer say its sizes, its chat template, and often its base."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError, OptionError, ReferenceNotFound
from lepmerge.models.configs import context_in, read_json, vocab_size
from lepmerge.models.references import Reference, resolve
from lepmerge.output.provenance import front_matter
from lepmerge.training.body import check_architecture
from lepmerge.training.memory import Sizes
from lepmerge.training.templates import chat_template_in
from lepmerge.vocabulary.vocabulary import Vocabulary

RENAMED = ((r"(?i)([-_.]?)(instruct|chat|it)\b", ""), (r"(?i)instruct", "base"), (r"(?i)-(instruct|it|chat)\b", "-pt"),
           (r"$", "-Base"), (r"(?i)-(instruct|chat)\b", "-Base"))  # fmt: skip
"""How makers name the base of an instruct model: X-Instruct → X, instruct → base, X-it → X-pt, X → X-Base."""


@dataclass(frozen=True)
class Look:
    """What is known of a model from its config and tokenizer."""

    reference: Reference
    sizes: Sizes
    """Of a multimodal model, those of the text model."""
    tied: bool
    rows: int

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.reference.folder / "config.json", required=True)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.in_folder(self.reference.folder, num_rows=self.rows)

    @property
    def num_tables(self) -> int:
        return 1 if self.tied else 2

    @property
    def parameters(self) -> int:
        return self.sizes.body + self.num_tables * self.rows * self.sizes.width

    @property
    def context(self) -> int:
        return context_in(self.config)

    @property
    def has_chat_template(self) -> bool:
        return chat_template_in(self.reference.folder) is not None

    @property
    def name(self) -> str:
        """The last part of the Hub id or of the folder."""
        hub_id = self.reference.hub_id
        return hub_id.split("/")[-1] if hub_id else Path(os.path.abspath(self.reference.folder)).name


def look_at(model: str) -> Look:
    """Look at the model in a local folder or on the Hub. Of a model on the Hub, no weights are downloaded.

    Raises:
        ReferenceNotFound: there is no such model.
        CheckpointError, VocabularyError: lepmerge cannot train it, or cannot extend its vocabulary.
    """
    reference = resolve(model, weights=False)
    folder = reference.folder
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{model} is a PEFT adapter: name a whole model, such as the one that it was trained on")
    config = read_json(folder / "config.json", required=True)
    if "quantization_config" in config:
        raise CheckpointError(f"{model} is quantized, and cannot be trained: name the original model")
    network = check_architecture(folder, isolated=True, num_rows=vocab_size(config) or 0)
    table, head = (each.weight for each in (network.get_input_embeddings(), network.get_output_embeddings()))
    look = Look(reference, Sizes.of(network, config), tied=head is table, rows=len(table))
    kind = look.vocabulary.spec["model"]["type"]
    if kind != "BPE":
        raise CheckpointError(
            f"{model} has a {kind} vocabulary, and only BPE vocabularies can be extended: build a new one with "
            f"`lepmerge tokenizer train --like {model}` and write the files by hand (docs/vocabularies.md)"
        )
    return look


def base_of(instruct: Look, given: str | None) -> Look | None:
    """Return the base of an instruct model: as given, as its model card says, or by its name. None if none is found.

    Raises:
        OptionError: the given base does not have the shapes of the instruct model.
    """
    if given is not None:
        base = look_at(given)
        if not _are_alike(base, instruct):
            raise OptionError(
                f"--base {given}: its layers have other shapes than those of {instruct.reference.text}: name the model "
                f"that it was fine-tuned from, or use --no-base"
            )
        return base
    for candidate in _candidates(instruct):
        try:
            base = look_at(candidate)
        except (ReferenceNotFound, CheckpointError):
            continue
        if _are_alike(base, instruct) and not _is_instruct(base):
            return base
    return None


def _candidates(instruct: Look) -> Iterator[str]:
    """Yield references that may be the base: local folders for a local model, Hub ids for one from the Hub."""
    reference = instruct.reference
    hub_id = reference.hub_id
    if hub_id is not None:
        listed = front_matter(reference.folder / "README.md").get("base_model")
        yield from [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    owner, name = hub_id.rsplit("/", 1) if hub_id and "/" in hub_id else (None, instruct.name)
    names = dict.fromkeys(re.sub(pattern, new, name, count=1) for pattern, new in RENAMED)
    for other in names:
        if other and other != name:
            if owner is not None:
                yield f"{owner}/{other}"
            elif (neighbour := reference.folder.resolve().parent / other).is_dir():
                yield str(neighbour) if Path(reference.text).expanduser().is_absolute() else os.path.relpath(neighbour)


def _are_alike(base: Look, instruct: Look) -> bool:
    return (base.sizes, base.tied) == (instruct.sizes, instruct.tied)


def _is_instruct(base: Look) -> bool:
    """Return whether a candidate is an instruct model too. Many base models carry a chat template, so names decide."""
    return re.search(r"(?i)[-_.](instruct|chat|it)\b", base.name) is not None
