"""The recipe: its schema, YAML in and YAML out, and overrides from the command line."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from lepmerge.config.entries import Init, InitPerTable, ModelEntry, TrainedEntry
from lepmerge.config.schema import Schema, Strict, Where, num_bytes
from lepmerge.config.variables import escaped
from lepmerge.config.yaml_tree import NAME, dotted, hint
from lepmerge.errors import RecipeError
from lepmerge.paths import is_path

Method = Literal["swap", "overlap", "conversion", "delta"]
ModelName = Annotated[str, "model"]
TokenizerReference = Annotated[str, "tokenizer"]


class PerTable(Strict):
    """A method for each table."""

    input: Method
    """Of the input embeddings."""
    output: Method
    """Of the output embeddings."""


class SwapVocabulary(Strict):
    """Replace the vocabulary; rows of tokens that are new are made from the old rows."""

    op: Literal["swap_vocabulary"]
    tokenizer: TokenizerReference
    """A model's name above, or a folder or Hub id with a tokenizer."""
    init: Init | InitPerTable = "mean"
    """How a new row is made of the rows of its old tokens: their mean, the mean weighted by the tokens' lengths, or the
    mean with the norm that rows of its script have."""


class PropagateEmbeddings(Strict):
    """Carry the embeddings that `adapted` learned on `base` over to the current model."""

    op: Literal["propagate_embeddings"]
    base: ModelName
    """The model that the current one was tuned from; it has the same vocabulary."""
    adapted: ModelName
    """The base with the new vocabulary and trained embeddings."""
    method: Method | PerTable
    """What becomes of the trained embeddings; see [the method](method.md)."""
    keep_shared_rows: bool = False
    """Keep the current row of every token whose bytes are in both vocabularies."""


class Arithmetic(Strict):
    """Compute tensors from an expression over the models."""

    op: Literal["arithmetic"]
    tensors: str | list[str]
    """Globs over tensor names, or `embeddings`, `input_embeddings`, `output_embeddings`, `body`."""
    expression: str
    """Of the names of models, `current`, numbers, `+ - * /`, parentheses and the functions below."""


Step = Annotated[SwapVocabulary | PropagateEmbeddings | Arithmetic, Field(discriminator="op")]

STEPS: dict[str, type[BaseModel]] = {
    get_args(step.model_fields["op"].annotation)[0]: step for step in get_args(get_args(Step)[0])
}
"""Operation → its entry in a recipe."""


class Output(Strict):
    """Where and in which form the result is written."""

    path: str
    """The new folder; what is in it already is kept, unless `--overwrite` is given."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """The type of all floating-point tensors; default: each tensor's own."""
    shard_size: Annotated[int, BeforeValidator(num_bytes), Field(gt=0)] | None = None
    """Largest file, such as 5GB; default: the files of the start model."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    """Rows of the tables; default: as many as the step that made them gives."""


class Recipe(Strict):
    """How a checkpoint is transformed."""

    models: dict[str, ModelEntry | TrainedEntry]
    """Name → model. A text is short for `path`. Names are words; `current` is taken."""
    start: str = "instruct"
    """Name of the model that the steps transform."""
    steps: list[Step] = []
    """What is done to it, in order; without steps it is copied."""
    output: Output
    """Where and in which form the result is written."""
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _entries_from_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("models"), dict):
            models = {
                name: {"path": model} if isinstance(model, str) else model for name, model in value["models"].items()
            }
            value = {**value, "models": models}
        return value

    def resolve(self, path: str) -> Path:
        """Return a path of the recipe, relative to the recipe's file."""
        given = Path(path).expanduser()
        return given if given.is_absolute() else self.folder / given

    def to_yaml(self) -> str:
        """Return the recipe as YAML, defaults left out."""
        plain = self.model_dump(exclude_defaults=True, exclude_none=True)
        plain["models"] = {
            name: model["path"] if model.keys() == {"path"} else model for name, model in plain["models"].items()
        }
        plain["start"] = self.start
        plain["steps"] = [step.model_dump(exclude_none=True) for step in self.steps]
        ordered = {key: _escaped(plain[key]) for key in Recipe.model_fields if key in plain}
        return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100)

    def trainings(self) -> dict[str, Path]:
        """Return name → training configuration of the models that are trained."""
        return {name: self.resolve(e.train) for name, e in self.models.items() if isinstance(e, TrainedEntry)}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with overrides such as `models.base=some/folder` or `steps.0.method=delta`.

    A path is relative to the file in which it begins, one in an override to the current folder.

    Raises:
        RecipeError: naming key, line and the nearest valid key.
    """
    recipe, where = _SCHEMA.load(Path(path), overrides)
    _check_names(recipe, where)
    return recipe


def _names_a_path(key: str, text: str, folder: Path, values: Mapping[str, Any]) -> bool:
    if re.fullmatch(r"output\.path|models\.[^.]+\.train", key):
        return True
    if re.fullmatch(r"steps\.\d+\.tokenizer", key):
        return text not in values.get("models", ()) and is_path(text, folder)
    return bool(re.fullmatch(r"models\.[^.]+(\.path)?", key)) and is_path(text, folder)


_CHOICES: dict[str, type[BaseModel]] = {
    schema.__name__: schema for schema in (PerTable, InitPerTable, ModelEntry, TrainedEntry)
}
_SCHEMA = Schema(
    Recipe,
    what="recipe",
    parts={"models": ModelEntry, "output": Output},
    choices={**_CHOICES, **STEPS},
    names_a_path=_names_a_path,
    short_form={"models": "path"},
)


def _escaped(value: Any) -> Any:
    """Return plain values whose texts are read as they are, `${` too."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, str) else value


def _check_names(recipe: Recipe, where: Where) -> None:
    if "current" in recipe.models:
        at = where(("models", "current"))
        raise RecipeError(f"{at}: a model cannot be called `current`: it means the model before a step")
    for name in recipe.models:
        if not re.fullmatch(NAME, name):
            raise RecipeError(f"{where(('models', name))}: {name!r} is no name: use letters, digits and _")
    places: list[tuple[tuple[int | str, ...], str]] = [(("start",), recipe.start)]
    for number, step in enumerate(recipe.steps):
        for field, info in type(step).model_fields.items():
            if "model" in info.metadata:
                places.append((("steps", number, field), getattr(step, field)))
    for place, name in places:
        if name not in recipe.models:
            near = hint(get_close_matches(name, recipe.models, 1), recipe.models)
            raise RecipeError(f"{where(place)}: {dotted(place)}: there is no model {name!r}; {near}")
