"""Write the project folder of a model: the files of one adaptation, with values that fit the model and the memory."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from lepmerge.corpus import is_dataset
from lepmerge.errors import CheckpointError, OutputError
from lepmerge.output.checks import check_space
from lepmerge.output.run import digest
from lepmerge.output.staging import Staging
from lepmerge.projects.languages import Language, language_of
from lepmerge.projects.look import Look, base_of, look_at
from lepmerge.projects.values import Values, needed_memory, values_for

TEXT, HELD_OUT = "text/train", "text/held_out"
PROJECT = "project.yaml"
BYTES = 1 << 16
"""Free disk space to require, in bytes. The files of a project need less."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of the user. None means that `init` decides."""

    model: str
    language: str
    base: str | None = None
    has_base: bool = True
    memory: int | None = None
    tokens: int | None = None
    text: str | None = None
    held_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Everything that the files of a project are made from.

    memory: bytes of memory of the device. needed: bytes of memory that the larger training needs.
    """

    folder: Path
    wishes: Wishes
    language: Language
    instruct: Look
    base: Look | None
    values: Values
    memory: int
    needed: int

    @property
    def result(self) -> str:
        """The name of the resulting model."""
        return re.sub(r"[^\w.-]", "-", f"{self.instruct.name}-{self.language.code}")

    @property
    def texts(self) -> tuple[str, str]:
        """Paths of the training text and of the held-out text, relative to the project folder."""
        return self._text(self.wishes.text, TEXT), self._text(self.wishes.held_out, HELD_OUT)

    @property
    def texts_to_give(self) -> dict[Path, str]:
        """Return the paths where the user has to put text → what kind of text."""
        given = self.wishes
        missing = {
            self.folder / TEXT: "" if given.text else "for training: a few MB to 50 GB",
            self.folder / HELD_OUT: "" if given.held_out else "other text, for measuring: 100 kB",
        }
        return {
            path: f"{what}, as a file or folder of .txt, .jsonl or .parquet" for path, what in missing.items() if what
        }

    @property
    def base_reason(self) -> str:
        if self.base is not None:
            return "given by `--base`" if self.wishes.base else "found by the model's card or name"
        if not self.wishes.has_base:
            return "`--no-base`"
        return "none was found by the model's card or name; name one with `--base`"

    def text_of(self, look: Look) -> str:
        """Return the reference of a model as it is written in the project's files."""
        return seen_from(self.folder, look.reference.text, is_id=look.reference.hub_id is not None)

    def _text(self, given: str | None, default: str) -> str:
        is_id = given is not None and not Path(given).exists() and is_dataset(given)
        return default if given is None else seen_from(self.folder, given, is_id=is_id)


@dataclass(frozen=True)
class Project:
    """A project that can be written. commands: as typed after `lepmerge` in its folder, in order."""

    choice: Choice
    commands: Sequence[str]
    files: Mapping[str, str]

    def write(self) -> None:
        """Write the folder: whole, or not at all.

        Raises:
            OutputError: the folder is not empty or cannot be written, or the disk is full.
        """
        check_free(self.choice.folder)
        check_space(self.choice.folder, BYTES)
        staging = Staging(self.choice.folder)
        with staging.opened(digest(dict(self.files))), staging.translated():
            check_free(self.choice.folder)
            for name, text in self.files.items():
                staging.write_bytes(name, text.encode())
            staging.publish(overwrite=False)


def project_for(folder: Path, wishes: Wishes) -> Project:
    """Look at the model, choose the values, and return the project. Nothing is written.

    Raises:
        LepmergeError: there is no such model or language, the model cannot be adapted, or the memory is too small.
    """
    check_free(folder)
    language = language_of(wishes.language)
    instruct = look_at(wishes.model)
    if not instruct.has_chat_template:
        raise CheckpointError(
            f"{wishes.model} has no chat template, so it is a base model: name the instruct model that was made from "
            f"it, and this one as --base {wishes.model}"
        )
    base = base_of(instruct, wishes.base) if wishes.has_base else None
    device = torch.device("cuda" if torch.cuda.is_available() or wishes.memory else "cpu")
    memory = wishes.memory or memory_here()
    values = values_for(base or instruct, memory=memory, tokens=wishes.tokens, device=device)
    choice = Choice(
        folder=folder,
        wishes=wishes,
        language=language,
        instruct=instruct,
        base=base,
        values=values,
        memory=memory,
        needed=needed_memory(base or instruct, values, device),
    )
    steps = _steps(choice)
    return Project(choice, list(steps.values()), _files(choice, steps))


