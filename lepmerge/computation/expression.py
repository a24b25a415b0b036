"""Arithmetic expressions over models, such as `instruct + 0.5 * (adapted - base)`.

Python's parser parses the text. Only a whitelist of its syntax is converted to our tree; nothing is run as Python.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NoReturn

from lepmerge.errors import RecipeError

FUNCTIONS = {"abs": 1, "sign": 1, "sqrt": 1, "min": 2, "max": 2, "norm": 1, "row_norm": 1}
"""Name → number of arguments. `norm` is of the whole tensor, `row_norm` of each row; the others work per element."""
MAX_DEPTH, MAX_OPERATORS = 60, 150
"""Largest nesting of functions and number of operators. Trees are walked recursively, and Python limits recursion."""
MAX_LENGTH = 100_000
_NUMBER = re.compile(r"\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_ALLOWED = "allowed are numbers, names, + - * /, parentheses and functions"


@dataclass(frozen=True)
class Node:
    """A number, a name, or a function or operator with its arguments."""

    kind: str
    value: float | str
    arguments: tuple["Node", ...] = ()

    def names(self) -> Iterator[str]:
        """Yield each model name once, in the order of first use."""
        yield from dict.fromkeys(
            [str(self.value)] if self.kind == "name" else [name for node in self.arguments for name in node.names()]
        )

    def norms(self) -> Iterator["Node"]:
        """Yield the norms of whole tensors; of nested ones the outermost."""
        if self.kind == "function" and self.value == "norm":
            yield self
        else:
            yield from dict.fromkeys(found for argument in self.arguments for found in argument.norms())

    def is_number(self) -> bool:
        """Return whether the value is a single number for the whole tensor."""
        return (
            self.kind == "number"
            or (self.kind != "name" and all(a.is_number() for a in self.arguments))
            or (self.kind == "function" and self.value == "norm")
        )


def shorten(text: str, length: int) -> str:
    """Return the text in quotes, cut to about `length` characters, with those that cannot be printed as escapes."""
    shown = repr(text)
    return shown if len(shown) <= length else f"{shown[:length]}…{shown[0]}"


def parse(text: str) -> Node:
    """Return the tree of an expression.

    Raises:
        RecipeError: the expression is invalid; the error names the reason and the position in the text.
    """
    return _Reading(text).tree()


@dataclass
class _Reading:
    text: str
    num_operators: int = 0

    def tree(self) -> Node:
        if len(self.text) > MAX_LENGTH:
            self.fail(f"longer than {MAX_LENGTH} characters", MAX_LENGTH)
        if sum(map(self.text.count, "+-*/")) > 4 * MAX_OPERATORS:  # Python's parser cannot nest this many
            self.fail(f"more than {MAX_OPERATORS} operators", 0)
        if "#" in self.text:  # Python would treat the rest as a comment
            self.fail("unknown character", self.text.index("#"))
        self.text = "".join(" " if character.isspace() else character for character in self.text).lstrip()
        if not self.text:
            self.fail("expected a number, a model name or a parenthesis", 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # such as `2(base)`, which is refused below
                parsed = ast.parse(self.text, mode="eval")
        except SyntaxError as error:
            # offset 0 means that the text ends too early
            self.fail(_reason(error), min(error.offset - 1, len(self.text)) if error.offset else len(self.text))
        except (RecursionError, MemoryError):  # how Python's parser refuses deep nesting
            self.fail("nested too deeply", 0)
        except ValueError as error:  # a NUL character, an integer of thousands of digits
            self.fail(str(error).partition(";")[0].partition(":")[0], 0)
        return self.node(parsed.body, 1)

    def node(self, part: ast.expr, depth: int) -> Node:
        match part:
            case ast.Constant(value=bool()):
                self.fail(f"unexpected {part.value!r}; {_ALLOWED}", part)
            case ast.Constant(value=int() | float()):
                return Node("number", self.number(part))
            case ast.Name():
                return Node("name", part.id)
            case ast.UnaryOp(op=ast.USub()):
                self.count(part)
                return Node("operator", "-", (Node("number", 0.0), self.node(part.operand, depth)))
            case ast.BinOp() if type(part.op) in _OPERATORS:
                self.count(part)
                arguments = (self.node(part.left, depth), self.node(part.right, depth))
                return Node("operator", _OPERATORS[type(part.op)], arguments)
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                return self.call(part, name, depth)
        self.fail(f"unexpected {shorten(ast.unparse(part), 40)}; {_ALLOWED}", part)

    def number(self, part: ast.Constant) -> float:
        try:
            value = float(ast.literal_eval(part))
        except OverflowError:
            value = float("inf")
        if not isfinite(value):
            self.fail("the number is too large", part)
        written = ast.get_source_segment(self.text, part) or ""
        if not _NUMBER.fullmatch(written):
            self.fail(f"unexpected {shorten(written, 40)}; {_ALLOWED}", part)
        return value

    def count(self, part: ast.expr) -> None:
        self.num_operators += 1
        if self.num_operators > MAX_OPERATORS:
            self.fail(f"more than {MAX_OPERATORS} operators", part)

    def call(self, part: ast.Call, name: str, depth: int) -> Node:
        if name not in FUNCTIONS:
            self.fail(f"unknown function {name!r}, known are {', '.join(FUNCTIONS)},", part)
        if depth > MAX_DEPTH:
            self.fail("functions nested too deeply", part)
        arguments = tuple(self.node(argument, depth + 1) for argument in part.args)
        if len(arguments) != FUNCTIONS[name]:
            self.fail(f"{name} takes {FUNCTIONS[name]} argument(s), not {len(arguments)},", part)
        if name in ("norm", "row_norm") and arguments[0].is_number():
            self.fail(f"{name} of a number, not of tensors,", part)
        if name == "norm" and any(True for _ in arguments[0].norms()):
            self.fail("a norm within a norm,", part)
        return Node("function", name, arguments)

    def fail(self, reason: str, at: ast.expr | int) -> NoReturn:
        position = at if isinstance(at, int) else len(self.text.encode()[: at.col_offset].decode())
        text, rest = (shorten(part, 80) for part in (self.text, self.text[position:]))
        raise RecipeError(f"expression {text}: {reason} at position {position + 1} ({rest})")


def _reason(error: SyntaxError) -> str:
    """Return Python's reason for a syntax error, reworded for an expression."""
    message = re.split(r"[.:;] ", str(error.msg))[0]
    return "expected an operator, a number or a model name" if message == "invalid syntax" else message
