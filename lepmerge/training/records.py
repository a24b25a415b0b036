"""Read the records of a source: plain texts, prompts made from texts, chats."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lepmerge.chats import read_chats
from lepmerge.corpus import cut
from lepmerge.progress import Progress
from lepmerge.text_files import Counts
from lepmerge.training.config import TrainingSource
from lepmerge.training.templates import Record, Template
from lepmerge.training.tokens import numbered

LONGEST_TEXT = 1 << 16
"""The paragraphs of a .txt file are joined into texts of up to this many characters."""


def records(
    source: TrainingSource, files: Sequence[Path], template: Template | None, progress: Progress, counts: Counts
) -> Iterator[Record]:
    """Yield the records of a source. `template` renders chats and prompts.

    Raises:
        CorpusError: a file cannot be read, or the template cannot render a chat.
    """
    if source.kind == "chat":
        assert template is not None
        yield from _chats(source, files, template, counts)
        return
    for text in _documents(source, files, progress, counts):
        for part in cut(text, source.cut) if source.cut else [text]:
            if source.prompt is None:
                yield Record(part)
            elif part.strip():
                assert template is not None
                content = source.prompt.replace("{text}", part.strip())
                yield template.record([{"role": "user", "content": content}], source.path)


def _chats(source: TrainingSource, files: Sequence[Path], template: Template, counts: Counts) -> Iterator[Record]:
    left = source.limit
    for file in files:
        for chat in read_chats(file):
            if left is not None and left <= 0:
                return
            record = template.record(chat.messages, chat.where)
            counts.texts += 1
            if left is not None:
                left -= len(record.text.encode())
            yield record


def _documents(source: TrainingSource, files: Sequence[Path], progress: Progress, counts: Counts) -> Iterator[str]:
    """Yield the texts. The paragraphs of a .txt file are joined, up to LONGEST_TEXT characters."""
    collected = ""
    for text, is_last in numbered(source, files, progress, counts):
        collected += text
        if is_last or len(collected) > LONGEST_TEXT:
            yield collected
            collected = ""
