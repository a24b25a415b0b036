"""lepmerge generate on this machine: answers, candidates, resuming, prompts, filters, copies."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import generation
import pico
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.errors import OutputError
from lepmerge.generation import local
from lepmerge.generation.filters import Filters
from lepmerge.generation.prompts import prompts_of_files
from lepmerge.generation.run import Job, generate
from lepmerge.output.staging import Staging

PROMPTS = ("The quick", "A", "An operation turns one model into", "Numbers such as", "dog", "The lazy dog")


def run(model: Path, prompts: Path, output: Path, *options, code: int = 0):
    """Run the command on the CPU. Cut and repetitive answers are kept, because the model is random."""
    done = pico.command("generate", model, prompts, "-o", output, "--device", "cpu", "--max-new-tokens", 7,
                        "--keep", "cut", "--keep", "repetitive", "-q", *options)  # fmt: skip
    assert done.exit_code == code, done.stderr or done.exception
    return done


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return generation.write_prompts(tmp_path / "prompts.jsonl", *PROMPTS)


def greedily(folder: Path, text: str, limit: int) -> str:
    """Return the answer to one prompt, token by token without cache or batch."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + limit:
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_greedy_answers_in_the_order_of_the_prompts(tmp_path: Path, setting, prompts: Path) -> None:
    run(setting["instruct"], prompts, tmp_path / "out", "--batch-size", 4)
    found = generation.chats(tmp_path / "out")
    assert [messages[0]["content"] for messages in found] == list(PROMPTS)
    assert [m["role"] for m in found[0]] == ["user", "assistant"]
    assert [messages[1]["content"] for messages in found] == [greedily(setting["instruct"], p, 7) for p in PROMPTS]
    report = generation.report(tmp_path / "out")
    assert (report["prompts"], report["kept"], report["records"], report["dropped"]) == (6, 6, 6, {})
    assert report["settings"]["model"] == "instruct" and report["settings"]["prompts"] == ["prompts.jsonl"]
    assert str(tmp_path) not in (tmp_path / "out/report.json").read_text()


def test_a_finished_run_is_left_alone_and_another_needs_overwrite(tmp_path: Path, setting, prompts: Path) -> None:
    run(setting["instruct"], prompts, tmp_path / "out")
    before = pico.tree(tmp_path / "out")
    run(setting["instruct"], prompts, tmp_path / "out")
    assert pico.tree(tmp_path / "out") == before
    done = run(setting["instruct"], prompts, tmp_path / "out", "--max-new-tokens", 5, code=1)
    pico.assert_one_line_error(done, 1, tmp_path / "out", "is not empty", "--overwrite")
    run(setting["instruct"], prompts, tmp_path / "out", "--max-new-tokens", 5, "--overwrite")
    assert generation.report(tmp_path / "out")["settings"]["max_new_tokens"] == 5


def test_overwrite_deletes_nothing_that_generate_did_not_write(tmp_path: Path, setting, prompts: Path) -> None:
    model = shutil.copytree(setting["base"], tmp_path / "out")
    before = pico.tree(model)
    done = run(setting["instruct"], prompts, tmp_path / "out", "--overwrite", code=1)
    pico.assert_one_line_error(done, 1, "--overwrite", "report.json")
    assert pico.tree(model) == before


def test_finished_answers_outlive_a_change_of_the_filters(tmp_path: Path, prompts: Path) -> None:
    def killed(place: int) -> None:
        if place == 1:
            raise Killed

    job = Job(tmp_path / "out", prompts_of_files([prompts]), generation.Echo(killed))
    with pytest.raises(Killed):
        generate(job)
    asked: list[int] = []
    generate(replace(job, engine=generation.Echo(asked.append), filters=Filters(scripts=["Latin"])))
    assert asked == [1, 0] and len(generation.chats(tmp_path / "out")) == 6


def test_an_unfinished_run_of_another_command_is_kept(tmp_path: Path, prompts: Path) -> None:
    with Staging(tmp_path / "out").opened("a training"):
        pass
    job = Job(tmp_path / "out", prompts_of_files([prompts]), generation.Echo())
    with pytest.raises(OutputError, match="holds an unfinished run of another command"):
        generate(job)


def test_an_output_in_the_model_is_refused(tmp_path: Path, setting, prompts: Path) -> None:
    done = run(setting["instruct"], prompts, setting["instruct"] / "answers", code=1)
    pico.assert_one_line_error(done, 1, "is, contains or is inside the input", "--output")


