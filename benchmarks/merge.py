"""Merge three models with lepmerge and mergekit by one configuration: results, CPU seconds and peak memory.

python merge.py --mergekit mk/bin/mergekit-yaml [--width 2048 --layers 8 --rows 32000] [--methods ties slerp]

Both compute in float32 and write bfloat16. Differences beyond one rounding are counted; docs/merging.md says where they
come from. Random methods are compared at density 1, where they drop nothing.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import Report, aim, alternating, arguments_of, lepmerge, measured, medians, ratios, show_aims, table
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic import remove, save_model, save_tokenizer, tokenizer_spec

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.4}
TASK = (
    "task_arithmetic",
    "ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
)
SPARSE: dict[str, dict[str, float]] = {
    "ties": {"density": 0.4},
    "breadcrumbs": {"density": 0.6, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.05},
    **{name: {"density": 1.0} for name in ("dare_linear", "dare_ties", "della", "della_linear")},
}
SETTINGS: dict[str, dict[str, Any]] = {"slerp": {"t": [0, 0.5, 0.3]}, "sce": {"select_topk": 0.3}}
SMALL = {"rows": 4096, "width": 256, "layers": 2, "intermediate": 512, "heads": 8, "kv_heads": 2}
METHODS = ("linear", "slerp", "nuslerp", *TASK, "model_stock", "sce", "karcher", "arcee_fusion")


def configuration(method: str, folder: Path) -> dict[str, Any]:
    """Return mergekit's configuration of a merge of a, b and c, or of as many as the method takes."""
    names = {"slerp": "ab", "nuslerp": "ab", "arcee_fusion": "a"}.get(method, "abc")
    weighted = method in ("linear", "nuslerp", *TASK)
    models = [
        {
            "model": str(folder / name),
            "parameters": {**({"weight": WEIGHTS[name]} if weighted else {}), **SPARSE.get(method, {})},
        }
        for name in names
    ]
    found = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    if method in SETTINGS:
        found["parameters"] = SETTINGS[method]
    if method == "slerp":
        found["base_model"] = str(folder / "a")
    elif method in (*TASK, "model_stock", "sce", "arcee_fusion"):
        found["base_model"] = str(folder / "base")
    return found


def make_models(folder: Path, shape: dict[str, int]) -> None:
    """Write a base, and three models that differ from it by a common and by a separate direction."""
    spec = tokenizer_spec(shape["rows"])
    save_model(folder / "base", **shape, seed=0)
    (source,) = (folder / "base").glob("*.safetensors")
    for seed, name in enumerate("abc", 1):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
        own, common = (torch.Generator().manual_seed(each) for each in (seed, 99))
        tensors = {}
        with safe_open(source, "pt") as file:
            for key in file.keys():
                tensor = file.get_tensor(key)
                moved = 0.002 * torch.randn(tensor.shape, generator=own)
                moved += 0.001 * torch.randn(tensor.shape, generator=common)
                tensors[key] = (tensor.float() + moved).to(tensor.dtype)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    for name in ("base", "a", "b", "c"):
        save_tokenizer(folder / name, spec)


def compared(ours: Path, theirs: Path) -> dict[str, Any]:
    """Return how many entries differ by more than one unit in bfloat16's last place."""
    files = {key: path for path in theirs.glob("*.safetensors") for key in safe_open(path, "pt").keys()}
    own = {key: path for path in ours.glob("*.safetensors") for key in safe_open(path, "pt").keys()}
    assert files.keys() == own.keys(), files.keys() ^ own.keys()
    different = beyond = total = 0
    for key in sorted(files):
        with safe_open(own[key], "pt") as first, safe_open(files[key], "pt") as second:
            a, b = first.get_tensor(key).float(), second.get_tensor(key).float()
        unit = torch.ldexp(
            torch.ones_like(b), torch.frexp(torch.maximum(a.abs(), b.abs()).clamp(min=1e-5)).exponent - 8
        )
        different += int((a != b).sum())
        beyond += int(((a - b).abs() > 1.01 * unit).sum())
        total += a.numel()
    return {"entries": total, "different": different, "beyond_one_rounding": beyond}


def main() -> None:
    parser = arguments_of(__doc__, runs=1)
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml of a separate environment")
    for option, value in {
        "rows": 32000,
        "width": 2048,
        "layers": 8,
        "intermediate": 5632,
        "heads": 16,
        "kv-heads": 8,
    }.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    report = Report("merge", options)
    shape = SMALL if options.small else {key: getattr(options, key) for key in SMALL}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        make_models(folder, shape)
        size = sum(path.stat().st_size for path in (folder / "a").glob("*.safetensors"))
        for method in options.methods:
            path, ours, theirs = folder / f"{method}.yaml", folder / "ours", folder / "theirs"
            path.write_text(yaml.safe_dump(configuration(method, folder), sort_keys=False))

            def own(method: str = method, path: Path = path, out: Path = ours) -> dict[str, Any]:
                remove(out)
                run = lepmerge("run", path, "--output", out, "--device", "cpu", "-q")
                return measured(run, label=f"lepmerge {method}")

            def peer(method: str = method, path: Path = path, out: Path = theirs) -> dict[str, Any]:
                remove(out)
                return measured([options.mergekit, path, out, "--quiet"], label=f"mergekit {method}")

            raw = alternating({"lepmerge": own, "mergekit": peer}, runs=options.runs)
            mid = {name: medians(runs) for name, runs in raw.items()}
            cpu = sorted(ratios(raw["lepmerge"], raw["mergekit"]))[options.runs // 2]
            found[method] = {**compared(ours, theirs), "cpu_ratio": cpu, **mid, "runs": raw}
    rows = [
        [
            name,
            each["cpu_ratio"],
            each["lepmerge"]["peak_mib"],
            each["mergekit"]["peak_mib"],
            each["different"],
            each["beyond_one_rounding"],
        ]
        for name, each in found.items()
    ]
    header = ["method", "CPU, ours / mergekit", "peak MiB", "mergekit's", "entries that differ", "beyond one rounding"]
    print(table(rows, header))
    aims = [
        aim("CPU seconds, lepmerge / mergekit, worst method", max(each["cpu_ratio"] for each in found.values()), 0.7),
        aim("peak MiB, worst method", max(each["lepmerge"]["peak_mib"] for each in found.values()), 500),
    ]
    show_aims(aims)
    report.write({"shape": shape, "model_bytes": size, "methods": found, "aims": aims})


if __name__ == "__main__":
    main()
