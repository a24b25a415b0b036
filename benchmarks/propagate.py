"""Compare LEP (conversion) with a plain implementation on a model with V 128256 → 48000, d = 1024, 6 layers, untied.

python propagate.py [--rows 128256 --new-rows 48000 --width 1024]

Both run alternately, each in a separate process. The result is then compared, entry by entry, with a float64 reference
(tests/reference.py), in units of bfloat16's last place.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import (
    Report,
    aim,
    alternating,
    arguments_of,
    lepmerge,
    measured,
    medians,
    ratios,
    script,
    show_aims,
    table,
)
from synthetic import TABLES, remove

SMALL = 4096, 2048, 64
"""Rows, new rows and width with --small."""


def accuracy(folder: Path) -> dict[str, Any]:
    """Return the distance of the result from the reference, and how many entries differ from the rounded reference.

    The unit is bfloat16's last place, but at least 2^-20 of the row's largest entry: if terms cancel to a small number,
    a float32 sum cannot be more accurate.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import reference

    folders = {name: folder / name for name in ("base", "instruct", "adapted")}
    got = reference.weights(folder / "out")
    different = total = 0
    worst = 0.0
    for name in TABLES:
        expected = reference.propagated(folders, "conversion", role=name)
        wanted = expected.table_VD.to(torch.bfloat16)
        unit = torch.ldexp(torch.ones_like(expected.table_VD), torch.frexp(wanted.double()).exponent - 8)
        unit = torch.maximum(unit, expected.table_VD.abs().amax(1, keepdim=True) * 2.0**-20)  # for sums that cancel
        worst = max(worst, float(((got[name].double() - expected.table_VD).abs() / unit).max()))
        different += int((got[name] != wanted).sum())
        total += wanted.numel()
    return {"largest_error_in_ulp": round(worst, 4), "entries_off_the_rounded_reference": different, "entries": total}


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--rows", type=int, default=128256)
    parser.add_argument("--new-rows", type=int, default=48000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.small:
        options.rows, options.new_rows, options.width = SMALL
    report = Report("propagate", options, device=options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        sizes = ["--old-rows", options.rows, "--new-rows", options.new_rows, "--width", options.width]
        measured(script("synthetic.py", folder, *sizes), label="(making the models)")

        def ours() -> dict[str, Any]:
            remove(folder / "out")
            command = lepmerge("run", folder / "recipe.yaml", "--device", options.device, "-q")
            return measured(command, label="lepmerge run")

        def plain() -> dict[str, Any]:
            remove(folder / "plain")
            models = [folder / name for name in ("base", "instruct", "adapted", "plain")]
            return measured(script("plain_propagation.py", *models), label="plain implementation")

        raw = alternating({"lepmerge": ours, "plain": plain}, runs=options.runs)
        exact = accuracy(folder)
    mid = {name: medians(runs) for name, runs in raw.items()}
    fewer = sorted(ratios(raw["plain"], raw["lepmerge"]))[options.runs // 2]
    memory = mid["lepmerge"]["peak_mib"] / mid["plain"]["peak_mib"]
    aims = [
        aim("CPU seconds, lepmerge / plain", 1 / fewer, 1 / 20),
        aim("peak memory, lepmerge / plain", memory, 1 / 4),
        aim("largest error against float64, units in the last place", exact["largest_error_in_ulp"], 0.55),
    ]
    rows = [[name, mid[name]["cpu_s"], mid[name]["wall_s"], mid[name]["peak_mib"]] for name in raw]
    print(table(rows, ["", "CPU s", "wall s", "peak MiB"]))
    print(f"{fewer:.1f} times fewer CPU seconds, {memory:.3f} of the memory; {exact}")
    show_aims(aims)
    sizes = {
        "rows": options.rows,
        "new_rows": options.new_rows,
        "width": options.width,
        "layers": 6,
        "device": options.device,
    }
    report.write({"setting": sizes, "medians": mid, "runs": raw, "accuracy": exact, "aims": aims})


if __name__ == "__main__":
    main()