def test_candidates(tmp_path: Path, setting, prompts: Path) -> None:
    sampled = ("--candidates", 3, "--temperature", 1.5, "--top-p", 0.9)
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        run(setting["instruct"], prompts, tmp_path / name, *sampled, "--seed", seed)
    first, again, other = (pico.contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again and first["chats.jsonl"] != other["chats.jsonl"]
    run(setting["instruct"], prompts, tmp_path / "small", *sampled, "--batch-size", 1)
    assert [m[0] for m in generation.chats(tmp_path / "small")] == [m[0] for m in generation.chats(tmp_path / "first")]


def test_log_probabilities_are_the_model_s_own(setting) -> None:
    """The reported value ignores temperature and top-p and counts the end token. The best, then earliest one wins."""
    from lepmerge.chats import Chat
    from lepmerge.comparison.loading import load_model
    from lepmerge.generation.engine import Sampling

    model = load_model(setting["instruct"])
    ends = model.end_ids + tuple(range(0, len(model.tokenizer), 7))  # so that some answers end
    object.__setattr__(model, "end_ids", ends)
    written: list[list[int]] = []
    object.__setattr__(model, "decode", lambda ids: written.append(list(ids)) or "x")
    engine = local.LocalEngine(model, Sampling(6, 1.3, 0.8, candidates=4, seed=1), 2)
    chats = [Chat(({"role": "user", "content": text},), "here") for text in ("The quick", "A")]
    found = {place: answers for part in engine.answers(chats, {}) for place, answers in part.items()}
    answers = [answer for place in found for answer in found[place]]  # in the order in which they were decoded
    assert {answer.is_cut for answer in answers} == {True, False}
    for answer, ids, place in zip(answers, written, [place for place in found for _ in range(4)], strict=True):
        head = model.encode([model.chat(chats[place].messages, "")])[0]
        logit = model.network(torch.tensor([head + ids])).logits[0].log_softmax(-1)
        parts = [float(logit[len(head) - 1 + step, id]) for step, id in enumerate(ids)]
        last = logit[len(head) - 1 + len(ids)]
        if answer.is_cut:
            assert answer.log_probability == pytest.approx(sum(parts) / len(parts), abs=1e-4)
        else:
            options = [(sum(parts) + float(last[end])) / (len(parts) + 1) for end in ends]
            assert min(abs(answer.log_probability - option) for option in options) < 1e-4


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_resumed_run_is_an_undisturbed_one(tmp_path: Path, setting, prompts: Path, monkeypatch) -> None:
    sampled = ("--temperature", 1.5, "--candidates", 2, "--batch-size", 2)
    run(setting["instruct"], prompts, tmp_path / "undisturbed", *sampled)
    compute, sizes = local.LocalEngine._batch, []

    def killed_at_the_third(self, rows, limit, number):
        sizes.append(len(rows))
        if len(sizes) == 3:
            raise Killed
        return compute(self, rows, limit, number)

    monkeypatch.setattr(local.LocalEngine, "_batch", killed_at_the_third)
    with pytest.raises(Killed):
        pico.command("generate", setting["instruct"], prompts, "-o", tmp_path / "out", "--device", "cpu",
                     "--max-new-tokens", 7, "--keep", "cut", "--keep", "repetitive", *sampled)  # fmt: skip
    assert not (tmp_path / "out").exists()
    (journal,) = (tmp_path / ".out.lepmerge").glob("answers-*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # torn: half of a batch, and half a line
    run(setting["instruct"], prompts, tmp_path / "out", *sampled)
    assert sizes == [2, 2, 2, 2, 2], "one batch was finished, the torn one and the third are computed"
    assert pico.contents(tmp_path / "out") == pico.contents(tmp_path / "undisturbed")
    assert not (tmp_path / ".out.lepmerge").exists()


def test_killed_by_the_system(tmp_path: Path, prompts: Path) -> None:
    job = Job(tmp_path / "out", prompts_of_files([prompts]), generation.Echo())
    expected = [f"{place}: {prompt}" for place, prompt in enumerate(PROMPTS)]
    child = os.fork()
    if child == 0:  # an engine without torch: its threads do not survive a fork
        slow = generation.Echo(lambda place: time.sleep(0.05 if place else 60))
        generate(Job(job.target, job.prompts, slow))
        os._exit(0)
    journal = tmp_path / ".out.lepmerge"
    while not any(path.read_bytes().count(b"\n") >= 3 for path in journal.glob("answers-*")):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    asked: list[int] = []
    generate(Job(job.target, job.prompts, generation.Echo(asked.append)))
    assert [messages[1]["content"] for messages in generation.chats(tmp_path / "out")] == expected
    assert len(asked) <= 3 and asked[-1] == 0


def test_a_prompt_longer_than_the_context(tmp_path: Path, setting) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "A", "dog " * 200, "The quick " * 12)
    done = pico.command("generate", setting["instruct"], prompts, "-o", tmp_path / "out", "--device", "cpu",
                        "--max-new-tokens", 40, "--keep", "cut", "--keep", "repetitive")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert notes == [
        "note: 1 prompt is longer than the context of the model and was left out, the first: prompts.jsonl:2"
    ]
    assert [messages[0]["content"] for messages in generation.chats(tmp_path / "out")] == ["A", "The quick " * 12]
    assert generation.report(tmp_path / "out")["dropped"] == {"prompt too long": 1}
    generation.write_prompts(prompts, "dog " * 200)
    done = run(setting["instruct"], prompts, tmp_path / "none", code=1)
    pico.assert_one_line_error(done, 1, "none of the 1 prompts fits into the context")


def test_no_answer_runs_beyond_the_context() -> None:
    """Rows of a batch share the room that is left, longest first."""
    batches = list(local._batches([5, 90, 7, 5, 95, 6], [20, 10, 20, 20, 5, 20], 2))
    assert batches == [[4], [1], [2, 5], [0, 3]]


def test_chats_are_prompts_up_to_the_last_message_of_the_user(tmp_path: Path, setting) -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "bot", "user", "assistant", "bot")]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"messages": messages}))
    run(setting["instruct"], tmp_path / "prompts.jsonl", tmp_path / "out")
    (found,) = generation.chats(tmp_path / "out")
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user", "assistant"]
    assert found[2]["content"] == "bot" and found[4]["content"] != "assistant"


