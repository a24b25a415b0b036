"""The prompts that a model answers: chats of .jsonl files, and requests made from plain text."""

from collections.abc import Sequence
from pathlib import Path

from lepmerge.chats import Chat, read_chats
from lepmerge.errors import GenerationError
from lepmerge.generation.passages import Wordings, beginning


def prompts_of_files(paths: Sequence[Path]) -> list[Chat]:
    """Return the prompts of .jsonl files in their order. Each ends with a message of the user.

    Messages of the assistant at the end of a chat are dropped, because the model writes that answer itself.

    Raises:
        CorpusError: a line is not a chat. The message names file and line.
        GenerationError: a chat has no user message, or its last message is empty.
    """
    return [_prompt(chat) for path in paths for chat in read_chats(path)]


def _prompt(chat: Chat) -> Chat:
    messages = chat.messages
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise GenerationError(f"{chat.where}: there is no message of the user to answer")
    if not messages[-1]["content"].strip():
        raise GenerationError(f"{chat.where}: the message of the user is empty")
    return Chat(messages, chat.where)


def prompts_of_text(passages: Sequence[str], wordings: Wordings, forms: Sequence[str]) -> list[Chat]:
    """Return one request about each passage; the forms take turns.

    `continue` shows the first half of a passage, `repeat` and `question` show all of it.
    """
    found = []
    for place, passage in enumerate(passages):
        form = forms[place % len(forms)]
        text = beginning(passage) if form == "continue" else passage
        content = wordings.request(form, text, place // len(forms))
        found.append(Chat(({"role": "user", "content": content},), f"prompt {place + 1} of the text ({form})"))
    return found
