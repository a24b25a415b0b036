"""lepmerge chain: strict reading, skipping what is complete, resuming after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pico
import pytest

from lepmerge.projects.chain import Step, open_chain, run_chain

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes/quickstart"


def write(folder: Path, *commands: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "project.yaml").write_text(f"commands: {json.dumps(commands)}\n")
    return folder


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("commands: []\n", "project.yaml:1: commands: List should have at least 1 item"),
        ("commands: [inspect a]\nsteps: []\n", "project.yaml:2: steps: unknown key; known are commands"),
        ("commands: [rnu recipe.yaml]\n", "project.yaml:1: rnu recipe.yaml: unknown command 'rnu'"),
        ("commands: [chain .]\n", "unknown command 'chain'"),
        ("commands: [tokenizer grow a]\n", "unknown command 'grow'; the commands are extend"),
        (
            "commands:\n- inspect a\n- run recipe.yaml --devise cpu\n",
            "project.yaml:3: run recipe.yaml --devise cpu: No such",
        ),
        ("commands: [inspect]\n", "Missing argument 'MODEL'"),
        ('commands: ["inspect \\"a"]\n', "No closing quotation"),
        ("models: {a: b}\n", "this is a recipe, not a project: use `lepmerge run"),
    ],
)
def test_a_faulty_project_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "project.yaml").write_text(text)
    pico.assert_one_line_error(pico.command("chain", tmp_path), 2, part)
    assert [path.name for path in tmp_path.iterdir()] == ["project.yaml"]


def test_a_folder_without_a_project_names_init(tmp_path: Path) -> None:
    pico.assert_one_line_error(pico.command("chain", tmp_path), 2, "project.yaml does not exist", "lepmerge init")


def test_a_step_is_complete_until_what_it_names_changes(tmp_path: Path) -> None:
    chain = open_chain(write(tmp_path, "compare a=one two --text t=x.txt --html r.html"), lambda *_: None)
    (step,) = chain.steps
    (tmp_path / "one").mkdir()
    for name in ("one/weights", "x.txt", "r.html"):
        (tmp_path / name).write_text("old")
    assert not chain.is_complete(step)
    chain.remember(step)
    assert chain.is_complete(step) and chain.ended().keys() == {step.text}
    for name in ("one/weights", "x.txt", "r.html"):
        (tmp_path / name).write_text("other text")
        assert not chain.is_complete(step)
        chain.remember(step)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/weights").write_text("new")
    assert not chain.is_complete(step)
    chain.journal.write_text("{")  # damaged
    assert not chain.is_complete(step)
    for name in ("run", "train", "generate"):  # they know it themselves
        known = Step(f"{name} x.txt", (name, "x.txt"))
        chain.remember(known)
        assert not chain.is_complete(known)


def test_steps_run_in_order_and_a_failure_stops_them(tmp_path: Path, setting) -> None:
    folder = write(tmp_path / "p", f"inspect {setting['base']}", "inspect ./nowhere", f"inspect {setting['instruct']}")
    dry = pico.command("chain", folder, "--dry-run")
    assert dry.stdout.splitlines()[1:] == [
        f"1  to run    lepmerge inspect {setting['base']}",
        "2  to run    lepmerge inspect ./nowhere",
        f"3  to run    lepmerge inspect {setting['instruct']}",
    ]
    assert [path.name for path in folder.iterdir()] == ["project.yaml"]
    result = pico.command("chain", folder, "--json")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: step 2 of 3 failed: lepmerge inspect ./nowhere. Mend")
    states = [
        step["state"] for step in json.loads(pico.command("chain", folder, "--dry-run", "--json").stdout)["steps"]
    ]
    assert states == ["complete", "to run", "to run"]


def test_ctrl_c_stops_a_chain_although_its_command_swallows_it(tmp_path: Path, setting) -> None:
    """The signal reaches this process only, as if a library of the command had swallowed it while it was imported."""
    chain = open_chain(
        write(tmp_path / "p", *[f"inspect {setting['base']} {option}" for option in ("", "--json")]), lambda words: None
    )
    begun = []

    def before(number: int, step: Step, state: str) -> None:
        begun.append(number)
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run_chain(chain, output=subprocess.DEVNULL, before=before)
    assert begun == [0] and [chain.is_complete(step) for step in chain.steps] == [True, False]


def start(project: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "lepmerge", "chain", str(project)]
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.slow
def test_a_project_of_the_quickstart_is_made_although_it_is_killed(tmp_path: Path) -> None:
    """`init` and `chain` from a model and text to a report: killed, interrupted, and complete in the end."""
    text = ("--text", QUICKSTART / "train_ru.jsonl.gz", "--held-out", QUICKSTART / "heldout_ru.txt")
    project, log = tmp_path / "p", tmp_path / "log"
    assert pico.command("init", QUICKSTART / "instruct", project, *text, "--tokens", "20K", "-q").output == ""
    for name in ("train.yaml", "calibrate.yaml"):
        path = project / name
        path.write_text(path.read_text().replace("limit: 100KB", "limit: 8KB"))
    path = project / "project.yaml"
    path.write_text(path.read_text().replace("100kB --copies 4", "8kB --copies 0"))
    seen = 0
    for wanted, how in (("[1/5]", signal.SIGKILL), ("step 10/", signal.SIGKILL), ("[4/5]", signal.SIGINT)):
        process = start(project, log)
        while wanted not in log.read_text()[seen:]:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(random.Random(wanted).random())
        seen = len(log.read_text())
        os.killpg(process.pid, how)
        code = process.wait()
        assert code == (130 if how == signal.SIGINT else -how), log.read_text()
    assert f"stopped: run `lepmerge chain {project}` again to continue" in log.read_text()
    assert start(project, log).wait() == 0, log.read_text()
    model = project / "out/instruct-ru"
    assert (model / "model.safetensors").exists() and (project / "out/report.html").exists()
    before = pico.tree(project / "out")
    again = subprocess.run(
        [sys.executable, "-m", "lepmerge", "chain", str(project), "--json"], capture_output=True, text=True, check=True
    )
    states = [step["state"] for step in json.loads(again.stdout)["steps"]]
    assert states == ["complete", "done", "done", "done", "complete"] and pico.tree(project / "out") == before
