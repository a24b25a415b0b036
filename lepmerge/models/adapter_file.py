"""adapter_model.safetensors of a PEFT adapter: its tensors, grouped by the module that they change."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from lepmerge.errors import CheckpointError
from lepmerge.models.safetensors_io import SafetensorsFile, StoredTensor, require_computable

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
_NAME = r"(?:\.(?!weight$)[^.]+)?"
"""An adapter's name. Training scripts that save the raw state dict leave it in the keys."""
_KEYS = {
    "a": rf"(?P<module>.+)\.lora_A{_NAME}\.weight",
    "b": rf"(?P<module>.+)\.lora_B{_NAME}\.weight",
    "embedding_a": rf"(?P<module>.+)\.lora_embedding_A{_NAME}",
    "embedding_b": rf"(?P<module>.+)\.lora_embedding_B{_NAME}",
    "magnitude": rf"(?P<module>.+)\.lora_magnitude_vector{_NAME}(\.weight)?",
    "token_rows": rf"(?P<module>.+)\.token_adapter\.trainable_tokens_delta{_NAME}",
    "original": r"(?P<module>.+?)(\.token_adapter)?\.base_layer\.weight",
    "unused": r"(?P<module>.+)\.original_module\..+",
    "copy": rf"(?P<module>.+)\.modules_to_save{_NAME}\.(?P<parameter>[^.]+)",
    "saved": r"(?P<module>.+)\.(?P<parameter>[^.]+)",
}
"""Role of a tensor → pattern of its key without PREFIX. The first match is used."""


@dataclass
class Change:
    """What the adapter stores for one module.

    a, b: the matrices of LoRA. embedding_a, embedding_b: the same for an embedding. magnitude: DoRA's magnitudes.
    token_rows: trained rows of a table. original: the module's weight, which PEFT stores if the vocabulary was resized.
    saved: parameter → trained values of a module that was trained as a whole.
    """

    a: StoredTensor | None = None
    b: StoredTensor | None = None
    embedding_a: StoredTensor | None = None
    embedding_b: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    token_rows: StoredTensor | None = None
    original: StoredTensor | None = None
    saved: dict[str, StoredTensor] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[StoredTensor | None, StoredTensor | None]:
        """(A, B) of the linear layer or embedding."""
        return (self.embedding_a, self.embedding_b) if self.is_embedding else (self.a, self.b)

    @property
    def is_embedding(self) -> bool:
        return self.embedding_a is not None or self.embedding_b is not None


def changes_in(folder: Path) -> dict[str, Change]:
    """Return module → what the adapter in a folder stores for it, in the order of the file.

    Raises:
        CheckpointError: the weights are missing or pickled, or a key has no known role.
    """
    path = folder / WEIGHTS
    if not path.exists():
        if (folder / PICKLED).exists():
            raise CheckpointError(
                f"{folder} holds only pickled weights ({PICKLED}), which can run code when they are loaded: load the "
                f"adapter with PEFT and save it again with save_pretrained(folder)"
            )
        raise CheckpointError(f"{path} is missing: a PEFT adapter is a folder with adapter_config.json and its weights")
    file = SafetensorsFile(path)
    changes: dict[str, Change] = {}
    for key in sorted(file.entries, key=lambda key: file.entries[key].start):
        tensor = StoredTensor.of(key, file)
        require_computable(tensor, f"{path}: tensor {key}")
        role, module, parameter = _role_of(key, path)
        change = changes.setdefault(module, Change())
        if role == "saved" or (role == "copy" and parameter not in change.saved):
            change.saved[parameter] = tensor
        elif role not in ("copy", "unused"):
            setattr(change, role, tensor)
    return changes


def _role_of(key: str, path: Path) -> tuple[str, str, str]:
    for role, pattern in _KEYS.items():
        match = re.fullmatch(pattern, key.removeprefix(PREFIX))
        if match and not (role == "saved" and "lora_" in key):
            return role, match["module"], match.groupdict().get("parameter") or ""
    raise CheckpointError(f"{path}: lepmerge does not know what tensor {key} is for: merge the adapter with PEFT")
