"""Configurations of mergekit become recipes: `models`, `slices`, `parameters` and the choice of a tokenizer.

What lepmerge does not have is refused with file and line. Parameters that mergekit's method ignores are left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from lepmerge.config.yaml_tree import STANDARD_INPUT, Place, Tree, dotted, entries, find, hint, plain_values
from lepmerge.errors import RecipeError
from lepmerge.merge.recipe import Recipe, load_recipe
from lepmerge.operations.merge_methods.registry import MergeMethod, merge_methods

KEYS = (
    "merge_method models slices base_model parameters dtype out_dtype tokenizer_source tokenizer chat_template name"
).split()
PARAMETERS = (
    "weight density gamma epsilon normalize lambda t rescale select_topk max_iter tol scale int8_mask"
    " nuslerp_flatten nuslerp_row_wise filter_wise"
).split()
"""Parameters of mergekit with a counterpart here, or that change no number (int8_mask)."""
DTYPES = ("float32", "float16", "bfloat16")


def is_mergekit(path: Path) -> bool:
    """Tell whether a YAML file is a configuration of mergekit."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
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
    reader = _Reader(root, path.resolve().parent)
    plain = reader.recipe(plain_values(root))
    if "dtype" in plain["output"] and plain["output"]["dtype"] is None:
        del plain["output"]["dtype"]
    plain["output"]["path"] = output
    try:
        return Recipe.model_validate({**plain, "folder": reader.folder})
    except ValidationError as error:
        fault = error.errors()[0]
        raise RecipeError(f"{path}: {dotted(fault['loc'])}: {fault['msg']}") from None


