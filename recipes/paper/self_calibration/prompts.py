"""Write the prompts of the paper's self-calibration: the high-quality chats of the Saiga set, as .jsonl.

python prompts.py prompts.jsonl            # downloads the set
python prompts.py prompts.jsonl FILE…      # uses local files: .jsonl, .jsonl.gz, .jsonl.zst
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lepmerge.text_files import json_rows, kind_of

DATASET, REVISION = "IlyaGusev/saiga_scored", "af1d972da1d5496143054dd92067f99b47c1cd9a"
LEAST_SCORE = 8


def good_chats(files: Iterable[Path]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages of the chats that the paper uses."""
    for file in files:
        for _, row in json_rows(file):
            if (row.get("opus_score") or 0) >= LEAST_SCORE and not row.get("is_bad_by_regex"):
                yield [{"role": message["role"], "content": message["content"]} for message in row["messages"]]


def downloaded() -> list[Path]:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(DATASET, repo_type="dataset", revision=REVISION))
    return sorted(path for path in folder.rglob("*") if path.is_file() and kind_of(path) == ".jsonl")


def main(output: str, *files: str) -> None:
    lines = [
        json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        for messages in good_chats(map(Path, files) if files else downloaded())
    ]
    Path(output).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} prompts")


if __name__ == "__main__":
    main(*sys.argv[1:])
