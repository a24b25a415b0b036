"""Convert a GGUF file to a safetensors folder: transformers reads the weights, lepmerge reads the tokenizer.

transformers ignores the name of a GGUF file's pre-tokenizer, so it would tokenize digits wrongly for SmolLM2.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lepmerge.errors import CheckpointError
from lepmerge.models.gguf_file import GgufFile, split_paths
from lepmerge.models.gguf_tokenizer import tokenizer_spec
from lepmerge.models.gguf_vocabulary import PREFIX
from lepmerge.output.run import Run, digest, identities
from lepmerge.progress import Progress, no_progress
from lepmerge.version import __version__

FAULTS = (ValueError, KeyError, OSError, ImportError, NotImplementedError, RuntimeError)
"""Exceptions that transformers raises for a GGUF file that it cannot read."""
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Key of tokenizer_config.json → name of the token in GGUF."""


def convert_gguf(
    path: Path,
    target: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write the model of a GGUF file as a folder with safetensors, tokenizer and chat template; return the folder.

    progress: called with the bytes of each tensor that was dequantized.

    Raises:
        CheckpointError: transformers cannot read this architecture or quantization, or the file is damaged.
        VocabularyError: lepmerge does not know the type of vocabulary or its pre-tokenizer.
    """
    parts = split_paths(path)
    if len(parts) > 1:
        raise CheckpointError(
            f"{path} is split, and transformers reads one file: join it with llama-gguf-split --merge"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: name a GGUF file")
    file = GgufFile(path)
    tokenizer = _tokenizer(file)
    fingerprint = digest([__version__, identities([path]), str(dtype)])
    run = Run(target=target, fingerprint=fingerprint, inputs=(path,), files=(path,), key="folder", overwrite=overwrite)
    if run.begin():
        return target
    size = 2 * sum(entry.num_bytes for entry in file.entries.values()) * dtype.itemsize
    run.check({}, working=size)
    with _progress_of_transformers(f"reading {path.name}", progress):
        model = _model(path, dtype)
    progress(f"writing {target.name}", 0)
    with run.opened({}, working=size) as staging:
        made = staging.folder / "made"
        made.mkdir(exist_ok=True)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        mode = (made / "config.json").stat().st_mode & 0o777  # safetensors writes files that only their owner can read
        for written in sorted(made.iterdir()):
            written.chmod(mode)
            staging.link_file(written.name, written)
    return target


@contextmanager
def _progress_of_transformers(what: str, progress: Progress) -> Iterator[None]:
    """Pass the progress of transformers' GGUF reader on. The reader draws its own bar, and has no setting for it."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def passed_on(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            progress(what, int(tensor.n_bytes))

    names = reader.__dict__
    own = names.get("tqdm")  # without this name, transformers draws no bar of this kind
    names["tqdm"] = passed_on
    try:
        yield
    finally:
        names["tqdm"] = own


def _model(path: Path, dtype: torch.dtype) -> Any:
    import transformers

    # transformers 4 always dequantizes, and has no GgufConfig
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, **options
        )
    except FAULTS as error:
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"transformers cannot read {path}: {lines[0] if lines else type(error).__name__}"
        ) from error


def _tokenizer(file: GgufFile) -> Any:
    """Return the fast tokenizer of the file, with its special tokens, chat template and context length."""
    from transformers import PreTrainedTokenizerFast

    tokens = file.value(f"{PREFIX}tokens")
    ids = {key: file.value(f"{PREFIX}{word}_token_id") for key, word in SPECIAL.items()}
    special = {key: tokens[id] for key, id in ids.items() if id is not None and id < len(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer_spec(file))),
        chat_template=file.value("tokenizer.chat_template"),
        model_max_length=file.value(f"{file.architecture}.context_length"),
        clean_up_tokenization_spaces=False,
        **special,
    )
