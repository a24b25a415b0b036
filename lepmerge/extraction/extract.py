"""The difference of two models as a PEFT adapter: base + adapter = tuned, up to the rank that is kept.

Matrices become B A by a truncated SVD, tensor by tensor; each result is kept in staging, so that a killed run resumes.
Norms, biases and tables that differ are saved as whole modules, with the tokenizer where the vocabulary is another.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lepmerge.allocator import use_one_heap
from lepmerge.errors import CheckpointError
from lepmerge.extraction.low_rank import of_energy, of_rank
from lepmerge.json_text import to_json
from lepmerge.models.adapter_config import CONFIG, lora_config
from lepmerge.models.adapter_file import PREFIX, WEIGHTS
from lepmerge.models.adapter_placement import CONV1D_MODELS
from lepmerge.models.checkpoint import files_of
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import (
    DTYPE_NAMES,
    SafetensorsFile,
    StoredTensor,
    build_header,
    is_computable,
    require_computable,
    to_bytes,
)
from lepmerge.models.tables import INPUT
from lepmerge.output.run import Run, digest, identities
from lepmerge.output.staging import Staging, write_all
from lepmerge.output.tokenizer_files import tokenizer_files
from lepmerge.progress import Progress, no_progress
from lepmerge.tensors import LazyTensor, Workspace, blocks
from lepmerge.version import __version__


@dataclass(frozen=True)
class Wanted:
    """How much of a difference is kept: a rank, or a part of its squared norm."""

    rank: int | None = None
    energy: float | None = None

    def factors(self, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, A)."""
        if self.rank is not None:
            return of_rank(difference, self.rank)
        assert self.energy is not None
        return of_energy(difference, self.energy)


