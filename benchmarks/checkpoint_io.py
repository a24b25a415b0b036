"""Compare on a 3 GB checkpoint: LEP and a recipe without steps against `cp -r` and mergekit's passthrough merge.

python checkpoint_io.py [--mergekit /path/to/venv/bin/mergekit-yaml]

mergekit needs a separate environment: python -m venv mk && mk/bin/pip install torch==2.13.0 mergekit==0.1.5
Its merge of a model with itself changes no tensor, like our recipe without steps. The start-up cost of `lepmerge run`
is measured on a model with almost nothing to read. It is subtracted where the aim says so.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Report, aim, alternating, arguments_of, lepmerge, measured, medians, show_aims, table
from synthetic import remove, save_pico, save_setting

SETTING = {
    "old_rows": 128256, "new_rows": 174816, "width": 2048, "layers": 16,
    "intermediate": 8192, "heads": 32, "kv_heads": 8, "shards": 3,
}  # fmt: skip
SMALL = {
    "old_rows": 4096, "new_rows": 5000, "width": 256, "layers": 2,
    "intermediate": 512, "heads": 8, "kv_heads": 2, "shards": 2,
}  # fmt: skip
PASSTHROUGH = (
    "slices: [{{sources: [{{model: {0}, layer_range: [0, {1}]}}]}}]\nmerge_method: passthrough\ndtype: bfloat16\n"
)


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of another virtual environment")
    options = parser.parse_args()
    setting = SMALL if options.small else SETTING
    report = Report("checkpoint_io", options)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        save_setting(folder / "large", **setting, whole=False, share=0.7)
        save_pico(folder / "pico")
        large, small = folder / "large", folder / "pico"
        (large / "copy.yaml").write_text((small / "copy.yaml").read_text())
        (large / "mergekit.yaml").write_text(PASSTHROUGH.format(large / "instruct", setting["layers"]))
        size = sum(path.stat().st_size for path in (large / "instruct").iterdir())

        def way(label: str, output: Path, command: list[Any]) -> Callable[[], dict[str, Any]]:
            def run() -> dict[str, Any]:
                remove(output)
                return measured(command, label=label)

            return run

        def lep(where: Path, recipe: str, output: str, label: str) -> Callable[[], dict[str, Any]]:
            return way(label, where / output, lepmerge("run", where / recipe, "--device", "cpu", "-q"))

        ways = {
            "cp -r": way("cp -r", large / "cp", ["cp", "-r", large / "instruct", large / "cp"]),
            "no step": lep(large, "copy.yaml", "copied", "lepmerge, no step"),
            "start-up": lep(small, "copy.yaml", "copied", "lepmerge, no step, pico model"),
            "LEP": lep(large, "recipe.yaml", "out", "lepmerge, conversion"),
        }
        if options.mergekit:
            command = [options.mergekit, large / "mergekit.yaml", large / "mergekit", "--quiet"]
            ways["mergekit"] = way("mergekit passthrough", large / "mergekit", command)
        raw = alternating(ways, runs=options.runs)
    mid = {name: medians(runs) for name, runs in raw.items()}
    print(
        table([[n, mid[n]["cpu_s"], mid[n]["wall_s"], mid[n]["peak_mib"]] for n in mid], ["", "CPU s", "wall s", "MiB"])
    )
    copying = mid["no step"]["cpu_s"] / (mid["cp -r"]["cpu_s"] + mid["start-up"]["cpu_s"])
    aims = [
        aim("no step: CPU seconds / (cp + start-up)", copying, 1.2),
        aim("no step: peak memory, MiB", mid["no step"]["peak_mib"], 400),
        aim("LEP, d = 2048: peak memory, MiB", mid["LEP"]["peak_mib"], 1024),
    ]
    show_aims(aims)
    report.write({"setting": {**setting, "bytes": size}, "medians": mid, "runs": raw, "aims": aims})


if __name__ == "__main__":
    main()
