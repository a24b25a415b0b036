"""`objective: chat`: only the assistant's tokens are learned, in the styles of five real chat templates."""

import json
from pathlib import Path

import pico
import pytest
import torch
import training
from tokenizers import Tokenizer

from lepmerge.training.loss import IGNORED

Part = tuple[str, bool]
"""Text, and whether it is the assistant's."""


def llama3(messages: list[tuple[str, str]]) -> list[Part]:
    parts = [("<|begin_of_text|>", False)]
    for role, content in messages:
        header = f"<|start_header_id|>{role}<|end_header_id|>\n\n"
        parts.append((f"{header}{content.strip()}<|eot_id|>", role == "assistant"))
    return parts


def chatml(messages: list[tuple[str, str]], *, system: str) -> list[Part]:
    if messages[0][0] != "system":
        messages = [("system", system), *messages]
    return [(f"<|im_start|>{role}\n{content}<|im_end|>\n", role == "assistant") for role, content in messages]


def mistral(messages: list[tuple[str, str]]) -> list[Part]:
    parts = [("<s>", False)]
    for role, content in messages:
        parts.append((f" {content}</s>", True) if role == "assistant" else (f"[INST] {content} [/INST]", False))
    return parts


def gemma(messages: list[tuple[str, str]]) -> list[Part]:
    parts = [("<bos>", False)]
    for role, content in messages:
        name = "model" if role == "assistant" else role
        parts.append((f"<start_of_turn>{name}\n{content.strip()}<end_of_turn>\n", role == "assistant"))
    return parts


