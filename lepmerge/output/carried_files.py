"""The small files of the output: configs, tokenizer, chat template, and other small files of the start model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lepmerge.json_text import to_json
from lepmerge.models.checkpoint import files_of
from lepmerge.models.configs import read_json, remap_ids
from lepmerge.models.model import Model
from lepmerge.output.tokenizer_files import (
    OLD_TOKENIZER,
    OTHER_FORMAT,
    TOKENIZER_FILES,
    WEIGHTS,
    is_of_tokenizer,
    is_template,
    name_in_folder,
    small_files_in,
    tokenizer_config,
)
from lepmerge.vocabulary.chat_templates import TEMPLATES


def carried_files(start: Model, final: Model, *, dtype: str | None) -> dict[str, bytes | Path]:
    """Return file name → contents, or the path of a file of the start model to copy unchanged.

    The tokenizer files are written anew only if the vocabulary changed. The chat template comes from the start model.
    """
    files: dict[str, bytes | Path] = {}
    new_vocabulary = final.vocabulary is not start.vocabulary
    for path in _small_files(start):
        if not (new_vocabulary and (path.name in TOKENIZER_FILES or OLD_TOKENIZER.match(path.name))):
            files[name_in_folder(path)] = path
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
    own, folder = list(small_files_in(model.folder)), model.vocabulary.folder
    if folder is None or folder == model.folder:
        yield from own
        return
    of_tokenizer = [path for path in small_files_in(folder) if is_of_tokenizer(name_in_folder(path))]
    own_template = read_json(folder / "tokenizer_config.json").get("chat_template")  # some folders say null
    has_template = own_template is not None or any(is_template(path) for path in of_tokenizer)
    for path in own:
        if not is_of_tokenizer(name_in_folder(path)) or (is_template(path) and not has_template):
            yield path
    yield from of_tokenizer


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    return [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
