"""Text becomes blocks: nothing is lost, pieces begin documents or paragraphs, the order is a function of the seed."""

import gzip
import json
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import training
from hypothesis import given, settings
from hypothesis import strategies as st

from lepmerge.corpus import cut
from lepmerge.errors import CorpusError
from lepmerge.text_files import Counts
from lepmerge.training.blocks import blocks_of
from lepmerge.training.config import load_train_config
from lepmerge.training.events import Note
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.loss import IGNORED
from lepmerge.training.run import train
from lepmerge.training.setting import prepare
from lepmerge.training.tokens import TEXTS_AT_ONCE, Packer, numbered, pieces


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=200), room=st.integers(1, 40))
def test_pieces_are_the_document_cut_where_lines_end(ids: list[int], room: int) -> None:
    """Ids below 2 end a line."""
    ends = np.array([True, True] + [False] * 8)
    array = np.array(ids)
    found = list(pieces(array, ends, room))
    assert [start for start, _ in found] == [0, *np.cumsum([length for _, length in found])[:-1]]
    assert sum(length for _, length in found) == len(ids)
    assert all(0 < length <= room for _, length in found)
    for start, _ in found[1:]:
        begins_line = ids[start - 1] < 2
        assert begins_line or not any(id < 2 for id in ids[max(0, start - room) : start])


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=120),
    prefix=st.integers(0, 2),
)
def test_packing_loses_nothing_and_overfills_no_block(lengths: list[int], prefix: int) -> None:
    block_size = 32
    packer = Packer(block_size - prefix, per_piece=prefix)
    for start, length in enumerate(lengths):
        packer.add(start, length)
    blocks = packer.finish()
    assert sorted(piece for block in blocks for piece in block) == sorted(enumerate(lengths))
    used = [sum(length + prefix for _, length in block) for block in blocks]
    assert max(used) <= block_size
    # best fit: no two blocks are so empty that they could be one, but for those whose rest is less than a prefix
    assert len(used) < 2 or sum(sorted(used)[:2]) + 1 > block_size - prefix


def written(folder: Path, texts: list[str], **options) -> Path:
    path = training.write_setting(folder, options.pop("old"), evaluate=None, **options)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def opened(path: Path, *overrides: str):
    setting = prepare(load_train_config(path, overrides))
    return setting, blocks_of(setting, path.parent / "tokens")


def test_every_text_comes_once_an_epoch(tmp_path: Path, english) -> None:
    texts = [f"{number} числа и слова, {number * 7} раз." for number in range(40)]
    setting, blocks = opened(written(tmp_path, texts, old=english, block_size=64))
    tokens = blocks.sources[0].tokens
    assert tokens.num_bytes == sum(len(text.encode()) for text in texts)
    decode = setting.start.vocabulary.tokenizer.decode
    for epoch in (0, 1):
        order = blocks.order(epoch).tolist()
        batch = blocks.batch(order)
        seen = []
        for ids, positions in zip(batch.id_BL, batch.position_BL, strict=True):
            starts = [*(positions == 0).nonzero().squeeze(1).tolist(), len(ids)]
            for first, stop in zip(starts, starts[1:], strict=False):
                part = ids[first:stop]
                if part.any():  # not the padding
                    seen.append(decode(part.tolist(), skip_special_tokens=True).rstrip("\0"))
        assert sorted(text for text in seen if text.strip()) == sorted(texts)
    assert blocks.order(0).tolist() != blocks.order(1).tolist()
    assert blocks.order(0).tolist() == opened(tmp_path / "config.yaml")[1].order(0).tolist()


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_labels_are_the_next_tokens(tmp_path: Path, english, packing: str) -> None:
    path = written(tmp_path, ["один два", "три", "четыре пять шесть"], old=english, packing=packing, block_size=128)
    setting, blocks = opened(path)
    places = blocks.order(0).tolist()
    batch = blocks.batch(places)
    wanted = (batch.label_BL != IGNORED).nonzero()
    assert len(wanted) == blocks.totals(places).num_labels
    for row, place in wanted.tolist():
        assert batch.label_BL[row, place] == batch.id_BL[row, place + 1]
        if packing == "documents":
            assert batch.position_BL[row, place + 1] == batch.position_BL[row, place] + 1
    ends = (batch.id_BL == setting.end_id).sum()
    assert ends == 3 and setting.prefix_ids == []


