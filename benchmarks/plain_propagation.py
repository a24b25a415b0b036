"""The baseline: LEP as a research script would do it, with the paper's equations (section 2.2) on models in memory.

It loads three models with AutoModelForCausalLM, calls `encode` once per new token, solves the least squares in float64
with `gelsy`, and saves with save_pretrained. It matches tokens by their text, so it cannot handle tokens that are not
whole characters.

python plain_propagation.py BASE INSTRUCT ADAPTED OUT
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def conversion_rows(old, new) -> list[list[int]]:
    """Return for each new token the old ids of its text."""
    rows = []
    for id in range(len(new)):
        text = new.decode([id])
        rows.append(old.encode(text, add_special_tokens=False) or [0])
    return rows


def converted(table_VD: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
    """Return T E in float64."""
    return torch.stack([table_VD[ids].double().mean(0) for ids in rows])


def main(base_path: str, instruct_path: str, adapted_path: str, out_path: str) -> None:
    base, instruct, adapted = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        for path in (base_path, instruct_path, adapted_path)
    )
    old, new = AutoTokenizer.from_pretrained(instruct_path), AutoTokenizer.from_pretrained(adapted_path)
    rows = conversion_rows(old, new)
    tables = []
    for get in ("get_input_embeddings", "get_output_embeddings"):
        X_VD, Y_VD, A_VD = (getattr(model, get)().weight.data for model in (base, instruct, adapted))
        P_DD = torch.linalg.lstsq(converted(X_VD, rows), converted(Y_VD, rows), driver="gelsy").solution
        tables.append((A_VD.double() @ P_DD).to(torch.bfloat16))
    instruct.resize_token_embeddings(len(tables[0]))
    instruct.get_input_embeddings().weight.data = tables[0]
    instruct.get_output_embeddings().weight.data = tables[1]
    instruct.save_pretrained(out_path)
    new.save_pretrained(out_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
