"""Read prompt files (.jsonl): one JSON object per line with `messages`, and for a task also `answer`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepmerge.errors import ComparisonError


@dataclass(frozen=True)
class Prompt:
    """A chat that ends where the model answers, the expected answer, and its place in the files as `file:line`."""

    messages: tuple[dict[str, str], ...]
    answer: str
    where: str


def read_prompts(path: str | Path, *, with_answer: bool) -> list[Prompt]:
    """Return the prompts of a .jsonl file in its order. Without `with_answer`, the answers are "".

    Raises:
        ComparisonError: the file is missing or empty, or a line is not such an object. The message names file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ComparisonError(f"{path} is not UTF-8") from error
    found = [_prompt(f"{path}:{number}", line, with_answer) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ComparisonError(f"{path} contains no prompts")
    return found


def _prompt(where: str, line: str, with_answer: bool) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ComparisonError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ComparisonError(f"{where}: expected an object with `messages`")
    wanted = ("messages", "answer") if with_answer else ("messages",)
    if missing := [key for key in wanted if key not in row]:
        raise ComparisonError(f"{where}: no {' and no '.join(missing)}, there is {', '.join(row) or 'nothing'}")
    messages, answer = row["messages"], row.get("answer", "")
    is_chat = isinstance(messages, list) and messages and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )  # fmt: skip
    if not is_chat:
        raise ComparisonError(f"{where}: `messages` is not a list of objects with role and content")
    if with_answer and not (isinstance(answer, str) and answer.strip()):
        raise ComparisonError(f"{where}: `answer` is not a text")
    return Prompt(tuple(messages), answer if isinstance(answer, str) else "", where)
