"""Render chats with a chat template, and find the assistant's messages in the rendered text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepmerge.chats import Message
from lepmerge.errors import CheckpointError, CorpusError, VocabularyError
from lepmerge.vocabulary.autotokenizer import load_tokenizer

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Answer:
    """A message of the assistant, as byte offsets in a text: start of its header, start of its content, end.

    The end is after the end token. If the text is a prompt that the assistant has yet to answer, all three offsets are
    the end of the text.
    """

    header: int
    content: int
    end: int


@dataclass(frozen=True)
class Record:
    """A text to tokenize.

    A chat has `answers`, and `shorter` returns it with fewer messages. A plain text has neither, because it can be cut.
    """

    text: str
    answers: tuple[Answer, ...] = ()
    shorter: Callable[[], "Record | None"] | None = None


class Template:
    """The chat template of a model's folder."""

    def __init__(self, folder: Path, *, key: str) -> None:
        """Load the tokenizer of a folder. `key` is the configuration key that errors name.

        Raises:
            CheckpointError: transformers cannot load it, or it has no chat template.
        """
        self.folder, self.tokenizer = folder, _tokenizer(folder, key)
        if not self.tokenizer.chat_template:
            raise CheckpointError(f"{key}: {folder} has no chat template, which chats need")

    def render(self, messages: Sequence[Message], where: str, *, asks: bool = False) -> str:
        """Return the text of a chat. `asks` adds the header of the answer that the assistant has yet to give.

        Raises:
            CorpusError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=asks)
        except (TemplateError, TypeError, ValueError) as error:
            raise CorpusError(f"{where}: the chat template of {self.folder} refuses these messages: {error}") from error

    def record(self, messages: Sequence[Message], where: str) -> Record:
        """Return the record of a chat with its answers. After a last message of the user, the text ends with an open
        answer.

        Raises:
            CorpusError: the template refuses the messages. Or it renders the first messages differently when others
                follow, so that the assistant's parts cannot be found.
        """
        asks = messages[-1]["role"] != ASSISTANT
        text = self.render(messages, where, asks=asks)
        places = [self._answer(messages[: number + 1], text, where) for number in _answers(messages)]
        if asks:
            places.append((len(text), len(text), len(text)))
        answers = tuple(Answer(*(len(text[:place].encode()) for place in answer)) for answer in places)

        def shorter() -> Record | None:
            earlier = _answers(messages[:-1])
            return self.record(messages[: earlier[-1] + 1], where) if earlier else None

        return Record(text, answers, shorter)

    def _answer(self, messages: Sequence[Message], text: str, where: str) -> tuple[int, int, int]:
        """Return the byte offsets of header, content and end of the last of these messages.

        `text` is the rendered chat that begins with them.
        """
        parts = [self.render(messages[:-1], where, asks=asks) if len(messages) > 1 else "" for asks in (False, True)]
        before, header = parts
        after = self.render(messages, where)
        begin = len(header) if after.startswith(header) else len(before)
        content = after.find(messages[-1]["content"].strip(), begin)
        if not (text.startswith(after) and after.startswith(before) and content >= 0):
            raise CorpusError(
                f"{where}: the chat template of {self.folder} writes message {len(messages)} differently inside a "
                f"longer chat, so the assistant's tokens cannot be found: use another template, or remove such chats"
            )
        return len(before), content, len(after)


def _answers(messages: Sequence[Message]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]


def chat_template_in(folder: Path) -> Any:
    """Return the chat template of a model's folder, or None if it has none."""
    return _tokenizer(folder, "model").chat_template or None


def _tokenizer(folder: Path, key: str) -> Any:
    try:
        return load_tokenizer(folder)
    except VocabularyError as error:
        raise CheckpointError(f"{key}: {error}") from error
