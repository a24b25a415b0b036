"""Fixtures that several test files share: one trained pair of tokenizers and one LEP setting."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers use all cores: torch's threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pico  # noqa: E402 -- torch and transformers read these variables when they are imported
import torch  # noqa: E402 -- as above

LONGEST = (
    "test_smollm2",
    "test_tutorial",
    "test_benchmarks",
    "test_output_run",
    "test_darumeru_command",
    "test_tokenization_real",
    "test_resume",
    "test_darumeru_install",
    "test_training_run",
    "test_notebook",
    "test_package",
)
"""Files of slow tests in the order of their length. A long one that begins last keeps one worker busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def english():
    return pico.byte_level(pico.ENGLISH, 400)


@pytest.fixture(scope="session")
def russian():
    return pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600)


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory, english, russian) -> dict[str, Path]:
    """base, instruct and adapted models, untied, byte-level; read-only for tests."""
    folder = tmp_path_factory.mktemp("setting")
    base = pico.save_model(folder / "base", english)
    instruct = pico.save_instruct(folder / "instruct", base, english)
    adapted = pico.save_adapted(folder / "adapted", base, russian)
    return {"base": base, "instruct": instruct, "adapted": adapted}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several threads slow tiny models down, and change the last bit of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def processes():
    """Starts processes from a server that has imported everything, for tests that kill them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pico", "test_resume", "lepmerge.merge.execute", "lepmerge.training.run", "transformers.models.auto"]
    )
    return context
