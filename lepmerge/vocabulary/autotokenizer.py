"""Read a folder's tokenizer as transformers' AutoTokenizer loads it.

Which ids a text gets depends on tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json and
the model type together. Classes such as Qwen2Tokenizer replace the normalizer and the pre-tokenizer of tokenizer.json.
added_tokens.json and the names of special tokens add tokens to it. Importing transformers takes seconds, so this module
imports it only when one of these files could change the tokenizer.
"""

import importlib.metadata
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.chat_templates import templates_in
from lepmerge.vocabulary.library import as_the_library_reads, library_tokenizer
from lepmerge.vocabulary.token_names import GENERIC, IN_TOKENIZER_JSON, LISTS, as_text, names_in, names_of, read_object
from lepmerge.vocabulary.valid_json import FLAGS, check_spec, read_spec

MODEL_TYPES = (None, "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen3")
"""Model types for which transformers 4 and 5 respect a generic tokenizer class. For some others, such as qwen2,
version 5 ignores it."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
CHANGES = ("auto_map", *IN_TOKENIZER_JSON)
"""Settings that let even a generic class change tokenizer.json, or prevent it from being loaded at all."""
SAMPLES = ("Hello, world! 123", "Привет, мир!\n\n  x", "a  b\tc", "don't ½ 2024-12-31")


@dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer as AutoTokenizer loads it.

    spec: its tokenizer.json. names: key of tokenizer_config.json → special token, such as bos_token → "<s>";
    `additional_special_tokens` → a list of tokens. notes: how it differs from the stored tokenizer.json, for the user.
    """

    spec: dict[str, Any]
    names: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_tokenizer(folder: Path) -> FolderTokenizer:
    """Return the tokenizer of a folder as AutoTokenizer loads it.

    Raises:
        VocabularyError: there is no tokenizer, it is damaged, or AutoTokenizer cannot load it.
    """
    path = folder / "tokenizer.json"
    stored = read_spec(path) if path.exists() else None
    settings = {name: read_object(folder / name) for name in SETTINGS if (folder / name).exists()}
    named = names_in(settings.get("tokenizer_config.json", {}), settings.get("special_tokens_map.json", {}))
    templates_in(folder)  # a fault in them is reported here, before any computing
    notes: list[str] = []
    if stored is not None:
        stored = as_the_library_reads(stored, folder, notes)
        if not (folder / "tekken.json").exists() and _is_loaded_as_stored(stored, settings):
            return FolderTokenizer(stored, named, tuple(notes))
    try:
        loaded = load_tokenizer(folder)
    except VocabularyError:
        if stored is None or not any("auto_map" in value for value in settings.values()):
            raise
        notes.append(
            f"{folder} brings Python code for its tokenizer, which is not run; its tokenizer.json is read as stored"
        )
        return FolderTokenizer(stored, named, tuple(notes))
    spec = json.loads(loaded.backend_tokenizer.to_str())
    check_spec(spec, f"what AutoTokenizer makes of {folder}")
    spec = as_the_library_reads(spec, folder, notes if stored is None else [])
    changed = [] if stored is None else _changed_parts(stored, dict(spec), folder)
    if stored is not None and not changed:
        return FolderTokenizer(stored, names_of(loaded), tuple(notes))
    if changed:
        notes.append(
            f"{folder}: transformers {_version()} loads {type(loaded).__name__}, which changes {', '.join(changed)} of "
            f"tokenizer.json; lepmerge reads the tokenizer as it is loaded"
        )
    return FolderTokenizer(spec, names_of(loaded), tuple(notes))


