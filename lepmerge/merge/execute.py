"""Execute a plan: run the reductions, then write the output shard by shard and block by block into a staging folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lepmerge.allocator import use_one_heap
from lepmerge.device import choose_device
from lepmerge.json_text import to_json
from lepmerge.merge.card import model_card, report_of
from lepmerge.merge.gguf_shard import GgufShard
from lepmerge.merge.plan import REPORT, Plan
from lepmerge.merge.shards import Shard, index_of
from lepmerge.models.checkpoint import INDEX
from lepmerge.models.safetensors_io import (
    DTYPE_NAMES,
    SafetensorsFile,
    StoredTensor,
    build_header,
    copy_range,
    is_computable,
    to_bytes,
)
from lepmerge.output.run import Run, digest, identities
from lepmerge.output.staging import Staging, write_all
from lepmerge.progress import Progress, no_progress
from lepmerge.tensors import LazyTensor, Reduction, Result, Workspace, ahead, blocks, num_not_finite
from lepmerge.version import __version__
from lepmerge.vocabulary.chat_templates import TEMPLATES


def run_plan(
    plan: Plan,
    *,
    device: str = "auto",
    overwrite: bool = False,
    link: str | None = None,
    hash: bool = False,
    check: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Execute a plan and return the output folder.

    device: auto, cpu, cuda, cuda:N or mps. overwrite: replace a model at the target. link: "hard" shares unchanged
    files as hard links instead of copying them. hash: add content hashes of the inputs to the report. check: count NaN
    and infinite values in copied tensors too. An interrupted run is continued; a complete output is not written again.

    Raises:
        LepmergeError: the run is not possible. This is found before anything is written, except for a full disk and NaN
            in the rows of a fit.
    """
    assert not plan.untrained, plan.untrained
    use_one_heap()
    progress = progress or no_progress
    workspace = Workspace(device=choose_device(device), progress=progress)
    fingerprint = fingerprint_of(plan, {"device": str(workspace.device), "link": link, "hash": hash, "check": check})
    run = Run(
        target=plan.target,
        fingerprint=fingerprint,
        inputs=plan.inputs,
        overwrite=overwrite,
        is_file=plan.is_file,
        files=tuple(_input_files(plan)),
    )
    if run.begin():
        return plan.target
    sizes = {shard.name: shard.num_bytes for shard in plan.shards if not (link and shard.copied_from)}
    run.check(sizes)
    with run.opened(sizes) as staging:
        results = _reduce(plan, staging, workspace)
        for shard in plan.shards:
            if not staging.finished(shard.name, shard.num_bytes):
                _write_shard(shard, staging, workspace, link=link, check=check)
            progress(f"wrote {shard.name}", 0)
        _write_small_files(plan, staging, workspace, results, hash=hash)
    return plan.target


def fingerprint_of(plan: Plan, options: dict[str, Any]) -> str:
    """Return a hash of the recipe, the output layout, the options, and of each input file's path, inode, size and
    modification time."""
    described = {
        "lepmerge": __version__,
        "torch": torch.__version__,
        "recipe": plan.recipe.model_dump(mode="json", exclude={"output": {"path"}}),
        "shards": {shard.name: hashlib.sha256(shard.layout).hexdigest() for shard in plan.shards},
        "inputs": identities(_input_files(plan)),
        **options,
    }
    return digest(described)


def _input_files(plan: Plan) -> list[Path]:
    files = [path for path in plan.inputs if path.is_file()]
    folders = [part for path in plan.inputs for part in (path, path / TEMPLATES) if part.is_dir()]
    return [*files, *(path for folder in folders for path in sorted(folder.iterdir()) if path.is_file())]


