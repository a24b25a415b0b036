"""A model is a folder, or a Hub id in the local cache; an existing path never asks the network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from lepmerge.errors import ReferenceNotFound
from lepmerge.models.references import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, setting, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with one model, as huggingface_hub lays it out, and no network."""
    repo = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(setting["base"], repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    for name in ("main", "v1"):
        (repo / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repo


@pytest.mark.parametrize("text", ["someone/model", "someone/model@main", "someone/model@v1", f"someone/model@{COMMIT}"])
def test_hub_id_from_the_cache(cache: Path, text: str) -> None:
    found = resolve(text)
    assert found.folder == cache / "snapshots" / COMMIT
    assert (found.hub_id, found.commit) == ("someone/model", COMMIT)


def test_revision_of_its_own_key(cache: Path) -> None:
    assert resolve("someone/model", revision="v1").commit == COMMIT


def test_only_what_is_read_is_downloaded(tmp_path: Path, monkeypatch) -> None:
    listed = (
        "README.md config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model vocab.json "
        "merges.txt chat_template.jinja model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
        "model.safetensors.index.json additional_chat_templates/tool_use.jinja embeddings.safetensors "
        "consolidated.safetensors consolidated.00.pth params.json model.fp16.safetensors pytorch_model.bin "
        "model.fp16-00001-of-00002.safetensors model.safetensors.index.fp16.json original/model.safetensors "
        "original/params.json metal/model.bin onnx/config.json figures/a.txt"
    ).split()
    downloaded: list[str] = []

    def snapshot_download(hub_id: str, *, revision, allow_patterns, ignore_patterns=None) -> str:
        assert hub_id == "someone/model" and revision in (None, COMMIT)
        kept = filter_repo_objects(listed, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        downloaded.extend(kept)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolve("someone/model")
    assert sorted(downloaded) == sorted(listed[1:14])


@pytest.mark.parametrize("text", ["someone/other", "someone/model@v2"])
def test_what_the_hub_cannot_give(cache: Path, text: str) -> None:
    with pytest.raises(ReferenceNotFound) as caught:
        resolve(text)
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)


def test_a_folder_of_the_same_name_comes_first(cache: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert resolve("someone/model").folder == tmp_path / "someone" / "model"
    assert resolve("model", relative_to=tmp_path / "someone").hub_id is None
    with pytest.raises(ReferenceNotFound, match="local folder"):
        resolve("someone/model", revision="v1")


@pytest.mark.parametrize("text", ["./no/such", "/no/such", "~/no/such/folder", "a b/c", "a/b/c/d"])
def test_paths_are_not_taken_for_hub_ids(text: str) -> None:
    with pytest.raises(ReferenceNotFound, match="no such folder"):
        resolve(text)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    with pytest.raises(ReferenceNotFound, match="is a file"):
        resolve(str(tmp_path / "model.txt"))
