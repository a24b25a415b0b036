"""Read YAML files as one tree of nodes: a file merged over the one that it extends, plus values from `--set`.

Every node has a mark with its file and line. Errors name them, and a relative path is resolved against the folder of
the file in which it is written.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from lepmerge.errors import RecipeError

EXTENDS, VARIABLES = "extends", "variables"
STANDARD_INPUT = "-"
"""Given instead of a file name. Relative paths are then resolved against the current folder."""
SET = "--set "
"""Prefix of the mark's name for values that were set on the command line."""
Place = Iterable[int | str]
"""Keys and list positions that lead to a value, such as ("steps", 0, "method")."""
ShortForm = Callable[[str, Path], Mapping[str, Any]]
"""(text, folder) → the keys that the text is short for. Relative paths in the text start at the folder."""
NAME = r"[A-Za-z_]\w*"
USE = re.compile(rf"(?P<literal>\$\$\{{)|\$\{{(?P<name>{NAME})\}}|(?P<open>\$\{{)")
"""A variable in a text, the escape $${, or a `${` that is neither and hence an error."""


@dataclass(frozen=True)
class Tree:
    """The merged contents of a file and of those that it extends.

    used: names of the variables that occur in any of these files, including values that another file replaced.
    short_form: key → function that expands a text below this key of the file, so that it can be merged with a mapping.
    """

    root: yaml.MappingNode
    used: frozenset[str]
    short_form: Mapping[str, ShortForm]

    @classmethod
    def of_file(cls, path: Path, *, short_form: Mapping[str, ShortForm]) -> "Tree":
        """Return the file merged over the one that it extends. Mappings are merged key by key, other values replaced.

        Raises:
            RecipeError: a file cannot be read, is not a YAML mapping, or extends itself.
        """
        return cls._extended(path, short_form, ())

    @classmethod
    def _extended(cls, path: Path, short_form: Mapping[str, ShortForm], chain: tuple[Path, ...]) -> "Tree":
        root = _root_of(path)
        tree = cls(root, _names_in(root), short_form)
        named = entries(root).get(EXTENDS)
        if named is None:
            return tree
        at = f"{where(named[0].start_mark)}: {EXTENDS}"
        if not is_text(named[1]):
            raise RecipeError(f"{at}: should be the name of one file")
        real = path.resolve()
        parent = (real.parent / Path(named[1].value).expanduser()).resolve()
        if not parent.is_file():
            raise RecipeError(f"{at}: there is no file {parent}")
        if parent in (*chain, real):
            raise RecipeError(f"{at}: {named[1].value} extends this file again")
        above = cls._extended(parent, short_form, (*chain, real))
        own = mapping([pair for pair in root.value if pair[0].value != EXTENDS], root)
        return cls(tree._merged(above.root, own, ()), tree.used | above.used, short_form)

    def _merged(self, parent: yaml.Node, child: yaml.Node, path: tuple[str, ...]) -> Any:
        if isinstance(child, yaml.MappingNode):
            parent = self._long(parent, path)
        if not (isinstance(child, yaml.MappingNode) and isinstance(parent, yaml.MappingNode)):
            return child
        pairs = entries(parent)
        for name, (key, value) in entries(child).items():
            pairs[name] = (key, self._merged(pairs[name][1], value, (*path, name)) if name in pairs else value)
        return mapping(list(pairs.values()), child)

    def without_short_forms(self, root: yaml.Node) -> Any:
        """Return a tree with every short form expanded."""
        return with_texts(root, lambda node, place: self._long(node, tuple(map(str, place))))

    def _long(self, node: yaml.Node, path: tuple[str, ...]) -> yaml.Node:
        """Expand a text at this place into the mapping that it is short for. The new nodes get the text's mark."""
        short = self.short_form.get(path[0]) if len(path) == 2 else None
        if short is None or not is_text(node):
            return node
        return _node_of(short(node.value, folder_of(node.start_mark)), node)

    def with_value(self, override: str, *, what: str) -> "Tree":
        """Return the tree with one value set. override: such as `models.base=some/folder`. what: kind of the file.

        Raises:
            RecipeError: the place does not exist, or the value is not YAML.
        """
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise RecipeError(f"{SET}{override}: expected KEY=VALUE, such as models.base=some/folder")
        if name == EXTENDS:
            raise RecipeError(f"{SET}{override}: name the file that you mean as the {what} instead")
        try:
            new = _composed(text, name=f"{SET}{override}") or yaml.ScalarNode("tag:yaml.org,2002:null", "null")
        except (yaml.YAMLError, RecursionError) as error:
            raise RecipeError(f"{SET}{override}: the value is not YAML: {getattr(error, 'problem', error)}") from error
        new.start_mark = new.start_mark or yaml.Mark(f"{SET}{override}", 0, 0, 0, None, 0)
        root = self._with(self.root, name.split("."), new, (), f"{SET}{override}", what)
        return replace(self, root=root, used=self.used | _names_in(new))

    def _with(
        self, node: yaml.Node, keys: list[str], new: yaml.Node, path: tuple[str, ...], override: str, what: str
    ) -> Any:
        if not keys:
            return new
        (key, *rest), node = keys, self._long(node, path)
        if isinstance(node, yaml.MappingNode):
            pairs = entries(node)
            below = pairs[key][1] if key in pairs else mapping([], new)
            value = self._with(below, rest, new, (*path, key), override, what)
            pairs[key] = (_text(key, new) if value is new or key not in pairs else pairs[key][0], value)
            return mapping(list(pairs.values()), node)
        if isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            items = list(node.value)
            items[int(key)] = self._with(items[int(key)], rest, new, (*path, key), override, what)
            return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
        raise RecipeError(f"{override}: there is no {key!r} in the {what}")


