"""Files of chats: what a line may be, and which file and line is at fault."""

import gzip
import json
from pathlib import Path

import pytest

from lepmerge.chats import read_chats
from lepmerge.errors import CorpusError


def test_messages_and_prompts(tmp_path: Path) -> None:
    lines = [
        '{"messages": [{"role": "system", "content": "Кратко."}, {"role": "user", "content": "a"}, '
        '{"role": "bot", "content": "b", "score": 9}], "source": "x"}',
        "",
        '{"prompt": "c"}',
    ]
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    first, second = read_chats(tmp_path / "chats.jsonl.gz")
    assert first.messages == (
        {"role": "system", "content": "Кратко."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    )
    assert second.messages == ({"role": "user", "content": "c"},)
    assert second.where == f"{tmp_path}/chats.jsonl.gz:3"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", ":2: not JSON"),
        ("[]", ":2: a JSON array, not one object per line"),
        ('{"text": "a"}', ":2: no `messages` and no `prompt`, there is text"),
        ('{"messages": []}', ":2: `messages` is not a list with at least one message"),
        ('{"messages": {"role": "user"}}', ":2: `messages` is not a list with at least one message"),
        ('{"messages": ["a"]}', ":2: message 1: expected an object with `role` and `content`, found str"),
        ('{"messages": [{"role": "wizard", "content": "a"}]}', ":2: message 1: unknown role 'wizard', expected one of"),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', ":2: message 1: unknown role ['user']"),
        ('{"messages": [{"content": "a"}]}', ":2: message 1: unknown role None"),
        ('{"messages": [{"role": "user"}]}', ":2: message 1: its content is not a text"),
        ('{"prompt": 3}', ":2: message 1: its content is not a text"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": "good"}) + "\n" + line + "\n")
    with pytest.raises(CorpusError) as error:
        list(read_chats(path))
    assert str(error.value).startswith(f"{path}{fault}")


def test_a_file_that_is_missing_empty_or_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("\n")
    (tmp_path / "chats.txt").write_text("a")
    for name, fault in (
        ("chat.jsonl", "no such file (did you mean chats.jsonl?)"),
        ("chats.jsonl", "contains no chats"),
        ("chats.txt", "is not a file of chats"),
    ):
        with pytest.raises(CorpusError) as error:
            list(read_chats(tmp_path / name))
        assert fault in str(error.value)
