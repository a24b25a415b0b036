"""Compare real engines on an adapted model: token ids, greedy continuations and chat prompts.

    python serving.py [--model OUT --gguf OUT.gguf --old-model INSTRUCT --old-gguf BODY.gguf] [--vllm vllm/bin/python]

OUT and OUT.gguf are the results of one recipe, without and with `output.body`; BODY.gguf is that body, made from
INSTRUCT. Default: SmolLM2-135M-Instruct with 256 Russian tokens (mean of old rows).

llama.cpp (xllamacpp) must give the ids of tokenizer.json. Its differences on the old file are listed next to
those on the new one. Greedy continuations are compared with transformers in float32, so give files with f32 weights.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from inputs import QUICKSTART, smollm2
from llama_server import PROMPTS, post, random_texts, served
from measure import ROOT, Report, aim, arguments_of, lepmerge, show_aims
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 8
NUM_RANDOM, SMALL_TEXTS = 10_000, 20
TEXTS_AT_ONCE = 50
CHAT = [{"role": "user", "content": "Привет! What is 2 + 2?"}]
VLLM = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256)
parameters = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), detokenize=False)
prompts = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(sys.argv[2])]
print(json.dumps([list(output.outputs[0].token_ids) for output in model.generate(prompts, parameters)]))
"""


def made(folder: Path) -> dict[str, Path]:
    """Write the four models of the default, with weights in float32; return them by the names of the options."""
    sys.path.insert(0, str(ROOT / "tests"))
    import gguf_models

    instruct = smollm2(folder, dtype="float32")
    text = QUICKSTART / "train_ru.jsonl.gz"
    body = gguf_models.save_gguf(instruct, folder / "body.gguf", pre="smollm")
    recipe = {"models": {"instruct": str(instruct)}, "steps": [{"op": "swap_vocabulary", "tokenizer": "ru"}]}
    outputs = {"folder": {"path": "out"}, "gguf": {"path": "out.gguf", "body": str(body), "tables": "f32"}}
    extend = ("tokenizer", "extend", instruct, text, "--add", "256", "--script", "Cyrillic", "-o", folder / "ru")
    commands = [lepmerge(*extend)]
    for name, output in outputs.items():
        (folder / f"{name}.yaml").write_text(json.dumps({**recipe, "output": output}))
        commands.append(lepmerge("run", folder / f"{name}.yaml", "--device", "cpu"))
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return {"model": folder / "out", "gguf": folder / "out.gguf", "old_model": instruct, "old_gguf": body}


def texts(small: bool) -> dict[str, list[str]]:
    """Return kind → texts: Russian, English and code (more than 1 MB together), and 10,000 random strings."""
    with gzip.open(QUICKSTART / "train_ru.jsonl.gz", "rt") as lines:
        russian = [json.loads(line)["text"] for line in lines]
    found = {
        "Russian": russian,
        "English": [path.read_text() for path in [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]],
        "code": [path.read_text() for path in sorted(ROOT.glob("lepmerge/**/*.py"))],
        "random": random_texts(NUM_RANDOM),
    }
    return {kind: of_kind[:SMALL_TEXTS] for kind, of_kind in found.items()} if small else found


def differences(address: str, tokenizer: Tokenizer, found: dict[str, list[str]]) -> dict[str, Any]:
    """Return kind → number of texts, their bytes, and the texts whose ids in llama.cpp are not tokenizer.json's.

    Many texts are tokenized at once, joined by line ends. They are tokenized one by one where the ids differ.
    """

    def differ(text: str) -> bool:
        ids = post(address, "/tokenize", content=text, add_special=False)["tokens"]
        return ids != tokenizer.encode(text, add_special_tokens=False).ids

    out = {}
    for kind, of_kind in found.items():
        groups = [of_kind[start : start + TEXTS_AT_ONCE] for start in range(0, len(of_kind), TEXTS_AT_ONCE)]
        unequal = [group for group in groups if differ("\n".join(group))]
        different = [text for group in unequal for text in group if differ(text)]
        out[kind] = {"texts": len(of_kind), "bytes": sum(len(text.encode()) for text in of_kind)}
        out[kind] |= {
            "different": max(len(different), len(unequal)),
            "examples": [text[:60] for text in different[:10]],
        }
        print(f"  {kind}: {len(different)} of {len(of_kind)} texts differ", flush=True)
    return out


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens before the first special one: the engines differ in what they return of the end."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def start_vllm(python: Path, folder: Path, prompts: list[list[int]]) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [str(python), "-c", VLLM, str(folder), json.dumps(prompts), str(NEW_TOKENS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def written_by(process: subprocess.Popen[str]) -> list[list[int]]:
    said, _ = process.communicate()
    (line,) = (line for line in said.splitlines() if line.startswith("[["))  # vLLM also writes log lines
    return json.loads(line)


def vllm_version(python: Path | None) -> str | None:
    """Return the version of vLLM's package for CPUs in another environment."""
    if python is None:
        return None
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = arguments_of(__doc__)
    for name in ("model", "gguf", "old-model", "old-gguf"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vllm-cpu")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("model", "gguf", "old_model", "old_gguf")}
    if None in given.values() and any(given.values()):
        parser.error("give all four models, or none")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        compare(options, argparse.Namespace(**(given if options.model else made(Path(temporary)))))


def compare(options: argparse.Namespace, models: argparse.Namespace) -> None:
    report = Report("serving", options)
    found = texts(options.small)
    model = AutoModelForCausalLM.from_pretrained(models.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(models.model)
    ends = set(tokenizer.all_special_ids)
    prompts = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in PROMPTS]
    process = start_vllm(options.vllm, models.model, prompts) if options.vllm else None
    written: dict[str, list[list[int]]] = {"transformers": [], "llama.cpp": []}
    with torch.no_grad():
        for ids in prompts:
            out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
            written["transformers"].append(out[0, len(ids) :].tolist())
    with served(models.gguf) as address:
        for ids in prompts:
            answer = post(address, "/completion", prompt=ids, n_predict=NEW_TOKENS, temperature=0, return_tokens=True)
            written["llama.cpp"].append(answer["tokens"])
        prompt = post(address, "/apply-template", messages=CHAT)["prompt"]
        new = differences(address, tokenizer.backend_tokenizer, found)
    with served(models.old_gguf) as address:
        old = differences(address, Tokenizer.from_file(str(models.old_model / "tokenizer.json")), found)
    if process:
        written["vLLM"] = written_by(process)
    cut = {engine: [until_end(tokens, ends) for tokens in each] for engine, each in written.items()}
    unequal = {
        engine: [PROMPTS[n] for n, tokens in enumerate(each) if tokens != cut["transformers"][n]]
        for engine, each in cut.items()
    }
    same_chat = prompt == tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    num_texts = sum(new[kind]["different"] for kind in new if kind != "random")
    num_random = new["random"]["different"] - old["random"]["different"]
    aims = [
        aim("texts of Russian, English and code with other ids", num_texts, 0),
        aim("random strings with other ids, beyond the old file's", num_random, 0),
        *(aim(f"prompts that {engine} continues otherwise", len(each), 0) for engine, each in unequal.items()),
        aim("chat prompts rendered otherwise", int(not same_chat), 0),
    ]
    show_aims(aims)
    report.write(
        {
            "engines": {"xllamacpp": version("xllamacpp"), "vllm": vllm_version(options.vllm)},
            "token_ids": {"adapted file": new, "file of the instruct model": old},
            "continued_otherwise": unequal,
            "prompts": len(PROMPTS),
            "aims": aims,
        }
    )


if __name__ == "__main__":
    main()
