"""The recipe: its schema, YAML in and YAML out, and overrides from the command line."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lepmerge.errors import RecipeError

Method = Literal["swap", "overlap", "conversion", "delta"]
Init = Literal["mean", "weighted_mean", "norm_calibrated"]
ModelName = Annotated[str, "model"]
TokenizerReference = Annotated[str, "tokenizer"]
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """Where a model lies: a folder, or a Hub id with an optional revision."""

    path: str
    revision: str | None = None


class PerTable(_Strict):
    """A method for each table."""

    input: Method
    output: Method


class InitPerTable(_Strict):
    """An init for each table."""

    input: Init
    output: Init


class SwapVocabulary(_Strict):
    """Replace the vocabulary; rows of tokens that are new are made from the old rows."""

    op: Literal["swap_vocabulary"]
    tokenizer: TokenizerReference
    """A model's name above, or a folder or Hub id with a tokenizer."""
    init: Init | InitPerTable = "mean"
    """How a new row is made of the rows of its old tokens."""


class PropagateEmbeddings(_Strict):
    """Carry the embeddings that `adapted` learned on `base` over to the current model."""

    op: Literal["propagate_embeddings"]
    base: ModelName
    adapted: ModelName
    method: Method | PerTable
    keep_shared_rows: bool = False
    """Keep the current row of every token whose bytes are in both vocabularies."""


class Arithmetic(_Strict):
    """Compute tensors from an expression over the models."""

    op: Literal["arithmetic"]
    tensors: str | list[str]
    """Globs over tensor names, or embeddings, input_embeddings, output_embeddings, body."""
    expression: str


Step = Annotated[SwapVocabulary | PropagateEmbeddings | Arithmetic, Field(discriminator="op")]

STEPS: dict[str, type[BaseModel]] = {
    get_args(step.model_fields["op"].annotation)[0]: step for step in get_args(get_args(Step)[0])
}
"""Operation → its entry in a recipe."""


def num_bytes(value: Any) -> int:
    """Return the number of bytes that a text such as 5GB or 500MiB means; ValueError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", str(value).strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError("should be a number of bytes such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])


class Output(_Strict):
    """Where and in which form the result is written."""

    path: str
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """The type of all floating-point tensors; default: each tensor's own."""
    shard_size: Annotated[int, BeforeValidator(num_bytes), Field(gt=0)] | None = None
    """Largest file, such as 5GB; default: the files of the start model."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
    """Rows of the tables; default: as many as the step that made them gives."""


class Recipe(_Strict):
    """How a checkpoint is transformed."""

    models: dict[str, ModelEntry]
    start: str = "instruct"
    """The model that the steps transform."""
    steps: list[Step] = []
    output: Output
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
        plain["models"] = {name: model if len(model) > 1 else model["path"] for name, model in plain["models"].items()}
        plain["start"] = self.start
        plain["steps"] = [step.model_dump(exclude_none=True) for step in self.steps]
        order = [key for key in Recipe.model_fields if key in plain]
        return yaml.safe_dump({key: plain[key] for key in order}, sort_keys=False, allow_unicode=True, width=100)

    def plan(self, **options: Any):
        """Return the plan of this recipe; see lepmerge.plan.make_plan."""
        from lepmerge.plan import make_plan

        return make_plan(self, **options)

    def run(self, **options: Any) -> Path:
        """Run the recipe and return the output folder; see lepmerge.execute.run_plan."""
        from lepmerge.execute import run_plan

        return run_plan(self.plan(), **options)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with overrides such as `models.base=some/folder` or `steps.0.method=delta`.

    Paths in the file are relative to it, paths in overrides to the current folder.

    Raises:
        RecipeError: naming key, line and the nearest valid key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.load(text, Loader=_NoDuplicates)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {' '.join(problem.split())}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path} should hold a mapping with the keys models, steps, output")
    for override in overrides:
        _override(value, override)
    try:
        recipe = Recipe.model_validate({**value, "folder": path.resolve().parent})
    except ValidationError as error:
        raise RecipeError(_explained(path, node, error)) from None
    _check_names(recipe, path, node)
    return recipe


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _override(value: dict[str, Any], override: str) -> None:
    """Set one value of the parsed YAML in place."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, such as models.base=some/folder")
    try:
        new = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not YAML: {getattr(error, 'problem', error)}") from error
    if isinstance(new, str) and _names_a_path(key, new):
        new = str(Path(new).expanduser().absolute())
    *parents, last = key.split(".")
    place: Any = value
    for parent in parents:
        if isinstance(place, list) and parent.isdigit() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            if isinstance(place.get(parent), str):
                place[parent] = {"path": place[parent]}
            place = place.setdefault(parent, {})
        else:
            raise RecipeError(f"--set {override}: there is no {parent!r} in the recipe")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = new
    elif isinstance(place, dict):
        place[last] = new
    else:
        raise RecipeError(f"--set {override}: there is no {last!r} in the recipe")


