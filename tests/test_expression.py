"""Expressions mean what Python's arithmetic means, and are never given to Python."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepmerge.computation.expression import MAX_DEPTH, MAX_OPERATORS, Node, parse
from lepmerge.errors import RecipeError

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
    inner = "abs(" * (MAX_DEPTH - 1) + "norm(base)" + ")" * (MAX_DEPTH - 1)
    tree = parse(" + ".join([inner if n == 0 else "base" for n in range(MAX_OPERATORS + 1)]))
    assert list(tree.names()) == ["base"] and len(list(tree.norms())) == 1 and not tree.is_number()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "position 1"),
        ("base +", "position 7"),
        ("base base", "operator"),
        ("(base", ")"),
        ("base)", "unmatched ')' at position 5"),
        ("base ** 2", "*"),
        ("__import__('os').system('true')", "__import__"),
        ("base.tensors", "."),
        ("base[0]", "["),
        ("lambda: 1", ":"),
        ("sinus(base)", "sinus"),
        ("max(base)", "max"),
        ("1e999999 * base; 2", "at position 16"),
        ("1e999 * base", "the number is too large at position 1"),
        ("9" * 400 + " * base", "the number is too large"),
        ("9" * 9000 + " * base", "Exceeds the limit"),
        ("1_000 * base", "unexpected '1_000'"),
        ("0x10 * base", "unexpected '0x10'"),
        ("2j * base", "unexpected '2j'"),
        ("base # comment", "unknown character at position 6"),
        ("base\0", "null"),
        ("2(base)", "unexpected '2(base)'"),
        ("True * base", "unexpected True"),
        ("base if base else 1", "unexpected 'base if base else 1'"),
        ("+base", "unexpected '+base'"),
        ("max(*base)", "unexpected '*base'"),
        ("abs(x=base)", "unexpected 'abs(x=base)'"),
        ("модель + (base", "'(' was never closed at position 10"),
        ("модель + base.тензор", "unexpected 'base.тензор'; allowed are numbers"),
        ("base = 2", "at position"),
        ("(" * 5000 + "base" + ")" * 5000, "nested"),
        ("-" * 5000 + "base", "operators"),
        ("-(" * 180 + "base" + ")" * 180, "operators"),
        ("abs(" * 190 + "base" + ")" * 190, "nested"),
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


SIGNS = [*"+-*/(),.[]{}:;=#'\"\\_\n\t\0e0123456789"]
WORDS = ["base", "norm(", "модель", "ª", "𝒙", "lambda ", "9" * 5000, "(" * 250]


@given(st.lists(st.one_of(st.sampled_from([*SIGNS, *WORDS]), st.text(max_size=3)), max_size=25).map("".join))
def test_any_text_is_a_tree_or_one_clear_error(text: str) -> None:
    try:
        tree = parse(text)
    except RecipeError as error:
        assert str(error).startswith("expression ") and " at position " in str(error) and len(str(error)) < 400
        assert "\n" not in str(error)
    else:
        assert set(tree.names()) or tree.is_number()
