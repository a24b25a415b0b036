"""A GGUF file as output: vocabulary and tables come from the recipe's result, all else from a file of the start model.

LEP does not change the body, so a quantized body needs no conversion and keeps its bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError, RecipeError
from lepmerge.models.gguf_file import Field, GgufFile, build_gguf_header, split_paths, tensor_bytes
from lepmerge.models.gguf_tensor import EXACT_DTYPES, TABLE_TYPES, GgufTensor, quantized, table_type
from lepmerge.models.gguf_vocabulary import check_old_vocabulary, vocabulary_fields
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.models.safetensors_io import copy_range
from lepmerge.output.staging import write_all
from lepmerge.tensors import LazyTensor, Workspace, ahead, blocks, num_not_finite

INPUT_TENSOR, OUTPUT_TENSOR = "token_embd.weight", "output.weight"
SPLIT_FIELDS = ("split.no", "split.count", "split.tensors.count")
NUM_SAMPLED_ROWS = 64
CLOSE_EXACT, CLOSE_QUANTIZED = 0.999, 0.9
"""Smallest accepted median cosine between rows of the file and of the model, for types with at least 8 bits and for
types with fewer bits."""
PRECISE_TYPES = {*EXACT_DTYPES, TABLE_TYPES["q8_0"]}
QUANTIZING_BYTES = 24
"""Bytes per element that the `gguf` package needs to quantize rows: about six copies in float32."""
SIZES = {
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
}
"""GGUF field (without the architecture's name in front) → keys of config.json with the same meaning."""
OTHER_ARCHITECTURES = {"mistral": "llama", "mixtral": "llama"}
"""`model_type` in config.json → GGUF's architecture, where the two names differ."""


@dataclass(frozen=True)
class GgufShard:
    """The one file of a GGUF output.

    parts: the file of the body, or all parts if it is split. places: tensor → (file that contains it, or None for a
    table; byte offset in the output). tables: tensor → (rows to write, GGUF type). tensors: name in the model →
    computed table.
    """

    name: str
    header: bytes
    parts: tuple[GgufFile, ...]
    places: Mapping[str, tuple[GgufFile | None, int]]
    tables: Mapping[str, tuple[LazyTensor, int]]
    tensors: Mapping[str, LazyTensor]
    num_bytes: int
    notes: tuple[str, ...]
    copied_from: None = None

    @property
    def layout(self) -> bytes:
        """The bytes that determine names, types, shapes and positions of the tensors."""
        return self.header

    def _pieces(self, workspace: Workspace, not_finite: dict[str, int]) -> Iterator[bytes | tuple[GgufFile, int, int]]:
        """Yield the file front to back: bytes, or (file, start, number of bytes) to copy."""
        yield self.header
        at = len(self.header)
        for name, (file, start) in self.places.items():
            yield bytes(start - at)
            if file is None:
                tensor, type = self.tables[name]
                ranges = blocks(tensor, itemsize=max(QUANTIZING_BYTES, tensor.working_bytes))
                for rows in ahead(tensor.read(block, workspace).cpu() for block in ranges):
                    bad = num_not_finite(rows)
                    not_finite.update({name: not_finite.get(name, 0) + bad} if bad else {})
                    yield quantized(rows, type)
                at = start + _size(tensor.shape, type)
            else:
                entry = file.entries[name]
                yield file, entry.start, entry.num_bytes
                at = start + entry.num_bytes
        yield bytes(self.num_bytes - at)

    def write(self, descriptor: int, workspace: Workspace) -> dict[str, Any]:
        """Write the file to a descriptor. Return the number of NaN and infinite values in each table, if any."""
        not_finite: dict[str, int] = {}
        for piece in self._pieces(workspace, not_finite):
            if isinstance(piece, bytes):
                write_all(descriptor, piece)
                workspace.progress(self.name, len(piece))
            else:
                file, start, size = piece
                for count in copy_range(file.descriptor, start, size, descriptor):
                    workspace.progress(self.name, count)
        return {"not_finite": not_finite} if not_finite else {}


def open_body(path: Path) -> tuple[GgufFile, ...]:
    """Open a GGUF model: one file, or all parts of a split one. The first part has the metadata.

    Raises:
        CheckpointError: the file or a part is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"output.body: there is no file {path}: name a GGUF file of the instruct model")
    return tuple(GgufFile(part) for part in split_paths(path))


def gguf_shard(start: Model, final: Model, *, name: str, body: Path, tables: str | None) -> GgufShard:
    """Return the GGUF output: vocabulary and tables of `final`, everything else from `body`, a GGUF file of `start`.

    tables: GGUF type of the tables. Default: their type in `body`, or q8_0 if the `gguf` package cannot quantize to it.

    Raises:
        RecipeError: a step changed the body.
        CheckpointError: the file was not made from the start model.
        VocabularyError: llama.cpp could not split text as the new vocabulary does.
    """
    _check_body_unchanged(start, final)
    parts = open_body(body)
    main = parts[0]
    _check_sizes(main, start)
    check_old_vocabulary(main, start.vocabulary, start.name)
    stored = {tensor_name: part for part in parts for tensor_name in part.entries}
    for tensor_name, role in ((INPUT_TENSOR, INPUT), (OUTPUT_TENSOR, OUTPUT)):
        if tensor_name in stored:
            _check_rows(GgufTensor.of(tensor_name, stored[tensor_name]), start.table(role), start.name)
        elif tensor_name == INPUT_TENSOR:
            raise CheckpointError(f"{body} has no tensor {INPUT_TENSOR}: name a GGUF file of the whole model")
    written = _tables(final, stored, tables)
    changed = vocabulary_fields(main, start.vocabulary, final.vocabulary, num_rows=final.num_rows)
    fields = _merged(main.fields, changed.fields)
    shapes = {n: (part.entries[n].type, part.entries[n].shape) for n, part in stored.items()}
    order = [INPUT_TENSOR, *(n for n in (OUTPUT_TENSOR,) if n in written and n not in stored)]
    names = [m for n in stored for m in (order if n == INPUT_TENSOR else [n])]
    shapes |= {n: (type, tensor.shape) for n, (tensor, type) in written.items()}
    header, offsets = build_gguf_header(main.version, fields, {n: shapes[n] for n in names})
    last = names[-1]
    end = offsets[last] + _size(shapes[last][1], shapes[last][0])
    return GgufShard(
        name=name,
        header=header,
        parts=parts,
        places={n: (None if n in written else stored[n], offsets[n]) for n in names},
        tables=written,
        tensors={final.tables[role]: final.table(role) for role in final.tables},
        num_bytes=-(-end // main.alignment) * main.alignment,
        notes=changed.notes,
    )


def modelfile(name: str) -> bytes:
    """Return an Ollama Modelfile. It needs no chat template, because Ollama finds that in the GGUF file."""
    return f"# ollama create NAME -f this-file\nFROM ./{name}\n".encode()


def _size(shape: tuple[int, ...], type: int) -> int:
    size = tensor_bytes(shape, type)
    assert size is not None
    return size


def _merged(fields: Mapping[str, Field], changed: Mapping[str, Field | None]) -> dict[str, Field]:
    """Return the fields in the file's order, with changed fields in place and new fields at the end."""
    kept = {key: changed.get(key, field) for key, field in fields.items() if key not in SPLIT_FIELDS}
    return {key: field for key, field in {**kept, **changed}.items() if field is not None}


def _tables(final: Model, stored: Mapping[str, GgufFile], tables: str | None) -> dict[str, tuple[LazyTensor, int]]:
    """Return the tables to write: the input table, and an output table if the model or the file has one."""
    needed = {INPUT_TENSOR: INPUT}
    if OUTPUT in final.tables or OUTPUT_TENSOR in stored:
        needed[OUTPUT_TENSOR] = OUTPUT
    written = {}
    for name, role in needed.items():
        tensor = final.table(role)
        own = stored[name].entries[name].type if name in stored else stored[INPUT_TENSOR].entries[INPUT_TENSOR].type
        names = {type: known for known, type in TABLE_TYPES.items()}
        fallback = "q8_0" if tensor.row_width % 32 == 0 else "f16"
        written[name] = (tensor, table_type(tables or names.get(own, fallback), tensor.row_width))
    return written


def _check_body_unchanged(start: Model, final: Model) -> None:
    tables = {*start.tables.values(), *final.tables.values()}
    for name, tensor in final.tensors.items():
        if name not in tables and tensor is not start.tensors.get(name):
            raise RecipeError(
                f"output.body: a step changes {name}, but the body of a GGUF output is copied from the file: remove "
                f"that step, or write safetensors and convert them"
            )


def _check_sizes(file: GgufFile, start: Model) -> None:
    config: dict[str, Any] = {**start.config, **(start.config.get("text_config") or {})}
    expected = gguf_architecture(str(config.get("model_type")))
    if expected not in (None, file.architecture):
        raise CheckpointError(
            f"{file.path}: its architecture is {file.architecture}, but {start.name} is a {config['model_type']} "
            f"model: the file is not made from this model"
        )
    for field, keys in SIZES.items():
        there = file.value(f"{file.architecture}.{field}")
        here = next((config[key] for key in keys if key in config), None)
        if there is not None and here is not None and there != here:
            raise CheckpointError(
                f"{file.path}: {field} is {there}, but {here} in {start.name}: the file is not made from this model"
            )


def gguf_architecture(model_type: str) -> str | None:
    """Return GGUF's name of the architecture of a `model_type`, or None if GGUF has no architecture of this name."""
    from gguf.constants import MODEL_ARCH_NAMES

    known = {_plain_name(name): name for name in MODEL_ARCH_NAMES.values()}
    return OTHER_ARCHITECTURES.get(model_type, known.get(_plain_name(model_type)))


def _plain_name(architecture: str) -> str:
    return architecture.replace("_", "").replace("-", "").removesuffix("text")


def _check_rows(there: GgufTensor, here: LazyTensor, name: str) -> None:
    """Raise CheckpointError unless the file's table matches the model's up to quantization errors."""
    if there.row_width != here.row_width or there.num_rows < here.num_rows:
        raise CheckpointError(
            f"{there.file.path}: {there.name} has the shape {list(there.shape)}, but {list(here.shape)} in {name}"
        )
    rows = torch.linspace(0, here.num_rows - 1, NUM_SAMPLED_ROWS).long().unique()
    mine, others = (tensor.read(rows, Workspace()).double() for tensor in (here, there))
    used = mine.norm(dim=1) > 0
    cosine = torch.nn.functional.cosine_similarity(mine[used], others[used]).median()
    least = CLOSE_EXACT if there.entry.type in PRECISE_TYPES else CLOSE_QUANTIZED
    if not cosine >= least:
        raise CheckpointError(
            f"{there.file.path}: the rows of {there.name} are not those of {name} (median cosine {cosine:.3f}): the "
            f"file is made from another model"
        )
