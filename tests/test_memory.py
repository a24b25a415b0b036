"""The memory that a plan announces bounds what the run takes, for tensors with huge rows too."""

import json
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
import training
from safetensors.torch import load_file, save_file

MIB = 1 << 20
ROW = 6 * MIB
"""Values in a row: 12 MiB in bfloat16, 24 MiB in the float32 that is computed."""


@pytest.fixture
def recipe(tmp_path: Path, setting) -> Path:
    """A recipe that subtracts tensors of two models, each with two rows of 12 MiB."""
    for number, name in enumerate(("base", "instruct")):
        (tmp_path / name).mkdir()
        for path in setting[name].iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        path = tmp_path / name / "model.safetensors"
        save_file({**load_file(path), "big": torch.full((4, ROW), float(number), dtype=torch.bfloat16)}, path)
    step = "steps: [{op: arithmetic, tensors: big, expression: instruct + 0.5 * (instruct - base)}]"
    (tmp_path / "recipe.yaml").write_text(
        f"models: {{base: ./base, instruct: ./instruct}}\n{step}\noutput: {{path: out}}\n"
    )
    return tmp_path / "recipe.yaml"


def test_huge_rows_count_once_for_every_operand(recipe: Path) -> None:
    with_rows = pico.plan_file(recipe).sizes["memory"]
    without = pico.plan_file(recipe, ["steps=[]"]).sizes["memory"]
    assert with_rows - without == (12 + 4 * 2) * 4 * ROW


ALLOCATE = """
import ctypes, sys
from pathlib import Path
from lepmerge.allocator import return_freed_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

if sys.argv[1] == "yes":
    return_freed_blocks()
libc.free(libc.malloc(16 << 20))  # now glibc keeps blocks up to this size
blocks = []
for _ in range(20):
    blocks.append(libc.malloc(8 << 20))
    ctypes.memset(ctypes.c_void_p(blocks[-1]), 1, 8 << 20)
    libc.malloc(100_000)  # without it the blocks would lie at the end of the heap, which is returned
before = resident()
for block in blocks:
    libc.free(block)
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_go_back_to_the_system() -> None:
    returned = [
        int(subprocess.run([sys.executable, "-c", ALLOCATE, asked], capture_output=True, check=True).stdout)
        for asked in ("yes", "no")
    ]
    assert returned[0] > 140 and returned[1] < 40, returned


THREAD = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from lepmerge.allocator import use_one_heap

malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
if sys.argv[1] == "yes":
    use_one_heap()
print(abs(malloc(1000) - ThreadPoolExecutor(1).submit(malloc, 1000).result()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_threads_share_one_heap() -> None:
    apart = [
        int(subprocess.run([sys.executable, "-c", THREAD, asked], capture_output=True, check=True).stdout)
        for asked in ("yes", "no")
    ]
    assert apart[0] < 1 << 30 < apart[1], apart


@pytest.mark.slow
def test_a_run_takes_no_more_than_the_plan_says(recipe: Path) -> None:
    announced, taken = pico.plan_file(recipe).sizes["memory"], peak("run", recipe)
    assert 0.5 * announced < taken < announced, (announced / MIB, taken / MIB)


@pytest.mark.slow
def test_a_training_on_one_row_of_12_mb_takes_no_more_than_its_dry_run_says(tmp_path: Path, english) -> None:
    config = training.write_setting(tmp_path, english, max_tokens=3000, evaluate=None)
    sentence = " ".join(pico.RUSSIAN)  # the tokenizer makes almost one token of each byte, so memory is at its largest
    row = {"text": f"{sentence} " * (12_000_000 // len(sentence.encode()))}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    dry = pico.command("train", config, "--dry-run", "--device", "cpu", "--json")
    announced, taken = json.loads(dry.stdout)["memory"]["total"], peak("train", config)
    assert taken < announced, (announced / MIB, taken / MIB)


def peak(command: str, path: Path) -> int:
    """Return the peak of the resident memory of a lepmerge command on the CPU, in bytes."""
    program = (
        "import re\n"
        "from lepmerge.commands.main import main\n"
        f"main([{command!r}, {str(path)!r}, '--device', 'cpu', '-q'], standalone_mode=False)\n"
        "print(re.search('VmHWM: *(.*) kB', open('/proc/self/status').read())[1])"  # ru_maxrss counts the parent
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)
