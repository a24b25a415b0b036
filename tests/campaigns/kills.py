"""Kills: commands are killed at random moments, or one of their disk calls fails; the next run completes them.

python tests/campaigns/kills.py --seed 1 --count 500 --record

A case kills one command one to four times with SIGKILL: after a random share of its CPU time, or right before a random
disk call. Or it lets one disk call fail with EIO, ENOSPC or EINTR. Commands run in forked processes that have imported
everything. After each kill the target must be old, new or absent. Then the same command must end well without help,
with the same bytes as without a disturbance, and leaves no other files.
"""

import errno
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from frame import Campaign, Fault, cpu_seconds, main, scratch_folder

DISK_CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "link", "copy_file_range")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR)
RECORDS = ("lepmerge_run.json", "out.gguf.lepmerge_run.json", "speed.jsonl")
"""Files of timings. They are not compared."""
LONGEST = 120.0
LONGEST_WAIT = 600.0
"""CPU seconds and wall seconds of a command that hangs. A deadlock uses no CPU time."""


@dataclass(frozen=True)
class Job:
    """A command with its inputs. target: its output; old: what stands there before a run with --overwrite.

    seconds, calls: CPU time and number of disk calls of an undisturbed run. new: its output.
    """

    name: str
    arguments: tuple[str, ...]
    target: Path
    old: Mapping[str, bytes]
    seconds: float = 0.0
    calls: int = 0
    new: Mapping[str, bytes] | None = None


FOLDER: Path | None = None
JOBS: list[Job] = []


