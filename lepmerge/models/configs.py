"""Read and change a config.json: its language model, vocabulary size, tied embeddings, and token ids."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError
from lepmerge.json_text import read_json_file

TIES = "tie_word_embeddings"
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers")
PAIRS = ("forced_decoder_ids", "sequence_bias")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
UNLIMITED = 1 << 30
"""Context length, in tokens, of a model whose config has no limit."""


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if the file does not exist and is not required."""
    if not path.exists():
        if required:
            raise CheckpointError(f"{path} is missing: a model is a folder with config.json, tokenizer and safetensors")
        return {}
    value = read_json_file(path, CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def check_values(config: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if a value of a config that lepmerge relies on has the wrong type."""
    for part in (config, *text_configs(config)):
        for key in (*COUNTS, *IDS, TIES):
            value = part.get(key)
            kind, what = (bool, "true or false") if key == TIES else (int, "a whole number")
            values = value if key in IDS and isinstance(value, list) else [value]
            if not all(item is None or type(item) is kind for item in values):
                raise CheckpointError(f"{path}: {key} should be {what}, not {value!r:.60}: correct it")
        for key in PAIRS:
            pairs = part.get(key) or []
            if isinstance(pairs, list) and not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                raise CheckpointError(f"{path}: {key} should be a list of pairs, not {pairs!r:.60}: correct it")


def text_configs(config: Mapping[str, Any]) -> list[Any]:
    """Return the configs of the language model inside a multimodal config. A plain config has none."""
    return [
        config[key] for key in ("text_config", "llm_config", "language_config") if isinstance(config.get(key), dict)
    ]


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """Return the number of rows in the config, or None if the config relies on the architecture's default."""
    return first_number(config, "vocab_size")


def first_number(config: Mapping[str, Any], key: str) -> int | None:
    """Return an integer from the language model's config, or from the wrapper's config if the former lacks it."""
    for part in (*text_configs(config), config):
        if isinstance(part.get(key), int):
            return part[key]
    return None


def context_in(config: Mapping[str, Any]) -> int:
    """Return the context length in a config, or UNLIMITED if the config has no limit."""
    for part in (*text_configs(config), config):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(part.get(key), int):
                return part[key]
    return UNLIMITED


def end_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end tokens (eos) of a config, those of the language model where the wrapper names none."""
    found = next((ids for part in (config, *text_configs(config)) if (ids := part.get("eos_token_id")) is not None), ())
    listed = found if isinstance(found, list | tuple) else [found]
    return tuple(id for id in listed if isinstance(id, int))


def set_vocab_size(config: dict[str, Any], num_rows: int) -> None:
    """Write the number of rows wherever the config has it, and always where the language model's class reads it."""
    for part in text_configs(config) or [config]:
        part["vocab_size"] = num_rows
    for key in ("vocab_size", "decoder_vocab_size"):  # the second one is Marian's
        if key in config:
            config[key] = num_rows


def set_untied(config: dict[str, Any]) -> None:
    """Write that the embeddings are not tied, in the wrapper's config and in the language model's."""
    for part in (config, *text_configs(config)):
        part[TIES] = False


def ties(config: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Return whether a config ties the embeddings (None if unknown), and the reason.

    A value in a plain config decides. If it has none, and for wrappers of a language model, transformers' config class
    for the model type decides, including its default.
    """
    if config.get(TIES) is not None and not text_configs(config):
        return bool(config[TIES]), f"config.json says {TIES}: {str(bool(config[TIES])).lower()}"
    said = [part[TIES] for part in (config, *text_configs(config)) if part.get(TIES) is not None]
    found = _class_says(config)
    if found is not None:
        value, class_name = found
        how = f"as {class_name} reads it" if said else f"silent, and {class_name} by default"
        return value, f"config.json, {how}, says {TIES}: {str(value).lower()}"
    if said:
        return bool(said[0]), f"config.json says {TIES}: {str(bool(said[0])).lower()}"
    return None, f"config.json does not say {TIES}, and transformers does not know its model type"


def as_read(value: Any) -> Any:
    """Return a config as transformers reads it: a file holds {"__float__": "Infinity"} for a number JSON lacks."""
    if isinstance(value, Mapping):
        return float(value["__float__"]) if value.keys() == {"__float__"} else {k: as_read(v) for k, v in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list) else value


def config_faults() -> tuple[type[Exception], ...]:
    """Return the exceptions that transformers raises for a config from which it cannot build a config or a model."""
    import huggingface_hub.errors

    # raised by transformers 5, whose configs check the types of their values
    wrong_type = getattr(huggingface_hub.errors, "StrictDataclassError", TypeError)
    return (ValueError, KeyError, AttributeError, ImportError, TypeError, wrong_type)


def _class_says(config: Mapping[str, Any]) -> tuple[bool, str] | None:
    import transformers

    try:
        config_class = transformers.CONFIG_MAPPING[str(config.get("model_type"))]
        built = config_class.from_dict(as_read(config))
    except config_faults():
        return None
    if int(transformers.__version__.partition(".")[0]) < 5:
        built = built.get_text_config()  # transformers 4 asks the language model, 5 the wrapper
    value = getattr(built, TIES, None)
    return None if value is None else (bool(value), config_class.__name__)


HOLDS_IDS = re.compile(
    r"(^|_)token_(id|ids|index)$|^(begin_)?suppress_tokens$|^(bad|force)_words_ids$|^(start|end)_token_ids?$"
)


MAY_BE_NONE = re.compile(
    r"^((forced_)?(bos|eos)|pad|sep|cls|mask|unk|decoder_start)_token_id$|suppress_tokens$|words_ids$"
)
NO_TOKEN = -1
"""Replaces a lost id, such as that of images, whose config class accepts no null."""


def remap_ids(config: Mapping[str, Any], new_id_of: Mapping[int, int], lost: list[str]) -> dict[str, Any]:
    """Return the config with every token id replaced by its new id. Ids without one are removed and named in `lost`.

    A single lost id becomes None where config classes allow it, and otherwise NO_TOKEN (as for image_token_index).

    Token ids are the integers under keys such as eos_token_id, image_token_index and suppress_tokens. In bad_words_ids,
    force_words_ids and sequence_bias, a sequence that loses an id is removed as a whole, because the rest would forbid
    other words. forced_decoder_ids contains pairs of position and id.
    """

    def one(value: Any, key: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return value
        if value not in new_id_of:
            lost.append(f"{key} {value}")
        return new_id_of.get(value, None if MAY_BE_NONE.search(key) else NO_TOKEN)

    def whole(value: Any, key: str) -> Any:
        """Replace the ids in nested lists. Return None if one of them has no new id."""
        if not isinstance(value, list):
            return value if isinstance(value, bool) or not isinstance(value, int) else new_id_of.get(value)
        items = [whole(item, key) for item in value]
        return None if None in items else items

    def sequences(value: list[Any], key: str) -> list[Any] | None:
        kept = []
        for sequence in value:
            ids, rest = (sequence[0], sequence[1:]) if key == "sequence_bias" else (sequence, None)
            renamed = whole(ids, key)
            if renamed is None:
                lost.append(f"{key} {ids}")
            else:
                kept.append(renamed if rest is None else [renamed, *rest])
        return kept or None

    def ids(value: Any, key: str) -> Any:
        if not isinstance(value, list):
            return one(value, key)
        if any(isinstance(item, list) for item in value):
            return sequences(value, key)
        return [item for item in (one(item, key) for item in value) if item not in (None, NO_TOKEN)] or None

    def walk(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {key: renamed(key, value) for key, value in part.items()}

    def renamed(key: str, value: Any) -> Any:
        if key == "forced_decoder_ids" and isinstance(value, list):
            pairs = [[place, one(id, key)] for place, id in value]
            return [pair for pair in pairs if pair[1] not in (None, NO_TOKEN)] or None
        if key == "sequence_bias" and isinstance(value, list):
            return sequences(value, key)
        return ids(value, key) if HOLDS_IDS.search(key) else walk(value)

    return walk(config)
