"""The one noun: a model is its lazy tensors, configs and vocabulary, with the names of its two tables."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import LazyTensor
from lepmerge.vocabulary.vocabulary import Vocabulary

INPUT, OUTPUT = "input_embeddings", "output_embeddings"
INPUT_SUFFIXES = (
    "embed_tokens.weight",
    "embed_in.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)
OUTPUT_SUFFIXES = ("lm_head.weight", "embed_out.weight")
ROW_PER_TOKEN = re.compile(r"embed|head|wte|logits")


@dataclass(frozen=True)
class Model:
    """A model as operations see it: nothing here was read but headers and small files.

    tensors: name → lazy tensor. tables: `input_embeddings` and, unless tied, `output_embeddings` → tensor name.
    shards: tensor name → file name in the folder. vocabulary: of the rows of the tables.
    """

    name: str
    folder: Path
    tensors: Mapping[str, LazyTensor]
    shards: Mapping[str, str]
    tables: Mapping[str, str]
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()
    reports: tuple[TableReport, ...] = ()

    @property
    def tied(self) -> bool:
        return OUTPUT not in self.tables

    def table(self, role: str) -> LazyTensor:
        """Return the table of input or output embeddings; a tied model has one for both."""
        return self.tensors[self.tables.get(role, self.tables[INPUT])]

    def describe_table(self, role: str) -> str:
        """Return the name, folder and tensor of a table, for messages."""
        return f"{self.name} ({self.folder}): tensor {self.tables.get(role, self.tables[INPUT])}"

    @property
    def num_rows(self) -> int:
        return self.table(INPUT).shape[0]

    def require_row_of_every_token(self) -> None:
        """Raise CheckpointError when the tokenizer has an id that the table has no row for."""
        beyond = {token: id for token, id in self.vocabulary.all_ids.items() if id >= self.num_rows}
        if beyond:
            token, id = min(beyond.items(), key=lambda item: item[1])
            raise CheckpointError(
                f"{self.name} ({self.folder}): the tokenizer has {len(beyond)} tokens beyond the {self.num_rows} rows "
                f"of {self.tables[INPUT]}, the first is {token!r} with id {id}: remove them from the tokenizer, or "
                f"give them rows with model.resize_token_embeddings() and save the model again"
            )

    def with_tables(
        self, tables: Mapping[str, LazyTensor], vocabulary: Vocabulary, reports: tuple[TableReport, ...] = ()
    ) -> "Model":
        """Return the model with other tables (role → tensor) for another vocabulary; token ids in its configs follow.

        Raises:
            CheckpointError: another tensor has a row per token and would no longer fit.
        """
        num_rows = {table.shape[0] for table in tables.values()}
        assert len(num_rows) == 1 and tables.keys() == self.tables.keys()
        if num_rows != {self.num_rows} or vocabulary is not self.vocabulary:
            self._refuse_other_row_per_token_tensors()
        tensors = {**self.tensors, **{self.tables[role]: table for role, table in tables.items()}}
        config = copy.deepcopy(dict(self.config))
        set_vocab_size(config, num_rows.pop())
        changed = replace(self, tensors=tensors, config=config, reports=self.reports + reports)
        return changed if vocabulary is self.vocabulary else changed._with_vocabulary(vocabulary)

    def _with_vocabulary(self, vocabulary: Vocabulary) -> "Model":
        new_id_of = self.vocabulary.ids_in(vocabulary)
        lost: list[str] = []
        config = remap_ids(self.config, new_id_of, lost)
        generation_config = remap_ids(self.generation_config, new_id_of, lost) if self.generation_config else None
        notes = tuple(f"{key}: the output has no such token, so the id was removed" for key in lost)
        return replace(
            self, vocabulary=vocabulary, config=config, generation_config=generation_config, notes=self.notes + notes
        )

    def _refuse_other_row_per_token_tensors(self) -> None:
        for name, tensor in self.tensors.items():
            if name in self.tables.values() or not tensor.shape or tensor.shape[0] != self.num_rows:
                continue
            if ROW_PER_TOKEN.search(name):
                raise CheckpointError(
                    f"{self.name}: tensor {name} {list(tensor.shape)} also has a row per token, and lepmerge knows no "
                    f"rule for it: remove it (an output bias folded or dropped, an extra head) and save the model again"
                )


def find_tables(
    name: str, folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Return role → tensor name, told by the config and the names of the tensors.

    Raises:
        CheckpointError: no table of input embeddings, several, or an untied model without output embeddings.
    """
    inputs, outputs = _ending(shapes, INPUT_SUFFIXES), _ending(shapes, OUTPUT_SUFFIXES)
    if len(inputs) != 1 or len(outputs) > 1:
        inputs, outputs = _asking_transformers(config, shapes)
    if len(inputs) != 1:
        raise CheckpointError(
            f"{name} ({folder}): no single tensor of input embeddings, found {inputs or 'none'}; lepmerge transforms "
            f"decoder language models (names ending in {', '.join(INPUT_SUFFIXES)})"
        )
    tied = tied_by_config(config)
    if tied is False and not outputs:
        raise CheckpointError(
            f"{name} ({folder}): tie_word_embeddings is false, but there is no output table "
            f"({' or '.join(OUTPUT_SUFFIXES)}): the checkpoint is incomplete"
        )
    return {INPUT: inputs[0]} if tied or not outputs else {INPUT: inputs[0], OUTPUT: outputs[0]}