def check_loads(
    spec: Mapping[str, Any], tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], *, like: str
) -> None:
    """Raise VocabularyError unless AutoTokenizer will produce the ids of `spec`, a tokenizer.json not yet written.

    tokenizer_config, config: contents of the other files of the new folder. like: model that the tokenizer is made for.
    """
    settings = {"tokenizer_config.json": tokenizer_config, "config.json": config}
    if _is_loaded_as_stored(spec, settings):
        return
    text = json.dumps(spec, ensure_ascii=False)
    own = Tokenizer.from_str(text)
    name = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
            for file_name, value in settings.items():
                (Path(folder) / file_name).write_text(json.dumps(value))
            loaded = load_tokenizer(Path(folder))
        name = type(loaded).__name__
        samples = [*SAMPLES, *(entry["content"] for entry in spec.get("added_tokens") or [])]
        different = next((text for text in samples if loaded.encode(text) != own.encode(text).ids), None)
        if different is None and len(loaded) == own.get_vocab_size():
            return
        problem = f"gives other ids than tokenizer.json, for example for {different!r}"
        if different is None:
            problem = f"has {len(loaded)} tokens instead of {own.get_vocab_size()}"
    except VocabularyError as error:
        problem = f"cannot load it ({str(error).rpartition('tokenizer: ')[2]})"
    raise VocabularyError(_refusal(config.get("model_type"), problem, name, like))


def _refusal(model_type: str | None, problem: str, name: str | None, like: str) -> str:
    name = name or class_of_model_type(model_type)
    if name in GENERIC:
        return f"the new tokenizer for {like}: AutoTokenizer (transformers {_version()}) {problem}"
    return (
        f"the new tokenizer for {like}: transformers {_version()} loads {name} for the model type {model_type!r}, "
        f"whatever tokenizer_config.json says, and {name} brings its own normalizer and pre-tokenizer, so it {problem}"
        f". Take a vocabulary that splits text as the model's own does: made by `lepmerge tokenizer extend`, or by "
        f"`lepmerge tokenizer train --type bpe --like` this model"
    )


def class_of_model_type(model_type: str | None) -> str:
    """Return the class that AutoTokenizer uses for a model type when tokenizer_config.json names the generic one."""
    vocab = {chr(code): code - 33 for code in range(33, 127)}
    spec = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    files = {"tokenizer.json": spec, "tokenizer_config.json": {"tokenizer_class": GENERIC[0]}}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in {**files, "config.json": {"model_type": model_type}}.items():
            (Path(folder) / name).write_text(json.dumps(value))
        return type(load_tokenizer(Path(folder))).__name__


def load_tokenizer(folder: Path) -> Any:
    """Load the fast tokenizer of a local folder with AutoTokenizer. No code from the folder is run.

    Raises:
        VocabularyError: transformers cannot load it, or the conversion needs a package that is not installed.
    """
    _require_what_converts(folder)
    is_five = int(_version().partition(".")[0]) >= 5
    with quiet_transformers():
        from transformers import AutoTokenizer

        config = read_object(folder / "tokenizer_config.json")
        options = as_text(config)
        if not is_five and isinstance(extra := {**config, **options}.get(LISTS[1]), list):
            options |= {LISTS[0]: extra, LISTS[1]: {}}  # transformers 5 writes the list under a key that 4 cannot read
        if (folder / "tekken.json").exists() and is_five:
            options["mistral_format"] = False  # mistral-common, if installed, would give a slow tokenizer
        try:
            loaded: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **options
            )
        except Exception as error:  # damaged files make transformers raise errors of any class (KeyError, Exception, …)
            # transformers 4 asks for protobuf while it handles another exception, which is the true cause
            cause = error.__context__ or error if isinstance(error, ImportError) else error
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            if "custom code" in reason:
                reason = (
                    "it needs the Python code of the folder, which lepmerge does not run; without auto_map in "
                    "tokenizer_config.json its tokenizer.json is used"
                )
            raise VocabularyError(f"{folder}: transformers cannot load the tokenizer: {reason}") from error
    if not loaded.is_fast:
        raise VocabularyError(
            f"{folder} has only a slow tokenizer ({type(loaded).__name__}), which transformers cannot convert: "
            f"add a tokenizer.json"
        )
    return loaded


