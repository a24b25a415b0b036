"""Measure start-up time: `lepmerge --help`, and `lepmerge plan` on the quickstart recipe.

python startup.py [--runs 7]

The plan is measured as if the adapted model were trained (`base` takes its place). A plan of an untrained recipe also
estimates the training, for which transformers builds the model. For comparison, `python -c "import torch"` and
`import transformers` are measured too, which every similar tool needs.
"""

import sys
from pathlib import Path

from measure import Report, aim, alternating, arguments_of, lepmerge, measured, medians, show_aims, table

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart" / "recipe.yaml"
COMMANDS = {
    "lepmerge --help": lepmerge("--help"),
    "lepmerge plan (quickstart)": lepmerge(
        "plan", RECIPE, "--json", "--set", f"models.adapted={RECIPE.parent / 'base'}"
    ),
    "lepmerge plan (quickstart, not trained)": lepmerge("plan", RECIPE, "--json"),
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import transformers' Llama": [sys.executable, "-c", "from transformers import LlamaForCausalLM, AutoTokenizer"],
}


def main() -> None:
    options = arguments_of(__doc__, runs=7).parse_args()
    report = Report("startup", options)
    ways = {name: lambda name=name: measured(COMMANDS[name], label=name) for name in COMMANDS}
    raw = alternating(ways, runs=options.runs)
    mid = {name: medians(runs) for name, runs in raw.items()}
    print(
        table([[n, mid[n]["cpu_s"], mid[n]["wall_s"], mid[n]["peak_mib"]] for n in mid], ["", "CPU s", "wall s", "MiB"])
    )
    aims = [
        aim("lepmerge --help, CPU seconds", mid["lepmerge --help"]["cpu_s"], 0.1),
        aim("lepmerge plan, CPU seconds", mid["lepmerge plan (quickstart)"]["cpu_s"], 2.2),
    ]
    show_aims(aims)
    report.write({"medians": mid, "runs": raw, "aims": aims})


if __name__ == "__main__":
    main()
