"""Compare `lepmerge compare` on three SmolLM2-size models with the same comparison at an older commit of lepmerge.

    python benchmarks/compare_models.py [--old COMMIT]

The models are SmolLM2-135M and two copies with 256 and 1,024 Russian tokens (mean of old rows). Everything is measured:
two texts, generation, copies, chat and task, in float32 on one thread. The old commit runs from a copy of its files, in
this environment. By default it is the last one before drafts, shared forward passes and earlier starts of generation.
The results of both must agree. CPU seconds are also given for each part.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from compare import is_number, leaves
from inputs import QUICKSTART, russian, smollm2
from measure import ROOT, Report, aim, alternating, arguments_of, lepmerge, measured, medians, script, show_aims, table

OLD = "cedf0081def5b4113a90858f64b17ef221dff326"
NEW_TOKENS = (256, 1024)
LIMITS = {"max_bytes": 6000, "copies": 4, "max_new_tokens": 24, "prompts": 30}  # as recipes/smollm2-135m-ru on a laptop
SMALL = {"max_bytes": 1200, "copies": 1, "max_new_tokens": 4, "prompts": 2}
PARTS = {"generating": "generation", **dict.fromkeys(("copying", "chat", "answers", "task"), "answers")}
"""First word of a progress message → part of the work. Copies, chats and tasks are answered together."""
DIFFERENT = ("seconds", "characters_per_second", "tokens_per_second", "folder", "where", "examples")
"""Results that name times or places. Some examples of broken tokens are only in newer results."""


def save_models(folder: Path, *, small: bool) -> list[Path]:
    """Write the three models, and prompts with answers. Return the folders of the models."""
    instruct, text = smollm2(folder, small=small), russian(folder)
    folders = [instruct]
    for number in NEW_TOKENS:
        vocabulary, target = folder / f"vocabulary-{number}", folder / f"adapted-{number}"
        recipe = {
            "models": {"instruct": str(instruct)},
            "steps": [{"op": "swap_vocabulary", "tokenizer": str(vocabulary)}],
            "output": {"path": str(target)},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        extend = ("tokenizer", "extend", instruct, text, "--add", str(number), "--script", "Cyrillic", "-o", vocabulary)
        for command in (lepmerge(*extend), lepmerge("run", folder / "recipe.yaml", "--device", "cpu")):
            subprocess.run(command, check=True, capture_output=True)
        folders.append(target)
    return folders


def save_prompts(path: Path, number: int) -> None:
    """Write instructions with answers, those of recipes/smollm2-135m-ru."""
    sys.path.insert(0, str(ROOT / "recipes" / "smollm2-135m-ru"))
    import run

    run.write_prompts(path, number)


def save_commit(commit: str, folder: Path) -> None:
    """Write the package of a commit to a folder."""
    files = subprocess.run(["git", "archive", commit, "lepmerge"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(folder, filter="data")


def one(options: argparse.Namespace) -> None:
    """Compare in this process, with the lepmerge that PYTHONPATH names; write the results and the seconds by part."""
    import lepmerge
    from lepmerge.comparison.compare import Settings, compare
    from lepmerge.comparison.loading import load_model

    assert Path(lepmerge.__file__).is_relative_to(os.environ["PYTHONPATH"]), lepmerge.__file__
    folder, limits = options.folder, json.loads(options.limits)
    seconds: Counter[str] = Counter()
    last = time.process_time()

    def progress(what: str, num_done: int, total: int | None = None, /) -> None:
        nonlocal last
        _, _, rest = what.partition(": ")
        part = PARTS.get(rest.split(" ")[0], "texts") if num_done else "other"
        now = time.process_time()
        seconds[part] += now - last
        last = now

    texts = {"ru": [str(QUICKSTART / "heldout_ru.txt")], "en": [str(folder / "en.txt")]}
    prompts = folder / "prompts.jsonl"
    settings = Settings(**{name: value for name, value in limits.items() if name != "prompts"})
    models = [load_model(folder) for folder in map(Path, json.loads(options.models))]
    found = compare(models, texts, chat=prompts, task=prompts, settings=settings, progress=progress)
    seconds["other"] += time.process_time() - last
    parts = {part: round(value, 3) for part, value in sorted(seconds.items())}
    Path(options.output).write_text(json.dumps({"parts": parts, "models": found["models"]}))


def agreement(new: Any, old: Any) -> dict[str, Any]:
    """Return how many results both have, which differ by more than rounding, and the largest relative difference."""
    before, after = (
        {place: value for place, value in leaves(each, DIFFERENT) if not isinstance(value, str)} for each in (old, new)
    )
    both = sorted(before.keys() & after.keys())
    distance = {place: _distance(before[place], after[place]) for place in both}
    return {
        "results": len(both),
        "different": {place: [before[place], after[place]] for place in both if distance[place] > 1e-4},
        "largest_difference": max(distance.values()),
        "only_old": sorted(before.keys() - after.keys()),
        "only_new": sorted(after.keys() - before.keys()),
    }


def _distance(a: Any, b: Any) -> float:
    if a == b:
        return 0.0
    return abs(a - b) / max(abs(a), abs(b)) if is_number(a) and is_number(b) else 1.0


def main() -> None:
    parser = arguments_of(__doc__, runs=1)
    parser.add_argument("--old", default=OLD, metavar="COMMIT")
    for name in ("one", "models", "limits", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # for the measured processes
    report = Report("compare_models", options)
    limits = SMALL if options.small else LIMITS
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        models = save_models(folder, small=options.small)
        save_prompts(folder / "prompts.jsonl", limits["prompts"])
        (folder / "en.txt").write_text((QUICKSTART / "licenses" / "GPL-2").read_text(encoding="utf-8"))
        save_commit(options.old, folder / "old")
        results: dict[str, Any] = {}

        def run(way: str, package: Path) -> dict[str, Any]:
            output = folder / f"{way}.json"
            names = json.dumps([str(path) for path in models])
            arguments = ["--one", way, "--folder", folder, "--models", names, "--limits", json.dumps(limits)]
            command = script("compare_models.py", *arguments, "--output", output)
            figures = measured(["env", f"PYTHONPATH={package}", *command], label=way)
            results[way] = json.loads(output.read_text())
            return {**figures, **{f"{part}_cpu_s": value for part, value in results[way]["parts"].items()}}

        ways = {"present": lambda: run("present", ROOT), "old": lambda: run("old", folder / "old")}
        raw = alternating(ways, runs=options.runs)
    mid = {way: medians(runs) for way, runs in raw.items()}
    same = agreement(results["present"]["models"], results["old"]["models"])
    keys = ["cpu_s", *(key for key in mid["old"] if key.endswith("_cpu_s"))]
    rows = [[key.removesuffix("_cpu_s"), mid["present"].get(key), mid["old"][key]] for key in keys]
    print(table(rows, ["CPU s", "present", "old"]))
    print(f"{same['results']} results, {len(same['different'])} of them different: {same['different']}")
    aims = [
        aim("CPU seconds, present / old", mid["present"]["cpu_s"] / mid["old"]["cpu_s"], 0.5),
        aim("results that differ by more than rounding", len(same["different"]), 0),
    ]
    show_aims(aims)
    setting = {"old": options.old, "new_tokens": NEW_TOKENS, **limits}
    report.write({"setting": setting, "medians": mid, "runs": raw, "agreement": same, "aims": aims})


if __name__ == "__main__":
    main()
