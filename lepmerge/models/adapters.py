"""Open a model with PEFT adapters. Its tensors are W + scale · (alpha / r) · B A, computed row by row.

With scale 1 the result is equivalent to the base with the adapter in PEFT.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lepmerge.errors import CheckpointError
from lepmerge.models.adapter_config import AdapterConfig
from lepmerge.models.adapter_file import Change, changes_in
from lepmerge.models.adapter_placement import Placement, core
from lepmerge.models.adapter_tables import with_adapted_tables
from lepmerge.models.checkpoint import open_checkpoint
from lepmerge.models.model import Model
from lepmerge.models.references import Reference, resolve_text
from lepmerge.tensors import LazyTensor


def open_reference(reference: Reference, *, name: str | None = None) -> Model:
    """Return the model in a local folder with its adapters merged lazily."""
    model = base = open_checkpoint(reference, name=name)
    for adapter, scale in reference.adapters:
        model = with_adapter(model, adapter.folder, base=base, scale=scale)
    return model


def open_model(reference: str | Path, *, revision: str | None = None) -> Model:
    """Open a model as lazy tensors. Example: `open_model(folder).tensors["lm_head.weight"].rows(0, 10)`.

    reference: a folder or Hub id; `model+adapter` is the model with a PEFT adapter. revision: branch, tag or commit on
    the Hub.
    """
    return open_reference(resolve_text(str(reference), revision=revision))


def with_adapter(model: Model, folder: Path, *, base: Model, scale: float = 1.0) -> Model:
    """Return the model with the PEFT adapter in a folder, whose low-rank update is multiplied by `scale`.

    base: the model without any adapter; it determines DoRA's norms. Modules that the adapter saved as a whole replace
    those of the model, without scaling.

    Raises:
        CheckpointError: the adapter is broken, is not LoRA, or was trained on another base.
    """
    placement = Placement(model, base, AdapterConfig.in_folder(folder), scale)
    changes = changes_in(folder)
    if not changes:
        raise CheckpointError(f"adapter {folder}: it holds no tensors")
    effective = {module: _targeted(placement, module, change) for module, change in changes.items()}
    tensors: dict[str, LazyTensor] = {}
    of_tables: dict[str, tuple[str, Change]] = {}
    for module, change in effective.items():
        role = placement.role(module)
        if role is None:
            tensors.update(placement.body(module, change))
        else:
            of_tables[role] = (module, change)
    notes = tuple(f"{model.name}: adapter {folder.name}: {note}" for note in _notes(placement, changes))
    changed = replace(model, tensors={**model.tensors, **tensors}, notes=(*model.notes, *notes))
    return with_adapted_tables(placement, changed, of_tables)


def _targeted(placement: Placement, module: str, change: Change) -> Change:
    """Return the change without LoRA weights of modules that are not targets. PEFT does not load them either."""
    if change.pair == (None, None) or placement.config.targets(module):
        return change
    return replace(change, a=None, b=None, embedding_a=None, embedding_b=None, magnitude=None)


def _notes(placement: Placement, changes: Mapping[str, Change]) -> list[str]:
    """Return notes for the user on keys and modules that have no effect."""
    config, notes = placement.config, []
    if config.unknown_keys:
        notes.append(f"adapter_config.json has unknown keys, which are ignored: {', '.join(config.unknown_keys)}")
    ignored = [m for m, change in changes.items() if change.pair != (None, None) and not config.targets(m)]
    if ignored:
        notes.append(
            f"{len(ignored)} modules have LoRA weights but are not among target_modules, so these weights are left "
            f"out as in PEFT; the first is {ignored[0]}"
        )
    if isinstance(config.target_modules, list):
        changed = {core(module) for module in changes}
        matrices = (name for name, tensor in placement.base.tensors.items() if len(tensor.shape) == 2)
        modules = (name.removesuffix(".weight") for name in matrices)
        without = [module for module in modules if config.targets(module) and core(module) not in changed]
        if without:
            notes.append(
                f"{len(without)} target modules have no weights in the adapter and stay as in the base; the first is "
                f"{without[0]}"
            )
    return notes