@dataclass
class _Reader:
    """Reads one configuration; `names` collects its models, text → name in the recipe."""

    root: yaml.MappingNode
    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    def refuse(self, place: Place, problem: str) -> NoReturn:
        place = tuple(place)
        raise RecipeError(f"{find(self.root, place)[0]}: {dotted(place)}: {problem}")

    def known(self, keys: Iterable[str], valid: Sequence[str], place: tuple[int | str, ...]) -> None:
        for key in keys:
            if key not in valid:
                self.refuse((*place, key), f"lepmerge has no such key; {hint(get_close_matches(key, valid, 1), valid)}")

    def recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
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
        steps = [{**step, **union} if step["op"] == "merge" else step for step in steps]
        template = self.chat_template(values)
        output = {"dtype": self.dtype(values), **({"pad_to_multiple_of": padding} if padding else {})}
        output |= {"chat_template": template} if template else {}
        models = {name: self.located(text) for text, name in self.names.items()}
        return {"models": models, "start": start, "steps": steps, "output": output}

    def name(self, text: Any) -> str:
        """Return the recipe's name of a model, made of the last part of its path."""
        text = str(text)
        if text not in self.names:
            short = re.sub(r"\W+", "_", "+".join(part.rstrip("/").split("/")[-1] for part in text.split("+"))).strip(
                "_"
            )
            name = f"model_{short}" if not short or short[0].isdigit() or short == "current" else short
            taken = set(self.names.values())
            self.names[text] = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 999))) if n not in taken)
        return self.names[text]

    def located(self, text: str) -> str:
        """Return a model's text; mergekit takes relative paths from the current folder, recipes from their own."""
        here, *adapters = text.split("+")
        return str(Path(here).absolute()) + "".join(f"+{a}" for a in adapters) if Path(here).is_dir() else text

    def dtype(self, values: Mapping[str, Any]) -> str | None:
        key = "out_dtype" if values.get("out_dtype") else "dtype"
        dtype = values.get(key)
        if dtype is not None and dtype not in DTYPES:
            self.refuse((key,), f"lepmerge writes {', '.join(DTYPES)}")
        return dtype

    def tokenizer(self, values: Mapping[str, Any], start: str) -> tuple[str, int | None, dict[str, Any]]:
        """Return the start model, whose tokenizer the result has, the multiple to pad to, and keys of the merge."""
        given, place, padding, tokens = values.get("tokenizer_source"), ("tokenizer_source",), None, {}
        if isinstance(values.get("tokenizer"), dict):
            self.known(values["tokenizer"], ("source", "tokens", "pad_to_multiple_of"), ("tokenizer",))
            given, place = values["tokenizer"].get("source"), ("tokenizer", "source")
            padding, tokens = values["tokenizer"].get("pad_to_multiple_of"), values["tokenizer"].get("tokens") or {}
        if given == "union":
            if values["merge_method"] == "passthrough":
                self.refuse(place, "passthrough has one vocabulary: name the model whose tokenizer the result has")
            sources = {token: self.token_source(token, each) for token, each in tokens.items()}
            return start, padding, {"tokenizer": "union", **({"tokens": sources} if sources else {})}
        if tokens:
            self.refuse(("tokenizer", "tokens"), "lepmerge has sources of tokens with `source: union` only")
        return (start if given in (None, "base") else self.name(str(given).removeprefix("model:"))), padding, {}

    def token_source(self, token: str, entry: Any) -> dict[str, Any]:
        """Return the source of one token."""
        place = ("tokenizer", "tokens", token)
        if not isinstance(entry, dict) or "source" not in entry:
            self.refuse(place, "expected `source`, and optionally `force`")
        self.known(entry, ("source", "force"), place)
        source = str(entry["source"])
        if source not in self.names:
            self.refuse((*place, "source"), f"expected one of the models: {', '.join(self.names)}")
        return {**entry, "source": self.names[source]}

    def chat_template(self, values: Mapping[str, Any]) -> str | None:
        """Return the model or file of the chat template. None: the template of the tokenizer's model."""
        given = values.get("chat_template")
        if given in (None, "auto"):
            return None
        given = str(given)
        if given not in self.names and not given.endswith(".jinja"):
            remedy = "name one of the models, or a .jinja file with the template"
            self.refuse(("chat_template",), f"lepmerge has no built-in chat templates: {remedy}")
        return self.names.get(given) or str(Path(given).absolute())

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

    def merge(self, method: MergeMethod, values: Mapping[str, Any], base: str | None) -> list[dict[str, Any]]:
        after: list[dict[str, Any]] = []
        if "slices" in values:
            per_slice = [self.sources(number, each) for number, each in enumerate(values["slices"])]
            ranges = [[source["layer_range"] for _, source in sources] for sources in per_slice]
            for number, (sources, each) in enumerate(zip(per_slice, values["slices"], strict=True)):
                same = [s["model"] for _, s in sources] == [s["model"] for _, s in per_slice[0]]
                if not same or any(r != ranges[number][0] for r in ranges[number]):
                    self.refuse(("slices", number), "lepmerge merges the same layers of the same models in every slice")
                own = each.get("parameters") or any(source.get("parameters") for _, source in sources)
                if len(per_slice) > 1 and own:
                    self.refuse(("slices", number), "lepmerge has no parameters of single slices: use numbers by layer")
            if len(ranges) > 1 or ranges[0][0][0] != 0:
                general = [values.get("parameters"), *(p for _, p in per_slice[0])]
                if any(isinstance(item, list) for part in general for item in _values(part)):
                    self.refuse(("slices",), "lepmerge spreads lists of numbers over all layers, not over each slice")
            after = [{"op": "stack_layers", "slices": [{"layers": found[0]} for found in ranges]}]
            listed, slice_of = per_slice[0], values["slices"][0]
        else:
            listed, slice_of = [(("models", n), model) for n, model in enumerate(values["models"])], {}
            for place, model in listed:
                self.known(model, ("model", "parameters"), place)
        return [self.step(method, values, slice_of, listed, base), *after]

    def step(self, method: MergeMethod, values: Any, slice_of: Any, listed: Any, base: str | None) -> dict[str, Any]:
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


def _values(part: Any) -> Iterable[Any]:
    """Yield the numbers of parameters: those of rules, and those that stand alone."""
    for value in ((part or {}).get("parameters", part) or {}).values():
        rules = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else [value]
        yield from (rule["value"] if isinstance(rule, dict) else rule for rule in rules)