CHATML = (
    "{%% if messages[0].role != 'system' %%}<|im_start|>system\n%s<|im_end|>\n{%% endif %%}"
    "{%% for m in messages %%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
STYLES = {
    "Llama-3": (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
        "m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        llama3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "Qwen": (CHATML % "You are Q.", lambda m: chatml(m, system="You are Q."), ["<|im_start|>", "<|im_end|>"]),
    "SmolLM2": (CHATML % "A small one.", lambda m: chatml(m, system="A small one."), ["<|im_start|>", "<|im_end|>"]),
    "Mistral": (
        "<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
        mistral,
        ["[INST]", "[/INST]"],
    ),
    "Gemma": (
        "{{ '<bos>' }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + "
        "'\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        gemma,
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    ),
}
CHATS = [
    [("user", "Кто ты?"), ("assistant", "Я модель assistant.")],
    [("user", "one"), ("assistant", "  two and "), ("user", "три"), ("assistant", "model\nчетыре")],
    [("user", "один"), ("assistant", "два"), ("user", "three")],
]


def write_styled(folder: Path, tokenizer: Tokenizer, style: str, **options) -> Path:
    template, _, special = STYLES[style]
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(special)
    path = training.write_chat_training(
        folder, tokenizer, tokenizer=None, new=tokenizer, **{"block_size": 256, **options}
    )
    (folder / "base" / "chat_template.jinja").write_text(template)
    write_chats(folder, CHATS)
    return path


def write_chats(folder: Path, chats: list[list[tuple[str, str]]]) -> None:
    rows = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def expected_labels(parts: list[Part], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids of a chat, and the ids of the tokens whose characters all belong to the assistant."""
    text = "".join(part for part, _ in parts)
    is_ours = [ours for part, ours in parts for _ in part]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    wanted = [all(is_ours[start:stop]) for start, stop in encoding.offsets]
    return encoding.ids, [id for id, ours in zip(encoding.ids, wanted, strict=True) if ours]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", ["byte-level", "SentencePiece"])
def test_mask_equals_a_plain_reimplementation(tmp_path: Path, english, style: str, family: str) -> None:
    texts = [*pico.RUSSIAN, *pico.ENGLISH]
    path = write_styled(tmp_path, english if family == "byte-level" else pico.sentencepiece(texts, 500), style)
    session = training.session_of(path)
    tokenizer = session.setting.start.vocabulary.tokenizer
    batch = session.blocks.batch(session.blocks.order(0).tolist())
    found = []
    for row, labels in zip(batch.id_BL, batch.label_BL, strict=True):
        wanted = labels != IGNORED
        assert torch.equal(labels[wanted], row.roll(-1)[wanted])
        starts = [*(batch.position_BL[0] == 0).nonzero().flatten().tolist(), len(row)] if len(batch.id_BL) == 1 else []
        found += [labels[a:b][labels[a:b] != IGNORED].tolist() for a, b in zip(starts, starts[1:], strict=False)]
    asks = [*(message for message in CHATS[2])]
    plain = [expected_labels(STYLES[style][1](chat), tokenizer)[1] for chat in (*CHATS[:2], asks)]
    assert sorted(part for part in found if part) == sorted(plain)
    assert session.blocks.totals(session.blocks.order(0).tolist()).num_labels == sum(map(len, plain))


def test_a_masked_token_has_no_loss(tmp_path: Path, english) -> None:
    """Tokens that only the user says are never labels: their output rows only get the gradient of wrong answers."""
    path = write_styled(tmp_path, english, "Qwen")
    session = training.session_of(path)
    before = session.blocks.batch(session.blocks.order(0).tolist())
    chats = [[("user" if role == "assistant" else role, content) for role, content in chat] for chat in CHATS]
    write_chats(tmp_path, chats)
    result = pico.command("train", path, "--device", "cpu")
    pico.assert_one_line_error(
        result, 1, "chats.jsonl", "nothing to learn from (skipped 3 of 3 texts: 3 without an answer)"
    )
    write_chats(tmp_path, [*CHATS[:2], *chats[:1]])
    mixed = training.session_of(path)
    labels = [part.label_BL[part.label_BL != IGNORED].tolist() for part in (before, _all(mixed))]
    two = sum((expected_labels(STYLES["Qwen"][1](chat), _tokenizer(mixed))[1] for chat in CHATS[:2]), [])
    assert sorted(labels[1]) == sorted(two) != sorted(labels[0])
    assert mixed.blocks.sources[0].tokens.skipped == "skipped 1 of 3 texts: 1 without an answer"


def _all(session):
    return session.blocks.batch(session.blocks.order(0).tolist())


def _tokenizer(session) -> Tokenizer:
    return session.setting.start.vocabulary.tokenizer


def test_whole_messages_are_cut_at_the_end(tmp_path: Path, english) -> None:
    long = [("user", "один"), ("assistant", "два"), ("user", "три"), ("assistant", "слово " * 40)]
    never = [("user", "слово " * 40), ("assistant", "да")]
    path = write_styled(tmp_path, english, "Gemma", block_size=64)
    write_chats(tmp_path, [long, never, *CHATS[:1]])
    session = training.session_of(path)
    reason = "longer than block_size or the teacher's context"
    skipped = f"skipped 1 of 3 texts: 1 {reason}; shortened 1 chats"
    assert session.blocks.sources[0].tokens.skipped == skipped
    plain = [expected_labels(gemma(chat), _tokenizer(session))[1] for chat in (long[:2], CHATS[0])]
    batch = _all(session)
    assert sorted(batch.label_BL[batch.label_BL != IGNORED].tolist()) == sorted(sum(plain, []))
    result = pico.command("train", path, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["data"] == [
        {"path": "chats.jsonl", "blocks": session.blocks.num_blocks, "skipped": skipped}
    ]
    shown = pico.command("train", path, "--device", "cpu", "--overwrite", "--set", "seed=3").stderr
    assert f"note: data: chats.jsonl: {skipped}" in shown
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on the assistant's part of chats" in card


def test_a_template_that_rewrites_earlier_messages_is_refused(tmp_path: Path, english) -> None:
    path = write_styled(tmp_path, english, "Gemma")
    rewriting = "{% for m in messages %}{{ '' if loop.index < messages | length - 1 else m.content }}|{% endfor %}"
    (tmp_path / "base" / "chat_template.jinja").write_text(rewriting)
    result = pico.command("train", path, "--device", "cpu")
    pico.assert_one_line_error(result, 1, "chats.jsonl:2", "writes message 2 differently inside a longer chat")
    (tmp_path / "base" / "chat_template.jinja").write_text(STYLES["Mistral"][0])
    write_chats(tmp_path, [[("user", "a"), ("user", "b"), ("assistant", "c")]])
    result = pico.command("train", path, "--device", "cpu")
    pico.assert_one_line_error(result, 1, "chats.jsonl:1", "the chat template of", "Roles must alternate")


def test_chats_need_their_kind(tmp_path: Path, english) -> None:
    path = training.write_chat_training(tmp_path, english)
    result = pico.command("train", path, "--set", f"data={tmp_path / 'chats.jsonl'}")
    pico.assert_one_line_error(result, 2, "`objective: chat` reads chats: set `kind: chat`")
