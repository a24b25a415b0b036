"""Tensors of a GGUF file as lazy tensors. Rows are dequantized when read, and computed rows can be quantized."""

from dataclasses import dataclass

import numpy as np
import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.gguf_file import GgufEntry, GgufFile, tensor_bytes
from lepmerge.tensors import LazyTensor, Rows, Workspace

F32, F16, BF16 = 0, 1, 30
EXACT_DTYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
"""Types that store plain floating-point numbers. All others are quantized; their rows are dequantized to float32."""
TABLE_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7}
"""Name in a recipe → GGUF type. The tables can be written in these types, which the `gguf` package can quantize."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GgufTensor(LazyTensor):
    """A tensor in a GGUF file, rows × width. Its rows are dequantized when they are read."""

    name: str
    file: GgufFile
    entry: GgufEntry

    @classmethod
    def of(cls, name: str, file: GgufFile) -> "GgufTensor":
        entry = file.entries[name]
        dtype = EXACT_DTYPES.get(entry.type, torch.float32)
        return cls(name=name, file=file, entry=entry, shape=entry.shape, dtype=dtype)

    @property
    def type_name(self) -> str:
        """GGUF's name of the type, such as Q4_K."""
        from gguf.constants import GGMLQuantizationType

        return GGMLQuantizationType(self.entry.type).name

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        row_bytes = tensor_bytes((self.row_width,), self.entry.type)
        assert row_bytes is not None
        data = self.file.read_rows(rows, self.entry.start, row_bytes)
        if self.entry.type in EXACT_DTYPES:
            read = data.view(-1).view(self.dtype)
        else:
            read = torch.from_numpy(dequantized(data.numpy(), self.entry.type))
        return read.view(len(rows), self.row_width).to(workspace.device)


def dequantized(data: np.ndarray, type: int) -> np.ndarray:
    """Return the float32 values of quantized rows. data: uint8, rows × bytes per row."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(data, GGMLQuantizationType(type))


def quantized(rows: torch.Tensor, type: int) -> bytes:
    """Return the bytes of computed rows in a GGUF type."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if type in EXACT_DTYPES:
        return rows.to(EXACT_DTYPES[type]).contiguous().view(torch.uint8).numpy().tobytes()
    return quantize(rows.to(torch.float32).numpy(), GGMLQuantizationType(type)).tobytes()


def table_type(name: str, width: int) -> int:
    """Return the GGUF type with this name in a recipe.

    Raises:
        CheckpointError: the width of the table is not a multiple of the type's block size.
    """
    type = TABLE_TYPES[name]
    if tensor_bytes((width,), type) is None:
        raise CheckpointError(f"tables: {name} needs a width that 32 divides, not {width}: use f16 or bf16")
    return type
