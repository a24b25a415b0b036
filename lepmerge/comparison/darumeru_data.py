"""Tell from which versions of its data sets the Darumeru benchmark was measured, and where rows of its table differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHORT = 12
"""Digits of a commit on the terminal."""


@dataclass(frozen=True)
class Version:
    """The data of one task.

    repository: Hub id of the data set. commit: its commit on the Hub, None if the data is not from the Hub. files:
    sha256 of the local file of each split as JSON, None if the data is not local. Both are None if the result file
    does not say.
    """

    repository: str
    commit: str | None = None
    files: str | None = None

    @property
    def known(self) -> bool:
        return self.commit is not None or self.files is not None

    def shown(self, digits: int | None = None) -> str:
        """Return where the data comes from, such as RussianNLP/rucola@0123abc. digits: of the commit, None for all."""
        if self.commit is not None:
            return f"{self.repository}@{self.commit[:digits]}"
        return "not recorded" if self.files is None else "local files"


def versions(configs: Mapping[str, Any], tasks: Iterable[str]) -> dict[str, Version]:
    """Return task → version of its data, from the `configs` of a result file of the harness."""
    found = {}
    for task in tasks:
        config = configs.get(f"darumeru_{task}")
        config = config if isinstance(config, dict) else {}
        metadata = config.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        commit, files = metadata.get("data_commit"), metadata.get("data_sha256")
        found[task] = Version(
            str(config.get("dataset_path")),
            commit if isinstance(commit, str) else None,
            json.dumps(files, sort_keys=True) if isinstance(files, dict) else None,
        )
    return found


def shown(data: Mapping[str, Version], digits: int | None = None) -> str:
    """Return the versions of a row's data in one line, sorted, each once."""
    return ", ".join(sorted({version.shown(digits) for version in data.values()}))


def used(rows: Sequence[tuple[str, Mapping[str, Version]]]) -> list[str]:
    """Return a line for all rows if they show the same data, otherwise a line per row. rows: as for differences."""
    texts = [shown(data, SHORT) for _, data in rows]
    if len(set(texts)) == 1:
        return [f"data: {texts[0]}"]
    return [f"data of {name}: {text}" for (name, _), text in zip(rows, texts, strict=True)]


def differences(rows: Iterable[tuple[str, Mapping[str, Version]]]) -> list[str]:
    """Return a note for each repository of which the rows have different versions.

    rows: (name, task → version of its data). Unknown versions are left out.
    """
    named: dict[str, dict[str, dict[str, None]]] = {}
    local: dict[str, dict[str, set[str]]] = {}
    for name, data in rows:
        for task, version in data.items():
            if version.known:
                named.setdefault(version.repository, {}).setdefault(version.shown(), {})[name] = None
            if version.files is not None:
                local.setdefault(version.repository, {}).setdefault(task, set()).add(version.files)
    notes = []
    for repository, names_of in sorted(named.items()):
        other = [task for task, files in local.get(repository, {}).items() if len(files) > 1]
        if len(names_of) == 1 and not other:
            continue
        parts = [f"{version} ({', '.join(names)})" for version, names in names_of.items()]
        parts += [f"the local files of {', '.join(other)} differ"] if other else []
        key = f"{repository.split('/')[-1]}_revision"
        notes.append(
            f"different versions of the data {repository}: {'; '.join(parts)}. Scores may differ for this reason: "
            f"measure all models with one version, such as lm_eval --metadata {key}=COMMIT"
        )
    return notes
