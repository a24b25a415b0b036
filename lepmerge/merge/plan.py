"""Make a plan from a recipe and the headers of its models: the final model, its files, what to read and compute."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lepmerge.computation.pad_vocabulary import pad_vocabulary
from lepmerge.config.entries import PerTable, Step, TrainedEntry
from lepmerge.config.kinds import marked_texts
from lepmerge.errors import LepmergeError, RecipeError, ReferenceNotFound
from lepmerge.merge.gguf_shard import GgufShard, gguf_shard, modelfile
from lepmerge.merge.recipe import OPERATIONS, Recipe
from lepmerge.merge.shards import Shard, shards_of
from lepmerge.models.adapters import open_reference
from lepmerge.models.model import Model
from lepmerge.models.references import Reference, resolve, resolve_adapted
from lepmerge.models.safetensors_io import StoredTensor, is_computable
from lepmerge.output.carried_files import carried_files, left_out
from lepmerge.output.chat_templates import check_template, chosen_templates, with_templates
from lepmerge.output.checks import check_place
from lepmerge.output.staging import Staging
from lepmerge.output.tokenizer_files import check_tokenizer
from lepmerge.tensors import (
    BLOCK_BYTES,
    INTERPRETER_BYTES,
    Elementwise,
    LazyTensor,
    Reduction,
    Unread,
    leaves_of,
    reductions_of,
)
from lepmerge.vocabulary.vocabulary import Vocabulary

REPORT = "lepmerge_report.json"


@dataclass(frozen=True)
class Plan:
    """What a run will do. To make it, only headers and small files were read."""

    recipe: Recipe
    references: Mapping[str, Reference]
    models: Mapping[str, Model]
    start: Model
    final: Model
    shards: tuple[Shard | GgufShard, ...]
    files: Mapping[str, bytes | Path]
    untrained: tuple[str, ...] = ()
    """Names of the models that have no weights yet. Such a plan can be shown but not executed."""

    @property
    def target(self) -> Path:
        return self.recipe.resolve(self.recipe.output.path)

    @property
    def is_file(self) -> bool:
        """Whether the output is a single file, with its small files next to it."""
        return self.recipe.output.body is not None

    def small_file(self, name: str) -> str:
        """Return the name of a small file: `README.md`, or `NAME.README.md` next to `NAME.gguf`."""
        return f"{self.target.stem}.{name}" if self.is_file else name

    @property
    def report_path(self) -> Path:
        """The path of the run's report."""
        return (self.target.parent if self.is_file else self.target) / self.small_file(REPORT)

    @property
    def notes(self) -> list[str]:
        """Notes for the user before the run."""
        of_shards = (note for shard in self.shards if isinstance(shard, GgufShard) for note in shard.notes)
        return [*self.final.notes, *of_shards]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The folders and files that the run reads. The output must not touch them."""
        tokenizers = {folder for name in self.recipe.tokenizers() if (folder := self.recipe.resolve(name)).is_dir()}
        read = {path for reference in self.references.values() for path in reference.paths}
        bodies = {part.path for shard in self.shards if isinstance(shard, GgufShard) for part in shard.parts}
        template = self.recipe.output.chat_template
        templates = {self.recipe.resolve(template)} if template is not None and template not in self.models else set()
        return tuple(sorted(read | tokenizers | bodies | templates))

    @cached_property
    def computed(self) -> dict[str, LazyTensor]:
        return {
            name: tensor for name, tensor in self.final.tensors.items() if not isinstance(tensor, StoredTensor | Unread)
        }

    @cached_property
    def reductions(self) -> list[Reduction]:
        in_tensors = reductions_of(self.computed.values())
        in_reports = [reduction for report in self.final.reports for reduction in report.reductions]
        return list(dict.fromkeys([*in_tensors, *in_reports]))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes to read, copy, compute and write, and an upper bound of the run's memory."""
        written = sum(shard.num_bytes for shard in self.shards)
        computed = sum(tensor.num_bytes for tensor in self.computed.values())
        operands = [operand for reduction in self.reductions for operand in reduction.operands]
        read = sum(leaf.num_bytes for tensor in [*self.computed.values(), *operands] for leaf in leaves_of(tensor))
        working = [reduction.memory for reduction in self.reductions]
        vocabularies = {id(model.vocabulary): model.vocabulary for model in [*self.models.values(), self.final]}
        blocks = max((_block_bytes(tensor) for tensor in self.computed.values()), default=0)
        return {
            "read": read,
            "copied": written - computed,
            "computed": computed,
            "written": written,
            "memory": INTERPRETER_BYTES
            + sum(vocabulary.num_bytes for vocabulary in vocabularies.values())
            + max(working, default=0)
            + blocks,
        }


