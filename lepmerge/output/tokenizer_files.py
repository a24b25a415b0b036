"""The files of a folder that belong to its tokenizer: which ones they are, and how they are written anew."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lepmerge.models.configs import read_json
from lepmerge.vocabulary.autotokenizer import check_loads
from lepmerge.vocabulary.chat_templates import TEMPLATES
from lepmerge.vocabulary.token_names import generic_config
from lepmerge.vocabulary.vocabulary import Vocabulary

WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|index\.json)$|\.safetensors\..*|^optimizer|^training_args"
)
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
OLD_TOKENIZER = re.compile(
    r"^(tokenizer\.model.*|.*\.model|.*\.tiktoken|tekken\.json|vocab\.(json|txt|bpe)|merges\.txt|bpe\.codes|"
    r"added_tokens\.json|special_tokens_map\.json)$"
)
OTHER_FORMAT = {"params.json"}
"""Describes Mistral's consolidated weights, which are not copied. Loaders that find it would look for them."""
OURS = {"README.md", "lepmerge_report.json", "lepmerge_run.json"}


def check_tokenizer(like: Vocabulary, vocabulary: Vocabulary) -> None:
    """Raise VocabularyError unless AutoTokenizer will produce the ids of `vocabulary` in an output folder.

    The settings of that folder are derived from the folder of `like`. The vocabulary of a GGUF file has no folder, so
    it is not checked.
    """
    if vocabulary is not like and like.folder is not None:
        config = read_json(like.folder / "config.json")
        check_loads(vocabulary.spec, tokenizer_config(like, vocabulary), config, like=str(like.folder))


def tokenizer_config(start: Vocabulary, final: Vocabulary) -> dict[str, Any]:
    """Return the tokenizer_config.json of a folder for another vocabulary and the generic fast class."""
    config = {} if start.folder is None else read_json(start.folder / "tokenizer_config.json")
    return generic_config(config, start.names, final.spec)


def tokenizer_files(folder: Path, *, only_templates: bool = False) -> dict[str, Path]:
    """Return name → path of the files of a folder's tokenizer and chat templates, or of its chat templates only."""
    return {
        name_in_folder(path): path
        for path in small_files_in(folder)
        if is_template(path) or (is_of_tokenizer(path.name) and not only_templates)
    }


def small_files_in(folder: Path) -> Iterator[Path]:
    for path in [*sorted(folder.iterdir()), *sorted(folder.glob(f"{TEMPLATES}/*.jinja"))]:
        if path.is_file() and not path.name.startswith(".") and not WEIGHTS.search(path.name):
            if path.name not in OURS | OTHER_FORMAT:
                yield path


def name_in_folder(path: Path) -> str:
    """Return the path of a file relative to the model's folder: its name, or TEMPLATES/name for extra templates."""
    return f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name


def is_template(path: Path) -> bool:
    return name_in_folder(path).startswith(("chat_template", TEMPLATES))


def is_of_tokenizer(name: str) -> bool:
    return (
        name in TOKENIZER_FILES
        or name.startswith(("chat_template", TEMPLATES))
        or OLD_TOKENIZER.match(name) is not None
    )
