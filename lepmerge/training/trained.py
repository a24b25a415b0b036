"""The models of a recipe that `lepmerge train` produces."""

from dataclasses import replace

from lepmerge.merge.recipe import Recipe
from lepmerge.models.model import Model
from lepmerge.models.references import Reference
from lepmerge.training.config import TrainConfig, load_train_config
from lepmerge.training.output import is_finished
from lepmerge.training.setting import model_reference, prepare


def trained_models(recipe: Recipe) -> dict[str, Reference]:
    """Return model name → output, for every finished training of a recipe. An adapter comes with its base model."""
    return {name: _output(config) for name, config in _configs(recipe).items() if is_finished(config)}


def unfinished_trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return model name → configuration, for every training of a recipe that is not finished."""
    return {name: config for name, config in _configs(recipe).items() if not is_finished(config)}


def untrained_models(recipe: Recipe) -> dict[str, Model]:
    """Return model name → the model before its training, for every training of a recipe that is not finished."""
    return {name: prepare(config).start for name, config in unfinished_trainings(recipe).items()}


def _output(config: TrainConfig) -> Reference:
    folder = Reference(config.output, config.target)
    return folder if config.lora is None else replace(model_reference(config), adapters=((folder, 1.0),))


def _configs(recipe: Recipe) -> dict[str, TrainConfig]:
    return {name: load_train_config(path) for name, path in recipe.trainings().items()}
