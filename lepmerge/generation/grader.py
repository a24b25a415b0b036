"""Let a model grade answers: write the request, and read the score from its reply."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lepmerge.chats import Chat, Message
from lepmerge.errors import GenerationError

LOWEST, HIGHEST = 1.0, 5.0
MAX_NEW_TOKENS = 64
PLACES = ("{prompt}", "{answer}")
NUMBER = re.compile(r"(?<![\d.,])(\d+(?:[.,]\d+)?)(?:\s*(?:/|out of|из)\s*\d+)?")
"""A number, optionally followed by a scale as in 4/5."""


def read_grader_prompt(path: Path | None = None) -> str:
    """Return the grader's prompt, which contains {prompt} and {answer}. The default is built in.

    Raises:
        GenerationError: the file cannot be read, or {prompt} or {answer} is missing.
    """
    try:
        text = (path or files("lepmerge.generation").joinpath("grader.txt")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GenerationError(f"--grader-prompt {path} cannot be read: {error}") from error
    if missing := [place for place in PLACES if place not in text]:
        raise GenerationError(f"--grader-prompt {path}: it does not contain {' and '.join(missing)}")
    return text


def grading_request(template: str, prompt: Chat, answer: str) -> Chat:
    """Return the chat that asks for the score of an answer."""
    values = {"{prompt}": conversation(prompt.messages), "{answer}": answer}
    content = re.sub("|".join(map(re.escape, PLACES)), lambda match: values[match[0]], template)
    return Chat(({"role": "user", "content": content},), prompt.where)


def conversation(messages: Sequence[Message]) -> str:
    """Return the messages as text: a single one as it is, several with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def score_of(reply: str) -> float | None:
    """Return the last number from LOWEST to HIGHEST in a reply, or None if there is none.

    "4" → 4, "Score: 4.5/5" → 4.5, "From 1 to 5: 3" → 3, "good" → None.
    """
    numbers = [float(match[1].replace(",", ".")) for match in NUMBER.finditer(reply)]
    return next((number for number in reversed(numbers) if LOWEST <= number <= HIGHEST), None)
