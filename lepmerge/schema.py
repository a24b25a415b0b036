"""Strict YAML: a file becomes a frozen pydantic model; a fault is one line: file, line, key, nearest valid key."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lepmerge.errors import RecipeError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Place = Iterable[int | str]
"""Keys and list positions that lead to a value, such as ("steps", 0, "method")."""


class Strict(BaseModel):
    """Unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Root = TypeVar("Root", bound=BaseModel)


def num_bytes(value: Any) -> int:
    """Return the number of bytes that a text such as 5GB or 500MiB means; ValueError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", str(value).strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError("should be a number of bytes such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Schema(Generic[Root]):
    """How a YAML file is read into `root`, which has a field `folder` for the file's folder.

    parts: key → schema of the mappings below it. choices: name that pydantic gives a member of a union → its schema.
    names_a_path(key, value) tells whether an override is a path. short_form: key → the field that a text there means.
    """

    root: type[Root]
    what: str
    parts: Mapping[str, type[BaseModel]]
    choices: Mapping[str, type[BaseModel]]
    names_a_path: Callable[[str, str], bool]
    short_form: Mapping[str, str] = field(default_factory=dict)

    def load(self, path: Path, overrides: Iterable[str] = ()) -> tuple[Root, yaml.Node | None]:
        """Return the validated contents of a file with its overrides, and the YAML node that knows the lines.

        Raises:
            RecipeError: naming key, line and the nearest valid key.
        """
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
            required = [key for key, info in self.root.model_fields.items() if info.is_required() or key == "steps"]
            raise RecipeError(f"{path} should hold a mapping with the keys {', '.join(required)}")
        for override in overrides:
            self._override(value, override)
        try:
            return self.root.model_validate({**value, "folder": path.resolve().parent}), node
        except ValidationError as error:
            raise RecipeError(self._explained(path, node, error)) from None

    def _override(self, value: dict[str, Any], override: str) -> None:
        """Set one value of the parsed YAML in place."""
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override}: expected KEY=VALUE, such as models.base=some/folder")
        try:
            new = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {override}: the value is not YAML: {getattr(error, 'problem', error)}") from error
        if isinstance(new, str) and self.names_a_path(key, new):
            new = str(Path(new).expanduser().absolute())
        *parents, last = key.split(".")
        place: Any = value
        for depth, parent in enumerate(parents):
            if isinstance(place, list) and parent.isdigit() and int(parent) < len(place):
                place = place[int(parent)]
            elif isinstance(place, dict):
                short = self.short_form.get(parents[depth - 1]) if depth else None
                if short and isinstance(place.get(parent), str):
                    place[parent] = {short: place[parent]}
                place = place.setdefault(parent, {})
            else:
                raise RecipeError(f"--set {override}: there is no {parent!r} in the {self.what}")
        if isinstance(place, list) and last.isdigit() and int(last) < len(place):
            place[int(last)] = new
        elif isinstance(place, dict):
            place[last] = new
        else:
            raise RecipeError(f"--set {override}: there is no {last!r} in the {self.what}")

    def _explained(self, path: Path, node: yaml.Node | None, error: ValidationError) -> str:
        """Return one line for the first fault: file:line, key, what is wrong, the nearest valid key."""
        faults = error.errors(include_url=False)
        fault = min(faults, key=lambda fault: fault["type"] not in ("extra_forbidden", "union_tag_invalid"))
        place = tuple(part for part in fault["loc"] if part not in self.choices and not _TYPE.match(str(part)))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = self._known_keys(fault["loc"])
            near = get_close_matches(str(place[-1]), known, 1)
            message = f"unknown key; {hint(near, known)}"
        elif fault["type"] == "missing":
            return f"{path}:{line_of(node, place[:-1])}: {self._dotted(place)}: this key is missing"
        elif fault["type"] == "union_tag_invalid":
            context = fault.get("ctx", {})
            given, known = str(context["tag"]), re.findall(r"'(\w+)'", str(context["expected_tags"]))
            message = f"there is no operation {given!r}; {hint(get_close_matches(given, known, 1), known)}"
        elif fault["type"] == "union_tag_not_found":
            message = "a step needs the key `op`"
        return f"{path}:{line_of(node, place)}: {self._dotted(place)}: {message}"

    def _dotted(self, place: Place) -> str:
        return dotted(place) or self.what

    def _known_keys(self, place: tuple[int | str, ...]) -> list[str]:
        """Return the keys of the schema's part in which the last element of a fault's place stands."""
        schema: type[BaseModel] = self.root
        for part in place[:-1]:
            schema = {**self.parts, **self.choices}.get(str(part), schema)
        return [key for key in schema.model_fields if key != "folder"]


_TYPE = re.compile(r"(literal|list|function[\w-]*|constrained-\w+)\[|(str|int|float|bool)$")
"""What pydantic puts into a fault's place for the members of a union."""


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


def hint(near: list[str], known: Iterable[str]) -> str:
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"


def line_of(node: yaml.Node | None, place: Place) -> int:
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


def dotted(place: Place) -> str:
    return ".".join(map(str, place))