def test_an_end_token_that_only_generation_config_names(tmp_path: Path, english) -> None:
    path = written(tmp_path, ["раз", "два"], old=english)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    end = config.pop("eos_token_id")
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    generation = tmp_path / "base" / "generation_config.json"
    assert json.loads(generation.read_text())["eos_token_id"] == [end]
    setting, blocks = opened(path)
    assert setting.end_id == end and int((blocks.sources[0].tokens.token_T == end).sum()) == 2
    generation.unlink()
    notes: list[object] = []
    train(load_train_config(path, ["max_tokens=8"]), on_event=notes.append)
    assert any(
        isinstance(note, Note) and "names an eos token: documents end without one" in note.text for note in notes
    )


def test_the_tokenizers_prefix_begins_every_piece(tmp_path: Path, english) -> None:
    from tokenizers import Tokenizer, processors

    with_begin = Tokenizer.from_str(english.to_str())
    begin = english.token_to_id("<s>")
    with_begin.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    long = "\n".join(f"строка номер {number}" for number in range(30))
    setting, blocks = opened(written(tmp_path, [long, "конец"], old=with_begin, block_size=48))
    assert setting.prefix_ids == [begin]
    batch = blocks.batch(blocks.order(0).tolist())
    starts = batch.position_BL == 0
    used = torch.zeros_like(starts)
    for row in range(len(used)):
        last = int((batch.label_BL[row] != IGNORED).nonzero().max())
        used[row, : last + 1] = True
    assert bool((batch.id_BL[starts & used] == begin).all())
    line_start = setting.start.vocabulary.tokenizer.encode("строка", add_special_tokens=False).ids[0]
    after = batch.id_BL.roll(-1, 1)[starts & used]
    assert set(after.tolist()) <= {line_start, setting.start.vocabulary.tokenizer.encode("конец").ids[1]}


def test_weights_and_epochs(tmp_path: Path, english) -> None:
    path = written(tmp_path, [f"слово {n}" * 5 for n in range(64)], old=english)
    (tmp_path / "more.txt").write_text("\n\n".join(f"ещё {n} " * 6 for n in range(64)))
    data = f"data=[{{path: {tmp_path}/corpus.jsonl, weight: 0.5}}, {{path: {tmp_path}/more.txt, weight: 2}}]"
    _, blocks = opened(path, data)
    counts = torch.bincount(blocks.order(0)[:, 0]).tolist()
    first, second = (source.tokens.num_blocks for source in blocks.sources)
    assert counts == [round(first / 2), 2 * second]
    chosen = blocks.order(0)[blocks.order(0)[:, 0] == 1, 1].tolist()
    assert sorted(chosen) == sorted([*range(second)] * 2)


def test_compressed_text_gives_the_same_blocks(tmp_path: Path, english) -> None:
    texts = [f"текст {n}" for n in range(20)]
    path = written(tmp_path, texts, old=english)
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress((tmp_path / "corpus.jsonl").read_bytes()))
    _, plain = opened(path)
    _, compressed = opened(path, f"data={tmp_path}/corpus.jsonl.gz")
    assert np.array_equal(plain.sources[0].tokens.token_T, compressed.sources[0].tokens.token_T)


def test_the_same_rows_as_jsonl_and_parquet_give_the_same_blocks(tmp_path: Path, english) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    values = ["один два", None, "три\r\nчетыре", "", "пять"] * 9
    path = written(tmp_path, [], old=english)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "rows.parquet")
    found = [opened(path, f"data={tmp_path}/rows.{kind}")[1].sources[0].tokens for kind in ("jsonl", "parquet")]
    assert found[0].skipped == found[1].skipped == "skipped 18 of 45 texts: 9 empty, 9 null"
    for name in ("token_T", "piece_P2", "block_B1"):
        assert np.array_equal(getattr(found[0], name), getattr(found[1], name))


