"""Compare LEP (conversion) with `cp` on the shapes of Llama-3-8B, V 128256 → 174816: 16 GB in, 17 GB out.

python llama3_8b.py [--device cpu] [--folder /somewhere/with/60/GB]

Base and adapted are embeddings-only folders. Weights are random; the tables have a realistic condition number.
"""

import json
import tempfile
from pathlib import Path

from measure import Report, aim, arguments_of, lepmerge, measured, show_aims, table
from synthetic import remove, save_setting

SETTING = {
    "old_rows": 128256, "new_rows": 174816, "width": 4096, "layers": 32,
    "intermediate": 14336, "heads": 32, "kv_heads": 8, "shards": 4,
}  # fmt: skip
SMALL = {
    "old_rows": 4096, "new_rows": 5000, "width": 256, "layers": 2,
    "intermediate": 512, "heads": 8, "kv_heads": 2, "shards": 2,
}  # fmt: skip


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    setting = SMALL if options.small else SETTING
    report = Report("llama3_8b", options, device=options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        save_setting(folder, **setting, whole=False, share=0.7)
        size = sum(path.stat().st_size for path in (folder / "instruct").iterdir())
        figures = {"cp": measured(["cp", "-r", folder / "instruct", folder / "cp"], label="cp -r")}
        remove(folder / "cp")
        command = lepmerge("run", folder / "recipe.yaml", "--device", options.device, "-q")
        figures["LEP"] = measured(command, label=f"lepmerge run --device {options.device}")
        tables = json.loads((folder / "out" / "lepmerge_report.json").read_text())["tables"]
    rows = [[name, *(figures[name][key] for key in ("cpu_s", "wall_s", "peak_mib"))] for name in figures]
    print(table(rows, ["", "CPU s", "wall s", "MiB"]))
    aims = [
        aim("peak memory, MiB", figures["LEP"]["peak_mib"], 2048),
        aim("wall seconds beyond cp", figures["LEP"]["wall_s"] - figures["cp"]["wall_s"], 360),
    ]
    show_aims(aims)
    figures = {"setting": {**setting, "bytes": size, "device": options.device}, "figures": figures, "aims": aims}
    report.write({**figures, "fits": tables})


if __name__ == "__main__":
    main()