def _block_bytes(tensor: LazyTensor) -> int:
    """Return the memory of computing a tensor block by block.

    A block has at most BLOCK_BYTES, but always at least one row. Rows larger than a block are counted as float32, and
    with twice the number of rows that are in use at a time, because the allocator keeps freed blocks of this size
    (measured with 1 to 6 operands).
    """
    num_rows_alive = 12 + 4 * sum(1 for _ in leaves_of(tensor))
    return max(8 * BLOCK_BYTES, num_rows_alive * 4 * tensor.row_width)


def make_plan(
    recipe: Recipe, *, trained: Mapping[str, Reference] | None = None, untrained: Mapping[str, Model] | None = None
) -> Plan:
    """Return the plan of a recipe.

    trained: model name → output of its finished training, for entries `{train: …}`; see
    lepmerge.training.trained.trained_models. untrained: model name → a model with the same shapes, for models that have
    no weights yet; see lepmerge.training.trained.untrained_models and outlined_models.

    Raises:
        LepmergeError: recipe, models or vocabularies are invalid, as far as headers show. Nothing is written.
    """
    untrained = untrained or {}
    outputs = {**(trained or {}), **{name: Reference(name, model.folder) for name, model in untrained.items()}}
    references = {name: _reference(recipe, name, outputs) for name in recipe.models}
    models = {
        name: replace(untrained[name], name=name) if name in untrained else open_reference(reference, name=name)
        for name, reference in references.items()
    }
    model = start = models[recipe.start]
    for number, step in enumerate(recipe.steps):
        try:
            model = OPERATIONS[step.operation()].function(model, **_keywords(step, models, recipe.folder))
        except LepmergeError as error:
            raise type(error)(f"steps.{number} ({step.operation()}): {error}") from error
    if recipe.output.pad_to_multiple_of is not None:
        model = pad_vocabulary(model, multiple=recipe.output.pad_to_multiple_of)
    if recipe.output.dtype is not None:
        model = _cast(model, getattr(torch, recipe.output.dtype))
    notes = [note for each in models.values() for note in each.vocabulary.notes]
    model = replace(model, notes=tuple(dict.fromkeys([*model.notes, *notes, *left_out(start, model)])))
    plan = Plan(recipe, references, models, start, model, (), {}, tuple(untrained))
    plan = _with_gguf_file(plan) if recipe.output.body is not None else _with_folder(plan)
    check_place(plan.target, inputs=plan.inputs, is_file=plan.is_file)
    return plan


def _with_folder(plan: Plan) -> Plan:
    """Return the plan with the files of a model folder."""
    start, output = plan.start, plan.recipe.output
    if plan.references[plan.recipe.start].file is not None:
        raise RecipeError(
            f"output: {plan.recipe.start} is a GGUF file, so the result is one too: name a GGUF file as output.body "
            f"(it may be the same one), or convert it first with `lepmerge convert`"
        )
    check_tokenizer(start.vocabulary, plan.final.vocabulary)
    files = carried_files(start, plan.final, dtype=output.dtype)
    shards = shards_of(plan.final, output.shard_size)
    clashes = sorted({shard.name for shard in shards} & files.keys())
    assert not clashes, clashes
    return _with_chat_template(replace(plan, shards=shards, files=files))