def tied_by_config(config: Mapping[str, Any]) -> bool | None:
    """Return what the config says of tied embeddings, None when it says nothing."""
    for part in (config, *text_configs(config)):
        if part.get("tie_word_embeddings") is not None:
            return bool(part["tie_word_embeddings"])
    return None


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """Return the number of rows that the config promises, None when it leaves it to the architecture's default."""
    for part in (*text_configs(config), config):
        if isinstance(part.get("vocab_size"), int):
            return part["vocab_size"]
    return None


def set_vocab_size(config: dict[str, Any], num_rows: int) -> None:
    parts = [part for part in (config, *text_configs(config)) if "vocab_size" in part]
    for part in parts or text_configs(config) or [config]:
        part["vocab_size"] = num_rows


def remap_ids(config: Mapping[str, Any], new_id_of: Mapping[int, int], lost: list[str]) -> dict[str, Any]:
    """Return the config with every token id in it renamed; ids without a new one are removed and named in `lost`.

    Token ids are the integers under keys such as eos_token_id, image_token_index, suppress_tokens, bad_words_ids.
    """

    def renamed(value: Any, key: str) -> Any:
        if isinstance(value, bool) or value is None or (isinstance(value, int) and value < 0):
            return value
        if isinstance(value, int):
            if value not in new_id_of:
                lost.append(f"{key} {value}")
            return new_id_of.get(value)
        if isinstance(value, list):
            return [item for item in (renamed(item, key) for item in value) if item is not None and item != []]
        return value

    def walk(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: renamed(value, key) if _HOLDS_IDS.search(key) else walk(value) for key, value in part.items()}
        return part

    return walk(config)


_HOLDS_IDS = re.compile(
    r"(^|_)token_(id|ids|index)$|^(begin_)?suppress_tokens$|^(bad|force)_words_ids$|^(start|end)_token_ids?$"
)


def text_configs(config: Mapping[str, Any]) -> list[Any]:
    """Return the configs of the language model inside a multimodal one; none in a plain one."""
    return [
        config[key] for key in ("text_config", "llm_config", "language_config") if isinstance(config.get(key), dict)
    ]


def _ending(names: Mapping[str, tuple[int, ...]], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes))]


def _asking_transformers(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str]]:
    """Build the architecture without weights and return the stored names of its two tables."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    except (
        ValueError,
        KeyError,
        AttributeError,
        ImportError,
        TypeError,
    ):  # a config that this transformers cannot build
        return [], []
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def stored(module: Any) -> Iterator[str]:
        weight = names.get(id(getattr(module, "weight", None)))
        while weight is not None:  # wrappers add or drop leading parts
            found = [name for name in shapes if f".{name}".endswith(f".{weight}")]
            if len(found) == 1:
                yield found[0]
                return
            weight = weight.partition(".")[2] or None

    return list(stored(model.get_input_embeddings())), list(stored(model.get_output_embeddings()))
