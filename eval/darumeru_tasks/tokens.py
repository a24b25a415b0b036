"""The model's tokenizer and context length, found from the harness's arguments for the model."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from darumeru_tasks.errors import DarumeruError


@dataclass(frozen=True)
class ModelTokens:
    """The tokenizer and context of the model in `--model_args`. The files are read on first use.

    Every method raises:
        DarumeruError: there is no tokenizer with this name.
    """

    tokenizer_name: str
    revision: str = "main"
    subfolder: str = ""
    trust_remote_code: bool = False
    add_bos_token: bool | None = None
    fixed_context: int | None = None

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.tokenizer_name, **self._where)
        except (OSError, ValueError) as error:
            raise DarumeruError(f"no tokenizer in {self.tokenizer_name}: {str(error).splitlines()[0]}") from error

    @cached_property
    def context(self) -> int:
        """The maximum number of tokens of prompt and answer together."""
        from lm_eval.models.utils import resolve_max_length
        from transformers import AutoConfig

        if self.fixed_context:
            return self.fixed_context
        try:
            config = AutoConfig.from_pretrained(self.tokenizer_name, **self._where)
        except (OSError, ValueError):  # a folder with only a tokenizer, given for a model behind an API
            config = None
        return resolve_max_length(config, self.tokenizer)

    @property
    def _where(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "subfolder": self.subfolder,
            "trust_remote_code": self.trust_remote_code,
        }

    def count(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, including the special tokens that the harness adds."""
        begin = self.tokenizer.bos_token
        special = self.add_bos_token is not False and not (begin and prompt.startswith(begin))
        return len(self.tokenizer.encode(prompt, add_special_tokens=special))

    def count_text(self, text: str) -> int:
        """Return the number of tokens of a text alone."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def count_source(self, text: str) -> int:
        """Return the number of tokens of a text to be copied. A space is put in front unless the tokenizer adds one."""
        space = "" if self._adds_space else " "
        return self.count_text(space + text)

    @cached_property
    def _adds_space(self) -> bool:
        ids = self.tokenizer.encode("x", add_special_tokens=False)
        return self.tokenizer.convert_ids_to_tokens(ids)[0].startswith(("▁", "Ġ"))

    def count_generated(self, ids: list[int], text: str) -> int:
        """Return how many of the generated ids the text needs. `text` is the beginning of the decoded ids.

        It needs all of them unless a stop sequence cut it off.
        """
        if self._decoded(ids) == text:
            return len(ids)
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self._decoded(ids[:middle]).startswith(text):
                high = middle
            else:
                low = middle + 1
        return low

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def names_model(metadata: dict[str, Any]) -> bool:
    """Return whether the metadata name a tokenizer. Tasks that need none, such as 0-shot MultiQ, work without it."""
    return isinstance(_tokenizer_name(metadata), str)


def _tokenizer_name(metadata: dict[str, Any]) -> Any:
    return next((metadata[key] for key in ("tokenizer", "pretrained", "model") if metadata.get(key)), None)


def model_tokens(metadata: dict[str, Any]) -> ModelTokens:
    """Return the tokens of the model that the harness's metadata name. The metadata contain `--model_args`.

    Raises:
        DarumeruError: the metadata name no model.
    """
    name = _tokenizer_name(metadata)
    if not isinstance(name, str):
        raise DarumeruError(
            "the model's tokenizer is not known: name it in --model_args (pretrained= or tokenizer=); from Python, "
            "where the model is built already, by TaskManager(metadata={'pretrained': 'folder or Hub id'})"
        )
    context = metadata.get("max_length") or metadata.get("max_model_len")
    return _shared(
        name,
        str(metadata.get("revision") or "main"),
        str(metadata.get("subfolder") or ""),
        bool(metadata.get("trust_remote_code")),
        metadata.get("add_bos_token"),
        int(context) if context else None,
    )


_shared = lru_cache(maxsize=4)(ModelTokens)
