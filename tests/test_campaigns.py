"""The campaigns of tests/campaigns in short form, and the inputs with which they once found a fault."""

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import readers
import transformers
from frame import State

CAMPAIGNS = Path(__file__).parent / "campaigns"
DOCS = Path(__file__).parent.parent / "docs"
FOUND = sorted(path for path in (CAMPAIGNS / "found").rglob("*") if path.is_file())
KIND = {kind.name: kind for kind in readers.KINDS}


def read(kind: readers.Kind, path: Path, folder: Path) -> str:
    import fuzz

    return fuzz.outcome_of(kind, path, path.read_bytes(), folder)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_that_once_failed_is_refused_or_agrees(tmp_path: Path, path: Path) -> None:
    assert read(KIND[path.parent.name], path, tmp_path / "case") in ("refused", "agrees")


SEEDS = [path for kind in readers.KINDS for path in kind.seeds if kind.name != "gguf"]


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_seed_is_accepted(tmp_path: Path, path: Path) -> None:
    is_of_five = b"TokenizersBackend" in path.read_bytes()
    expected = "refused" if is_of_five and transformers.__version__.startswith("4") else "agrees"
    assert read(KIND[path.parent.name], path, tmp_path / "case").startswith(expected)


def test_the_frame_counts_dead_and_hanging_cases_and_goes_on(tmp_path: Path) -> None:
    import os
    import signal

    from frame import Campaign, Fault

    def case(number, rng):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 4:
            while True:
                pass
        if number == 5:
            raise Fault("wrong")
        return f"good {rng.randrange(10**9)}"

    campaign = Campaign("trial", case, limit=1.0, chunk=4)
    state = campaign.run(State("trial", 1), 7, path=tmp_path / "state.json")
    assert state.outcomes["fault"] == 3 and state.outcomes.total() == state.done == 7
    assert state.examples == {"killed by signal 9": 2, "hung: more than 1 CPU seconds": 4, "Fault: wrong": 5}
    again = campaign.run(State("trial", 1), 3)
    campaign.run(again, 7)
    assert again.outcomes == state.outcomes and State.of_json((tmp_path / "state.json").read_text()) == state


@pytest.mark.slow
def test_fuzz_in_short_form() -> None:
    import fuzz

    state = fuzz.CAMPAIGN.run(State("fuzz", 7), 3000)
    assert state.outcomes.total() == 3000 and not state.faults, state.examples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("kills", 5), ("disk_calls", 8), ("twice", 7), ("vocabularies", 2), ("decoders", 3)]
)
def test_other_campaigns_in_short_form(name: str, count: int) -> None:
    """Run in a process of its own: it forks, and must not have computed before."""
    command = [sys.executable, CAMPAIGNS / f"{name}.py", "--seed", "7", "--count", str(count), "--state"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, f"{folder}/state.json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
        assert State.of_json(Path(folder, "state.json").read_text()).done == count


def test_the_page_is_that_of_the_results() -> None:
    page = runpy.run_path(str(DOCS / "make_reliability.py"))["page"]()
    text = (DOCS / "reliability.md").read_text(encoding="utf-8")
    assert text == page, "run: python docs/make_reliability.py (docs/reliability.md is out of date)"