def _names_a_path(key: str, value: str) -> bool:
    if key == "output.path":
        return True
    return (
        bool(re.fullmatch(r"models\.[^.]+(\.path)?|steps\.\d+\.tokenizer", key)) and Path(value).expanduser().exists()
    )


def _check_names(recipe: Recipe, path: Path, node: yaml.Node | None) -> None:
    reserved = sorted({"current"} & recipe.models.keys())
    if reserved:
        raise RecipeError(f"{path}:{_line(node, ('models', 'current'))}: a model cannot be called `current`: it means "
                          f"the model before a step")  # fmt: skip
    for name in recipe.models:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise RecipeError(f"{path}:{_line(node, ('models', name))}: {name!r} is no name: use letters, digits and _")
    places: list[tuple[tuple[int | str, ...], str]] = [(("start",), recipe.start)]
    for number, step in enumerate(recipe.steps):
        for field, info in type(step).model_fields.items():
            if "model" in info.metadata:
                places.append((("steps", number, field), getattr(step, field)))
    for place, name in places:
        if name not in recipe.models:
            near = get_close_matches(name, recipe.models, 1)
            hint = _hint(near, recipe.models)
            raise RecipeError(f"{path}:{_line(node, place)}: {_dotted(place)}: there is no model {name!r}; {hint}")


def _explained(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    """Return one line for the first fault: file:line, key, what is wrong, the nearest valid key."""
    faults = error.errors(include_url=False)
    fault = min(faults, key=lambda fault: fault["type"] not in ("extra_forbidden", "union_tag_invalid"))
    tags = {*STEPS, "PerTable", "InitPerTable"}
    place = tuple(
        part for part in fault["loc"] if part not in tags and not str(part).startswith(("literal[", "function"))
    )
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"])
        near = get_close_matches(str(place[-1]), known, 1)
        message = f"unknown key; {_hint(near, known)}"
    elif fault["type"] == "missing":
        message = "this key is missing"
        return f"{path}:{_line(node, place[:-1])}: {_dotted(place)}: {message}"
    elif fault["type"] == "union_tag_invalid":
        given, known = (
            str(fault.get("ctx", {})["tag"]),
            re.findall(r"'(\w+)'", str(fault.get("ctx", {})["expected_tags"])),
        )
        near = get_close_matches(given, known, 1)
        message = f"there is no operation {given!r}; {_hint(near, known)}"
    elif fault["type"] == "union_tag_not_found":
        message = "a step needs the key `op`"
    return f"{path}:{_line(node, place)}: {_dotted(place)}: {message}"


def _hint(near: list[str], known: Iterable[str]) -> str:
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the schema's part in which the last element of a fault's place stands."""
    tables = {"PerTable": PerTable, "InitPerTable": InitPerTable}
    parts: dict[str, type[BaseModel]] = {"models": ModelEntry, "output": Output, **tables, **STEPS}
    schema: type[BaseModel] = Recipe
    for part in place[:-1]:
        schema = parts.get(str(part), schema)
    return [key for key in schema.model_fields if key != "folder"]


def _line(node: yaml.Node | None, place: Iterable[int | str]) -> int:
    """Return the line, counted from 1, of the deepest part of a place that stands in the file."""
    line = 1
    for part in place:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _dotted(place: Iterable[int | str]) -> str:
    return ".".join(map(str, place)) or "recipe"