def _with_chat_template(plan: Plan) -> Plan:
    """Return the plan with the chat template that the recipe chooses."""
    chosen = plan.recipe.output.chat_template
    if chosen is None:
        return plan
    model, vocabulary = plan.models.get(chosen), plan.final.vocabulary
    templates = chosen_templates(chosen, model=model, path=plan.recipe.resolve(chosen))
    source = model.vocabulary if model is not None else None
    notes = check_template(chosen, templates, vocabulary, names=plan.start.vocabulary.names, source=source)
    final = replace(plan.final, notes=(*plan.final.notes, *notes))
    return replace(plan, files=with_templates(plan.files, templates), final=final)


def _with_gguf_file(plan: Plan) -> Plan:
    """Return the plan with a GGUF file, and an Ollama Modelfile next to it."""
    output, name = plan.recipe.output, plan.target.name
    assert output.body is not None
    shard = gguf_shard(plan.start, plan.final, name=name, body=plan.recipe.resolve(output.body), tables=output.tables)
    return replace(plan, shards=(shard,), files={plan.small_file("Modelfile"): modelfile(name)})


def _reference(recipe: Recipe, name: str, trained: Mapping[str, Reference]) -> Reference:
    entry = recipe.models[name]
    if isinstance(entry, TrainedEntry):
        if name not in trained:
            raise RecipeError(
                f"models.{name}: the training {entry.train} is not finished: run `lepmerge train "
                f"{recipe.resolve(entry.train)}` first (an interrupted one continues), or give `lepmerge run` --train"
            )
        return replace(trained[name], text=entry.train)
    try:
        return resolve_adapted(entry.path, entry.adapters, revision=entry.revision, relative_to=recipe.folder)
    except ReferenceNotFound as error:
        staging = Staging(recipe.resolve(entry.path)).folder
        if staging.is_dir():
            raise ReferenceNotFound(
                f"models.{name}: {entry.path} is not finished: {staging} holds an interrupted run; run the command "
                f"that began it again (`lepmerge train` with its configuration, for a training), and it continues"
            ) from error
        raise ReferenceNotFound(f"models.{name}: {error}") from error


def _keywords(step: Step, models: Mapping[str, Model], folder: Path) -> dict[str, Any]:
    """Return a step's fields as keywords of its operation. Names become models and vocabularies."""
    keywords: dict[str, Any] = {field: getattr(step, field) for field in type(step).model_fields if field != "op"}
    for field, value in keywords.items():
        if isinstance(value, PerTable):
            keywords[field] = value.by_table()
    for place, marker, text in marked_texts(type(step), step.model_dump()):
        if marker == "tokenizer" and text not in models:
            _set(keywords, place, Vocabulary.in_folder(resolve(text, relative_to=folder).folder))
        elif marker in ("model", "tokenizer"):
            _set(keywords, place, models[text] if marker == "model" else models[text].vocabulary)
    return {**keywords, "models": models} if OPERATIONS[step.operation()].takes_all_models else keywords


def _set(keywords: dict[str, Any], place: tuple[int | str, ...], value: Model | Vocabulary) -> None:
    """Replace a name by its value.

    The name may be a field, an item of a list, or a key of a mapping; for a key, its value becomes (value, old value).
    Names deeper in an entry remain names.
    """
    field, *rest = place
    if not rest:
        keywords[str(field)] = value
    elif len(rest) == 1 and isinstance(rest[0], int):
        items = keywords[str(field)]
        keywords[str(field)] = [*items[: rest[0]], value, *items[rest[0] + 1 :]]
    elif len(rest) == 1:
        items = keywords[str(field)]
        keywords[str(field)] = {**items, rest[0]: (value, items[rest[0]])}


def _cast(model: Model, dtype: torch.dtype) -> Model:
    """Return the model with every floating-point tensor cast to one dtype."""
    if "quantization_config" in model.config:
        raise RecipeError(f"output.dtype: {model.name} is quantized, its tensors keep their types; remove output.dtype")
    cast = {
        name: Elementwise(function=_same, operands=(tensor,), shape=tensor.shape, dtype=dtype)
        for name, tensor in model.tensors.items()
        if is_computable(tensor) and tensor.dtype != dtype
    }
    return replace(model, tensors={**model.tensors, **cast})


def _same(rows: torch.Tensor) -> torch.Tensor:
    return rows
