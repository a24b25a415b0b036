"""Read chats from .jsonl files: one JSON object per line, with `messages` or with `prompt`.

{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]}
{"prompt": "Who are you?"}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepmerge.errors import CorpusError
from lepmerge.paths import did_you_mean
from lepmerge.text_files import json_rows, kind_of

ROLE_OF = {"system": "system", "user": "user", "assistant": "assistant", "bot": "assistant"}
"""Role in a file → role in a chat template. Saiga's files say `bot`."""

Message = Mapping[str, str]
"""{"role": …, "content": …}"""


@dataclass(frozen=True)
class Chat:
    """A conversation. where: its position, `file:line`. answer: the expected reply, if its row has the key `answer`."""

    messages: tuple[Message, ...]
    where: str
    answer: str = ""


def read_chats(path: Path) -> Iterator[Chat]:
    """Yield the chats of a .jsonl file, which may be compressed (.gz, .zst). `prompt` is short for one user message.

    Raises:
        CorpusError: the file does not exist, contains no chat, or has a line that is not a chat.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: no such file{did_you_mean(path)}")
    if kind_of(path) != ".jsonl":
        raise CorpusError(f"{path} is not a file of chats: expected .jsonl, also with .gz or .zst")
    is_empty = True
    for number, row in json_rows(path):
        is_empty = False
        where = f"{path}:{number}"
        messages, answer = _messages(row, where), row.get("answer")
        yield Chat(messages, where, answer if isinstance(answer, str) else "")
    if is_empty:
        raise CorpusError(f"{path} contains no chats")


def _messages(row: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: expected an object with `messages` or `prompt`, found {type(row).__name__}")
    if "messages" not in row and "prompt" not in row:
        raise CorpusError(f"{where}: no `messages` and no `prompt`, there is {', '.join(row) or 'nothing'}")
    messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    if not isinstance(messages, list) or not messages:
        raise CorpusError(f"{where}: `messages` is not a list with at least one message")
    return tuple(_message(message, f"{where}: message {number}") for number, message in enumerate(messages, 1))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise CorpusError(f"{where}: expected an object with `role` and `content`, found {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLE_OF:
        raise CorpusError(f"{where}: unknown role {role!r}, expected one of {', '.join(ROLE_OF)}")
    if not isinstance(content, str):
        raise CorpusError(f"{where}: its content is not a text")
    return {"role": ROLE_OF[role], "content": content}