def test_faults_of_prompts_name_file_and_line(tmp_path: Path, setting) -> None:
    path = tmp_path / "prompts.jsonl"
    for line, *parts in (
        ("{", "not JSON"),
        ('{"text": "a"}', "no `messages` and no `prompt`, there is text"),
        ('{"messages": [{"role": "wizard", "content": "a"}]}', "unknown role 'wizard'"),
        ('{"messages": []}', "`messages` is not a list with at least one message"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "there is no message of the user to answer"),
        ('{"prompt": " "}', "the message of the user is empty"),
    ):
        path.write_text('{"prompt": "a"}\n' + line + "\n")
        pico.assert_one_line_error(run(setting["instruct"], path, tmp_path / "out", code=1), 1, f"{path}:2", *parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


def test_a_model_without_chat_template(tmp_path: Path, setting, prompts: Path) -> None:
    done = run(setting["base"], prompts, tmp_path / "out", code=1)
    pico.assert_one_line_error(done, 1, f"{prompts}:1", "has no chat template")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, setting) -> None:
    """The real command is killed with -9 four times. Its final output equals that of an undisturbed run."""
    prompts = generation.write_prompts(
        tmp_path / "prompts.jsonl", *(f"{text} {n}" for n in range(40) for text in PROMPTS)
    )
    options = ("--device", "cpu", "--max-new-tokens", "40", "--batch-size", "4", "--keep", "cut",
               "--keep", "repetitive", "--temperature", "1", "--candidates", "2", "-q")  # fmt: skip

    def start(output: str) -> subprocess.Popen[bytes]:
        command = ["lepmerge", "generate", setting["instruct"], prompts, "-o", tmp_path / output, *options]
        return subprocess.Popen([sys.executable, "-m", *command])

    assert start("undisturbed").wait() == 0
    generator, kills, finished = random.Random(0), 0, [0]
    while kills < 4:
        process = start("out")
        journal = tmp_path / ".out.lepmerge"
        wanted = finished[-1] + generator.randrange(4, 20)
        while process.poll() is None and _lines(journal) < wanted:
            time.sleep(0.01)
        time.sleep(generator.random() / 20)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        finished.append(_lines(journal))
        assert finished[-1] > finished[-2], "every run continues where the last one was"
    assert start("out").wait() == 0
    assert pico.contents(tmp_path / "out") == pico.contents(tmp_path / "undisturbed")


def _lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers-*"))
