"""lepmerge compare: its metrics equal direct computations, broken tokens are found, faults are one line."""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.comparison.broken_tokens import Excess, check_tokens
from lepmerge.comparison.chat import agreement, answering, bits_of_answers
from lepmerge.comparison.copying import CopyItem, copy_items, copying, prompt_of
from lepmerge.comparison.decoding import Row, decode, generate, together
from lepmerge.comparison.generation import measure_speed
from lepmerge.comparison.loading import LanguageModel, batches, load_model
from lepmerge.comparison.task import mcnemar, read_task, solving, task_metrics
from lepmerge.comparison.texts import measure_texts, read_text, text_of
from lepmerge.corpus import cut

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"
RUSSIAN = QUICKSTART / "heldout_ru.txt"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def instruct() -> LanguageModel:
    return load_model(QUICKSTART / "instruct")


def changed(folder: Path, source: Path, change) -> LanguageModel:
    """Return a copy of a model whose weights `change` has changed in place."""
    shutil.copytree(source, folder)
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return load_model(folder)


def permuted(tables: Sequence[str], ids: Sequence[int]):
    """Return a change that gives each of the tokens another one's row."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in tables:
            weights[name][list(ids)] = weights[name][[*ids[1:], ids[0]]].clone()

    return change


def noised(weights: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in TABLES:
        noise = torch.randn(weights[name].shape, generator=generator)
        weights[name] += (0.3 * weights[name].float().std() * noise).to(weights[name].dtype)


def test_bits_per_byte_equal_a_plain_loop(instruct: LanguageModel) -> None:
    text = read_text("ru", [str(RUSSIAN)], max_bytes=4000, piece_bytes=300)
    found = measure_texts(instruct, [text])["ru"]
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "instruct", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "instruct")
    bits = num_bytes = num_tokens = 0.0
    for piece in text.pieces:
        ids = [tokenizer.bos_token_id, *tokenizer(piece, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        for place, id in enumerate(ids[1:]):
            bits -= float(torch.log_softmax(logits[place], 0)[id]) / math.log(2)
        num_bytes += len(piece.encode())
        num_tokens += len(ids) - 1
    assert found.bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-5)
    figures = found.metrics()
    assert figures["tokens"] == num_tokens
    assert figures["symbols_per_token"] == pytest.approx(sum(map(len, text.pieces)) / num_tokens)
    assert figures["tokens_per_word"] == pytest.approx(num_tokens / len(" ".join(text.pieces).split()))
    one_by_one = measure_texts(instruct, [text], batch_size=1)["ru"]
    assert one_by_one.bits_per_byte == pytest.approx(found.bits_per_byte, rel=1e-5)


def test_pieces_hold_the_whole_text_whatever_the_vocabulary() -> None:
    text = text_of("t", ["Первый абзац. " * 40, "Second one, " * 30], piece_bytes=100)
    assert all(len(piece.encode()) <= 100 for piece in text.pieces)
    assert "".join("".join(text.pieces).split()) == "".join("".join(text.paragraphs).split())


def test_answers_cost_what_a_plain_loop_says(instruct: LanguageModel, tmp_path: Path) -> None:
    other = changed(tmp_path / "noised", QUICKSTART / "instruct", noised)
    prompts = read_task(QUICKSTART / "task.jsonl")[:24]
    ((answers, _),) = together(instruct, [answering(instruct, prompts, max_new_tokens=8)])
    bits = bits_of_answers(other, prompts, answers)
    network, tokenizer = other.network, other.tokenizer
    for prompt, answer, found in zip(prompts, answers, bits, strict=True):
        head = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        ids = tokenizer(head + answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0].double()
        expected = -sum(float(torch.log_softmax(logits[p - 1], 0)[ids[p]]) for p in range(start, len(ids))) / math.log(
            2
        )
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    ((own, _),) = together(other, [answering(other, prompts, max_new_tokens=8)])
    (both,) = together(other, [answering(other, prompts, answers, max_new_tokens=8)])
    assert both[0] == own and both[1] == pytest.approx(bits, rel=1e-5, abs=1e-5)  # one forward pass for both
    figures = agreement(own, answers, bits)
    assert figures["equal_answers"] == sum(a == b for a, b in zip(own, answers, strict=True)) / len(prompts)
    assert 0 < figures["equal_answers"] < 1
    assert figures["bits_per_byte"] == pytest.approx(sum(bits) / sum(len(answer.encode()) for answer in answers))
    assert figures["log_likelihood_per_byte"] == pytest.approx(-figures["bits_per_byte"] * math.log(2))
    one_by_one = bits_of_answers(other, prompts, answers, batch_size=1)
    assert one_by_one == pytest.approx(bits, rel=1e-5, abs=1e-5)


WORDS = "stone river cloud lamp garden window bread".split()


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, list[CopyItem]]:
    """Return a tiny model that has learned every second copy by heart, and all eight; a word is about one token."""
    vocabulary = pico.byte_level([" ".join(WORDS)] * 9 + ["Text: Copy:\n"] * 9, 400)
    folder = pico.save_model(tmp_path_factory.mktemp("copier") / "model", vocabulary, width=64, dtype=torch.float32)
    generator = random.Random(0)
    text = text_of("t", [" ".join(generator.sample(WORDS, 6)).capitalize() + "." for _ in range(10)])
    model = load_model(folder)
    items = copy_items(text, [model], number=8)
    network = model.network.requires_grad_(True).train()
    copies = model.encode([f"{prompt_of(model, item)} {item.text}\n\n" for item in items[::2]])
    rows = [torch.tensor([*model.prefix_ids, *ids]) for ids in copies]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(80):
        network(input_ids=batch.clamp(min=0), labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.requires_grad_(False).eval()
    return model, items


def test_copies_are_string_equality(copier: tuple[LanguageModel, list[CopyItem]]) -> None:
    model, items = copier
    assert len(items) == 8
    (found,) = together(model, [copying(model, items)])
    equal: dict[str, list[bool]] = {}
    for item in items:
        ids = [*model.prefix_ids, *model.encode([prompt_of(model, item)])[0]]
        limit = len(model.encode([item.text])[0]) + 4
        written = model.network.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False, pad_token_id=0)
        reply = model.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True).strip().split("\n")[0].strip()
        equal.setdefault(item.kind, []).append(reply == item.text)
    assert {kind: figures["exact"] for kind, figures in found.items()} == {
        kind: sum(flags) / len(flags) for kind, flags in equal.items()
    }
    assert any(0 < figures["exact"] < 1 for figures in found.values())
    for figures in found.values():
        assert figures["exact"] <= figures["matched"] <= 1
    assert together(model, [copying(model, items)], batch_size=1) == [found]


def test_copies_keep_to_a_share_of_the_text(instruct: LanguageModel) -> None:
    text = read_text("ru", [str(RUSSIAN)], max_bytes=30_000, piece_bytes=300)
    everything = copy_items(text, [instruct], number=1000)
    few = copy_items(text, [instruct], number=1000, most_bytes=2000)
    for kind in ("sentences", "paragraphs"):
        sizes = [item.num_bytes for item in few if item.kind == kind]
        assert 1000 < sum(sizes) <= 2000 and max(sizes) <= 500
        assert sum(item.num_bytes for item in everything if item.kind == kind) > 2000
    assert {item.text for item in few} <= {item.text for item in everything}


def test_the_share_of_new_tokens_is_counted_in_what_is_written(instruct: LanguageModel, tmp_path: Path) -> None:
    """New are the tokens whose bytes a vocabulary without some merges lacks."""
    small = load_model(pico.save_model(tmp_path / "small", pico.byte_level(pico.ENGLISH, 400), width=32))
    text = read_text("ru", [str(RUSSIAN)], max_bytes=4000, piece_bytes=300)
    figures = measure_speed(instruct, text, small.vocabulary)
    step = len(text.pieces) // figures["batch"]
    network, written = instruct.network, []
    for piece in text.pieces[::step][: figures["batch"]]:
        beginning = next(cut(piece, 120))
        ids = [*instruct.prefix_ids, *instruct.encode([beginning])[0]]
        out = network(torch.tensor([ids])).logits  # a plain greedy loop
        for _ in range(figures["tokens"] // figures["batch"]):
            ids.append(int(out[0, -1].argmax()))
            written.append(ids[-1])
            out = network(torch.tensor([ids])).logits
    known = set(small.vocabulary.text_bytes_of.values())
    num_new = sum(data not in known for id in written if (data := instruct.vocabulary.text_bytes_of.get(id)))
    assert figures["tokens"] == len(written)
    assert figures["new_tokens_share"] == pytest.approx(num_new / len(written), abs=0.02)  # a near tie may flip
    assert 0.2 < figures["new_tokens_share"] < 1
    assert measure_speed(instruct, text, instruct.vocabulary)["new_tokens_share"] == 0


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for only_a, only_b in product(range(9), repeat=2):
        flags = [(True, False)] * only_a + [(False, True)] * only_b + [(True, True)] * 3
        total = only_a + only_b
        chance = [comb(total, number) / 2**total for number in range(total + 1)]
        expected = sum(p for p in chance if p <= chance[only_a] * (1 + 1e-9))  # outcomes as unlikely as this one
        assert mcnemar([a for a, _ in flags], [b for _, b in flags]) == pytest.approx(expected)


def test_the_task_counts_what_only_one_model_gets_right() -> None:
    right, reference = [True, True, True, False, False], [False, True, False, False, True]
    assert task_metrics(right, None) == {"examples": 5, "accuracy": 0.6}
    found = task_metrics(right, reference)
    assert found == {"examples": 5, "accuracy": 0.6, "only_this": 2, "only_reference": 1, "p": 1.0}
    assert task_metrics([True] * 6, [False] * 6)["p"] == 2 / 2**6


def test_suspects_are_beyond_the_median_and_their_error_worst_first() -> None:
    bits = np.array([1.0, 1.0, 1.0, 5.6, 9.0, 5.4, 7.0, 50.0])
    error = np.array([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.1, 0.1])
    count = np.array([3, 3, 3, 3, 3, 3, 3, 2])  # the last one occurs too rarely
    excess = Excess(bits, error, count)  # median 5.4 of the last judged ones, 1.0 of the first
    assert excess.median(np.arange(8) < 3) == 1.0 and excess.median(np.zeros(8, dtype=bool)) == 0.0
    assert excess.suspects().tolist() == []  # 9.0 - 0.5 - 5.4 is less than 4
    more = Excess(*(np.concatenate([part, np.full(9, fill)]) for part, fill in ((bits, 1.0), (error, 0), (count, 3))))
    assert more.suspects().tolist() == [4, 6, 3]  # 5.4 - 0.5 - 1.0 is less than 4, 5.6 - 0.5 - 1.0 is not


def test_the_task_counts_equal_replies(instruct: LanguageModel) -> None:
    prompts = read_task(QUICKSTART / "task.jsonl")[:40]
    (right,) = together(instruct, [solving(instruct, prompts)])
    assert [right] == together(instruct, [solving(instruct, prompts)], batch_size=1)
    network, tokenizer = instruct.network, instruct.tokenizer
    for prompt, flag in zip(prompts[:8], right, strict=False):
        head = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(head, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = network.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=instruct.end_ids[0], pad_token_id=0
        )
        reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert flag == (reply.strip() == prompt.answer)
    assert 20 < sum(right) < 40


@pytest.mark.parametrize("are_right", [True, False])
def test_drafts_change_the_time_only(instruct: LanguageModel, are_right: bool) -> None:
    """Right drafts are checked in one forward pass each, and of many wrong ones only the first eight are checked."""
    (ids,) = instruct.encode([RUSSIAN.read_text(encoding="utf-8")[:2000]])
    prompts = [ids[start : start + 20] for start in range(0, 12 * 20, 20)]
    plain = generate(instruct, prompts, 6)
    drafts = generate(instruct, prompts, 6, stop=False)  # always 6 tokens
    if not are_right:
        drafts = [[(id + 1) % 300 for id in ids] for ids in drafts]
    shapes: list[torch.Size] = []
    hook = instruct.network.register_forward_pre_hook(
        lambda module, arguments, keywords: shapes.append(keywords["input_ids"].shape), with_kwargs=True
    )
    rows = [Row(prompt, 6, draft=draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    decode(instruct, rows)
    assert [row.written for row in rows] == plain
    hook.remove()
    assert any(plain)
    assert sum(rows for rows, length in shapes if length == 20 + 6) == (12 if are_right else 8)


def test_a_full_batch_takes_no_row_that_needs_much_padding() -> None:
    assert list(batches([100, 200, 176, 200], tokens=4096)) == [[1, 3, 2], [0]]
    assert list(batches([100, 200, 174, 200], tokens=4096)) == [[1, 3], [2, 0]]
    assert list(batches([1, 20, 2, 20], tokens=4096)) == [[1, 3, 2, 0]]
    assert list(batches([100, 200, 176, 200], tokens=400)) == [[1, 3], [2, 0]]
    assert list(batches([100, 200, 30, 200], rows=3)) == [[1, 3, 0], [2]]


def greedy(model: LanguageModel, row: Row) -> list[int]:
    """Return the answer by a loop without cache and batch."""
    ids = list(row.prompt)
    while len(ids) < len(row.prompt) + row.limit:
        id = int(model.network(torch.tensor([ids])).logits[0, -1].argmax())
        if row.stop and id in model.end_ids:
            break
        ids.append(id)
    return ids[len(row.prompt) :]


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_answers_do_not_depend_on_the_rows_beside_them(instruct: LanguageModel, batch_size: int) -> None:
    """Rows of different lengths and limits join and leave one batch; each equals its own greedy loop."""
    (ids,) = instruct.encode([RUSSIAN.read_text(encoding="utf-8")[:3000]])
    generator, network, rows = random.Random(0), instruct.network, []
    for _ in range(14):
        start = generator.randrange(100)
        row = Row(ids[start : start + generator.randrange(3, 60)], generator.randrange(1, 20))
        row.stop, row.scored = generator.random() < 0.5, generator.random() < 0.3
        row.draft = ids[start + 60 :][: generator.randrange(6)] if row.scored or generator.random() < 0.5 else []
        rows.append(row)
    progress: Counter[str] = Counter()
    decode(instruct, rows, batch_size=batch_size, progress=lambda what, done, total: progress.update({what: done}))
    assert progress == {"": len(rows)}
    for row in rows:
        assert row.written == greedy(instruct, row)
        if row.scored:
            logits = network(torch.tensor([[*row.prompt, *row.draft]])).logits[0].double()
            nats = -torch.log_softmax(logits, -1)[range(len(row.prompt) - 1, len(logits) - 1), row.draft]
            assert row.nats == pytest.approx(nats.numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "name", ["Qwen3", "Gemma2", "Gemma3Text", "GPT2", "GPTNeoX", "Falcon", "Bloom", "Mamba", "Mistral"]
)
def test_every_kind_of_cache_answers_as_a_plain_loop(name: str, tmp_path: Path, english: Tokenizer) -> None:
    """Sliding windows, positions learned or by ALiBi, and states instead of keys and values."""
    fast = pico.save_tokenizer(english, tmp_path)
    values = {**pico.SMALL, "vocab_size": len(fast), "eos_token_id": fast.eos_token_id, "pad_token_id": 0}
    more = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "Bloom": {"n_head": 2},
        "Falcon": {"alibi": True},
        "Mistral": {"sliding_window": 8},
        "Gemma2": {"sliding_window": 8},
        "Gemma3Text": {"sliding_window": 8},
        "Mamba": {"state_size": 4},
    }
    if name == "Falcon":
        del values["head_dim"]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**values, **more.get(name, {})})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    generator = random.Random(0)
    rows = [Row(generator.sample(range(5, 200), length), 5 + length % 4) for length in range(3, 30, 3)]
    rows[0].draft, rows[1].draft, rows[1].scored = [7, 8], [9], True
    decode(model, rows, batch_size=4)
    for row in rows:
        assert row.written == greedy(model, row)
    logits = model.network(torch.tensor([rows[1].prompt])).logits[0, -1]
    assert rows[1].nats == pytest.approx(-float(torch.log_softmax(logits, -1)[9]), rel=1e-4)


@pytest.mark.parametrize("tables", [TABLES[:1], TABLES[1:], TABLES, ()], ids=["input", "output", "both", "none"])
def test_permuted_rows_are_found(instruct: LanguageModel, tmp_path: Path, tables: Sequence[str]) -> None:
    """200 tokens of one vocabulary, whose rows were given to one another."""
    text = read_text("ru", [str(RUSSIAN)], max_bytes=80_000, piece_bytes=300)
    expected = measure_texts(instruct, [text])
    candidates = sorted({id for row in expected["ru"].ids for id in row if id > 300})
    ids = random.Random(0).sample(candidates, 200)
    broken = changed(tmp_path / "broken", QUICKSTART / "instruct", permuted(tables, ids))
    found = check_tokens(broken, measure_texts(broken, [text]), expected, "instruct", instruct.vocabulary)
    suspects = {side: [suspect["id"] for suspect in found[side]["suspects"]] for side in ("read", "written")}
    if not tables:
        assert found["warnings"] == [] and suspects == {"read": [], "written": []}
    for side, table, name in (("read", "input", TABLES[0]), ("written", "output", TABLES[1])):
        if name in tables:
            assert any(f"look broken in the {table} table" in warning for warning in found["warnings"])
            assert sum(id in ids for id in suspects[side]) > 0.8 * len(suspects[side])
        elif tables:  # a wrong row harms more than the next token, so the other side may have some too
            (other,) = {"read", "written"} - {side}
            assert len(suspects[side]) < len(suspects[other]) / 2


def test_a_short_context_limits_all_lengths(tmp_path: Path, english) -> None:
    """Pieces, beginnings and continuations fit 64 tokens; 16 are refused in one line, a long prompt too."""
    folder = pico.save_model(tmp_path / "model", english, chat=True)
    rows = [{"text": line} for line in RUSSIAN.read_text().splitlines()]
    corpus = tmp_path / "ru.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in [{"text": None}, {"text": "a\0b"}, *rows]))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = ("--text", f"ru={corpus}", "--max-bytes", "2kB", "--device", "cpu", "--json")
    path.write_text(json.dumps({**config, "max_position_embeddings": 64}))
    result = pico.command("compare", folder, *text)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (skipped,) = found["warnings"]
    assert skipped.startswith("--text ru: skipped ") and skipped.endswith(" 1 null, 1 with NUL characters")
    measured = found["models"]["model"]["texts"]["ru"]
    assert 0 < measured["generation"]["tokens"] < 8 * 64 and measured["bits_per_byte"] > 0
    assert measured["context_characters"] == pytest.approx(64 * measured["symbols_per_token"])
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"messages": [{"role": "user", "content": "x " * 80}], "answer": "y"}))
    pico.assert_one_line_error(
        pico.command("compare", folder, *text, "--task", task), 1, "task.jsonl:1", "context of model (64 tokens)"
    )
    path.write_text(json.dumps({**config, "max_position_embeddings": 16}))
    pico.assert_one_line_error(pico.command("compare", folder, *text), 1, "context of 16 tokens is too short")


def test_a_model_without_a_limit_has_no_context_to_show(tmp_path: Path, english) -> None:
    folder = pico.save_model(tmp_path / "model", english)
    path = folder / "config.json"
    config = {key: v for key, v in json.loads(path.read_text()).items() if key != "max_position_embeddings"}
    path.write_text(json.dumps(config))
    text = ("--text", f"ru={RUSSIAN}", "--max-bytes", "2kB", "--device", "cpu", "--copies", "0")
    found = json.loads(pico.command("compare", folder, *text, "--json").stdout)
    assert "context_characters" not in found["models"]["model"]["texts"]["ru"]
    assert " context ru" not in pico.command("compare", folder, *text).stdout


def test_faults_are_one_line(tmp_path: Path) -> None:
    short, bad, mine = tmp_path / "short.txt", tmp_path / "bad.jsonl", tmp_path / "mine.html"
    short.write_text("too short")
    bad.write_text('{"messages": [{"role": "user", "content": "x"}], "answer": "y"}\n{"messages": []}\n')
    mine.write_text("<p>not of lepmerge</p>")
    base, model, text = QUICKSTART / "base", QUICKSTART / "instruct", f"ru={RUSSIAN}"
    for arguments, parts in {
        (tmp_path / "none", "--text", text): ("none",),
        (model, "--text", tmp_path / "none.txt"): ("none.txt",),
        (model, "--text", short): ("short.txt", "too few"),
        (model, "--text", text, "--task", bad): ("bad.jsonl:2", "`messages` is not a list with at least one message"),
        (base, model, "--text", text, "--task", QUICKSTART / "task.jsonl"): ("base", "chat template", "--reference"),
        (model, model, "--text", text): ("two models are named instruct",),
        (model, "--text", text, "--reference", "x"): ("--reference x", "instruct"),
        (model, "--text", text, "--html", mine): ("mine.html", "name another"),
        (model, "--text", text, "--plot", tmp_path / "no/x.png"): ("x.png", "no folder"),
    }.items():
        result = pico.command("compare", *arguments, "--device", "cpu")
        pico.assert_one_line_error(result, 1, *parts)
    assert mine.read_text() == "<p>not of lepmerge</p>"


@pytest.mark.parametrize("method", ["awq", "gptq", "method-of-nobody"])
def test_a_missing_quantization_library_is_refused_before_anything_is_measured(tmp_path: Path, method: str) -> None:
    """One line only: progress would show another line for the first model."""
    folder = Path(shutil.copytree(QUICKSTART / "instruct", tmp_path / "quantized"))
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    result = pico.command("compare", QUICKSTART / "instruct", folder, "--text", f"ru={RUSSIAN}", "--device", "cpu")
    pico.assert_one_line_error(
        result, 1, f"quantized: transformers cannot load {folder}, which is quantized ({method})"
    )
    assert any(part in result.stderr for part in ("requires", "Unknown quantization type", "No package metadata"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The quickstart's adapted base, its models of all methods, and three broken of `delta`: 200 new rows permuted."""
    folder = tmp_path_factory.mktemp("quickstart") / "quickstart"
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("out"))
    made = {"instruct": folder / "instruct", "adapted": folder / "out" / "whole"}
    options = ("--full", made["adapted"], "--device", "cpu", "-q")
    assert pico.command("train", folder / "train.yaml", *options).exit_code == 0
    for method in ("swap", "overlap", "conversion", "delta"):
        made[method] = folder / "out" / method
        values = (f"steps.0.method={method}", "steps.0.keep_shared_rows=false", f"output.path={made[method]}")
        options = [part for value in values for part in ("--set", value)]
        assert pico.command("run", folder / "recipe.yaml", *options, "--device", "cpu", "-q").exit_code == 0
    ids = random.Random(0).sample(range(2048, 3072), 200)
    for name, tables in (("input", TABLES[:1]), ("output", TABLES[1:]), ("both", TABLES)):
        made[f"broken-{name}"] = changed(folder / "out" / name, made["delta"], permuted(tables, ids)).folder
    return made


@pytest.mark.slow
def test_broken_new_tokens_are_named_and_sound_models_are_not(trained: dict[str, Path], tmp_path: Path) -> None:
    models = [f"{name}={folder}" for name, folder in trained.items()]
    options = (
        "--text",
        f"ru={RUSSIAN}",
        "--copies",
        0,
        "--device",
        "cpu",
        "--html",
        tmp_path / "report.html",
        "--json",
    )
    result = pico.command("compare", *models, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {warning.split(":")[0] for warning in found["warnings"]} == {"broken-input", "broken-output", "broken-both"}
    for name, table in (("input", "input"), ("output", "output"), ("both", "input"), ("both", "output")):
        assert any(f"broken-{name}:" in w and f"look broken in the {table} table" in w for w in found["warnings"])
    for name in ("adapted", "swap", "overlap", "conversion", "delta"):
        assert found["models"][name]["texts"]["ru"]["bits_per_byte"] < 1.3
