"""Two at once: one output written by two processes, and files that change under a running command.

python tests/campaigns/twice.py --count 60 --record

The command is `lepmerge run`. A disturbance happens right before a random disk call: an input is retrained in place, a
symlink to an input points elsewhere, the staging folder, the output's folder or an input vanishes, or another process
writes the same output. Or the output's folder is read-only. The command must end with the right output or with one
line; the target is never a mixture; when the files are as before, the same command completes.
"""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from frame import Campaign, Fault, main, scratch_folder
from kills import Job, child, ended, found_in, log

KINDS = ("two processes", "input retrained", "symlink swapped", "read-only folder", "staging vanishes",
         "output folder vanishes", "input vanishes")  # fmt: skip
FOLDER: Path | None = None
EXPECTED: dict[str, dict[str, bytes]] = {}
CALLS = 60
"""A run has about so many disk calls."""


def prepare() -> None:
    """Write the models, and run the recipe once with the instruct model and once with another one in its place."""
    global FOLDER
    import pico

    FOLDER = scratch_folder("twice")
    models = FOLDER / "models"
    english, russian = pico.byte_level(pico.ENGLISH, 400), pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600)
    base = pico.save_model(models / "base", english)
    for name, seed in (("instruct", 1), ("retrained", 5)):
        pico.split(pico.save_instruct(models / name, base, english, seed=seed))
    pico.save_adapted(models / "adapted", base, russian)
    for name in ("instruct", "retrained"):
        folder = FOLDER / name
        job = job_in(folder)
        if name == "retrained":
            retrain(folder)
        if (code := ended(child(job))) != 0:
            raise Fault(f"exit code {code}: {log(job)[-300:]}")
        EXPECTED[name] = found_in(job)


def job_in(folder: Path) -> Job:
    """Copy the models into a new folder and write a recipe for them. The instruct model is reached by a symlink."""
    import pico

    assert FOLDER is not None
    shutil.copytree(FOLDER / "models", folder / "models")
    (folder / "models/instruct").rename(folder / "first")
    (folder / "models/instruct").symlink_to(folder / "first")
    (folder / "work").mkdir()
    names = {name: folder / "models" / name for name in ("base", "instruct", "adapted")}
    recipe = pico.write_recipe(folder / "work/recipe.yaml", **names)
    return Job("run", ("run", str(recipe), "--device", "cpu", "-q"), folder / "work/out", {})


def retrain(folder: Path) -> None:
    """Replace the weights of the instruct model in place by others of the same shapes."""
    for path in (folder / "models/retrained").glob("*.safetensors"):
        (folder / "first" / path.name).write_bytes(path.read_bytes())


def swap_symlink(folder: Path) -> None:
    (folder / "new").symlink_to(folder / "models/retrained")
    (folder / "new").rename(folder / "models/instruct")


DISTURBANCES: dict[str, Callable[[Path], None]] = {
    "input retrained": retrain,
    "symlink swapped": swap_symlink,
    "staging vanishes": lambda folder: shutil.rmtree(folder / "work/.out.lepmerge", ignore_errors=True),
    "output folder vanishes": lambda folder: (folder / "work").rename(folder / "gone"),
    "input vanishes": lambda folder: (folder / "first").rename(folder / "gone"),
}
AFTERWARDS: dict[str, Callable[[Path], object]] = {
    "output folder vanishes": lambda folder: shutil.copytree(folder / "gone", folder / "work", dirs_exist_ok=True),
    "input vanishes": lambda folder: (folder / "gone").rename(folder / "first"),
}


def case(number: int, rng: random.Random) -> str:
    """Disturb one run, then let it complete."""
    kind = KINDS[number % len(KINDS)]
    with tempfile.TemporaryDirectory(prefix="case-", dir=FOLDER) as temporary:
        folder = Path(temporary)
        job = job_in(folder)
        if kind == "two processes":
            codes, seen = together(job, rng)
        elif kind == "read-only folder":
            codes, seen = read_only(job)
        else:
            codes, seen = disturbed(job, kind, rng)
        if any(code not in (0, 1) for code in codes) or "Traceback" in seen:
            raise Fault(f"{kind}: exit codes {codes}: {seen.strip().splitlines()[-1:]}")
        if (errors := seen.count("error: ")) != sum(codes):
            raise Fault(f"{kind}: exit codes {codes} with {errors} lines")
        right = EXPECTED["instruct"], EXPECTED["retrained"]
        if (found := found_in(job)) and found not in right:
            raise Fault(f"{kind}: a mixed output")
        if kind in AFTERWARDS and (folder / "gone").exists():
            AFTERWARDS[kind](folder)
        if (code := ended(child(job, overwrite=True))) != 0:
            raise Fault(f"{kind}: the next run ended with {code}: {log(job)[-300:]}")
        final = "retrained" if kind in ("input retrained", "symlink swapped") and changed(folder, kind) else "instruct"
        if found_in(job) != EXPECTED[final]:
            raise Fault(f"{kind}: the next run wrote something else")
        return f"{kind}: {'one line' if 1 in codes else 'the right result'}"


def changed(folder: Path, kind: str) -> bool:
    """Return whether the disturbance took place: the run may have ended before it."""
    if kind == "symlink swapped":
        return (folder / "models/instruct").resolve().name == "retrained"
    name = "model-00001-of-00003.safetensors"
    return (folder / "first" / name).read_bytes() == (folder / "models/retrained" / name).read_bytes()


def disturbed(job: Job, kind: str, rng: random.Random) -> tuple[list[int], str]:
    folder, point = job.target.parent.parent, rng.randrange(CALLS)

    def disturb(number: int) -> None:
        if number == point:
            DISTURBANCES[kind](folder)

    return [ended(child(job, before_call=disturb))], log(job)


def together(job: Job, rng: random.Random) -> tuple[list[int], str]:
    """Run the command in two processes. The first one waits at a random disk call until the second one has ended."""
    folder, point = job.target.parent.parent, rng.randrange(CALLS)
    read, write = os.pipe()
    release_read, release_write = os.pipe()

    def wait(number: int) -> None:
        if number == point:
            os.close(write)
            os.read(release_read, 1)

    first = child(job, before_call=wait)
    os.close(write)
    os.read(read, 1)  # until the first one waits, or has ended
    seen = ""
    second = ended(child(job))
    seen += log(job) if second else ""
    os.close(release_read)
    os.write(release_write, b"x") if _is_alive(first) else None
    os.close(release_write)
    os.close(read)
    code = ended(first)
    return [code, second], seen + (log(job) if code else "") if (folder / "log").exists() else seen


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def read_only(job: Job) -> tuple[list[int], str]:
    """Run the command without the right to write to the output's folder. Root gives up its rights first."""
    folder = job.target.parent.parent
    for path in (folder, *folder.parents):
        if path.is_relative_to(FOLDER or folder):
            path.chmod(0o755)
    (folder / "work").chmod(0o555)

    def give_up(number: int) -> None:
        if number == 0 and os.getuid() == 0:
            os.seteuid(65534)

    code = ended(child(job, before_call=give_up))
    (folder / "work").chmod(0o755)
    return [code], log(job)


CAMPAIGN = Campaign("twice", case, limit=300.0, chunk=7, prepare=prepare)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=70))