def _reduce(plan: Plan, staging: Staging, workspace: Workspace) -> dict[Reduction, Result]:
    """Return the results of the reductions. Results of an interrupted run are loaded from the staging folder."""
    results: dict[Reduction, Result] = {}
    for number, reduction in enumerate(plan.reductions):
        name = f"result-{number}.safetensors"
        kept = staging.result(name)
        if kept is not None:
            path, found = kept
            stored = SafetensorsFile(path)
            tensors = {tensor: StoredTensor.of(tensor, stored).whole() for tensor in stored.entries}
            tensors = {
                tensor: value if value.dtype == torch.float64 else value.to(workspace.device)  # MPS has no float64
                for tensor, value in tensors.items()
            }
        else:
            result = reduction.compute(workspace)
            tensors = dict(result.tensors)
            stored_as = {tensor: (DTYPE_NAMES[value.dtype], tuple(value.shape)) for tensor, value in tensors.items()}
            header = build_header(stored_as, None)
            data = b"".join([header.encoded, *(bytes(to_bytes(value)) for value in tensors.values())])
            found = {"metrics": dict(result.metrics), "warnings": list(result.warnings)}
            staging.save_result(name, data, found)
        results[reduction] = Result(tensors, found["metrics"], tuple(found["warnings"]))
        workspace.results[reduction] = tensors
    return results


def _write_shard(
    shard: Shard | GgufShard, staging: Staging, workspace: Workspace, *, link: str | None, check: bool
) -> None:
    if shard.copied_from is not None and link == "hard":
        staging.link_file(shard.name, shard.copied_from)
        workspace.progress(shard.name, shard.num_bytes)
        return

    def write(descriptor: int) -> dict[str, Any]:
        not_finite: dict[str, int] = {}
        if isinstance(shard, GgufShard):
            return shard.write(descriptor, workspace)
        if shard.copied_from is not None:
            (file, *_) = {tensor.file for tensor in shard.tensors.values() if isinstance(tensor, StoredTensor)}
            for count in copy_range(file.descriptor, 0, file.size, descriptor):
                workspace.progress(shard.name, count)
        else:
            write_all(descriptor, shard.header.encoded)
            for name, tensor in shard.tensors.items():
                bad = _write_tensor(tensor, descriptor, workspace, shard.name)
                not_finite.update({name: bad} if bad else {})
        if check:
            not_finite.update(_check_copied(shard, workspace))
        return {"not_finite": not_finite} if not_finite else {}

    staging.write_file(shard.name, write)


def _write_tensor(tensor: LazyTensor, descriptor: int, workspace: Workspace, what: str) -> int:
    """Write one tensor. Return its number of NaN and infinite values, or 0 for a copied tensor."""
    if isinstance(tensor, StoredTensor):
        for count in copy_range(tensor.file.descriptor, tensor.entry.start, tensor.num_bytes, descriptor):
            workspace.progress(what, count)
        return 0
    not_finite = 0
    for rows in ahead(tensor.read(block, workspace).to(tensor.dtype).cpu() for block in blocks(tensor)):
        not_finite += num_not_finite(rows)
        data = to_bytes(rows)
        write_all(descriptor, data)
        workspace.progress(what, len(data))
    return not_finite


def _check_copied(shard: Shard, workspace: Workspace) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, tensor in shard.tensors.items():
        if isinstance(tensor, StoredTensor) and is_computable(tensor):
            bad = sum(num_not_finite(tensor.read(block, workspace)) for block in blocks(tensor))
            found.update({name: bad} if bad else {})
    return found


def _write_small_files(
    plan: Plan, staging: Staging, workspace: Workspace, results: Mapping[Reduction, Result], *, hash: bool
) -> None:
    files: dict[str, bytes | Path] = dict(plan.files)
    index = index_of(plan.shards)
    if index is not None:
        files[INDEX] = to_json(index)
    not_finite = {
        tensor: count
        for file in staging.manifest["files"].values()
        for tensor, count in file.get("not_finite", {}).items()
    }
    report = report_of(plan, results, not_finite, device=str(workspace.device), hash=hash)
    files[plan.small_file(REPORT)] = to_json(report)
    files[plan.small_file("README.md")] = model_card(plan, report).encode()
    for name, content in sorted(files.items()):
        staging.write_bytes(name, content if isinstance(content, bytes) else content.read_bytes())
