"""The chat template that a recipe chooses for its output: try it with the output's tokenizer, put it in place."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import RecipeError
from lepmerge.json_text import to_json
from lepmerge.models.model import Model
from lepmerge.paths import did_you_mean
from lepmerge.vocabulary.chat_templates import CONFIG, DEFAULT, TEMPLATES, templates_in
from lepmerge.vocabulary.vocabulary import Vocabulary

KEY = "output.chat_template"
SHORT_CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Thanks!"},
]
LIKE_A_TOKEN = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_]*\]")
"""How chat templates write special tokens, such as <|im_start|>, </s> or [INST]."""


def with_templates(files: Mapping[str, bytes | Path], templates: Mapping[str, str]) -> dict[str, bytes | Path]:
    """Return the small files of an output with these chat templates and no others."""
    kept = {name: content for name, content in files.items() if not name.startswith(("chat_template", TEMPLATES))}
    if CONFIG in kept:
        content = kept[CONFIG]
        config: dict[str, Any] = json.loads(content if isinstance(content, bytes) else content.read_bytes())
        if config.pop("chat_template", None) is not None:
            kept[CONFIG] = to_json(config)
    for name, template in templates.items():
        path = "chat_template.jinja" if name == DEFAULT else f"{TEMPLATES}/{name}.jinja"
        kept[path] = template.encode()
    return dict(sorted(kept.items()))


def chosen_templates(chosen: str, *, model: Model | None, path: Path) -> dict[str, str]:
    """Return name → chat template of the model. Without a model, read it from the file.

    Raises:
        RecipeError: the file does not exist, or the model has no template.
    """
    if model is not None:
        templates = templates_in(model.vocabulary.folder or model.folder)
        if DEFAULT not in templates:
            raise RecipeError(f"{KEY}: {chosen} ({model.folder}) has no chat template: name another model or a file")
        return templates
    if not path.is_file():
        raise RecipeError(f"{KEY}: file {path} does not exist{did_you_mean(path)}")
    try:
        return {DEFAULT: path.read_text(encoding="utf-8")}
    except ValueError:
        raise RecipeError(f"{KEY}: {path} is not UTF-8 text: save it as such") from None


def check_template(
    chosen: str,
    templates: Mapping[str, str],
    vocabulary: Vocabulary,
    *,
    names: Mapping[str, Any],
    source: Vocabulary | None,
) -> tuple[str, ...]:
    """Return a note if a short chat contains special tokens that the output's vocabulary lacks.

    names: key → special token of the output, such as bos_token. source: vocabulary of the model that the template
    comes from. The tokens of a file's template are not known, so texts that look like tokens are taken for them.

    Raises:
        RecipeError: the template is invalid, or refuses a chat of a user and an assistant.
    """
    text = _rendered(chosen, templates[DEFAULT], vocabulary, names)
    tokens = LIKE_A_TOKEN.findall(text) if source is None else [content for content in source.added if content in text]
    missing = [token for token in dict.fromkeys(tokens) if token not in vocabulary.all_ids]
    if not missing:
        return ()
    return (
        f"{KEY}: the template of {chosen} writes {', '.join(missing)}, which the result's vocabulary lacks: each is "
        f"split into ordinary tokens",
    )


def _rendered(chosen: str, template: str, vocabulary: Vocabulary, names: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError
    from transformers import PreTrainedTokenizerFast

    special = {key: text for key, text in names.items() if isinstance(text, str) and text in vocabulary.all_ids}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary.tokenizer, chat_template=template, **special)
    try:
        return str(tokenizer.apply_chat_template(SHORT_CHAT, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{KEY}: the template of {chosen} does not render a chat of a user and an assistant ({reason}): choose "
            f"another one"
        ) from None
