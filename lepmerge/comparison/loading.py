"""Load models to be measured: weights on a device, tokenizer, vocabulary, end tokens.

Legend: B rows of a batch, L tokens per row, V rows of the output table.
"""

import gc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lepmerge.errors import CheckpointError, ComparisonError
from lepmerge.models.adapters import open_reference
from lepmerge.models.checkpoint import is_embeddings_only
from lepmerge.models.configs import UNLIMITED
from lepmerge.models.configs import end_ids as end_ids_of
from lepmerge.models.model import Model
from lepmerge.models.references import Reference, resolve_text
from lepmerge.progress import Progress, no_progress
from lepmerge.training.group import Group
from lepmerge.training.loader import check_quantization, load_network, skeleton
from lepmerge.training.setting import context_of
from lepmerge.vocabulary.autotokenizer import load_tokenizer
from lepmerge.vocabulary.vocabulary import Vocabulary

TOKENS_AT_ONCE = 4096
"""Maximum number of tokens in one forward pass, padding included."""
LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Maximum number of logits in one forward pass: 256 MB of float32 on the CPU, 2 GB on a GPU."""
FULL = 256
"""With this many tokens a forward pass is efficient. It is not filled further with rows that need much padding."""
SLAB = 1 << 20
"""The softmax is computed over this many logits at a time, which fit the CPU cache."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with the tokenizer of its folder. The weights are loaded on first use.

    reference: where the model is. checkpoint: the lazy tensors. tokenizer: the fast transformers tokenizer. prefix_ids:
    ids put before a text so that its first token is predicted too, e.g. <s>; if the tokenizer has no prefix, the end
    token. dtype: data type of the weights, None as stored. group: the processes that share out the batches; each has
    this model on its device.
    """

    name: str
    reference: Reference
    checkpoint: Model
    tokenizer: Any
    prefix_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    dtype: torch.dtype | None
    group: Group

    @property
    def device(self) -> torch.device:
        return self.group.device

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def vocabulary(self) -> Vocabulary:
        return self.checkpoint.vocabulary

    @property
    def has_chat(self) -> bool:
        return bool(self.tokenizer.chat_template)

    @cached_property
    def context(self) -> int:
        """The context length in tokens, from the config; UNLIMITED if it has no limit."""
        return context_of(self.checkpoint)

    @cached_property
    def network(self) -> Any:
        """The transformers model.

        Raises:
            CheckpointError: transformers cannot load it, or cannot run it on this device.
        """
        from transformers import GenerationConfig

        merged = self.checkpoint if self.reference.adapters else None
        network = load_network(self.folder, name=self.name, dtype=self.dtype, device=self.device, merged=merged)
        # Ignore the folder's generation config: a penalty or a minimum length there would change the greedy results.
        network.generation_config = GenerationConfig()
        return network

    def release(self) -> None:
        """Free the memory of the weights."""
        vars(self).pop("network", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without the tokenizer's prefix."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        for text, ids in zip(texts, encoded, strict=True):
            if max(ids, default=0) >= self.checkpoint.num_rows:
                beyond = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise ComparisonError(f"{text[:60]!r} holds {beyond!r}, a token that {self.name} has no row for")
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def chat(self, messages: Sequence[Mapping[str, str]], where: str) -> str:
        """Render a chat with the template, up to where the model answers. `where` names the chat in an error.

        Raises:
            ComparisonError: the model has no template, or the template refuses these messages.
        """
        from jinja2 import TemplateError

        if not self.has_chat:
            raise ComparisonError(f"{where}: {self.name} ({self.folder}) has no chat template")
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise ComparisonError(f"{where}: the chat template of {self.name} refuses it: {error}") from error


def load_model(
    reference: str | Path,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    group: Group | None = None,
) -> LanguageModel:
    """Return the model of a folder or Hub id, or `model+adapter` with a PEFT adapter.

    dtype: by default float32 on the CPU, otherwise as stored. group: the processes that share out the batches, with
    the device of this process; by default this process alone, on `device`.

    Raises:
        ReferenceNotFound: there is no such model.
        CheckpointError: the model is damaged or incomplete.
    """
    group = group or Group(torch.device(device))
    found = resolve_text(str(reference), gguf=False)
    name = name or found.paths[-1].name
    checkpoint = open_reference(found)
    if is_embeddings_only(checkpoint):
        raise CheckpointError(
            f"{name} ({found.folder}) holds embeddings only: `lepmerge train CONFIG --full FOLDER` writes the whole "
            f"model, and a recipe carries them into another"
        )
    _ = checkpoint.vocabulary.spec  # report a faulty tokenizer before anything is loaded
    tokenizer = load_tokenizer(checkpoint.vocabulary.folder or found.folder)
    if not tokenizer.chat_template and found.adapters:  # an adapter's folder may lack the template
        tokenizer.chat_template = load_tokenizer(found.folder).chat_template
    tokenizer.model_max_length = UNLIMITED
    end_ids = end_ids_of(checkpoint.generation_config or {}) or end_ids_of(checkpoint.config)
    prefix = _prefix(tokenizer) or (end_ids_of(checkpoint.config) or end_ids)[:1]  # as trainings predict held-out text
    if not prefix:
        raise CheckpointError(
            f"{name} ({found.folder}) has neither a token before a text nor an end token to start from"
        )
    if dtype is None and group.device.type == "cpu" and "quantization_config" not in checkpoint.config:
        dtype = torch.float32  # quantized weights keep their own data type
    skeleton(found.folder, name=name)
    check_quantization(checkpoint.config, found.folder, name=name)
    return LanguageModel(name, found, checkpoint, tokenizer, prefix, end_ids, dtype, group)


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    found = (whole[:place] for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return tuple(next(found, ()))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def batches(lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None) -> Iterator[list[int]]:
    """Yield batches of indices into `lengths`, longest first: at most `rows` rows and `tokens` tokens with padding.

    With `tokens`, a batch of FULL tokens takes no row that is more than an eighth shorter than its longest.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        longest = lengths[batch[0]] if batch else 0
        full = rows is not None and len(batch) >= rows
        if tokens is not None:
            much_padding = lengths[place] < 7 / 8 * longest
            full |= longest * (len(batch) + 1) > tokens or (longest * len(batch) >= FULL and much_padding)
        if batch and full:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def tokens_at_once(model: LanguageModel) -> int:
    """Return how many tokens, padding included, one forward pass takes with all their logits."""
    most = LOGITS_AT_ONCE.get(model.device.type, LOGITS_AT_ONCE["cpu"]) // model.checkpoint.num_rows
    return max(1, min(TOKENS_AT_ONCE, most))


