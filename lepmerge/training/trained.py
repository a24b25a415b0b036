"""The models of a recipe that `lepmerge train` produces, and those that are known by their config only."""

from dataclasses import replace

from lepmerge.config.entries import TrainedEntry
from lepmerge.merge.recipe import Recipe
from lepmerge.models.model import Model
from lepmerge.models.references import Reference
from lepmerge.training.config import TrainConfig, load_train_config
from lepmerge.training.outline import has_no_weights, open_outline
from lepmerge.training.output import is_finished
from lepmerge.training.setting import model_reference, prepare


def trained_models(recipe: Recipe) -> dict[str, Reference]:
    """Return model name → output, for every finished training of a recipe. An adapter comes with its base model."""
    return {name: _output(config) for name, config in _configs(recipe).items() if is_finished(config)}


def unfinished_trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return model name → configuration, for every training of a recipe that is not finished."""
    return {name: config for name, config in _configs(recipe).items() if not is_finished(config)}


def untrained_models(recipe: Recipe, *, weights: bool = True) -> dict[str, Model]:
    """Return model name → the model before its training, for every training of a recipe that is not finished.

    weights: if False, the models that are trained may lack their weights.
    """
    return {name: prepare(config, weights=weights).start for name, config in unfinished_trainings(recipe).items()}


def outlined_models(recipe: Recipe) -> dict[str, Model]:
    """Return model name → model without values, for every folder of a recipe that has a config.json but no weights."""
    entries = {name: entry for name, entry in recipe.models.items() if not isinstance(entry, TrainedEntry)}
    folders = {name: recipe.resolve(entry.path) for name, entry in entries.items() if not entry.adapters}
    return {
        name: open_outline(Reference(entries[name].path, folder), name=name)
        for name, folder in folders.items()
        if has_no_weights(folder)
    }


def _output(config: TrainConfig) -> Reference:
    folder = Reference(config.output, config.target)
    return folder if config.lora is None else replace(model_reference(config), adapters=((folder, 1.0),))


def _configs(recipe: Recipe) -> dict[str, TrainConfig]:
    return {name: load_train_config(path) for name, path in recipe.trainings().items()}
