"""Write a tokenizer folder that AutoTokenizer and swap_vocabulary can read. It is written whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import OutputError
from lepmerge.output.carried_files import check_tokenizer, to_json, tokenizer_config
from lepmerge.vocabulary.vocabulary import Vocabulary

CARRIED = ("chat_template.jinja", "additional_chat_templates")


def check_free(target: Path) -> None:
    """Raise OutputError if the target is a file or a folder that is not empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"the output {target} is not empty: choose another folder")


def save_tokenizer(
    target: Path, vocabulary: Vocabulary, *, like: Vocabulary, report: Mapping[str, Any], files: Mapping[str, Any] = {}
) -> Path:
    """Write tokenizer.json, its settings, the chat template of `like` and the report; return the folder.

    Raises:
        OutputError: the target is not empty, or cannot be written to.
        VocabularyError: AutoTokenizer would produce other ids than the tokenizer.json.
    """
    check_tokenizer(like, vocabulary)
    assert like.folder is not None
    check_free(target)
    staging = target.parent / f".{target.name}.lepmerge-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written to: {error.strerror}") from error
    try:
        settings = tokenizer_config(like, vocabulary)
        written = {"tokenizer.json": vocabulary.spec, "tokenizer_config.json": settings}
        for name, value in {**written, "lepmerge_tokenizer.json": report, **files}.items():
            (staging / name).write_bytes(to_json(value))
        for name in CARRIED:
            if (like.folder / name).is_file():
                shutil.copyfile(like.folder / name, staging / name)
        if target.exists():
            target.rmdir()
        staging.rename(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
