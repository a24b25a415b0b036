"""Variables of a YAML tree: `${name}` in a text is replaced by the value of `name` under `variables`."""

import re
from collections.abc import Mapping
from difflib import get_close_matches

import yaml

from lepmerge.config.yaml_tree import (
    NAME,
    USE,
    VARIABLES,
    Place,
    Tree,
    dotted,
    entries,
    hint,
    mapping,
    where,
    with_texts,
)
from lepmerge.errors import RecipeError


def filled(tree: Tree) -> yaml.MappingNode:
    """Return the root with variables replaced by their values, and without the key `variables`.

    If a text consists only of `${name}`, the value replaces it with its type, which may be a number or a list.

    Raises:
        RecipeError: a variable is unknown or refers to itself, or a list is used within a longer text.
    """
    filling = _Filling({name: value for name, (_, value) in _variables_of(tree).items()})
    pairs = [(key, value) for key, value in tree.root.value if key.value != VARIABLES]
    return with_texts(mapping(pairs, tree.root), filling.text)


def unused(tree: Tree) -> list[str]:
    """Return one line per variable that no value in any file uses. Most likely its name is mistyped."""
    found = []
    for name, (key, _) in _variables_of(tree).items():
        if name not in tree.used:
            near = hint(get_close_matches(name, tree.used, 1), sorted(tree.used))
            found.append(f"{where(key.start_mark)}: {VARIABLES}.{name}: nothing uses ${{{name}}}; {near}")
    return found


def _variables_of(tree: Tree) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    key, defined = entries(tree.root).get(VARIABLES, (None, None))
    if key is None:
        return {}
    if not isinstance(defined, yaml.MappingNode):
        raise RecipeError(f"{where(key.start_mark)}: {VARIABLES}: should be names with their values")
    variables = entries(defined)
    for name, (key, _) in variables.items():
        if not re.fullmatch(NAME, name):
            raise RecipeError(
                f"{where(key.start_mark)}: {VARIABLES}: {name!r} is not a valid name: use letters, digits and _"
            )
    return variables


def escaped(text: str) -> str:
    """Escape `${` so that a recipe reads the text literally."""
    return text.replace("${", "$${")


class _Filling:
    def __init__(self, variables: Mapping[str, yaml.Node]) -> None:
        self._variables = variables
        self._open: list[str] = []

    def text(self, node: yaml.ScalarNode, place: Place) -> yaml.Node:
        alone = USE.fullmatch(node.value)
        if alone and alone["name"]:
            return self._value(alone["name"], node, place)
        parts, end, mark = [], 0, node.start_mark
        for use in USE.finditer(node.value):
            parts.append(node.value[end : use.start()])
            end = use.end()
            if use["open"]:
                raise RecipeError(
                    f"{_at(node, place)}: `${{` must begin a variable such as ${{name}}; write $${{ for a literal ${{"
                )
            if use["literal"]:
                parts.append("${")
                continue
            value = self._value(use["name"], node, place)
            if not isinstance(value, yaml.ScalarNode):
                raise RecipeError(
                    f"{_at(node, place)}: ${{{use['name']}}} is not a text or number (see {where(value.start_mark)}), "
                    f"so it cannot be a part of a text"
                )
            parts.append(value.value)
            mark = value.start_mark if use.start() == 0 else mark
        return yaml.ScalarNode(node.tag, "".join([*parts, node.value[end:]]), mark, node.end_mark, "'")

    def _value(self, name: str, node: yaml.Node, place: Place) -> yaml.Node:
        if name not in self._variables:
            near = hint(get_close_matches(name, self._variables, 1), self._variables)
            raise RecipeError(
                f"{_at(node, place)}: there is no variable {name!r}; {near}; --set {VARIABLES}.{name}=… sets it"
            )
        if name in self._open:
            raise RecipeError(f"{_at(node, place)}: the variable {name!r} refers to itself")
        self._open.append(name)
        value = with_texts(self._variables[name], self.text, (VARIABLES, name))
        self._open.pop()
        return value


def _at(node: yaml.Node, place: Place) -> str:
    return f"{where(node.start_mark)}: {dotted(place)}"
