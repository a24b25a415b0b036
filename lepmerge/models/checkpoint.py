"""Open a folder as a model. Only its small files and the headers of its shards are read and checked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError
from lepmerge.models.configs import TIES, check_values, first_number, read_json, set_untied, vocab_size
from lepmerge.models.gguf_file import GgufFile
from lepmerge.models.gguf_model import open_gguf
from lepmerge.models.gguf_tensor import GgufTensor
from lepmerge.models.missing_weights import missing_weights
from lepmerge.models.model import Model
from lepmerge.models.references import Reference
from lepmerge.models.safetensors_io import SafetensorsFile, StoredTensor, require_computable
from lepmerge.models.tables import FoundTables, find_tables, stored_layers
from lepmerge.tensors import leaves_of
from lepmerge.vocabulary.vocabulary import Vocabulary

SINGLE, INDEX, EMBEDDINGS = "model.safetensors", "model.safetensors.index.json", "embeddings.safetensors"
ADAPTER = "adapter_config.json"
ONLY_SHARD = "model-00001-of-00001.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_checkpoint(reference: Reference, *, name: str | None = None) -> Model:
    """Return the model in a local folder: safetensors in one file or in shards, or an embeddings-only folder.

    Raises:
        CheckpointError: files are missing, damaged, contradictory, outside the folder, or pickled.
    """
    folder, name = reference.folder, name or reference.text
    if reference.file is not None:
        return open_gguf(reference.file, name=name)
    if (folder / ADAPTER).exists() and not (folder / "config.json").exists():
        raise CheckpointError(_adapter_alone(folder))
    config = read_json(folder / "config.json", required=True)
    generation_config = read_json(folder / "generation_config.json")
    check_values(config, folder / "config.json")
    check_values(generation_config, folder / "generation_config.json")
    files = _weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor_name in sorted(file.entries, key=lambda name: file.entries[name].start):
            if tensor_name in tensors:
                raise CheckpointError(
                    f"tensor {tensor_name} is in two files of one model, {tensors[tensor_name].file.path} and "
                    f"{file.path}, and loaders may take either: remove the stale one"
                )
            tensors[tensor_name] = StoredTensor.of(tensor_name, file)
    found = find_tables(name, folder, config, tensors)
    if found.contradicted:
        set_untied(config)  # so that every loader of the output keeps the head
    tensors.pop(found.copy or "", None)
    model = Model(
        name=name,
        folder=folder,
        tensors=tensors,
        shards={tensor_name: tensor.file.path.name for tensor_name, tensor in tensors.items()},
        tables=found.names,
        config=config,
        generation_config=generation_config or None,
        vocabulary=Vocabulary.in_folder(folder, num_rows=tensors[found.names["input_embeddings"]].num_rows),
        notes=(*_notes_on_ties(found), *_check_layers(name, folder, config, tensors, found)),
        tie_reason=found.reason,
    )
    _check_tables(model)
    return model


def _notes_on_ties(found: FoundTables) -> tuple[str, ...]:
    if found.copy is not None:
        return (f"{found.copy} is a stored copy of the tied table and was left out",)
    return (f"{found.reason}. The output says {TIES}: false.",) if found.contradicted else ()


def files_of(model: Model) -> list[SafetensorsFile | GgufFile]:
    """Return the files from which a model's tensors are read, in name order."""
    leaves = (leaf for tensor in model.tensors.values() for leaf in leaves_of(tensor))
    stored = (leaf for leaf in leaves if isinstance(leaf, StoredTensor | GgufTensor))
    files: dict[Path, SafetensorsFile | GgufFile] = {leaf.file.path: leaf.file for leaf in stored}
    return [files[path] for path in sorted(files)]


def is_embeddings_only(model: Model) -> bool:
    return set(model.shards.values()) == {EMBEDDINGS}


