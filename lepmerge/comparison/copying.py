"""Measure exact copying: ask a model to repeat a sentence or paragraph of a text (DaruCopy's idea, for any text)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from lepmerge.comparison.decoding import Asking, Row, draft_of
from lepmerge.comparison.loading import LanguageModel
from lepmerge.comparison.texts import Text

SENTENCE, PARAGRAPH = "sentences", "paragraphs"
CHARACTERS = {SENTENCE: (30, 200), PARAGRAPH: (120, 1200)}
"""Minimum and maximum length of the sentences and paragraphs, in characters."""
SHOTS = 2
REQUEST = "Repeat the following text exactly, without any change and without anything else:\n\n{text}"
MARGIN = 4
"""A reply may have this many more tokens than the text."""


@dataclass(frozen=True)
class CopyItem:
    """A sentence or paragraph to copy. A model without chat template is shown `examples` of copies before it."""

    kind: str
    text: str
    shots: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def copy_items(
    text: Text, models: Sequence[LanguageModel], *, number: int, most_bytes: int | None = None
) -> list[CopyItem]:
    """Return up to `number` sentences and up to `number` paragraphs of a text that fit the context of every model.

    They are spread over the text, and whitespace within them is reduced to single spaces. most_bytes: maximum size of
    all sentences together, and of all paragraphs together. No single one is longer than a quarter of it.
    """
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.paragraphs or text.pieces]
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?…])\s+", paragraph)]
    found: list[CopyItem] = []
    for kind, candidates in ((SENTENCE, sentences), (PARAGRAPH, paragraphs)):
        shortest, longest = CHARACTERS[kind]
        candidates = [part for part in dict.fromkeys(candidates) if shortest <= len(part) <= longest]
        shots = tuple(sorted(candidates, key=len)[:SHOTS])
        items = [CopyItem(kind, part, shots) for part in candidates if part not in shots]
        for model in models:
            prompts = [model.encode([prompt_of(model, item), item.text]) for item in items]
            items = [
                item
                for item, (prompt, answer) in zip(items, prompts, strict=True)
                if len(prompt) + len(model.prefix_ids) + len(answer) + MARGIN <= model.context
            ]
        if most_bytes is not None:
            items = [item for item in items if 4 * item.num_bytes <= most_bytes]
        for chosen in range(min(number, len(items)), 0, -1):
            spread = [items[place * len(items) // chosen] for place in range(chosen)]
            if most_bytes is None or sum(item.num_bytes for item in spread) <= most_bytes:
                found += spread
                break
    return found


def prompt_of(model: LanguageModel, item: CopyItem) -> str:
    """Return the request to copy an item, rendered with the model's chat template.

    Without a template it is a few examples of copies, followed by the text that the model has to copy next.
    """
    if model.has_chat:
        return model.chat([{"role": "user", "content": REQUEST.format(text=item.text)}], "copying")
    shown = [f"Text: {shot}\nCopy: {shot}\n\n" for shot in item.shots]
    return "".join([*shown, f"Text: {item.text}\nCopy:"])


def copying(model: LanguageModel, items: Sequence[CopyItem], what: str = "") -> Asking[dict[str, dict[str, Any]]]:
    """Return for sentences and paragraphs: their number, the fraction copied exactly, the mean matched fraction.

    A copy is exact if it equals the text after strip. The matched fraction of a copy is explained at `matched_share`.
    """
    heads = [prompt_of(model, item) for item in items]
    prefix = [] if model.has_chat else list(model.prefix_ids)
    gap = "" if model.has_chat else " "
    lengths = [len(ids) for ids in model.encode([item.text for item in items])]
    rows = [
        Row([*prefix, *ids], length + MARGIN, f"{what} {item.kind}".strip(), draft_of(model, head, gap + item.text))
        for item, head, ids, length in zip(items, heads, model.encode(heads), lengths, strict=True)
    ]
    yield rows
    found: dict[str, dict[str, Any]] = {}
    for kind in (SENTENCE, PARAGRAPH):
        of_kind = [(item, row) for item, row in zip(items, rows, strict=True) if item.kind == kind]
        pairs = [(item.text, reply_of(model, row.written)) for item, row in of_kind]
        if pairs:
            found[kind] = {
                "number": len(pairs),
                "exact": sum(text.strip() == reply.strip() for text, reply in pairs) / len(pairs),
                "matched": sum(matched_share(text, reply) for text, reply in pairs) / len(pairs),
            }
    return found


def reply_of(model: LanguageModel, ids: Sequence[int]) -> str:
    """Return the reply as text. Without a chat template, only its first line."""
    reply = model.decode(ids).strip()
    return reply if model.has_chat else reply.split("\n")[0].strip()


def matched_share(text: str, reply: str) -> float:
    """Return the fraction of the characters of `text` that occur in `reply` in the same order."""
    matcher = SequenceMatcher(None, text.strip(), reply.strip(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(1, len(text.strip()))
