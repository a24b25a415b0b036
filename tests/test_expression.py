"""Expressions mean what Python's arithmetic means, and are never given to Python."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepmerge.errors import RecipeError
from lepmerge.operations.expression import MAX_DEPTH, MAX_OPERATORS, Node, parse

VALUES = {"base": 3.0, "instruct": -0.5, "adapted": 7.25}
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def value(node: Node) -> float:
    arguments = [value(argument) for argument in node.arguments]
    if node.kind == "number":
        return float(node.value)
    if node.kind == "name":
        return VALUES[node.value]
    if node.kind == "function":
        return {"abs": abs, "min": min, "max": max}[node.value](*arguments)
    return OPERATORS[node.value](*arguments)


numbers = st.floats(0, 100).map(lambda number: f"{number:.4f}")
expressions = st.recursive(
    st.one_of(numbers, st.sampled_from(list(VALUES))),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
        inner.map(lambda text: f"abs( {text} )"),
        st.tuples(inner, inner).map(lambda pair: f"max({pair[0]}, {pair[1]})"),
    ),
    max_leaves=12,
)


@given(expressions)
def test_equals_python(text: str) -> None:
    assert value(parse(text)) == pytest.approx(eval(text, {"abs": abs, "max": max}, VALUES), rel=1e-9, abs=1e-9)


def test_names_in_the_order_of_use() -> None:
    assert list(parse("instruct + 0.5*(adapted - base) - instruct").names()) == ["instruct", "adapted", "base"]


def test_the_longest_and_deepest_that_are_read_can_be_walked() -> None:
    inner = "(" * (MAX_DEPTH - 2) + "norm(base)" + ")" * (MAX_DEPTH - 2)
    tree = parse(" + ".join([inner if n == 0 else "base" for n in range(MAX_OPERATORS + 1)]))
    assert list(tree.names()) == ["base"] and len(list(tree.norms())) == 1 and not tree.is_number()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "position 1"),
        ("base +", "position 7"),
        ("base base", "operator"),
        ("(base", ")"),
        ("base)", "operator"),
        ("base ** 2", "*"),
        ("__import__('os').system('true')", "__import__"),
        ("base.tensors", "."),
        ("base[0]", "["),
        ("lambda: 1", ":"),
        ("sinus(base)", "sinus"),
        ("max(base)", "max"),
        ("1e999999 * base; 2", ";"),
        ("(" * 5000 + "base" + ")" * 5000, "nested"),
        ("-" * 5000 + "base", "nested"),
        (" + ".join(["base"] * 5000), "operators"),
        ("norm(2) * base", "norm of a number"),
        ("norm(norm(base) + 1) * base", "norm of a number"),
        ("row_norm(norm(base))", "row_norm of a number"),
        ("norm(base / norm(base))", "a norm within a norm"),
    ],
    ids=lambda text: text[:20],
)
def test_faults(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert part in str(caught.value) and len(str(caught.value)) < 300