@torch.inference_mode()
def surprisals(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    batch_size: int | None = None,
    progress: Progress = no_progress,
    what: str = "",
) -> list[np.ndarray]:
    """Return the surprisals in nats of the ids of each row from `start` on (float32 softmax, float64 array).

    A start must be at least 1, since the first id of a row is not predicted. batch_size: rows per forward pass; by
    default as many as fit TOKENS_AT_ONCE and LOGITS_AT_ONCE. The processes of the model's group share out the batches,
    and all return the same.
    """
    keeps = "logits_to_keep" in inspect.signature(model.network.forward).parameters
    found: dict[int, np.ndarray] = {}
    all_batches = list(batches([len(row) for row in rows], rows=batch_size, tokens=tokens_at_once(model)))
    for batch in model.group.share(all_batches):
        length = len(rows[batch[0]])
        # Padding on the right is harmless, because causal attention never looks right. Any token of the row will do.
        id_BL = torch.tensor([[*rows[place], *[rows[place][0]] * (length - len(rows[place]))] for place in batch])
        id_BL = id_BL.to(model.device)
        first = min(starts[place] for place in batch)
        kept = {"logits_to_keep": length - first + 1} if keeps and first > 1 else {}
        logit_BLV = model.network(input_ids=id_BL, use_cache=False, **kept).logits
        first = length - logit_BLV.shape[1] + 1
        nats_BL = cross_entropy(logit_BLV[:, :-1], id_BL[:, first:]).cpu().double().numpy()
        for row, place in enumerate(batch):
            found[place] = nats_BL[row, starts[place] - first : len(rows[place]) - first].copy()
        progress(what, len(batch), len(rows))
    united = model.group.united(found)
    progress(what, len(united) - len(found), len(rows))
    return [united[place] for place in range(len(rows))]


def cross_entropy(logit_BLV: torch.Tensor, label_BL: torch.Tensor) -> torch.Tensor:
    """Return the surprisal in nats of each label (B, L), in float32."""
    label_N = label_BL.flatten()
    if not len(label_N):
        return label_BL.float()
    step = max(1, SLAB // logit_BLV.shape[-1])
    logit_NV = logit_BLV.flatten(0, 1)
    pieces = [
        F.cross_entropy(logit_NV[start : start + step].float(), label_N[start : start + step], reduction="none")
        for start in range(0, len(label_N), step)
    ]
    return torch.cat(pieces).view(label_BL.shape)
