"""Quantize the linear layers of a frozen body while it is loaded, by bitsandbytes."""

import gc
import importlib.util
import logging
from typing import Any

import torch

from lepmerge.allocator import return_free_pages
from lepmerge.errors import CheckpointError
from lepmerge.training.config import BodyPrecision

QUANTIZED: tuple[BodyPrecision, ...] = ("int8", "nf4")


def check_installed(precision: BodyPrecision) -> None:
    """Raise CheckpointError if a precision needs bitsandbytes and it is not installed."""
    if precision in QUANTIZED and importlib.util.find_spec("bitsandbytes") is None:
        raise CheckpointError(
            f"precision.body: {precision} needs bitsandbytes, which is not installed: pip install 'lepmerge[quant]'"
        )


def quiet_bitsandbytes() -> None:
    """Hide bitsandbytes' warnings about products in bfloat16, and about kernels that it cannot download.

    Call this before bitsandbytes is imported. PEFT imports it, too.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def loading_options(precision: BodyPrecision | None, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize a model as it is loaded. Tables and head are left out."""
    if precision not in QUANTIZED:
        return {}
    from transformers import BitsAndBytesConfig

    quiet_bitsandbytes()
    keywords: dict[str, Any] = {"load_in_8bit": True}
    if precision == "nf4":
        keywords = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    return {"quantization_config": BitsAndBytesConfig(**keywords), "device_map": {"": device}}


def prepare_quantized(network: Any) -> None:
    """Make the quantized layers of a loaded network differentiable for their inputs, and free what loading left behind.

    In evaluation mode on a CPU, bitsandbytes repacks 4-bit weights into a form without gradients, so its layers are set
    to training mode. The other weights are views of the mapped file, which would keep all of it in memory.
    """
    layers = [module for module in network.modules() if type(module).__module__.startswith("bitsandbytes.")]
    if not layers:
        return
    for layer in layers:
        layer.train()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    gc.collect()
    return_free_pages()  # glibc keeps what quantizing freed: 400 MB of SmolLM2-135M
