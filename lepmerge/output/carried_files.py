"""The small files of the output: configs, tokenizer, chat template, and other small files of the start model."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lepmerge.models.checkpoint import files_of, read_json
from lepmerge.models.configs import remap_ids
from lepmerge.models.model import Model
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


def carried_files(start: Model, final: Model, *, dtype: str | None) -> dict[str, bytes | Path]:
    """Return file name → contents, or the path of a file of the start model to copy unchanged.

    The tokenizer files are written anew only if the vocabulary changed. The chat template comes from the start model.
    """
    files: dict[str, bytes | Path] = {}
    new_vocabulary = final.vocabulary is not start.vocabulary
    for path in _small_files(start):
        if not (new_vocabulary and (path.name in TOKENIZER_FILES or OLD_TOKENIZER.match(path.name))):
            files[_name(path)] = path
    config = {**final.config, **({key: dtype for key in _dtype_keys(final.config)} if dtype else {})}
    if config != read_json(start.folder / "config.json"):  # opening may correct ties, an adapter may untie or resize
        files["config.json"] = to_json(config)
    if final.generation_config and final.generation_config != read_json(start.folder / "generation_config.json"):
        files["generation_config.json"] = to_json(final.generation_config)
    if new_vocabulary:
        files["tokenizer.json"] = to_json(final.vocabulary.spec)
        files["tokenizer_config.json"] = to_json(tokenizer_config(start.vocabulary, final.vocabulary))
        files |= {name: to_json(config) for name, config, _ in _processors(start, final)}
    return dict(sorted(files.items()))


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


def to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def left_out(start: Model, final: Model) -> tuple[str, ...]:
    """Return notes on what the output lacks from the start model's folder: other weights, subfolders, token ids.

    The ids are those in settings of image and sound processors whose token the output's vocabulary lacks.
    """
    read = {file.path.name for file in files_of(start)}
    if not read or not start.folder.is_dir():
        return ()
    names = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in sorted(start.folder.iterdir())
        if not path.name.startswith(".")
        and path.name not in read | {TEMPLATES}
        and not path.name.endswith("index.json")
        if path.is_dir() or path.name in OTHER_FORMAT or WEIGHTS.search(path.name)
    ]
    ids = [f"{name}: {id}: the output has no such token" for name, _, lost in _processors(start, final) for id in lost]
    return (*([f"left out, because nothing is read from it: {', '.join(names)}"] if names else []), *ids)


def _processors(start: Model, final: Model) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield name, settings with the output's token ids, and lost ids of each file of processor settings with such ids.

    Nothing is yielded if the vocabulary stays.
    """
    paths = [path for path in _small_files(start) if path.name.endswith("processor_config.json")]
    if not paths or final.vocabulary is start.vocabulary:
        return
    new_id_of = start.vocabulary.ids_in(final.vocabulary)
    for path in paths:
        config, lost = read_json(path), []
        changed = remap_ids(config, new_id_of, lost)
        if changed != config:
            yield path.name, changed, lost


def _small_files(model: Model) -> Iterator[Path]:
    """Yield the files of a model except its weights. Tokenizer files come from the tokenizer's folder."""
    own, folder = list(_small_files_in(model.folder)), model.vocabulary.folder
    if folder is None or folder == model.folder:
        yield from own
        return
    of_tokenizer = [path for path in _small_files_in(folder) if _is_of_tokenizer(_name(path))]
    own_template = read_json(folder / "tokenizer_config.json").get("chat_template")  # some folders say null
    has_template = own_template is not None or any(_is_template(path) for path in of_tokenizer)
    for path in own:
        if not _is_of_tokenizer(_name(path)) or (_is_template(path) and not has_template):
            yield path
    yield from of_tokenizer


def tokenizer_files(folder: Path, *, only_templates: bool = False) -> dict[str, Path]:
    """Return name → path of the files of a folder's tokenizer and chat templates, or of its chat templates only."""
    return {
        _name(path): path
        for path in _small_files_in(folder)
        if _is_template(path) or (_is_of_tokenizer(path.name) and not only_templates)
    }


def _small_files_in(folder: Path) -> Iterator[Path]:
    for path in [*sorted(folder.iterdir()), *sorted(folder.glob(f"{TEMPLATES}/*.jinja"))]:
        if path.is_file() and not path.name.startswith(".") and not WEIGHTS.search(path.name):
            if path.name not in OURS | OTHER_FORMAT:
                yield path


def _name(path: Path) -> str:
    """Return the path of a file relative to the model's folder: its name, or TEMPLATES/name for extra templates."""
    return f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name


def _is_template(path: Path) -> bool:
    return _name(path).startswith(("chat_template", TEMPLATES))


def _is_of_tokenizer(name: str) -> bool:
    return (
        name in TOKENIZER_FILES
        or name.startswith(("chat_template", TEMPLATES))
        or OLD_TOKENIZER.match(name) is not None
    )


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    return [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
