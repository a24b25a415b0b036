"""The recipe: its schema, reading and writing YAML, and overrides from the command line."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from lepmerge.config.entries import AdaptedEntry, Step, TrainedEntry, other_command
from lepmerge.config.kinds import FilePath, TemplateReference, marked_texts, schemas_below
from lepmerge.config.schema import Schema, Strict, Where, num_bytes
from lepmerge.config.variables import escaped
from lepmerge.config.yaml_tree import NAME, dotted, hint
from lepmerge.errors import RecipeError
from lepmerge.operations.registry import operations
from lepmerge.paths import is_path, split_adapters

OPERATIONS = operations()
if TYPE_CHECKING:
    AnyStep = Step
else:  # the union of the registered entries; a type checker cannot read it from the registry
    AnyStep = Annotated[reduce(or_, (each.entry for each in OPERATIONS.values())), Field(discriminator="op")]


def _kind_of(entry: Any) -> str:
    is_trained = "train" in entry if isinstance(entry, dict) else isinstance(entry, TrainedEntry)
    return (TrainedEntry if is_trained else AdaptedEntry).__name__


Entry = Annotated[
    Annotated[AdaptedEntry, Tag("AdaptedEntry")] | Annotated[TrainedEntry, Tag("TrainedEntry")],
    Discriminator(_kind_of),
]


class Output(Strict):
    """The location and format of the result."""

    path: FilePath
    """Folder for the result. An existing output is replaced only with `--overwrite`."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of all floating-point tensors (default: each tensor keeps its type)."""
    shard_size: Annotated[int, BeforeValidator(num_bytes), Field(gt=0)] | None = None
    """Maximum file size, such as 5GB (default: the same files as the start model)."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    """Pad the tables with rows to a multiple of this number (default: the number of rows that the steps produce)."""
    chat_template: TemplateReference | None = None
    """Where the chat template comes from: a model name from `models`, or a `.jinja` file (default: the model whose
    tokenizer the result has)."""
    language: str | list[str] | None = None
    """Language of the model for its card, as an ISO 639-1 code, or a list of them (default: those that the models'
    cards name)."""
    body: FilePath | None = None
    """A GGUF file of the start model. The result is then a GGUF file, and `path` must end in `.gguf`. Everything except
    the vocabulary and the tables is copied from this file."""
    tables: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] | None = None
    """GGUF type of the tables (default: their type in `body`, or q8_0 if that type cannot be written, as K-quants)."""

    @model_validator(mode="after")
    def _one_kind_of_output(self) -> "Output":
        if self.body is None:
            if self.tables is not None:
                raise ValueError("tables belongs to a GGUF output: name a GGUF file as `body`")
            return self
        if not self.path.endswith(".gguf"):
            raise ValueError("with `body` the result is a GGUF file: let `path` end in .gguf")
        others = [key for key in ("dtype", "shard_size", "chat_template") if getattr(self, key) is not None]
        if others:
            raise ValueError(f"{others[0]} belongs to a safetensors output: remove it, or `body`")
        return self


class Recipe(Strict):
    """A recipe: how to transform a checkpoint."""

    models: dict[str, Entry]
    """Name → model. A text is short for `path` or `path+adapter`. Names consist of letters, digits and `_`; `current`
    is reserved."""
    start: str = "instruct"
    """Name of the model that the steps transform."""
    steps: list[AnyStep] = []
    """Operations on the start model, in this order. Without steps the model is copied."""
    output: Output
    """Location and format of the result."""
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
        """Resolve a path of the recipe against the folder of the recipe's file."""
        given = Path(path).expanduser()
        return given if given.is_absolute() else self.folder / given

    def to_yaml(self) -> str:
        """Return the recipe as YAML, without defaults."""
        plain = self.model_dump(exclude_defaults=True, exclude_none=True)
        plain["models"] = {
            name: model["path"] if model.keys() == {"path"} else model for name, model in plain["models"].items()
        }
        plain["start"] = self.start
        plain["steps"] = [step.model_dump(exclude_none=True, by_alias=True) for step in self.steps]
        ordered = {key: _escaped(plain[key]) for key in Recipe.model_fields if key in plain}
        return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100)

    def tokenizers(self) -> list[str]:
        """Return the tokenizers that steps specify by a path or Hub id."""
        texts = marked_texts(Recipe, self.model_dump())
        return [text for _, marker, text in texts if marker == "tokenizer" and text not in self.models]

    def trainings(self) -> dict[str, Path]:
        """Return model name → training configuration of the models with an entry `{train: …}`."""
        return {name: self.resolve(e.train) for name, e in self.models.items() if isinstance(e, TrainedEntry)}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, with overrides such as `models.base=some/folder` or `steps.0.method=delta`.

    Paths are relative to the file in which they are written; paths in overrides are relative to the current folder.

    Raises:
        RecipeError: the recipe is invalid; the error names the line, the key and the nearest valid key.
    """
    if other_command(Path(path), key="data", instead_of="models"):
        raise RecipeError(f"{path} is a training configuration, not a recipe: use `lepmerge train {path}`")
    return _SCHEMA.load(Path(path), overrides)


def _names_a_path(key: str, text: str, folder: Path, values: Mapping[str, Any]) -> bool:
    markers = {marker for place, marker, _ in marked_texts(Recipe, values) if dotted(place) == key}
    if markers & {"tokenizer", "template"} and text in values.get("models", ()):
        return False
    return bool(markers & {"path", "template"}) or (
        bool(markers & {"reference", "tokenizer"}) and is_path(text, folder)
    )


def _long_form(text: str, folder: Path) -> dict[str, Any]:
    """Expand a model's text, `model` or `model+adapter`, into the keys that it is short for."""
    path, adapters = split_adapters(text, folder)
    return {"path": path, "adapter": adapters} if adapters else {"path": path}


def _choices() -> dict[str, type[BaseModel]]:
    """Return pydantic's name → schema for every member of a union. pydantic inserts these names into error places."""
    found: dict[str, type[BaseModel]] = {schema.__name__: schema for schema in (AdaptedEntry, TrainedEntry)}
    for name, each in OPERATIONS.items():
        found |= {name: each.entry, **{schema.__name__: schema for schema in schemas_below(each.entry)}}
    return found


def _escaped(value: Any) -> Any:
    """Return plain values in which every text is escaped, so that `${` is read literally."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, str) else value


def _wrong_names(recipe: Recipe, where: Where) -> Iterator[str]:
    """Yield one line per model that has an invalid name. If there are none, yield one per use of an unknown model."""
    invalid = ["current"] if "current" in recipe.models else []
    invalid += [name for name in recipe.models if not re.fullmatch(NAME, name)]
    for name in invalid:
        why = "it means the model before a step" if name == "current" else "use letters, digits and _"
        yield f"{where(('models', name))}: {name!r} cannot be the name of a model: {why}"
    if invalid:
        return
    named: list[tuple[tuple[int | str, ...], str]] = [(("start",), recipe.start)]
    for place, marker, text in marked_texts(Recipe, recipe.model_dump()):
        if marker == "model" or (marker == "template" and not text.endswith(".jinja")):
            named.append((place, text))
    for place, name in named:
        if name not in recipe.models:
            near = hint(get_close_matches(name, recipe.models, 1), recipe.models)
            yield f"{where(place)}: {dotted(place)}: unknown model {name!r}; {near}"


_SCHEMA = Schema(
    Recipe,
    what="recipe",
    parts={"models": AdaptedEntry, "output": Output},
    choices=_choices(),
    names_a_path=_names_a_path,
    short_form={"models": _long_form},
    faults=_wrong_names,
)