def test_training_names_its_own_key_and_shows_what_was_skipped(tmp_path: Path, english) -> None:
    path = written(tmp_path, ["один"] * 30, old=english)
    command = ["train", path, "--device", "cpu", "--set"]
    for kind, key in (("data=[{path: corpus.jsonl, column: txt}]", "the source's column:"),
                      ("evaluate.data.ru={path: corpus.jsonl, column: txt}", "evaluate.data.ru.column:")):  # fmt: skip
        result = pico.command(*command, kind.replace("corpus.jsonl", str(tmp_path / "corpus.jsonl")), "-q")
        pico.assert_one_line_error(result, 1, f"corpus.jsonl:1: no column 'txt', there is text: name one with {key}")
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": null}\n')
    with_held_out = f"evaluate={{every: 99, data: {{ru: {tmp_path}/corpus.jsonl}}}}"
    shown = pico.command(*command, "seed=0", "--set", with_held_out).stderr
    for key in ("data: corpus.jsonl", "evaluate.data.ru"):
        assert f"note: {key}: skipped 1 of 31 texts: 1 null\n" in shown


def test_a_bad_row_in_a_later_source_is_found_before_anything_is_written(tmp_path: Path, english) -> None:
    path = written(tmp_path, ["слово"] * 20, old=english)
    (tmp_path / "late.jsonl").write_text(json.dumps({"text": "слово " * 99}) + '\n{"text": 5}\n')
    before = pico.tree(tmp_path)
    data = f"data=[{{path: {tmp_path}/corpus.jsonl}}, {{path: {tmp_path}/late.jsonl}}]"
    result = pico.command("train", path, "--device", "cpu", "-q", "--set", data)
    pico.assert_one_line_error(result, 1, "late.jsonl:2: 'text' holds 5, not a text")
    assert pico.tree(tmp_path) == before


def test_tokens_are_kept_and_follow_the_text(tmp_path: Path, english) -> None:
    path = written(tmp_path, ["слово"] * 20, old=english)
    reported: list[str] = []
    setting = prepare(load_train_config(path))
    blocks_of(setting, tmp_path / "tokens", lambda what, count: reported.append(what))
    read = len(reported)
    blocks_of(setting, tmp_path / "tokens", lambda what, count: reported.append(what))
    assert read > 0 and len(reported) == read
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "иначе"}) + "\n")
    changed = blocks_of(prepare(load_train_config(path)), tmp_path / "tokens")
    assert changed.sources[0].tokens.num_bytes == len("иначе".encode())


def test_a_long_row_is_read_in_parts_of_one_document(tmp_path: Path, english) -> None:
    long = "слово и слово, " * (TEXTS_AT_ONCE // 10)
    setting = training.setting_of(written(tmp_path, ["перед", long, "после"], old=english))
    (source,) = setting.config.data
    found = list(numbered(source, setting.files(source), lambda *_: None, Counts()))
    *parts, last = found[1:-1]
    assert len(parts) >= 2 and "".join(part for part, _ in [*parts, last]) == long
    assert all(len(part.encode()) <= TEXTS_AT_ONCE and not is_last for part, is_last in parts)
    assert found[0] == ("перед", True) and last[1] and found[-1] == ("после", True)


def test_limit(tmp_path: Path, english) -> None:
    path = written(tmp_path, ["слово " * 10] * 100, old=english)
    _, blocks = opened(path, f"data=[{{path: {tmp_path}/corpus.jsonl, limit: 1KB}}]")
    assert 1000 <= blocks.sources[0].tokens.num_bytes < 1000 + len("слово " * 10 * 2)


def test_empty_text(tmp_path: Path, english) -> None:
    path = written(tmp_path, [], old=english)
    with pytest.raises(CorpusError, match="corpus.jsonl"):
        opened(path)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab я\n😀", max_size=80), size=st.integers(4, 30))
def test_held_out_text_is_cut_between_characters(text: str, size: int) -> None:
    found = list(cut(text, size))
    assert "".join(found) == text
    assert all(0 < len(piece.encode()) <= size for piece in found)


def test_held_out_pieces_are_the_same_bytes_for_every_vocabulary(tmp_path: Path, english, russian) -> None:
    paths = [
        training.write_setting(tmp_path / "a", english),
        training.write_setting(tmp_path / "b", english, new=russian),
    ]
    settings_ = [prepare(load_train_config(path)) for path in paths]
    first, second = (held_out_texts(setting)["ru"] for setting in settings_)
    assert first.num_bytes == second.num_bytes and len(first.texts) == len(second.texts)
    assert sum(map(len, first.texts)) > sum(map(len, second.texts))
    assert max(map(len, first.texts)) <= 128  # the model's context
