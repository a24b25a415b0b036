"""Arithmetic expressions over models: parsed here into a tree, never evaluated as Python.

sum     = product { ("+" | "-") product }
product = factor { ("*" | "/") factor }
factor  = "-" factor | number | name | function "(" sum { "," sum } ")" | "(" sum ")"
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lepmerge.errors import RecipeError

FUNCTIONS = {"abs": 1, "sign": 1, "sqrt": 1, "min": 2, "max": 2, "norm": 1, "row_norm": 1}
"""Name → number of arguments; norm is over the whole tensor, row_norm over each row, the others per element."""
MAX_DEPTH, MAX_OPERATORS = 60, 150
"""Trees are walked by recursion, which Python bounds."""
_TOKEN = re.compile(r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/(),]))")


@dataclass(frozen=True)
class Node:
    """A number, a name, or a function or operator with its arguments."""

    kind: str
    value: float | str
    arguments: tuple["Node", ...] = ()

    def names(self) -> Iterator[str]:
        """Yield the model names, in the order of their first use."""
        yield from dict.fromkeys(
            [str(self.value)] if self.kind == "name" else [name for node in self.arguments for name in node.names()]
        )

    def norms(self) -> Iterator["Node"]:
        """Yield the norms of whole tensors, the outermost where they are nested."""
        if self.kind == "function" and self.value == "norm":
            yield self
        else:
            yield from dict.fromkeys(found for argument in self.arguments for found in argument.norms())

    def is_number(self) -> bool:
        """Tell whether the value is one number for a whole tensor."""
        return (
            self.kind == "number"
            or (self.kind != "name" and all(a.is_number() for a in self.arguments))
            or (self.kind == "function" and self.value == "norm")
        )


def shorten(text: str, length: int) -> str:
    """Return the text, cut where it is longer."""
    return text if len(text) <= length else f"{text[:length]}…"


def parse(text: str) -> Node:
    """Return the tree of an expression such as `instruct + 0.5 * (adapted - base)`.

    Raises:
        RecipeError: what cannot be read, with its place in the text.
    """
    parser = _Parser(text)
    node = parser.sum()
    if parser.kind != "end":
        parser.fail("expected an operator or the end")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.stop, self.depth, self.num_operators = text, 0, 0, 0
        self.advance()

    def advance(self) -> str:
        value = getattr(self, "value", "")
        self.start = self.stop
        match = _TOKEN.match(self.text, self.stop)
        if match is None:
            self.kind, self.value = "end", ""
            if self.text[self.stop :].strip():
                self.fail("unknown character")
        else:
            self.kind, self.value, self.stop = str(match.lastgroup), match[str(match.lastgroup)], match.end()
            self.start = match.start(self.kind)
        return value

    def fail(self, reason: str) -> None:
        text, rest = (shorten(part, 80) for part in (self.text, self.text[self.start :]))
        raise RecipeError(f"expression {text!r}: {reason} at position {self.start + 1} ({rest!r})")

    def sum(self) -> Node:
        return self.chain("+-", self.product)

    def product(self) -> Node:
        return self.chain("*/", self.factor)

    def chain(self, signs: str, operand) -> Node:
        node = operand()
        while self.kind == "sign" and self.value in signs:
            self.num_operators += 1
            if self.num_operators > MAX_OPERATORS:
                self.fail(f"more than {MAX_OPERATORS} operators")
            node = Node("operator", self.advance(), (node, operand()))
        return node

    def factor(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("nested too deeply")
        node = self._factor()
        self.depth -= 1
        return node

    def _factor(self) -> Node:
        if self.kind == "number":
            return Node("number", float(self.advance()))
        if self.kind == "name":
            name = self.advance()
            return self.call(name) if self.value == "(" else Node("name", name)
        if self.value == "-":
            self.advance()
            return Node("operator", "-", (Node("number", 0.0), self.factor()))
        if self.value == "(":
            self.advance()
            node = self.sum()
            self.expect(")")
            return node
        self.fail("expected a number, a model name or a parenthesis")
        raise AssertionError

    def call(self, name: str) -> Node:
        if name not in FUNCTIONS:
            self.fail(f"unknown function {name!r}, known are {', '.join(FUNCTIONS)},")
        self.expect("(")
        arguments = [self.sum()]
        while self.value == ",":
            self.advance()
            arguments.append(self.sum())
        self.expect(")")
        if len(arguments) != FUNCTIONS[name]:
            self.fail(f"{name} takes {FUNCTIONS[name]} argument(s), not {len(arguments)},")
        if name in ("norm", "row_norm") and arguments[0].is_number():
            self.fail(f"{name} of a number, not of tensors,")
        if name == "norm" and any(True for _ in arguments[0].norms()):
            self.fail("a norm within a norm,")
        return Node("function", name, tuple(arguments))

    def expect(self, sign: str) -> None:
        if self.value != sign:
            self.fail(f"expected {sign!r}")
        self.advance()
