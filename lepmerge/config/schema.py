"""Strict YAML: read a file into a frozen pydantic model. Each error is one line: file, line, key, nearest valid key."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lepmerge.config.variables import filled, unused
from lepmerge.config.yaml_tree import (
    EXTENDS,
    SET,
    VARIABLES,
    Place,
    ShortForm,
    Tree,
    dotted,
    entries,
    find,
    folder_of,
    hint,
    plain_values,
    where,
    with_texts,
)
from lepmerge.errors import RecipeError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MOST_FAULTS = 20
"""At most this many errors of a file are shown."""
KINDS = {
    "recipe": ({"models"}, "lepmerge run"),
    "training configuration": ({"model", "data"}, "lepmerge train"),
    "project": ({"commands"}, "lepmerge chain"),
}
"""Kind of file → (keys by which it is recognized, command that reads it)."""
Where = Callable[[Place], str]
"""Place → file:line."""


class Strict(BaseModel):
    """Base class of schemas. Unknown keys are errors, and values cannot be changed.

    The string below a field is its description, which docs/ also shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Root = TypeVar("Root", bound=BaseModel)


def num_bytes(value: Any) -> int:
    """Parse a size such as 5GB or 500MiB and return its number of bytes. Raise ValueError for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", str(value).strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError("should be a number of bytes such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def count_of(value: Any) -> Any:
    """Parse a count such as 300M or 1.5B. Any other value is returned as it is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB])", str(value).strip().upper())
    return int(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else value


@dataclass(frozen=True)
class Schema(Generic[Root]):
    """Describes how to read a YAML file into `root`, whose field `folder` receives the folder of the file.

    what: name of this kind of file. parts: key → schema of the mappings below it. choices: pydantic's name of a member
    of a union → its schema. names_a_path(key, text, folder, values): returns whether the text of a key, relative to a
    folder, is a path rather than a name or Hub id. short_form: key → function that expands a text below this key.
    faults: returns a line per fault that only the whole file shows, given the contents and a function place → line.
    """

    root: type[Root]
    what: str
    parts: Mapping[str, type[BaseModel]]
    choices: Mapping[str, type[BaseModel]]
    names_a_path: Callable[[str, str, Path, Mapping[str, Any]], bool]
    short_form: Mapping[str, ShortForm] = field(default_factory=dict)
    faults: Callable[[Any, Where], Iterable[str]] = lambda loaded, where: ()

    def load(self, path: Path, overrides: Iterable[str] = ()) -> Root:
        """Return the validated contents of a file with overrides.

        Raises:
            RecipeError: one line per error, with file, line, key and the nearest valid key.
        """
        tree = Tree.of_file(path, short_form=self.short_form)
        _check_kind(tree.root, self.what, path)
        for override in overrides:
            tree = tree.with_value(override, what=self.what)
        folder = path.resolve().parent
        root = self._with_paths(tree.without_short_forms(filled(tree)), folder)
        try:
            loaded = self.root.model_validate({**plain_values(root), "folder": folder})
        except ValidationError as error:
            raise _joined(self._explained(root, error)) from None
        if faults := [*self.faults(loaded, lambda place: find(root, place)[0]), *unused(tree)]:
            raise _joined(faults)
        return loaded

    def _with_paths(self, root: yaml.Node, folder: Path) -> yaml.Node:
        """Return the tree in which relative paths from files in other folders are rewritten relative to `folder`."""
        values = plain_values(root)

        def seen_from_folder(node: yaml.ScalarNode, place: Place) -> yaml.Node:
            if "$" in node.value and self.names_a_path(dotted(place), node.value, folder, values):
                text = _with_environment(node, place)
                node = yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark)
            origin, given = folder_of(node.start_mark), os.path.expanduser(node.value)
            is_set = node.start_mark.name.startswith(SET)
            key = dotted(place)
            if (origin == folder and not is_set) or not self.names_a_path(key, given, origin, values):
                if is_set and origin != folder and self.names_a_path(key, given, folder, values):
                    raise RecipeError(
                        f"{where(node.start_mark)}: there is no {given} in the current folder, from which paths of "
                        f"--set are taken; did you mean {os.path.relpath(folder / given)}?"
                    )
                return node
            absolute = is_set or os.path.isabs(given)
            text = str(origin / given) if absolute else os.path.relpath(origin / given, folder)
            return yaml.ScalarNode(node.tag, text, node.start_mark, node.end_mark)

        return with_texts(root, seen_from_folder)

    def _explained(self, root: yaml.Node, error: ValidationError) -> list[str]:
        """Return one line per error."""
        chosen = list(self._chosen(error.errors(include_url=False)))
        unknown = {self._place(fault)[:-1] for fault in chosen if fault["type"] == "extra_forbidden"}
        # if a mapping has both an unknown and a missing key, the missing one was most likely mistyped
        kept = [fault for fault in chosen if fault["type"] != "missing" or self._place(fault)[:-1] not in unknown]
        return sorted({self._line(root, fault) for fault in kept})

    def _place(self, fault: Any) -> tuple[int | str, ...]:
        return tuple(part for part in fault["loc"] if not self._is_member(part))

    def _is_member(self, part: int | str) -> bool:
        return part in self.choices or _TYPE.match(str(part)) is not None

    def _chosen(self, faults: list[Any], start: int = 0) -> Iterator[Any]:
        """Yield the errors. Of a union, yield only those of the member that matched the value best."""
        unions: dict[tuple[int | str, ...], list[Any]] = {}
        for fault in faults:
            below = fault["loc"][start:]
            length = next((number for number, part in enumerate(below) if self._is_member(part)), None)
            if length is None:
                yield fault
            else:
                unions.setdefault(below[:length], []).append(fault)
        for below, members in unions.items():
            place = start + len(below)
            best = min(members, key=self._rank)["loc"][place]
            yield from self._chosen([fault for fault in members if fault["loc"][place] == best], place + 1)

    def _rank(self, fault: Any) -> tuple[bool, int]:
        return fault["type"] not in ("extra_forbidden", "union_tag_invalid"), -len(self._place(fault))

    def _line(self, root: yaml.Node, fault: Any) -> str:
        """Return one line with file:line, key, problem and nearest valid key."""
        place = self._place(fault)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = self._known_keys(fault["loc"])
            near = get_close_matches(str(place[-1]), known, 1)
            message = f"unknown key; {hint(near, known)}"
        elif fault["type"] == "missing":
            return f"{find(root, place[:-1])[0]}: {self._dotted(place)}: this key is missing"
        elif fault["type"] == "union_tag_invalid":
            context = fault.get("ctx", {})
            given, known = str(context["tag"]), re.findall(r"'(\w+)'", str(context["expected_tags"]))
            message = f"there is no operation {given!r}; {hint(get_close_matches(given, known, 1), known)}"
        elif fault["type"] == "union_tag_not_found":
            message = "a step needs the key `op`"
        elif fault["type"] == "model_type":
            message = "expected keys with values"
        elif fault["type"] == "literal_error":
            known = re.findall(r"'([^']+)'", str(fault.get("ctx", {}).get("expected")))
            near = get_close_matches(str(fault["input"]), known, 1)
            message += f"; {hint(near, known)}" if near else ""
        found, node = find(root, place)
        if isinstance(node, yaml.ScalarNode) and where(node.start_mark) != found:
            message += f" (given at {where(node.start_mark)})"
        return f"{found}: {self._dotted(place)}: {message}"

    def _dotted(self, place: Place) -> str:
        return dotted(place) or self.what

    def _known_keys(self, place: tuple[int | str, ...]) -> list[str]:
        """Return the valid keys of the mapping that contains the last key of an error's place."""
        schema: type[BaseModel] = self.root
        for part in map(str, place[:-1]):
            field = schema.model_fields.get(part)
            below = list(_schemas_in(field.annotation)) if field is not None else []
            if part in self.choices:
                schema = self.choices[part]
            elif schema is self.root and part in self.parts:
                schema = self.parts[part]
            elif len(below) == 1:
                schema = below[0]
        keys = [field.alias or key for key, field in schema.model_fields.items() if key != "folder"]
        return [*keys, EXTENDS, VARIABLES] if schema is self.root else keys


