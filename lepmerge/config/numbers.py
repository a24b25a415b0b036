"""Numbers of a recipe that may vary by layer and by tensor, in the notation of mergekit.

0.5                                         for every tensor
[0.2, 0.8]                                  spread evenly over the layers, linear in between; the first outside them
- {filter: mlp, value: [0, 1]}              the first rule whose filter is part of the tensor's name, or that has none
- {value: 0.5}
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from lepmerge.config.schema import Strict

Gradient = float | Annotated[list[float], Field(min_length=1)]


class Rule(Strict):
    """A number for the tensors whose name contains `filter`."""

    filter: str | None = None
    """Part of the tensor's name. A rule without a filter applies to every tensor."""
    value: Gradient
    """A number, or a list of numbers spread evenly over the layers."""


def _with_default(rules: Any) -> Any:
    if isinstance(rules, list) and isinstance(rules[0], Rule) and rules[-1].filter is not None:
        raise ValueError("the last rule should have no filter, so that there is a number for every tensor")
    return rules


Numbers = Annotated[Gradient | Annotated[list[Rule], Field(min_length=1)], AfterValidator(_with_default)]
"""A number, a list of numbers spread evenly over the layers, or a list of rules."""


def number_for(numbers: Any, tensor: str, depth: float) -> float:
    """Return the number for a tensor. depth: 0 in the first layer and outside the layers, 1 in the last one."""
    if isinstance(numbers, list) and isinstance(numbers[0], Rule):
        rule = next(rule for rule in numbers if rule.filter is None or rule.filter in tensor)
        return number_for(rule.value, tensor, depth)
    if not isinstance(numbers, list):
        return float(numbers)
    place = depth * (len(numbers) - 1)
    before = min(int(place), len(numbers) - 1)
    after = min(before + 1, len(numbers) - 1)
    return numbers[before] + (place - before) * (numbers[after] - numbers[before])


def all_numbers(numbers: Any) -> list[float]:
    """Return every number that was written, for range checks."""
    if isinstance(numbers, list):
        return [number for item in numbers for number in all_numbers(item)]
    return all_numbers(numbers.value) if isinstance(numbers, Rule) else [float(numbers)]