def _weight_files(folder: Path) -> list[SafetensorsFile]:
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder} holds {SINGLE} and {INDEX}, and loaders would take the first: remove the stale one"
        )
    lost = next((path for path in sorted(folder.glob("*.safetensors")) if not path.exists()), None)
    if lost is not None:
        raise CheckpointError(f"{lost} is a link to {lost.readlink()}, which does not exist; download the model again")
    if (single.exists() or index.exists()) and (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds a whole model and {ADAPTER}: where PEFT is installed, transformers loads the base that "
            f"the adapter names, else the model. Move the adapter's files away; to merge the adapter, name it as in "
            f"BASE+FOLDER"
        )
    if index.exists():
        return _indexed_files(index)
    if single.exists():
        return [SafetensorsFile(single)]
    if (folder / EMBEDDINGS).exists():
        return [SafetensorsFile(folder / EMBEDDINGS)]
    numbered = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if numbered == [ONLY_SHARD]:
        return [SafetensorsFile(folder / ONLY_SHARD)]
    if numbered:
        raise CheckpointError(
            f"{folder / INDEX} is missing: it names the shard of each tensor, such as {numbered[0]}; download it again"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others and not (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds {others[0]}, which is not a file that transformers loads: expected {SINGLE} or {INDEX}; "
            f"download the model in the format of transformers"
        )
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they are loaded; convert "
            f"them first: AutoModelForCausalLM.from_pretrained(folder, weights_only=True).save_pretrained(new_folder)"
        )
    if (folder / ADAPTER).exists():
        raise CheckpointError(_adapter_alone(folder))
    raise CheckpointError(f"{folder} holds no weights: expected {SINGLE}, {INDEX} or {EMBEDDINGS}")


def _adapter_alone(folder: Path) -> str:
    return f"{folder} is a PEFT adapter: name its base, too, as in {{path: BASE, adapter: {folder}}} or BASE+{folder}"


def _indexed_files(index: Path) -> list[SafetensorsFile]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor name → file name; download it again")
    files: dict[str, SafetensorsFile] = {}
    for file_name in sorted(set(weight_map.values())):
        if Path(file_name).name != file_name or file_name in (".", "..") or "\\" in file_name:
            raise CheckpointError(f"{index} names the file {file_name!r}, which does not lie in its folder: refused")
        path = index.parent / file_name
        if not os.path.exists(path):  # False also for names that no file system accepts
            raise CheckpointError(f"{path} is missing, though {index.name} names it; download it again")
        files[file_name] = SafetensorsFile(path)
    for tensor_name, file_name in weight_map.items():
        if tensor_name not in files[file_name].entries:
            raise CheckpointError(
                f"{files[file_name].path} lacks tensor {tensor_name}, which {index.name} places there"
            )
    return list(files.values())


def _check_tables(model: Model) -> None:
    tables: Mapping[str, tuple[int, ...]] = {name: model.tensors[name].shape for name in model.tables.values()}
    if any(len(shape) != 2 for shape in tables.values()) or len(set(tables.values())) != 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in tables.items())
        raise CheckpointError(
            f"{model.name} ({model.folder}): the tables should have one shape (rows, width): {listed}"
        )
    for table_name in tables:
        require_computable(model.tensors[table_name], f"{model.name} ({model.folder}): tensor {table_name}")
    promised = vocab_size(model.config)
    if promised is not None and promised != model.num_rows:
        raise CheckpointError(
            f"{model.name} ({model.folder}): config.json says vocab_size {promised}, but "
            f"{model.tables['input_embeddings']} has {model.num_rows} rows: correct it or download the model again"
        )


def _check_layers(
    name: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], found: FoundTables
) -> list[str]:
    """Raise CheckpointError if weights of the body are missing. transformers would fill them with random numbers.

    Return notes on weights that may be missing, if transformers does not have the architecture.
    """
    count, stored = first_number(config, "num_hidden_layers"), stored_layers(tensors)
    if count is not None and stored and max(stored) + 1 < count:
        raise CheckpointError(
            f"{name} ({folder}): config.json says num_hidden_layers {count}, but the last stored layer is "
            f"number {max(stored)}, counted from 0: download the model again, or correct the config"
        )
    missing, is_confirmed = missing_weights(config, tensors, found.names)
    if not missing:
        return []
    lacking = f"the weight {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
    if is_confirmed:
        raise CheckpointError(f"{name} ({folder}): its files lack {lacking}; download the model again")
    return [f"{name}: its files lack {lacking}, though other layers have such weights; is the download complete?"]
