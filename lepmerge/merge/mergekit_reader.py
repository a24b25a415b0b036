"""Read the parts of a mergekit configuration that do not depend on its method: models, tokenizer, template, dtype."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lepmerge.config.yaml_tree import Place, dotted, find, hint
from lepmerge.errors import RecipeError

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class Reader:
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