def jobs_in(folder: Path) -> list[Job]:
    """Write the inputs of all commands."""
    import generation
    import gguf_models
    import pico
    import training
    import yaml

    english, russian = pico.byte_level(pico.ENGLISH, 400), pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600)
    base = pico.save_model(folder / "base", english)
    instruct = pico.save_instruct(folder / "instruct", base, english)
    adapted = pico.save_adapted(folder / "adapted", base, russian)
    models = {
        "base": base,
        "instruct": pico.split(Path(shutil.copytree(instruct, folder / "shards"))),
        "adapted": adapted,
    }
    config, chats = {"config.json": b"{}", "old": b"old weights"}, {"report.json": b"{}", "old": b"old"}
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(pico.RUSSIAN * 4))

    def work(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    recipe = pico.write_recipe(work("run") / "recipe.yaml", **models)
    wide = pico.save_model(folder / "wide", english, width=64, chat=True)
    body = gguf_models.save_gguf(wide, folder / "wide.gguf")
    step = {"op": "arithmetic", "tensors": "embeddings", "expression": "2 * instruct"}
    gguf = {"models": {"instruct": str(wide)}, "steps": [step], "output": {"path": "out.gguf", "body": str(body)}}
    (work("gguf") / "recipe.yaml").write_text(yaml.safe_dump(gguf))
    for name, write in (("train", training.write_setting), ("distill", training.write_distillation)):
        write(folder / f"{name}-inputs", english, repeat=2, output=str(work(name) / "out"))
    prompts = generation.write_prompts(folder / "prompts.jsonl", "The quick", "A", "dog", "Numbers")
    outputs = {name: str(work(name) / "out") for name in ("extend", "tokenizer", "extract", "generate")}
    like = ("--type", "bpe", "--vocab-size", "300", "--like", str(base))
    keep = ("--max-new-tokens", "5", "--keep", "cut", "--keep", "repetitive", "--device", "cpu")
    cpu = ("--device", "cpu")
    given = {
        "run": (("run", str(recipe), *cpu), config),
        "gguf": (("run", str(folder / "gguf/recipe.yaml"), *cpu), {}),
        "train": (("train", str(folder / "train-inputs/config.yaml"), *cpu), config),
        "distill": (("train", str(folder / "distill-inputs/config.yaml"), *cpu), config),
        "extend": (("tokenizer", "extend", str(base), str(corpus), "--add", "20", "-o", outputs["extend"]), {}),
        "tokenizer": (("tokenizer", "train", str(corpus), *like, "-o", outputs["tokenizer"]), {}),
        "extract": (("extract", str(base), str(instruct), "--rank", "4", "-o", outputs["extract"], *cpu), {}),
        "generate": (("generate", str(instruct), str(prompts), "-o", outputs["generate"], *keep), chats),
    }
    return [
        Job(name, (*arguments, "-q"), folder / name / ("out.gguf" if name == "gguf" else "out"), old)
        for name, (arguments, old) in given.items()
    ]


def child(job: Job, *, overwrite: bool = False, before_call: Callable[[int], None] | None = None) -> int:
    """Start the command in a forked process and return its id. before_call: receives the number of each disk call."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    log = os.open(job.target.parent.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        import torch

        from lepmerge.commands.main import main as lepmerge

        torch.manual_seed(0)
        if before_call is not None:
            count(before_call)
        try:
            lepmerge([*job.arguments, *(["--overwrite"] if overwrite else [])], standalone_mode=False)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def count(before_call: Callable[[int], None]) -> None:
    """Call `before_call` before every call that changes something on the disk."""
    calls = 0

    def counted(call):
        def counting(*arguments, **keywords):
            nonlocal calls
            calls += 1
            before_call(calls - 1)
            return call(*arguments, **keywords)

        return counting

    for name in DISK_CALLS:
        setattr(os, name, counted(getattr(os, name)))


def ended(pid: int, *, kill_after: float = LONGEST) -> int:
    """Wait for a process, or kill it after this much CPU time. Return its exit code, or minus the signal."""
    began = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        waits = time.monotonic() - began > LONGEST_WAIT
        if waits or cpu_seconds(pid) >= kill_after:
            os.kill(pid, signal.SIGKILL)
        if waits:
            os.waitpid(pid, 0)
            raise Fault(f"a command had not ended after {LONGEST_WAIT:.0f} seconds")
        time.sleep(0.001)


def found_in(job: Job) -> dict[str, bytes]:
    """Return the files of the output."""
    if job.name == "gguf":
        paths = [path for path in job.target.parent.glob("out.*") if path.is_file()]
    else:
        paths = [path for path in job.target.rglob("*") if path.is_file()] if job.target.is_dir() else []
    return {path.name: path.read_bytes() for path in paths if path.name not in RECORDS}


def clear(job: Job, *, old: bool) -> None:
    for path in job.target.parent.iterdir():
        if path.name != "recipe.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if old:
        job.target.mkdir()
        for name, data in job.old.items():
            (job.target / name).write_bytes(data)


def log(job: Job) -> str:
    return (job.target.parent.parent / "log").read_text(errors="replace")


def prepare() -> None:
    """Write the inputs and run every command undisturbed, twice: it must write the same bytes."""
    global FOLDER
    import transformers.models.llama.modeling_llama  # noqa: F401 -- imported before the forks, which need not repeat it
    from tqdm import tqdm

    import lepmerge.training.run  # noqa: F401 -- as above

    tqdm.set_lock(threading.RLock())  # its own lock is shared with forked processes, and a kill would leave it locked
    FOLDER = scratch_folder("kills")
    os.chdir(FOLDER)
    JOBS.clear()
    for job in jobs_in(FOLDER):
        first, seconds, _ = undisturbed(job)
        again, _, calls = undisturbed(job)
        if first != again or not first:
            changed = sorted(name for name in first if first[name] != again.get(name))
            raise Fault(f"{job.name}: {changed} differ between undisturbed runs")
        JOBS.append(replace(job, seconds=seconds, calls=calls, new=first))


def undisturbed(job: Job) -> tuple[dict[str, bytes], float, int]:
    """Run a command. Return its output, its CPU time and the number of its disk calls."""
    clear(job, old=False)
    counter = job.target.parent.parent / "calls"
    descriptor = os.open(counter, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    before = os.times()
    code = ended(child(job, before_call=lambda number: os.pwrite(descriptor, b"%10d" % (number + 1), 0)))
    after = os.times()
    os.close(descriptor)
    if code != 0:
        raise Fault(f"{job.name}: exit code {code}: {log(job)[-300:]}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return found_in(job), seconds, int(counter.read_text())


def case(number: int, rng: random.Random) -> Counter[str]:
    """Disturb one command, then let it complete."""
    job = JOBS[number % len(JOBS)]
    overwrite = bool(job.old) and rng.random() < 0.4
    clear(job, old=overwrite)
    found: Counter[str] = Counter()
    if rng.random() < 0.2:
        failing(job, rng.randrange(job.calls), rng.choice(ERRORS), overwrite, found)
    else:
        for _ in range(rng.choice((1, 2, 3, 4))):
            killed(job, rng, overwrite, found)
            check_target(job, overwrite)
    check_completion(job, overwrite)
    return found


def check_completion(job: Job, overwrite: bool) -> None:
    """Check the target after a disturbance. Then run the command again: it must complete without help."""
    check_target(job, overwrite)
    code = ended(child(job, overwrite=overwrite))
    if code != 0:
        raise Fault(f"{job.name}: the run after it ended with {code}: {log(job)[-400:]}")
    if found_in(job) != job.new:
        raise Fault(f"{job.name}: other bytes than an undisturbed run: {different(job)}")
    beside = {path.name for path in job.target.parent.iterdir()} - {job.target.name, "recipe.yaml", *RECORDS}
    if beside - {name for name in job.new or {}}:
        raise Fault(f"{job.name}: left {sorted(beside)}")


def killed(job: Job, rng: random.Random, overwrite: bool, found: Counter[str]) -> None:
    """Kill the command once."""
    if rng.random() < 0.5:
        point = rng.randrange(job.calls)

        def kill(number: int) -> None:
            if number == point:
                os.kill(os.getpid(), signal.SIGKILL)

        code = ended(child(job, overwrite=overwrite, before_call=kill))
    else:
        code = ended(child(job, overwrite=overwrite), kill_after=job.seconds * rng.random())
    if code not in (0, -signal.SIGKILL):
        raise Fault(f"{job.name}: a run before a kill ended with {code}: {log(job)[-400:]}")
    found[f"{job.name}: kills" if code else f"{job.name}: complete before the kill"] += 1


def failing(job: Job, point: int, number_of_error: int, overwrite: bool, found: Counter[str]) -> None:
    """Let one disk call fail. The command ends well, or with one line."""

    def fail(number: int) -> None:
        if number == point:
            raise OSError(number_of_error, os.strerror(number_of_error))

    code = ended(child(job, overwrite=overwrite, before_call=fail))
    lines = [line for line in log(job).splitlines() if line.startswith("error: ")]
    if code not in (0, 1) or (code == 1 and len(lines) != 1) or "Traceback" in log(job):
        name = errno.errorcode[number_of_error]
        last = log(job).strip().splitlines()[-1:]
        raise Fault(f"{job.name}: {name} at one disk call ended with {code}: {last}")
    found[f"{job.name}: disk calls that failed"] += 1


def check_target(job: Job, overwrite: bool) -> None:
    """Raise Fault unless the target is old, new or absent. During a swap the old folder stands beside it."""
    found = found_in(job)
    if job.name == "gguf":
        found = {name: data for name, data in found.items() if name == "out.gguf"}
        good = [{"out.gguf": (job.new or {})["out.gguf"]}]
    else:
        good = [job.new]
    if overwrite:
        good.append(dict(job.old))
    if not found and overwrite and job.target.with_name(".out.lepmerge-old").exists():
        return
    if found and found not in good or not found and overwrite:
        raise Fault(f"{job.name}: the target is neither old nor new: {different(job)}")


def different(job: Job) -> list[str]:
    found, new = found_in(job), job.new or {}
    return sorted(name for name in {**found, **new} if found.get(name) != new.get(name))


CAMPAIGN = Campaign("kills", case, limit=600.0, chunk=8, prepare=prepare)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=500))
