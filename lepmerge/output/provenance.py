"""What every report names as its origin: the paper, and the versions that computed it."""

import platform
from importlib.metadata import version

PAPER = "https://arxiv.org/abs/2412.21140"
PACKAGES = ("torch", "tokenizers", "transformers", "safetensors")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
