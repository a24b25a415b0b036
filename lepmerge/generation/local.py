"""Answer prompts with a model on this machine, batch by batch.

Legend: B rows of a batch (prompts times candidates), L tokens per row, V rows of the output table.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from lepmerge.chats import Chat
from lepmerge.comparison.loading import LanguageModel
from lepmerge.errors import GenerationError
from lepmerge.generation.engine import Answer, Sampling
from lepmerge.output.run import identities
from lepmerge.version import __version__


@dataclass(frozen=True)
class LocalEngine:
    """A model in memory. batch_size: prompts at once."""

    model: LanguageModel
    sampling: Sampling
    batch_size: int

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "files": identities(path for folder in self.folders for path in _files(folder)),
            "device": self.model.device.type,  # without its number, which differs between processes
            "dtype": str(self.model.dtype),
            "batch_size": self.batch_size,
            "torch": torch.__version__,
            "lepmerge": __version__,
        }

    @property
    def folders(self) -> Sequence[Path]:
        return self.model.reference.paths

    def release(self) -> None:
        self.model.release()

    def check(self, prompts: Sequence[Chat]) -> None:
        """Raise LepmergeError if the model has no chat template, refuses a prompt, or has no room for any of them."""
        room = self._room(self._encoded(prompts))
        if prompts and max(room) < 1:
            raise GenerationError(f"none of the {len(prompts)} prompts fits into the context of the model")
        if not self.model.has_chat:
            raise GenerationError(f"{self.model.name} ({self.model.folder}) has no chat template")

    def _encoded(self, prompts: Sequence[Chat]) -> list[list[int]]:
        return self.model.encode([self.model.chat(prompt.messages, prompt.where) for prompt in prompts])

    def _room(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """Return how many tokens an answer to each prompt may have."""
        return [min(self.sampling.max_new_tokens, self.model.context - len(row)) for row in ids]

    def answers(self, prompts: Sequence[Chat], finished: Container[int]) -> Iterator[dict[int, list[Answer]]]:
        """Yield the answers of one batch at a time.

        The batches depend on all prompts, not on which are finished. So a resumed run computes the same numbers as one
        that was not interrupted. The processes of the model's group answer one batch each at a time. All of them yield
        all answers.
        """
        ids = self._encoded(prompts)
        room = self._room(ids)
        too_long = {place: [] for place, left in enumerate(room) if left < 1 and place not in finished}
        if too_long:
            yield too_long
        group, batches = self.model.group, _batches([len(row) for row in ids], room, self.batch_size)
        unfinished = [batch for batch in batches if not all(place in finished for place in batch)]
        for start in range(0, len(unfinished), group.size):
            found: dict[int, list[Answer]] = {}
            for batch in group.share(unfinished[start : start + group.size]):
                answers = self._batch([ids[place] for place in batch], room[batch[0]], batch[0])
                found |= zip(batch, answers, strict=True)
            yield group.united(found)

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Sequence[int]], limit: int, number: int) -> list[list[Answer]]:
        """Return the candidates of each row, of at most `limit` tokens. number: seeds the sampling."""
        candidates, device = self.sampling.candidates, self.model.device
        length = max(map(len, rows))
        pad = self.model.end_ids[0] if self.model.end_ids else 0
        id_BL = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
        mask_BL = (torch.arange(length) >= torch.tensor([length - len(row) for row in rows])[:, None]).long()
        chosen = ChosenTokens()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.sampling.seed_of(number))
            try:
                out_BL = self.model.network.generate(
                    input_ids=id_BL.to(device),
                    attention_mask=mask_BL.to(device),
                    max_new_tokens=limit,
                    num_return_sequences=candidates,
                    eos_token_id=list(self.model.end_ids) or None,
                    pad_token_id=pad,
                    logits_processor=LogitsProcessorList([chosen] if candidates > 1 else []),
                    **self._sampled(),
                )
            except torch.cuda.OutOfMemoryError as error:
                raise GenerationError(
                    f"the memory of {device} is full with {len(rows)} prompts of up to {length} tokens at once: "
                    f"choose a smaller --batch-size"
                ) from error
        new_BL = out_BL[:, length:].cpu()
        log_probability_BL = chosen.log_probabilities(new_BL) if candidates > 1 else None
        found = [
            self._answer(row, None if log_probability_BL is None else log_probability_BL[place])
            for place, row in enumerate(new_BL.tolist())
        ]
        return [found[start : start + candidates] for start in range(0, len(found), candidates)]

    def _sampled(self) -> dict[str, Any]:
        if self.sampling.temperature == 0:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": 0,  # the default of transformers would keep only the 50 most probable tokens
        }

    def _answer(self, row_L: Sequence[int], log_probability_L: torch.Tensor | None) -> Answer:
        end = next((place for place, id in enumerate(row_L) if id in self.model.end_ids), None)
        text = self.model.decode(row_L[:end]).strip()
        if log_probability_L is None:
            return Answer(text, len(row_L[:end]), end is None)
        written_L = log_probability_L if end is None else log_probability_L[: end + 1]
        return Answer(text, len(row_L[:end]), end is None, float(written_L.mean()))


def _files(folder: Path) -> list[Path]:
    """Return the files of a model that decide what it writes."""
    return sorted(path for pattern in ("*.safetensors", "*.json", "*.jinja") for path in folder.glob(pattern))


def _batches(lengths: Sequence[int], room: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices of the prompts that fit: longest first, of about the same length.

    All prompts of a batch have the same room for an answer, so that no answer exceeds the context.
    """
    fitting = [place for place, left in enumerate(room) if left > 0]
    batch: list[int] = []
    for place in sorted(fitting, key=lambda place: (room[place], -lengths[place], place)):
        if batch and (len(batch) == batch_size or room[place] != room[batch[0]]):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class ChosenTokens(LogitsProcessor):
    """Records the log-probabilities of the chosen tokens before temperature and top-p change them.

    A logits processor sees the logits of the current step, but only the tokens up to the previous one. So it records
    the token of the previous step.
    """

    def __init__(self) -> None:
        self._last_BV: torch.Tensor | None = None
        self._columns: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._last_BV is not None:
            self._columns.append(_of(self._last_BV, input_ids[:, -1]))
        self._last_BV = scores.float().log_softmax(-1)
        return scores

    def log_probabilities(self, new_BL: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each generated token, in float64 on the CPU."""
        assert self._last_BV is not None
        columns = [*self._columns, _of(self._last_BV, new_BL[:, -1])]
        return torch.stack([column.cpu().double() for column in columns], dim=1)


def _of(log_probability_BV: torch.Tensor, id_B: torch.Tensor) -> torch.Tensor:
    return log_probability_BV.gather(1, id_B.to(log_probability_BV.device)[:, None])[:, 0]
