"""Add to lm-evaluation-harness 0.4.13 what these tasks need, by wrapping five of its functions.

Only requests of these tasks, marked by the classes below, are treated differently. Texts that HFLM and VLLM generate
in the same run get their token ids. The classes are subclasses of str, so that the harness logs, hashes, caches and
pickles them as usual.
"""

import inspect
import os
import sys
from collections.abc import Sequence
from functools import wraps
from typing import Any

from darumeru_tasks.errors import DarumeruError
from darumeru_tasks.statistics import Statistic


class Continuation(str):
    """One of several texts that may follow a context. texts: all of them. place: the index of this one."""

    texts: tuple[str, ...]
    place: int

    def __new__(cls, texts: Sequence[str], place: int) -> "Continuation":
        made = super().__new__(cls, texts[place])
        made.texts, made.place = tuple(texts), place
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.texts, self.place)

    def token_ids(self, model: Any, context: str) -> tuple[list[int], list[int]]:
        """Return the token ids of the context, and the token ids after it that are scored."""
        raise NotImplementedError


class Choice(Continuation):
    """A choice. Only the first token that differs between the choices is scored; earlier ones belong to the context."""

    def token_ids(self, model: Any, context: str) -> tuple[list[int], list[int]]:
        encoded = _encodings(model, context, self.texts)
        shared = len(os.path.commonprefix(encoded))
        firsts = [ids[shared : shared + 1] for ids in encoded]
        if [] in firsts or len({ids[0] for ids in firsts}) < len(firsts):
            raise DarumeruError(
                f"the tokenizer cannot tell the choices {list(self.texts)} apart by one token: their remainders "
                f"begin with the ids {firsts}"
            )
        return encoded[self.place][:shared], firsts[self.place]


class Sentence(Continuation):
    """A message. Its first m tokens are scored, where m is the number of tokens of the shortest of `texts`."""

    def token_ids(self, model: Any, context: str) -> tuple[list[int], list[int]]:
        start, *encoded = _encodings(model, context, ("", *self.texts))
        begins = [len(os.path.commonprefix([start, ids])) for ids in encoded]
        shortest = min(len(ids) - begin for ids, begin in zip(encoded, begins, strict=True))
        ids, begin = encoded[self.place], begins[self.place]
        return ids[:begin], ids[begin : begin + shortest]


def _encodings(model: Any, context: str, texts: tuple[str, ...]) -> list[list[int]]:
    """Return the token ids of the context followed by each text. The model object caches the last result."""
    key, encoded = getattr(model, "_darumeru_encodings", (None, None))
    if key != (context, texts) or encoded is None:
        encoded = [model.tok_encode(context + text) for text in texts]
        model._darumeru_encodings = ((context, texts), encoded)
    return encoded


class Generated(str):
    """A generated text with its token ids, excluding the end token and everything after it.

    The harness cuts off stop sequences with `split`, which therefore returns texts of this class with the same ids.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int]) -> "Generated":
        made = super().__new__(cls, text)
        made.ids = list(ids)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Generated, (str(self), self.ids)

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        return [Generated(part, self.ids) for part in super().split(sep, maxsplit)]

    def lstrip(self, characters: str | None = None) -> str:
        return Generated(super().lstrip(characters), self.ids)


def extend_harness() -> None:
    """Wrap the functions of the harness that are loaded by now, unless they are wrapped already."""
    from lm_eval import evaluator_utils
    from lm_eval.api.model import TemplateLM

    _wrap(TemplateLM, "_encode_pair", _encode_pair)
    _wrap(evaluator_utils, "stderr_for_metric", _stderr_for_metric)
    if (huggingface := sys.modules.get("lm_eval.models.huggingface")) is not None:
        _wrap(huggingface.HFLM, "tok_decode", _tok_decode)
        _wrap(huggingface.HFLM, "_loglikelihood_tokens", _loglikelihood_tokens)
    if (vllm := sys.modules.get("lm_eval.models.vllm_causallms")) is not None:
        _wrap(vllm.VLLM, "_model_generate", _model_generate)


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    original = vars(owner)[name]
    if not hasattr(original, "_darumeru"):
        wrapped: Any = wraps(original)(wrapper(original))
        wrapped._darumeru = True
        setattr(owner, name, wrapped)


def _encode_pair(original: Any) -> Any:
    def encode_pair(self: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(continuation, Continuation):
            return continuation.token_ids(self, context)
        return original(self, context, continuation)

    return encode_pair


def _loglikelihood_tokens(original: Any) -> Any:
    """Compute only the logits from the first scored token of a batch on. The harness computes those of all tokens."""

    def loglikelihood_tokens(self: Any, requests: list[Any], *arguments: Any, **keywords: Any) -> Any:
        ours = requests and all(pair and isinstance(pair[1], Continuation) for pair, _, _ in requests)
        can = self.backend == "causal" and "logits_to_keep" in inspect.signature(self.model.forward).parameters
        # With automatic batch sizes, the trial batch would need less memory than the batches.
        if not ours or not can or self.batch_size == "auto":
            return original(self, requests, *arguments, **keywords)
        most = max(len(scored) for _, _, scored in requests)

        def keep(module: Any, positional: Any, named: dict[str, Any]) -> Any:
            ids = positional[0] if positional else named["input_ids"]
            # The harness pads with 0 on the right. A text may end with the token 0; then a few more logits are kept.
            lengths = ids.shape[1] - (ids.flip(1) != 0).int().argmax(1)
            kept = ids.shape[1] - max(0, int(lengths.min()) - most)
            return positional, {**named, "logits_to_keep": kept}

        hook = self.model.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            return original(self, requests, *arguments, **keywords)
        finally:
            hook.remove()

    return loglikelihood_tokens


def _tok_decode(original: Any) -> Any:
    def tok_decode(self: Any, tokens: Any, *arguments: Any, **keywords: Any) -> str:
        text = original(self, tokens, *arguments, **keywords)
        if not isinstance(tokens, list):
            return text
        ends = _end_ids(self)
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return Generated(text, tokens[:end])

    return tok_decode


def _model_generate(original: Any) -> Any:
    def model_generate(self: Any, *arguments: Any, **keywords: Any) -> Any:
        outputs = original(self, *arguments, **keywords)
        for completion in (completion for output in outputs for completion in output.outputs):
            ends_with_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
            ids = list(completion.token_ids)
            completion.text = Generated(completion.text, ids[:-1] if ends_with_token else ids)
        return outputs

    return model_generate


def _end_ids(model: Any) -> set[int]:
    ends = getattr(getattr(model.model, "generation_config", None), "eos_token_id", None)
    return {model.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _stderr_for_metric(original: Any) -> Any:
    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Any:
        if isinstance(metric, Statistic) and bootstrap_iters > 0:
            return lambda values: metric.standard_error(values, draws=min(bootstrap_iters, 1000))
        return original(metric, bootstrap_iters)

    return stderr_for_metric
