"""Configurations of mergekit become recipes: `models`, `slices`, `parameters` and the choice of a tokenizer.

What lepmerge does not have is refused with file and line. Parameters that mergekit's method ignores are left out.
"""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from lepmerge.config.yaml_tree import STANDARD_INPUT, Tree, dotted, entries, hint, plain_values
from lepmerge.errors import RecipeError
from lepmerge.merge.mergekit_reader import Reader
from lepmerge.merge.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lepmerge.computation.merge_methods.registry import MergeMethod

KEYS = (
    "merge_method models slices base_model parameters dtype out_dtype tokenizer_source tokenizer chat_template name"
).split()
PARAMETERS = (
    "weight density gamma epsilon normalize lambda t rescale select_topk max_iter tol scale int8_mask"
    " nuslerp_flatten nuslerp_row_wise filter_wise"
).split()
"""Parameters of mergekit with a counterpart here, or that change no number (int8_mask)."""


def is_mergekit(path: Path) -> bool:
    """Return whether a YAML file is a configuration of mergekit."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False  # the reader of recipes says what is wrong
    return isinstance(node, yaml.MappingNode) and "merge_method" in entries(node)


def load_recipe_or_mergekit(path: str, overrides: Iterable[str] = (), output: str | None = None) -> Recipe:
    """Return the recipe in a file, or the one that a configuration of mergekit means; output: the result's folder.

    Raises:
        RecipeError: a fault of the file, or a configuration of mergekit with overrides or without an output.
    """
    if path == STANDARD_INPUT or not is_mergekit(Path(path)):
        more = [] if output is None else [f"output.path={json.dumps(output)}"]
        return load_recipe(path, [*overrides, *more])
    if [*overrides]:
        raise RecipeError(
            f"{path} is a mergekit configuration, which --set does not change: use `lepmerge import` first"
        )
    if output is None:
        raise RecipeError(f"{path} is a mergekit configuration, which names no output: give --output FOLDER")
    return recipe_of_mergekit(Path(path), str(Path(output).absolute()))


def recipe_of_mergekit(path: Path, output: str) -> Recipe:
    """Return the recipe that a configuration of mergekit means.

    Raises:
        RecipeError: with file and line, for what lepmerge does not have.
    """
    root = Tree.of_file(path, short_form={}).root
    reader = _Configuration(root, path.resolve().parent)
    plain = reader.recipe(plain_values(root))
    if "dtype" in plain["output"] and plain["output"]["dtype"] is None:
        del plain["output"]["dtype"]
    plain["output"]["path"] = output
    try:
        return Recipe.model_validate({**plain, "folder": reader.folder})
    except ValidationError as error:
        fault = error.errors()[0]
        raise RecipeError(f"{path}: {dotted(fault['loc'])}: {fault['msg']}") from None


class _Configuration(Reader):
    """Turns one configuration into a recipe."""

    def recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        from lepmerge.computation.merge_methods.registry import merge_methods

        self.known(values, KEYS, ())
        if ("models" in values) == ("slices" in values):
            self.refuse((), "expected either `models` or `slices`")
        method, base = str(values["merge_method"]), values.get("base_model")
        base = None if base is None else self.name(base)
        if method == "passthrough":
            steps = self.passthrough(values)
        elif method in merge_methods():
            steps = self.merge(merge_methods()[method], values, base)
        else:
            near = hint(get_close_matches(method, merge_methods(), 1), merge_methods())
            self.refuse(("merge_method",), f"lepmerge has no merge method {method!r}; {near}")
        start, padding, union = self.tokenizer(values, base or next(iter(self.names.values())))
        merges = [step for step in steps if step["op"] == "merge"]
        if union and len(merges) > 1:
            self.refuse(("slices",), "a union of vocabularies needs one merge: give all slices the same numbers")
        steps = [{**step, **union} if step in merges else step for step in steps]
        template = self.chat_template(values)
        output = {"dtype": self.dtype(values), **({"pad_to_multiple_of": padding} if padding else {})}
        output |= {"chat_template": template} if template else {}
        models = {name: self.located(text) for text, name in self.names.items()}
        return {"models": models, "start": start, "steps": steps, "output": output}

    def passthrough(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        if "models" in values:
            if len(values["models"]) != 1:
                self.refuse(("models",), "passthrough of whole models takes one")
            self.name(values["models"][0]["model"])
            return []
        slices = []
        for number, each in enumerate(values["slices"]):
            (place, source), *others = self.sources(number, each)
            if others:
                self.refuse(("slices", number, "sources"), "passthrough takes one source for a slice")
            given = self.parameters(values, each, source, place)
            entry = {"model": self.name(source["model"]), "layers": source["layer_range"]}
            if "scale" in given:
                entry["scale"] = self.numbers(given["scale"], 1.0, place)
            slices.append(entry)
        first, last = slices[0]["model"], slices[-1]["model"]
        return [{"op": "stack_layers", "slices": slices, **({"head": last} if last != first else {})}]

    def sources(self, number: int, each: Mapping[str, Any]) -> list[tuple[tuple[int | str, ...], dict[str, Any]]]:
        self.known(each, ("sources", "parameters"), ("slices", number))
        found = []
        for place, source in enumerate(each.get("sources", [])):
            where = ("slices", number, "sources", place)
            self.known(source, ("model", "layer_range", "parameters"), where)
            if not {"model", "layer_range"} <= source.keys():
                self.refuse(where, "expected `model` and `layer_range`")
            found.append((where, source))
        if not found:
            self.refuse(("slices", number), "expected `sources`")
        return found

    def merge(self, method: "MergeMethod", values: Mapping[str, Any], base: str | None) -> list[dict[str, Any]]:
        if "slices" in values:
            per_slice = [self.sources(number, each) for number, each in enumerate(values["slices"])]
            ranges = [[source["layer_range"] for _, source in sources] for sources in per_slice]
            for number, found in enumerate(ranges):
                if any(each != found[0] for each in found):
                    self.refuse(("slices", number), "lepmerge merges the same layers of every model")
            steps = [
                self.step(method, values, each, sources, base)
                for each, sources in zip(values["slices"], per_slice, strict=True)
            ]
            bounds = [found[0] for found in ranges]
            stack = {"op": "stack_layers", "slices": [{"layers": bound} for bound in bounds]}
            return [*self.by_slice(steps, bounds), stack]
        listed = [(("models", n), model) for n, model in enumerate(values["models"])]
        for place, model in listed:
            self.known(model, ("model", "parameters"), place)
        return [self.step(method, values, {}, listed, base)]

    def by_slice(self, steps: list[dict[str, Any]], bounds: list[list[int]]) -> list[dict[str, Any]]:
        """Return a merge step for each slice, or one for all if they are equal and without lists of numbers."""
        if all(step == steps[0] for step in steps) and not _has_lists(steps[0]):
            return [steps[0]]
        sorted_bounds = sorted(bounds)
        if any(second[0] < first[1] for first, second in zip(sorted_bounds, sorted_bounds[1:], strict=False)):
            self.refuse(
                ("slices",), "the slices overlap, so layers would have several merges: give all slices the same numbers"
            )
        tensors = [["layers"] for _ in steps]
        tensors[0].insert(0, "before_layers")
        tensors[-1].append("after_layers")
        return [
            {**step, "layers": bound, "tensors": names}
            for step, bound, names in zip(steps, bounds, tensors, strict=True)
        ]

    def step(self, method: "MergeMethod", values: Any, slice_of: Any, listed: Any, base: str | None) -> dict[str, Any]:
        settings = self.parameters(values, slice_of, {}, ("parameters",))
        models = {}
        for place, model in listed:
            name = self.name(model["model"])
            given = self.parameters(values, slice_of, model, place)
            if method.needs_base and name == base:
                continue
            models[name] = {
                key: self.numbers(given[key], method.per_model[key], place) for key in method.per_model if key in given
            }
        if method.name == "slerp" and base is not None:
            models = {base: {}, **models}
        if method.name == "nuslerp" and base is not None:
            self.refuse(("base_model",), "lepmerge's nuslerp has no base")
        step: dict[str, Any] = {"op": "merge", "method": method.name, "models": models}
        if method.needs_base:
            if base is None:
                self.refuse(("merge_method",), f"{method.name} needs base_model")
            step["base"] = base
        if settings.get("filter_wise") or settings.get("nuslerp_row_wise"):
            self.refuse(("parameters",), "lepmerge has neither filter_wise nor nuslerp_row_wise")
        if "row_wise" in method.settings and settings.get("nuslerp_flatten") is False:
            step["row_wise"] = True
        for key, default in method.settings.items():
            if key in settings:
                step[key] = self.numbers(settings[key], default, ("parameters", key))
        return step

    def parameters(self, values: Any, slice_of: Any, model: Any, place: tuple[int | str, ...]) -> dict[str, Any]:
        """Return the parameters of a model: its own win over those of its slice, and these over the general ones."""
        merged: dict[str, Any] = {}
        for part in (values, slice_of, model):
            merged |= part.get("parameters") or {}
        for key in merged:
            if key not in PARAMETERS:
                near = hint(get_close_matches(key, PARAMETERS, 1), PARAMETERS)
                self.refuse(place, f"lepmerge has no parameter {key!r}; {near}")
        return merged

    def numbers(self, given: Any, default: Any, place: tuple[int | str, ...]) -> Any:
        """Return numbers by layer and filter, with a last rule that holds for every tensor."""
        if not (isinstance(given, list) and any(isinstance(item, dict) for item in given)):
            return given
        rules: list[dict[str, Any]] = []
        for item in given:
            rule = dict(item) if isinstance(item, dict) else {"value": item}
            if rule.get("filter") == "*":
                del rule["filter"]
            rules.append(rule)
            if "filter" not in rule:
                return rules
        if default is None:
            self.refuse(place, "the last rule should have no filter, so that there is a number for every tensor")
        return [*rules, {"value": default}]


def _has_lists(value: Any) -> bool:
    """Return whether a step has a list of numbers, which depends on the layer."""
    if isinstance(value, dict):
        return any(_has_lists(item) for item in value.values())
    return isinstance(value, list) and any(not isinstance(item, dict) or _has_lists(item) for item in value)
