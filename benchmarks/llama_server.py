"""llama.cpp's server on a GGUF file, as the serving benchmark and the tests use it."""

import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RANGES = ((0x20, 0x7E), (0x400, 0x45F), (0xA0, 0x24F), (0x370, 0x3FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F5FF))
PROMPTS = (
    "The capital of France is", "def add(a, b):", "Столица России —", "1 2 3 4", "Once upon a time", "Water boils at",
    "import numpy as", "The largest planet is", "Мама мыла", "Q: What is 2 + 2?\nA:", "She sells sea shells by",
    "A recipe for bread:", "The opposite of hot is", "Dear Sir or Madam,", "for i in range(10):", "Жили-были",
    "The first president of", "Roses are red,", "To be or not to be,", "HTTP status 404 means",
)  # fmt: skip


@contextmanager
def served(path: Path) -> Iterator[str]:
    """Run llama.cpp's server on a file; yield its address."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = 1  # more threads would wait busily for one another
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def post(address: str, route: str, **body: object) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(address + route, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def random_texts(count: int) -> list[str]:
    """Return texts of random characters, each of one script, with spaces."""
    choose = random.Random(0)
    spans = [choose.choice(RANGES) for _ in range(count)]
    return ["".join(chr(choose.randint(*span)) if choose.random() < 0.8 else " " for _ in range(30)) for span in spans]