def check_free(folder: Path) -> None:
    """Raise OutputError if the folder is a file, or not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty: choose another folder for the project")


def memory_here() -> int:
    """Return the bytes of memory of the first GPU, or of this machine if it has no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def seen_from(folder: Path, path: str, *, is_id: bool) -> str:
    """Return a path relative to `folder` instead of the current folder. Ids and absolute paths are unchanged."""
    given = Path(path).expanduser()
    return path if is_id or given.is_absolute() else os.path.relpath(given, folder)


def _steps(choice: Choice) -> dict[str, str]:
    """Return name → command, as typed after `lepmerge` in the project folder."""
    text, held_out = choice.texts
    source = choice.text_of(choice.base or choice.instruct)
    add = ["--add", str(choice.values.new_tokens)]
    scripts = [word for script in choice.language.scripts for word in ("--script", script)]
    result, code = f"out/{choice.result}", choice.language.code
    models = [f"original={choice.text_of(choice.instruct)}", f"adapted={result}"]
    measured = ["--text", f"{code}={held_out}", "--max-bytes", "100kB", "--copies", "4"]
    steps = {
        "vocabulary": ["tokenizer", "extend", source, text, *add, *scripts, "--output", "out/vocabulary"],
        "train": ["train", "train.yaml"],
        "run": ["run", "recipe.yaml"],
        "calibrate": ["train", "calibrate.yaml", "--full", result],
        "compare": ["compare", *models, *measured, "--html", "out/report.html", "--card"],
    }
    if choice.base is None:
        del steps["train"]
    return {name: shlex.join(words) for name, words in steps.items()}


def _files(choice: Choice, steps: Mapping[str, str]) -> dict[str, str]:
    """Return file name → text."""
    instruct, base, values, wishes = choice.instruct, choice.base, choice.values, choice.wishes
    text, held_out = choice.texts
    size = instruct.parameters
    shown: dict[str, Any] = {
        "folder": choice.folder.name,
        "result": choice.result,
        "language": choice.language,
        "instruct": choice.text_of(instruct),
        "base": choice.text_of(base) if base else None,
        "base_reason": choice.base_reason,
        "source": (base or instruct).name,
        "text": text,
        "held_out": held_out,
        "paths_are_defaults": wishes.text is None and wishes.held_out is None,
        "values": values,
        "rate": f"{values.learning_rate:.0e}".replace("e-0", "e-"),
        "cut": 2 * values.block_size,
        "weights": f"{size / 1e9:.1f} billion" if size > 1e9 else f"{size / 1e6:.1f} million",
        "memory": f"{choice.memory / 1e9:.0f} GB",
        "needed": f"{choice.needed / 1e9:.1f} GB",
        "steps": steps,
    }
    environment = Environment(undefined=StrictUndefined, loader=_templates())
    environment.filters |= {"scalar": _scalar, "flow": _flow}
    names = ["README.md", PROJECT, *(["train.yaml"] if base else []), "recipe.yaml", "calibrate.yaml"]
    return {
        name: environment.get_template(f"{name}.jinja").render(shown, calibration=name == "calibrate.yaml") + "\n"
        for name in names
    }


def _templates() -> FunctionLoader:
    folder = files("lepmerge.projects").joinpath("templates")
    return FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))


def _scalar(text: str) -> str:
    """Return a text as a YAML value on one line."""
    if "\n" in text:
        return json.dumps(text, ensure_ascii=False)
    return yaml.safe_dump(text, allow_unicode=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")


def _flow(text: str) -> str:
    """Return a text as a YAML value within { }."""
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)
