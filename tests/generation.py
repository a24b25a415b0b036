"""What the tests of `lepmerge generate` share: prompts on disk, a server, an engine without a model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lepmerge.generation.engine import Answer, Sampling

Reply = tuple[int, Any]
"""Status and JSON of a server's answer; None closes the connection without an answer."""


def write_prompts(path: Path, *prompts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts))
    return path


def chats(folder: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (folder / "chats.jsonl").read_text().splitlines()]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def completion(text: str, *, finish: str = "stop", log_probability: float | None = None) -> Reply:
    """Return an answer of the OpenAI protocol."""
    choice: dict[str, Any] = {"finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if log_probability is not None:
        choice["logprobs"] = {"content": [{"token": "a", "logprob": log_probability}]}
    return 200, {"choices": [choice], "usage": {"completion_tokens": 3}}


@contextmanager
def server(
    answer: Callable[[dict[str, Any]], Reply | None], *, models: int = 200
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve on loopback; yield the URL and the requests that came. models: status of the list of models."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(models, {"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
            reply = answer(body)
            if reply is None:
                self.close_connection = True
            else:
                self._send(*reply)

        def _send(self, status: int, value: Any) -> None:
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", requests
        finally:
            listening.shutdown()
            thread.join()


class Echo:
    """An engine that answers with the prompt and its place. before: called with each place."""

    folders = ()

    def __init__(self, before: Callable[[int], Any] = lambda place: None) -> None:
        self.before, self.sampling, self.identity = before, Sampling(), {"echo": 1}

    def release(self) -> None:
        pass

    def answers(self, prompts, finished):
        for place in reversed(range(len(prompts))):
            if place not in finished:
                self.before(place)
                yield {place: [Answer(f"{place}: {prompts[place].messages[-1]['content']}", 3, False)]}
