"""Merge a rank-32 adapter into a 3 GB base: lepmerge, PEFT's merge_and_unload and mergekit's `model+adapter`.

python adapters.py [--mergekit /path/to/venv/bin/mergekit-yaml]

mergekit needs a separate environment: python -m venv mk && mk/bin/pip install torch==2.13.0 mergekit==0.1.5 peft
Two costs are also measured alone: the arithmetic (W + s B A on tensors in memory, to and from bfloat16), and the
start-up (on a model with almost nothing to read). Both are subtracted before lepmerge is compared with `cp -r`.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Report, aim, alternating, arguments_of, lepmerge, measured, medians, script, show_aims, table
from synthetic import remove, save_model, save_tokenizer, tokenizer_spec

LARGE = {
    "rows": 128256, "width": 2048, "layers": 16, "intermediate": 8192, "heads": 32, "kv_heads": 8, "shards": 3,
}  # fmt: skip
SMALL = {"rows": 8000, "width": 512, "layers": 4, "intermediate": 2048, "heads": 8, "kv_heads": 2, "shards": 1}
PICO = {"rows": 600, "width": 64, "layers": 2, "intermediate": 128, "heads": 4, "kv_heads": 2, "shards": 1}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 32
RECIPE = "models: {x: {path: base, adapter: adapter}}\nstart: x\noutput: {path: merged}\n"
PASSTHROUGH = (
    "slices: [{{sources: [{{model: {0}+{1}, layer_range: [0, {2}]}}]}}]\nmerge_method: passthrough\ndtype: bfloat16\n"
)


def save_base_and_adapter(folder: Path, setting: dict[str, int]) -> None:
    """Write base, adapter and the recipe that merges them."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_model(folder / "base", **setting)
    save_tokenizer(folder / "base", tokenizer_spec(setting["rows"]))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "base").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                module = name.removesuffix(".weight")
                if module.rpartition(".")[2] in TARGETS:
                    rows, columns = file.get_slice(name).get_shape()
                    key = f"base_model.model.{module}"
                    tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.02
                    tensors[f"{key}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.02
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": TARGETS,
        "base_model_name_or_path": str(folder / "base"),
    }  # fmt: skip
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "recipe.yaml").write_text(RECIPE)


def arithmetic(folder: Path) -> None:
    """Compute W + s B A for every matrix of the adapter on tensors in memory, in the same blocks as lepmerge."""
    import torch
    from safetensors.torch import load_file

    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    for key, a in factors.items():
        if "lora_A" in key:
            b = factors[key.replace("lora_A", "lora_B")]
            step = (8 << 20) // (4 * a.shape[1])
            weight = torch.ones(step, a.shape[1], dtype=torch.bfloat16)
            for start in range(0, b.shape[0], step):
                rows = b[start : start + step]
                torch.addmm(weight[: len(rows)].float(), rows, a).to(torch.bfloat16)


def peft(folder: Path) -> None:
    """Merge with PEFT, as its documentation shows."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(folder / "peft")


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of another virtual environment")
    options = parser.parse_args()
    setting = SMALL if options.small else LARGE
    report = Report("adapters", options)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        large, pico = Path(temporary) / "large", Path(temporary) / "pico"
        save_base_and_adapter(large, setting)
        save_base_and_adapter(pico, PICO)
        size = sum(path.stat().st_size for path in (large / "base").iterdir())
        yaml = PASSTHROUGH.format(large / "base", large / "adapter", setting["layers"])
        (large / "mergekit.yaml").write_text(yaml)

        def way(output: Path, command: list[Any], label: str) -> Callable[[], dict[str, Any]]:
            def run() -> dict[str, Any]:
                remove(output)
                return measured(command, label=label)

            return run

        def merge(folder: Path) -> list[Any]:
            return lepmerge("run", folder / "recipe.yaml", "--device", "cpu", "-q")

        ways = {
            "cp -r": way(large / "cp", ["cp", "-r", large / "base", large / "cp"], "cp -r"),
            "arithmetic": way(large / "none", script("adapters.py", "arithmetic", large), "W + s B A in memory"),
            "imports": way(large / "none", script("adapters.py", "arithmetic", pico), "its imports"),
            "start-up": way(pico / "merged", merge(pico), "lepmerge, pico model"),
            "lepmerge": way(large / "merged", merge(large), "lepmerge"),
            "PEFT": way(large / "peft", script("adapters.py", "peft", large), "PEFT merge_and_unload"),
        }
        if options.mergekit:
            cache = ["--lora-merge-cache", large / "cache"]  # mergekit merges the adapter there with PEFT first
            command = [options.mergekit, large / "mergekit.yaml", large / "mergekit", "--quiet", *cache]
            ways["mergekit"] = way(large / "mergekit", command, "mergekit model+adapter")
        raw = alternating(ways, runs=options.runs)
    mid = {name: medians(runs) for name, runs in raw.items()}
    print(
        table([[n, mid[n]["cpu_s"], mid[n]["wall_s"], mid[n]["peak_mib"]] for n in mid], ["", "CPU s", "wall s", "MiB"])
    )
    computing = mid["arithmetic"]["cpu_s"] - mid["imports"]["cpu_s"]
    beyond = (mid["lepmerge"]["cpu_s"] - computing - mid["start-up"]["cpu_s"]) / mid["cp -r"]["cpu_s"]
    others = {name: mid[name]["cpu_s"] / mid["lepmerge"]["cpu_s"] for name in ("PEFT", "mergekit") if name in mid}
    for name, ratio in others.items():
        memory = mid[name]["peak_mib"] / mid["lepmerge"]["peak_mib"]
        print(f"{name} takes {ratio:.2f} times the CPU seconds and {memory:.1f} times the memory of lepmerge")
    aims = [
        aim("CPU seconds without arithmetic and start-up / cp -r", beyond, 2),
        aim("peak memory, MiB", mid["lepmerge"]["peak_mib"], 400),
    ]
    show_aims(aims)
    report.write({"setting": {**setting, "rank": RANK, "bytes": size}, "medians": mid, "runs": raw, "aims": aims})


if __name__ == "__main__":
    if sys.argv[1:2] in (["arithmetic"], ["peft"]):
        {"arithmetic": arithmetic, "peft": peft}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
