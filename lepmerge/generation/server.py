"""Answer prompts through a server with the OpenAI protocol (vLLM, llama.cpp, …), with several requests at once."""

import re
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

from lepmerge.chats import Chat
from lepmerge.errors import GenerationError, OptionError
from lepmerge.generation.engine import Answer, Sampling

WAITS = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry of a request."""
REQUEST_SECONDS, CONNECT_SECONDS = 600.0, 10.0
PASSING = {429, 500, 502, 503, 504}
"""HTTP statuses after which a retry may succeed."""
TOO_LONG = re.compile(r"context|too long|too many tokens|maximum.{0,20}length", re.IGNORECASE)
"""Matches the error message of servers (status 400 or 413) for a prompt that is longer than the context."""


@dataclass(frozen=True)
class ServerEngine:
    """A model on a server.

    url: the part before /chat/completions. model: the model's name on the server. key: the API key if one is needed.
    """

    url: str
    model: str
    sampling: Sampling
    concurrency: int = 8
    key: str | None = field(default=None, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.model}

    @property
    def folders(self) -> Sequence[Path]:
        return []

    def release(self) -> None:
        """Do nothing, because the weights are on the server."""

    def check(self) -> None:
        """Raise GenerationError if the server cannot be reached or does not accept the key."""
        httpx = _httpx()
        with self._client() as client:
            try:
                status = client.get("/models").status_code
            except httpx.TransportError as error:
                raise GenerationError(
                    f"{self.url} cannot be reached ({_reason(error)}): start the server, or correct the URL"
                ) from error
        if status in (401, 403):
            raise GenerationError(f"{self.url} answers {status}: name the variable with your key by --api-key-env")

    def answers(self, prompts: Sequence[Chat], finished: Container[int]) -> Iterator[dict[int, list[Answer]]]:
        """Yield the answers of one prompt at a time, as they come."""
        todo = [place for place in range(len(prompts)) if place not in finished]
        stopped = Event()
        fault: GenerationError | None = None
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(self._candidates, client, prompts[place], place, stopped): place for place in todo}
            try:
                for future in as_completed(waiting):
                    try:
                        found = future.result()
                    except GenerationError as error:
                        fault = fault or error
                    else:
                        if found is not None:
                            yield {waiting[future]: found}
            finally:
                stopped.set()
        if fault is not None:
            raise fault

    def _client(self) -> Any:
        httpx = _httpx()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=self.concurrency)
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)

    def _candidates(self, client: Any, prompt: Chat, place: int, stopped: Event) -> list[Answer] | None:
        """Return the candidates of one prompt, or None if the run was stopped before they were complete.

        Each candidate is a separate request with a different seed, because not every server supports `n`.
        """
        found = []
        try:
            for number in range(self.sampling.candidates):
                if stopped.is_set():
                    return None
                answer = self._answer(client, prompt, self.sampling.seed_of(place, number), stopped)
                if answer is None:
                    return []
                found.append(answer)
        except GenerationError:
            stopped.set()  # set here, before this thread takes the next prompt
            raise
        return found

    def _answer(self, client: Any, prompt: Chat, seed: int, stopped: Event) -> Answer | None:
        """Return one answer, None for a prompt that is longer than the context."""
        ranked = self.sampling.candidates > 1
        body = {
            "model": self.model,
            "messages": list(prompt.messages),
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": seed,
            **({"logprobs": True} if ranked else {}),
        }
        response = self._sent(client, body, stopped)
        if response.status_code in (400, 413) and TOO_LONG.search(response.text):
            return None
        if response.status_code != 200:
            raise GenerationError(f"{prompt.where}: {self.url} answers {response.status_code} ({_message(response)})")
        try:
            choice = response.json()["choices"][0]
            usage = response.json().get("usage") or {}
            tokens = choice["logprobs"]["content"] if ranked else []
            return Answer(
                text=(choice["message"]["content"] or "").strip(),
                num_tokens=int(usage.get("completion_tokens", 0)),
                is_cut=choice["finish_reason"] == "length",
                log_probability=fmean(token["logprob"] for token in tokens) if tokens else None,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            what = "log-probabilities, which rank candidates" if ranked else "an answer of the OpenAI protocol"
            raise GenerationError(f"{self.url} does not give {what}: {response.text[:120]!r}") from error

    def _sent(self, client: Any, body: dict[str, Any], stopped: Event) -> Any:
        """Send a request and return the response. Retry after a temporary failure, unless the run was stopped."""
        httpx = _httpx()
        reason = ""
        for seconds in (*WAITS, None):
            try:
                response = client.post("/chat/completions", json=body)
            except httpx.ReadTimeout as error:
                raise GenerationError(f"{self.url} did not answer within {REQUEST_SECONDS:.0f} seconds") from error
            except httpx.TransportError as error:
                reason = f"cannot be reached any more ({_reason(error)})"
            else:
                if response.status_code not in PASSING:
                    return response
                reason = f"answers {response.status_code} ({_message(response)})"
            if seconds is not None and stopped.wait(seconds):
                break
        raise GenerationError(f"{self.url} {reason}")


def base_url(url: str) -> str:
    """Return the part of a server's URL before /chat/completions. A URL without a path gets /v1.

    Raises:
        OptionError: `url` is not a URL.
    """
    httpx = _httpx()
    try:
        parsed = httpx.URL(url.removesuffix("/").removesuffix("/chat/completions"))
    except httpx.InvalidURL as error:
        raise OptionError(f"--server {url}: expected a URL such as http://127.0.0.1:8000 ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise OptionError(f"--server {url}: expected a URL such as http://127.0.0.1:8000")
    return str(parsed) if parsed.path.strip("/") else f"{str(parsed).rstrip('/')}/v1"


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise GenerationError("--server needs a package: pip install 'lepmerge[server]'") from error
    return httpx


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _message(response: Any) -> str:
    """Return the first line of a server's error message."""
    try:
        found = response.json()["error"]
        text = found["message"] if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        text = response.text
    return (text.strip().splitlines() or ["no reason given"])[0][:200]