def plain_values(root: yaml.Node) -> Any:
    """Convert the tree to dicts, lists, texts and numbers."""
    try:
        return SafeConstructor().construct_document(root)
    except yaml.YAMLError as error:
        raise _not_yaml(error, where(root.start_mark)) from error
    except (ValueError, AttributeError, KeyError, IndexError) as error:  # 2024-13-01, !!timestamp x, !!bool x, !!int ""
        raise RecipeError(f"{where(root.start_mark)}: not YAML: {error}") from error


def texts(node: yaml.Node) -> Iterator[str]:
    """Yield every text in the tree."""
    below = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
    if not isinstance(node, yaml.ScalarNode):
        for value in below:
            yield from texts(value)
    elif is_text(node):
        yield node.value


def with_texts(
    node: yaml.Node,
    change: Callable[[yaml.ScalarNode, tuple[int | str, ...]], yaml.Node],
    place: tuple[int | str, ...] = (),
) -> Any:
    """Return the tree in which every text is replaced by change(text, place)."""
    if isinstance(node, yaml.MappingNode):
        return mapping([(key, with_texts(value, change, (*place, key.value))) for key, value in node.value], node)
    if isinstance(node, yaml.SequenceNode):
        items = [with_texts(item, change, (*place, number)) for number, item in enumerate(node.value)]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    return change(node, place) if is_text(node) else node


def find(root: yaml.Node, place: Place) -> tuple[str, yaml.Node | None]:
    """Return file:line of the deepest existing part of a place, and the node there if the whole place exists."""
    found, node, is_whole = where(root.start_mark), root, True
    for part in place:
        below = None
        if isinstance(node, yaml.MappingNode):
            below = entries(node).get(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            below = (node.value[part], node.value[part])
        if below is None:
            is_whole = False
            break
        found, node = where(below[0].start_mark), below[1]
    return found, node if is_whole else None


def where(mark: yaml.Mark) -> str:
    """Return file:line, or the `--set` option of the command line."""
    return mark.name if mark.name.startswith(SET) else f"{mark.name}:{mark.line + 1}"


def folder_of(mark: yaml.Mark) -> Path:
    """Return the folder against which a relative path with this mark is resolved."""
    return Path.cwd() if mark.name.startswith(SET) else Path(mark.name).resolve().parent


def hint(near: list[str], known: Iterable[str]) -> str:
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _root_of(path: Path) -> yaml.MappingNode:
    """Return the tree of one file. Duplicate keys are errors."""
    try:
        if str(path) == STANDARD_INPUT:
            root = _composed(sys.stdin.buffer.read().decode(), name="standard input")
        else:
            root = _composed(path.read_text(encoding="utf-8"), name=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise _not_yaml(error, f"{path}:1") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply") from error
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path} should hold keys with values, not a list or a text")
    return root


def _not_yaml(error: yaml.YAMLError, otherwise: str) -> RecipeError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return RecipeError(f"{where(mark) if mark else otherwise}: not YAML: {' '.join(problem.split())}")


def _composed(text: str, *, name: str) -> yaml.Node | None:
    loader = yaml.SafeLoader(text)
    loader.name = name
    root = loader.get_single_node()
    return root and _checked(root, {})


def _checked(node: yaml.Node, done: dict[int, yaml.Node | None]) -> Any:
    """Return the tree with YAML merges (`<<`) applied and duplicate keys refused. Aliases still share one node."""
    if id(node) in done:
        if done[id(node)] is None:
            raise ConstructorError(None, None, "an alias refers to a list or mapping that contains it", node.start_mark)
        return done[id(node)]
    done[id(node)] = None
    checked = node
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key should be a word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
            _checked(key, done)
        SafeConstructor().flatten_mapping(node)
        checked = mapping([(key, _checked(value, done)) for key, value in entries(node).values()], node)
    elif isinstance(node, yaml.SequenceNode):
        items = [_checked(item, done) for item in node.value]
        checked = yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    elif any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ConstructorError(None, None, "an escape such as \\ud800 is half of a character", node.start_mark)
    done[id(node)] = checked
    return checked


def _names_in(node: yaml.Node) -> frozenset[str]:
    """Return the names of the variables that occur in texts of a tree."""
    return frozenset(use["name"] for text in texts(node) for use in USE.finditer(text) if use["name"])


def entries(node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    return {key.value: (key, value) for key, value in node.value}


def mapping(pairs: list[tuple[yaml.Node, yaml.Node]], like: yaml.Node) -> yaml.MappingNode:
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, like.start_mark, like.end_mark)


def _node_of(value: Any, like: yaml.Node) -> yaml.Node:
    """Convert a mapping, list or text to nodes with the mark of another node."""
    if isinstance(value, Mapping):
        return mapping([(_text(key, like), _node_of(item, like)) for key, item in value.items()], like)
    if isinstance(value, list):
        items = [_node_of(item, like) for item in value]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items, like.start_mark, like.end_mark)
    return _text(value, like)


def _text(value: str, like: yaml.Node) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value, like.start_mark, like.end_mark)


def is_text(node: yaml.Node) -> TypeGuard[yaml.ScalarNode]:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
