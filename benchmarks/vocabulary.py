"""Build the vocabulary conversion T from 128,256 to 174,816 tokens. Compare with one `encode` call per token.

python vocabulary.py [--runs 5]

Each is measured inside its own process: reading both tokenizer.json files and building T, without Python's start-up.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Report, aim, alternating, arguments_of, medians, ratios, script, show_aims, table
from synthetic import extended_spec, save_tokenizer, tokenizer_spec

OLD, NEW = 128256, 174816
SMALL = 6000, 9000


def ours(folder: Path) -> dict[str, Any]:
    from lepmerge.vocabulary.conversion import build_conversion
    from lepmerge.vocabulary.vocabulary import Vocabulary

    began = time.process_time()
    old, new = Vocabulary.in_folder(folder / "old"), Vocabulary.in_folder(folder / "new")
    read = time.process_time()
    conversion = build_conversion(old, new, num_old_rows=old.size, num_rows=new.size)
    assert len(conversion.kind_V) == new.size
    return {"read_cpu_s": read - began, "cpu_s": time.process_time() - began}


def plain(folder: Path) -> dict[str, Any]:
    from plain_propagation import conversion_rows
    from transformers import AutoTokenizer

    began = time.process_time()
    old, new = (AutoTokenizer.from_pretrained(folder / name) for name in ("old", "new"))
    read = time.process_time()
    assert len(conversion_rows(old, new)) == len(new)
    return {"read_cpu_s": read - began, "cpu_s": time.process_time() - began}


WAYS = {"lepmerge": ours, "plain": plain}


def main() -> None:
    parser = arguments_of(__doc__, runs=5)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(WAYS[options.one](options.folder)))
        return
    report = Report("vocabulary", options)
    num_old, num_new = SMALL if options.small else (OLD, NEW)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        old = tokenizer_spec(num_old)
        save_tokenizer(folder / "old", old)
        save_tokenizer(folder / "new", extended_spec(old, num_new, share=0.7))

        def way(name: str) -> dict[str, Any]:
            command = script("vocabulary.py", "--one", name, "--folder", folder)
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        raw = alternating({name: lambda name=name: way(name) for name in WAYS}, runs=options.runs)
    mid = {name: medians(runs) for name, runs in raw.items()}
    ratio = sorted(ratios(raw["plain"], raw["lepmerge"]))[options.runs // 2]
    print(table([[name, *mid[name].values()] for name in raw], ["", "reading, CPU s", "in all, CPU s"]))
    print(f"{ratio:.1f} times fewer CPU seconds")
    aims = [aim("CPU seconds for T", mid["lepmerge"]["cpu_s"], 3.0)]
    show_aims(aims)
    report.write(
        {"setting": {"old": num_old, "new": num_new}, "medians": mid, "runs": raw, "ratio": ratio, "aims": aims}
    )


if __name__ == "__main__":
    main()
