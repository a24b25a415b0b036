"""A training configuration with its models opened: the new vocabulary in place, trained rows, fingerprint."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from lepmerge.corpus import find_files, is_dataset
from lepmerge.errors import CheckpointError, RecipeError
from lepmerge.models.checkpoint import files_of, is_embeddings_only, open_checkpoint
from lepmerge.models.configs import context_in, end_ids
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.models.references import Reference, resolve
from lepmerge.operations.swap_vocabulary import swap_vocabulary
from lepmerge.output.run import digest, identities
from lepmerge.output.tokenizer_files import check_tokenizer
from lepmerge.paths import split_adapters
from lepmerge.training.config import Source, TrainConfig
from lepmerge.training.outline import open_outline
from lepmerge.training.tables import new_rows
from lepmerge.training.templates import Template, chat_template_in
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Setting:
    """A configuration with its models opened. Only headers and small files were read.

    base: the model as stored. start: the base with the new vocabulary and the initial rows of its new tokens; its
    tensors are lazy. rows: role of each table → its trained rows, empty for a frozen table.
    """

    config: TrainConfig
    reference: Reference
    base: Model
    start: Model
    rows: Mapping[str, range]
    teacher: Model | None = None
    teacher_reference: Reference | None = None

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The ids that the tokenizer puts before a text, e.g. <s>. Every document and every piece begins with them."""
        return prefix_of(self.start.vocabulary.tokenizer)

    @cached_property
    def template(self) -> Template:
        """The chat template that renders chats: the teacher's if there is one, otherwise the model's.

        Raises:
            CheckpointError: there is no template, or the student has a different one and would learn the wrong format.
        """
        if self.teacher is None:
            return Template(self.base.folder, key="model")
        template = Template(self.teacher.folder, key="teacher")
        own = chat_template_in(self.base.folder)
        if own is not None and own != template.tokenizer.chat_template:
            raise CheckpointError(
                f"model: the chat template of {self.base.folder} is not that of the teacher {self.teacher.folder}: the "
                f"student would learn from chats that it is never given; copy the teacher's template to the model"
            )
        return template

    @cached_property
    def end_id(self) -> int | None:
        """The id that ends a document: the eos token of config.json, or else of generation_config.json."""
        return next(iter(end_ids(self.start.config) or end_ids(self.start.generation_config or {})), None)

    def files(self, source: Source) -> list[Path]:
        """Return the files of a source. Relative paths are resolved against the folder of the configuration."""
        local = self.config.resolve(source.path)
        on_hub = not local.exists() and is_dataset(source.path)
        return find_files([source.path if on_hub else local], split=source.split)

    @cached_property
    def inputs(self) -> tuple[Path, ...]:
        """The folders and files that the output must not touch."""
        evaluated = self.config.evaluate.data.values() if self.config.evaluate else []
        models = [model.folder for model in (self.base, self.teacher) if model]
        return (*models, *(path for source in [*self.config.data, *evaluated] for path in self.files(source)))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that decides what is learned."""
        evaluated = self.config.evaluate.data.values() if self.config.evaluate else []
        files = [
            *(file.path for model in (self.base, self.teacher) if model for file in files_of(model)),
            *(file for source in [*self.config.data, *evaluated] for file in self.files(source)),
        ]
        return digest({"config": self.config.plain(), "reading": self.reading_digest, "files": identities(files)})

    @cached_property
    def reading_digest(self) -> str:
        """A digest of everything except the data files that decides how they are tokenized."""
        if self.config.objective == "text":
            return digest(self.start.vocabulary.spec)
        folder = (self.teacher or self.base).folder
        templates = [path.read_text() for path in sorted(folder.glob("*template*")) if path.is_file()]
        templates += [path.read_text() for path in [folder / "tokenizer_config.json"] if path.exists()]
        vocabularies = [model.vocabulary.spec for model in (self.start, self.teacher) if model]
        return digest([self.config.objective, vocabularies, templates])


def prepare(config: TrainConfig, *, weights: bool = True) -> Setting:
    """Open the models of a configuration and check that they fit together.

    weights: if False, models may lack their weights. This is enough to estimate a training.

    Raises:
        LepmergeError: a model or tokenizer cannot be read or trained, or `train.rows: new` finds no contiguous range.
    """
    if config.lora is not None and importlib.util.find_spec("peft") is None:
        raise RecipeError("lora: training a LoRA adapter needs a package: pip install 'lepmerge[lora]'")
    for key, entry in (("model", config.model), ("teacher", config.teacher)):
        if entry is not None and split_adapters(entry.path, config.folder)[1]:
            raise RecipeError(
                f"{key}: {entry.path} is a model with an adapter. Training needs a whole model: write it first, by "
                f"`lepmerge run` with a recipe without steps"
            )
    open_model = open_checkpoint if weights else open_outline
    reference = model_reference(config, weights=weights)
    base = open_model(reference, name="model")
    if is_embeddings_only(base):
        raise CheckpointError(f"model: {base.folder} holds only embeddings: name the whole base model")
    if "quantization_config" in base.config:
        raise CheckpointError(f"model: {base.folder} is quantized: train on the original weights")
    vocabulary = base.vocabulary
    if config.tokenizer is not None:
        vocabulary = Vocabulary.in_folder(resolve(config.tokenizer, relative_to=config.folder).folder)
    init = config.init if isinstance(config.init, str) else {INPUT: config.init.input, OUTPUT: config.init.output}
    start = base if config.tokenizer is None else swap_vocabulary(base, tokenizer=vocabulary, init=init)
    check_tokenizer(base.vocabulary, start.vocabulary)
    of_teacher = config.teacher and resolve(
        config.teacher.path or "", revision=config.teacher.revision, relative_to=config.folder, weights=weights
    )
    teacher = _teacher(open_model(of_teacher, name="teacher"), base) if of_teacher else None
    rows = _trained_rows(config, teacher or base, base, start)
    setting = Setting(config, reference, base, start, rows, teacher, of_teacher)
    if any(source.is_chats for source in config.data):
        _ = setting.template  # report a bad template before any data is read
    return setting


def model_reference(config: TrainConfig, *, weights: bool = True) -> Reference:
    return resolve(config.model.path, revision=config.model.revision, relative_to=config.folder, weights=weights)


def _teacher(teacher: Model, student: Model) -> Model:
    if is_embeddings_only(teacher):
        raise CheckpointError(f"teacher: {teacher.folder} holds only embeddings: name the whole model")
    if "quantization_config" in teacher.config:
        raise CheckpointError(f"teacher: {teacher.folder} is quantized: name the original weights")
    widths = [model.table(INPUT).row_width for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise CheckpointError(
            f"teacher: {teacher.folder} has hidden states of width {widths[1]}, the student {student.folder} of width "
            f"{widths[0]}: they cannot be compared; the teacher should be the model that the student was made from"
        )
    return teacher


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that a tokenizer puts before a text, e.g. <s>."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    found = (whole[:place] for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return next(found, [])


def context_of(model: Model) -> int:
    """Return the context length in a model's config, or UNLIMITED if the config has no limit."""
    return context_in(model.config)


def _trained_rows(config: TrainConfig, old: Model, base: Model, start: Model) -> dict[str, range]:
    tables = {"input": [INPUT], "output": [OUTPUT], "both": [INPUT, OUTPUT], "none": []}[config.train.tables]
    if start.tied and len(tables) == 1:
        raise RecipeError(
            f"train.tables: {config.train.tables}: the input and output embeddings of {base.folder} are one tensor "
            f"(tied): use both"
        )
    is_new = bool(tables) and config.train.rows == "new"
    rows = new_rows(old, start.vocabulary) if is_new else range(start.num_rows)
    return {role: rows if role in tables else range(0) for role in start.tables}
