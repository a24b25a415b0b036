"""Open a GGUF file as a model: dequantize its tables row by row, and read vocabulary and configuration from metadata.

GGUF tensor names differ from Hugging Face's. Only the tables are renamed so that they match those of other models; all
other tensors keep their GGUF names.
"""

from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError
from lepmerge.models.gguf_file import GgufFile, split_paths
from lepmerge.models.gguf_tensor import GgufTensor
from lepmerge.models.gguf_tokenizer import tokenizer_spec
from lepmerge.models.gguf_vocabulary import PREFIX
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.vocabulary.vocabulary import Vocabulary

TABLES = {"token_embd.weight": (INPUT, "model.embed_tokens.weight"), "output.weight": (OUTPUT, "lm_head.weight")}
"""GGUF name → (role, name in most Hugging Face models)."""


def open_gguf(path: Path, *, name: str) -> Model:
    """Return the model in a GGUF file; `path` may be any part of a split file. Only headers are read.

    Raises:
        CheckpointError: the file is damaged or lacks the table of input embeddings.
        VocabularyError: lepmerge does not know the type of vocabulary or the pre-tokenizer.
    """
    parts = [GgufFile(part) for part in split_paths(path)]
    tensors: dict[str, GgufTensor] = {}
    tables: dict[str, str] = {}
    for part in parts:
        for stored in part.entries:
            role, tensor_name = TABLES.get(stored, ("", stored))
            tensors[tensor_name] = GgufTensor.of(stored, part)
            if role:
                tables[role] = tensor_name
    if INPUT not in tables:
        raise CheckpointError(f"{path} has no tensor token_embd.weight: name a GGUF file of a whole language model")
    table = tensors[tables[INPUT]]
    file = parts[0]
    return Model(
        name=name,
        folder=path.parent,
        tensors=tensors,
        shards={tensor_name: tensor.file.path.name for tensor_name, tensor in tensors.items()},
        tables={role: tables[role] for role in (INPUT, OUTPUT) if role in tables},
        config=_config(file, num_rows=table.num_rows, width=table.row_width, tied=OUTPUT not in tables),
        generation_config=None,
        vocabulary=Vocabulary(tokenizer_spec(file)),
        tie_reason="the file has output.weight" if OUTPUT in tables else "the file has no output.weight",
    )


def _config(file: GgufFile, *, num_rows: int, width: int, tied: bool) -> dict[str, Any]:
    """Return the keys of a config.json that can be derived from the metadata."""
    ids = {f"{token}_token_id": file.value(f"{PREFIX}{token}_token_id") for token in ("bos", "eos")}
    ids["pad_token_id"] = file.value(f"{PREFIX}padding_token_id")
    return {
        "model_type": file.architecture,
        "hidden_size": width,
        "num_hidden_layers": file.value(f"{file.architecture}.block_count"),
        "vocab_size": num_rows,
        "tie_word_embeddings": tied,
        **{key: id for key, id in ids.items() if id is not None},
    }