def extract(
    base: Model,
    tuned: Model,
    target: Path,
    *,
    wanted: Wanted,
    base_name: str | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write the adapter that turns `base` into `tuned`, and return its folder.

    base_name: Hub id of the base for adapter_config.json.

    Raises:
        CheckpointError: the models are of different architectures, or differ in what an adapter cannot hold.
        OutputError: the target is unsafe to write.
    """
    _check(base, tuned)
    use_one_heap()
    workspace = Workspace(device=torch.device(device), progress=progress)
    inputs = tuple(sorted({base.folder, tuned.folder}))
    files = tuple(file.path for model in (base, tuned) for file in files_of(model))
    described = {"lepmerge": __version__, "wanted": [wanted.rank, wanted.energy], "base": base_name}
    run = Run(
        target=target,
        fingerprint=digest({**described, "device": str(workspace.device), "inputs": identities(files)}),
        files=files,
        inputs=inputs,
        key="-o",
        overwrite=overwrite,
        marker=CONFIG,
    )
    if run.begin():
        return target
    run.check({})
    with run.opened({}) as staging:
        found = {name: _compared(name, base, tuned, wanted, staging, workspace) for name in _of_body(base)}
        changed = {name: ranks for name, ranks in found.items() if ranks["differs"]}
        whole = _whole_modules(base, tuned, changed, workspace)
        pairs = {name: StoredPair.of(staging, name) for name in changed if _module(name) not in whole}
        if not pairs:
            staging.discard()
            raise CheckpointError(
                f"{base.folder} and {tuned.folder} have the same matrices in the body, and PEFT knows no adapter "
                f"without one: ship the tables as an embeddings-only folder"
            )
        _write_weights(base, tuned, pairs, whole, staging, workspace)
        config = _config(base, pairs, whole, base_name=base_name)
        staging.write_bytes(CONFIG, to_json(config))
        if tuned.vocabulary.all_ids != base.vocabulary.all_ids:
            for name, path in tokenizer_files(tuned.vocabulary.folder or tuned.folder).items():
                staging.write_bytes(name, path.read_bytes())
    return target


@dataclass(frozen=True)
class StoredPair:
    """B and A of one matrix, kept in the staging folder."""

    b: StoredTensor
    a: StoredTensor

    @classmethod
    def of(cls, staging: Staging, name: str) -> "StoredPair":
        kept = staging.result(f"{name}.safetensors")
        assert kept is not None
        file = SafetensorsFile(kept[0])
        return cls(StoredTensor.of("b", file), StoredTensor.of("a", file))

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def _check(base: Model, tuned: Model) -> None:
    if base.tied != tuned.tied:
        tied, untied = (base, tuned) if base.tied else (tuned, base)
        raise CheckpointError(
            f"{tied.folder} ties its embeddings, {untied.folder} does not: an adapter cannot change that"
        )
    only = sorted(base.tensors.keys() ^ tuned.tensors.keys())
    if only:
        where = base.folder if only[0] in base.tensors else tuned.folder
        raise CheckpointError(f"only {where} has tensor {only[0]}: the models have different architectures")
    for name, tensor in base.tensors.items():
        other = tuned.tensors[name]
        if tensor.shape != other.shape and name not in base.tables.values():
            raise CheckpointError(
                f"tensor {name} is {list(tensor.shape)} in {base.folder} and {list(other.shape)} in {tuned.folder}: "
                f"the models have different architectures"
            )
        if not (isinstance(tensor, StoredTensor) and isinstance(other, StoredTensor)) or is_computable(tensor):
            continue
        require_computable(tensor, f"{base.folder}: tensor {name}")


def _of_body(model: Model) -> list[str]:
    return [name for name in model.tensors if name not in model.tables.values()]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_matrix(name: str, tensor: LazyTensor) -> bool:
    return name.endswith(".weight") and len(tensor.shape) == 2


def _compared(
    name: str, base: Model, tuned: Model, wanted: Wanted, staging: Staging, workspace: Workspace
) -> Mapping[str, Any]:
    """Return whether a tensor differs and with which rank; the factors of a matrix are kept in staging."""
    kept = staging.result(f"{name}.safetensors")
    if kept is not None:
        return kept[1]
    first, second = base.tensors[name], tuned.tensors[name]
    if not _is_matrix(name, first):
        return {"differs": _differs(first, second, workspace)}
    rows = [
        workspace.widen(second.read(block, workspace)) - workspace.widen(first.read(block, workspace))
        for block in blocks(first)
    ]
    difference = torch.cat(rows)
    workspace.progress(f"decomposing {name}", first.num_bytes)
    if not bool(difference.any()):
        report: dict[str, Any] = {"differs": False}
        staging.save_result(f"{name}.safetensors", build_header({}, None).encoded, report)
        return report
    if not bool(difference.isfinite().all()):
        raise CheckpointError(f"tensor {name}: the difference of {base.folder} and {tuned.folder} is not finite")
    b, a = wanted.factors(difference.T if _is_transposed(base) else difference)
    header = build_header({"b": ("F32", tuple(b.shape)), "a": ("F32", tuple(a.shape))}, None)
    report = {"differs": True, "rank": a.shape[0]}
    data = b"".join([header.encoded, bytes(to_bytes(b)), bytes(to_bytes(a))])
    staging.save_result(f"{name}.safetensors", data, report)
    return report


def _is_transposed(model: Model) -> bool:
    return model.config.get("model_type") in CONV1D_MODELS


def _differs(first: LazyTensor, second: LazyTensor, workspace: Workspace) -> bool:
    return first.shape != second.shape or any(
        not torch.equal(first.read(block, workspace), second.read(block, workspace)) for block in blocks(first)
    )


def _whole_modules(base: Model, tuned: Model, changed: Mapping[str, Any], workspace: Workspace) -> dict[str, list[str]]:
    """Return module → its tensors, for modules whose change is not a matrix, and for tables that differ."""
    modules = {_module(name) for name in changed if not _is_matrix(name, base.tensors[name])}
    other_vocabulary = base.vocabulary.all_ids != tuned.vocabulary.all_ids
    for name in base.tables.values():
        if other_vocabulary or _differs(base.tensors[name], tuned.tensors[name], workspace):
            modules.add(_module(name))
    whole: dict[str, list[str]] = {}
    for name in base.tensors:
        if _module(name) in modules:
            whole.setdefault(_module(name), []).append(name)
    return whole


def _entries(
    base: Model, tuned: Model, pairs: Mapping[str, StoredPair], whole: Mapping[str, list[str]]
) -> Iterator[tuple[str, LazyTensor]]:
    """Yield key and tensor of everything that the adapter's file holds."""
    for name, pair in pairs.items():
        yield f"{PREFIX}{_module(name)}.lora_A.weight", pair.a
        yield f"{PREFIX}{_module(name)}.lora_B.weight", pair.b
    for names in whole.values():
        for name in names:
            yield f"{PREFIX}{name}", tuned.tensors[name]
    if base.tied and _module(base.tables[INPUT]) in whole:  # PEFT looks for both uses of a tied table
        yield f"{PREFIX}lm_head.weight", tuned.tensors[base.tables[INPUT]]


def _write_weights(
    base: Model,
    tuned: Model,
    pairs: Mapping[str, StoredPair],
    whole: Mapping[str, list[str]],
    staging: Staging,
    workspace: Workspace,
) -> None:
    tensors = dict(_entries(base, tuned, pairs, whole))
    header = build_header({key: (DTYPE_NAMES[t.dtype], t.shape) for key, t in tensors.items()}, {"format": "pt"})
    if staging.finished(WEIGHTS, header.file_size):
        return

    def write(descriptor: int) -> dict[str, Any]:
        write_all(descriptor, header.encoded)
        for tensor in tensors.values():
            for block in blocks(tensor):
                rows = tensor.read(block, workspace).to(tensor.dtype)
                write_all(descriptor, to_bytes(rows))
                workspace.progress(f"writing {WEIGHTS}", rows.numel() * tensor.dtype.itemsize)
        return {}

    staging.write_file(WEIGHTS, write)


def _config(
    base: Model, pairs: Mapping[str, StoredPair], whole: Mapping[str, list[str]], *, base_name: str | None
) -> dict[str, Any]:
    """Return adapter_config.json: alpha is the rank everywhere, so that the update is B A."""
    ranks = {_module(name): pair.rank for name, pair in pairs.items()}
    most = max(ranks.values())
    pattern = {re.escape(module): rank for module, rank in ranks.items() if rank != most}
    return lora_config(
        rank=most,
        alpha=most,
        modules=list(ranks),
        rank_pattern=pattern,
        alpha_pattern=pattern,
        modules_to_save=list(whole) or None,
        ensure_weight_tying=base.tied and _module(base.tables[INPUT]) in whole,
        fan_in_fan_out=_is_transposed(base),
        base_model_name_or_path=base_name,
    )