def _require_what_converts(folder: Path) -> None:
    """Raise VocabularyError if a folder has neither tokenizer.json nor files that can be converted to it here."""
    if (folder / "tokenizer.json").exists():
        return
    models = sorted(folder.glob("*.model"))
    if (folder / "tekken.json").exists():
        if int(_version().partition(".")[0]) < 5:
            raise VocabularyError(
                f"{folder} has tekken.json but no tokenizer.json: transformers converts tekken.json from version 5 on; "
                f"pip install 'transformers>=5', or add the tokenizer.json of the model"
            )
        if _is_missing("mistral_common"):
            raise VocabularyError(
                f"{folder} has tekken.json but no tokenizer.json. Converting it needs mistral-common: "
                f"pip install mistral-common"
            )
    elif models:
        is_sentencepiece = models[0].read_bytes()[:1] == b"\n"  # protobuf tag; tiktoken files are base64 text
        needed = ("sentencepiece", "google.protobuf") if is_sentencepiece else ("tiktoken",)
        if any(_is_missing(package) for package in needed):
            packages = "lepmerge[sentencepiece]" if is_sentencepiece else "tiktoken"
            what = "sentencepiece and protobuf" if is_sentencepiece else "tiktoken"
            raise VocabularyError(
                f"{folder} has {models[0].name} but no tokenizer.json. Converting it needs {what}: "
                f"pip install '{packages}'"
            )
        if is_sentencepiece:
            _require_matching_protobuf(folder / models[0].name)
    elif not any((folder / name).exists() for name in ("vocab.json", "vocab.txt", "merges.txt")):
        raise VocabularyError(f"{folder} has no tokenizer: expected tokenizer.json, tokenizer.model or tekken.json")


def _require_matching_protobuf(path: Path) -> None:
    """Raise VocabularyError if the installed sentencepiece does not work with the installed protobuf."""
    try:
        importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except Exception as error:  # TypeError, ImportError or protobuf's VersionError, by its version
        installed = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("sentencepiece", "protobuf"))
        raise VocabularyError(
            f"{path} cannot be converted to tokenizer.json with {installed}, which do not fit each other: "
            f"pip install -U sentencepiece protobuf"
        ) from error


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # the parent package, `google`, is missing too
        return True


def _version() -> str:
    return importlib.metadata.version("transformers")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' warnings on how to load a tokenizer or model: the user does not make these calls."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_loaded_as_stored(spec: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether AutoTokenizer uses tokenizer.json unchanged: the class is generic and no file adds a token."""
    if not settings:
        return True
    config, model = settings.get("tokenizer_config.json", {}), settings.get("config.json", {})
    if config.get("tokenizer_class") not in GENERIC or model.get("model_type") not in MODEL_TYPES:
        return False
    if "added_tokens.json" in settings or any(key in config for key in CHANGES):
        return False
    added = {entry["content"]: entry for entry in spec.get("added_tokens") or []}
    by_id = {str(entry["id"]): entry for entry in added.values()}
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        return False
    same = all(id in by_id and isinstance(item, dict) and _same_token(by_id[id], item) for id, item in decoder.items())
    names = names_in(config, settings.get("special_tokens_map.json", {}))
    if any(names[key] != value for key, value in names_in({}, settings.get("special_tokens_map.json", {})).items()):
        return False  # which of the two files counts depends on transformers
    tokens = [token for value in names.values() for token in (value if isinstance(value, list) else [value])]
    return same and all(token in added and added[token].get("special") is True for token in tokens)


def _same_token(entry: Mapping[str, Any], token: Mapping[str, Any]) -> bool:
    return all(entry.get(key, False) == token.get(key, False) for key in ("content", *FLAGS))


def _changed_parts(stored: Mapping[str, Any], loaded: dict[str, Any], folder: Path) -> list[str]:
    """Return the keys of tokenizer.json that a loaded tokenizer changed."""
    canonical = json.loads(library_tokenizer(stored, folder).to_str())
    keys = ("normalizer", "pre_tokenizer", "decoder", "model", "added_tokens")
    for spec in (canonical, loaded):  # null, empty and absent mean the same for a prefix or an unknown token
        spec["model"] = {key: value for key, value in spec["model"].items() if value not in (None, "", False)}
    changed = [key for key in keys if canonical.get(key) != loaded.get(key)]
    before, after = (_template(spec.get("post_processor")) for spec in (canonical, loaded))
    return changed if before == after else [*changed, "post_processor"]


def _template(post_processor: Any) -> Any:
    """Return the post-processor, or None if it adds no tokens."""
    if not isinstance(post_processor, dict) or post_processor.get("type") != "TemplateProcessing":
        return post_processor
    return None if [next(iter(piece)) for piece in post_processor["single"]] == ["Sequence"] else post_processor
