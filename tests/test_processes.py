"""`lepmerge generate` and `lepmerge compare` in two processes give what they give in one."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import generation
import pico
import processes
import pytest

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"
SAMPLED = ("--max-new-tokens", 7, "--batch-size", 2, "--temperature", 1.5, "--candidates", 2,
           "--keep", "cut", "--keep", "repetitive")  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def generate_alone(model: Path, prompts: Path, output: Path, *options: object) -> None:
    done = pico.command("generate", model, prompts, "-o", output, "--device", "cpu", *options)
    assert done.exit_code == 0, done.stderr


def assert_stops_with_one_line(process: subprocess.Popen[str], *parts: str) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: process 0 stops: another process of the ") and all(part in line for part in parts)


def test_two_processes_generate_what_one_does(tmp_path: Path, setting) -> None:
    """With an odd number of batches, a prompt that is too long, and a grader."""
    texts = [f"number {n} " + "and so on " * n for n in range(8)] + ["word " * 400]
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", *texts)
    model = setting["instruct"]
    options = (*SAMPLED, "--grader", model, "--min-score", 1)
    generate_alone(model, prompts, tmp_path / "alone", *options)
    main, other = processes.run_by_two("generate", model, prompts, "-o", tmp_path / "two", *options)
    assert pico.contents(tmp_path / "two") == pico.contents(tmp_path / "alone")
    report = generation.report(tmp_path / "two")
    assert report["prompts"] == 9 and report["dropped"].pop("prompt too long") == 1 and report["dropped"]
    assert main.splitlines()[-1] == str(tmp_path / "two") and other == ""
    before = pico.tree(tmp_path)
    processes.run_by_two("generate", model, prompts, "-o", tmp_path / "two", *options)  # it is complete
    assert pico.tree(tmp_path) == before


def test_a_generation_loses_a_process_and_continues_in_one(tmp_path: Path, setting) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", *(f"number {n}" for n in range(200)))
    options = (*SAMPLED, "-q")
    main, other = processes.started("generate", setting["instruct"], prompts, "-o", tmp_path / "out", *options)
    try:
        while (finished := _lines(tmp_path / ".out.lepmerge")) < 8:
            assert main.poll() is None and other.poll() is None, main.communicate()[1]
            time.sleep(0.01)
        other.send_signal(signal.SIGKILL)
        assert_stops_with_one_line(main, "the run", "Finished answers are kept", "any number of processes")
    finally:
        main.kill()
        other.kill()
        other.communicate()
    assert finished <= _lines(tmp_path / ".out.lepmerge") < 200
    generate_alone(setting["instruct"], prompts, tmp_path / "out", *options)
    generate_alone(setting["instruct"], prompts, tmp_path / "undisturbed", *options)
    assert pico.contents(tmp_path / "out") == pico.contents(tmp_path / "undisturbed")


def _lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers-*"))


@pytest.mark.parametrize("option", ["--server", "--grader-server"])
def test_a_server_needs_no_processes(tmp_path: Path, setting, monkeypatch, option: str) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "x")
    before = pico.tree(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = pico.command("generate", setting["instruct"], prompts, "-o", tmp_path / "out", "--grader", "judge",
                          option, "http://127.0.0.1:1")  # fmt: skip
    pico.assert_one_line_error(result, 2, "server", "without `accelerate launch`", "--concurrency")
    assert pico.tree(tmp_path) == before


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Arguments of a comparison of two models with texts, chats and a task."""
    folder = tmp_path_factory.mktemp("compared")
    chats = generation.write_prompts(folder / "chats.jsonl", *(f"Сколько будет {n}?" for n in range(5)))
    task = folder / "task.jsonl"
    task.write_text("".join((QUICKSTART / "task.jsonl").read_text().splitlines(keepends=True)[:9]))
    return ("compare", QUICKSTART / "instruct", f"base={QUICKSTART / 'base'}", "--text",
            f"ru={QUICKSTART / 'heldout_ru.txt'}", "--chat", chats, "--task", task, "--max-bytes", "4kB",
            "--copies", 3, "--batch-size", 2)  # fmt: skip


def without_times(value: Any) -> Any:
    """Return results without what a clock measured."""
    if not isinstance(value, dict):
        return value
    clocked = ("seconds", "characters_per_second", "tokens_per_second")
    return {key: without_times(part) for key, part in value.items() if key not in clocked}


def test_two_processes_compare_what_one_does(compared: tuple[object, ...]) -> None:
    alone = pico.command(*compared, "--json", "-q", "--device", "cpu")
    assert alone.exit_code == 0, alone.stderr
    main, other = processes.run_by_two(*compared, "--json", "-q")
    found, expected = json.loads(main), json.loads(alone.stdout)
    assert without_times(found) == without_times(expected) and other == ""
    assert found["models"]["base"]["texts"]["ru"]["generation"]["tokens_per_second"] > 0
    assert found["models"]["instruct"]["task"]["examples"] == 9


def test_a_comparison_loses_a_process(compared: tuple[object, ...]) -> None:
    main, other = processes.started(*compared)
    try:
        assert main.stderr is not None and main.stderr.readline() == "measuring instruct\n"
        other.send_signal(signal.SIGKILL)
        assert_stops_with_one_line(main, "the comparison", "Run the same command again")
    finally:
        main.kill()
        other.kill()
        other.communicate()