def _schemas_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the schemas that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _schemas_in(argument)


def _joined(faults: list[str]) -> RecipeError:
    return RecipeError("\n".join(sorted(faults, key=_file_and_line)[:MOST_FAULTS]))


def _file_and_line(fault: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in fault.split(":")[:2]]


def _check_kind(root: yaml.MappingNode, what: str, path: Path) -> None:
    """Raise RecipeError if the file is of another kind, which another command reads."""
    keys = entries(root).keys()
    for other, (signs, command) in KINDS.items():
        if other != what and signs <= keys and not keys & KINDS[what][0]:
            raise RecipeError(f"{path}: this is a {other}, not a {what}: use `{command} {path}`")


def _with_environment(node: yaml.ScalarNode, place: Place) -> str:
    """Return a path with environment variables `$NAME` replaced. (`${name}` is a variable of the file.)"""

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise RecipeError(
                f"{where(node.start_mark)}: {dotted(place)}: there is no environment variable {name}: set it, or write "
                f"the path without ${name}"
            )
        return os.environ[name]

    return re.sub(r"\$([A-Za-z_]\w*)", value_of, node.value)


_TYPE = re.compile(r"(literal|list|function[\w-]*|constrained-\w+)\[|constrained-\w+$|(str|int|float|bool)$")
"""Names that pydantic inserts into an error's place for the members of a union."""
