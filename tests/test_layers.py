"""The modules have one total order, lazy imports included; help and text readers import no heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

PACKAGE = Path(__file__).parent.parent / "lepmerge"
ORDER = """
version
errors
json_text
paths
launch
progress
text_files
corpus
pieces
chats
allocator
device
tensors
least_squares
config/yaml_tree
config/variables
config/schema
config/kinds
config/entries
config/numbers
vocabulary/token_bytes
vocabulary/valid_json
vocabulary/token_names
vocabulary/chat_templates
vocabulary/library
vocabulary/autotokenizer
vocabulary/tokenizer_json
vocabulary/vocabulary
vocabulary/union
vocabulary/conversion
models/references
models/byte_file
models/safetensors_io
models/gguf_file
models/gguf_tensor
models/gguf_vocabulary
models/configs
models/tables
models/missing_weights
models/table_report
models/model
models/gguf_tokenizer
models/gguf_model
models/checkpoint
models/lora_tensor
models/adapter_config
models/adapter_file
models/adapter_placement
models/adapter_tables
models/adapters
models/inspection
models/adapter_inspection
output/provenance
output/plots
output/staging
output/checks
output/run
output/tokenizer_files
output/carried_files
output/chat_templates
computation/choices
computation/operands
computation/inits
computation/expression
computation/arithmetic
computation/pad_vocabulary
computation/propagate_embeddings
computation/merge_methods/__init__
computation/merge_methods/registry
computation/merge_methods/reductions
computation/merge_methods/random_masks
computation/merge_methods/task_vectors
computation/merge_methods/task_arithmetic
computation/merge_methods/ties
computation/merge_methods/dare
computation/merge_methods/della
computation/merge_methods/breadcrumbs
computation/merge_methods/linear
computation/merge_methods/slerp
computation/merge_methods/model_stock
computation/merge_methods/karcher
computation/merge_methods/sce
computation/merge_methods/arcee_fusion
computation/unite_vocabularies
computation/merge
computation/stack_layers
operations/__init__
operations/registry
operations/arithmetic
operations/propagate_embeddings
operations/swap_vocabulary
operations/unite_vocabularies
operations/merge
operations/stack_layers
merge/recipe
merge/mergekit_reader
merge/mergekit
merge/gguf_shard
merge/shards
merge/plan
merge/description
merge/card
merge/execute
merge/convert
extraction/low_rank
extraction/extract
tokenization/words
tokenization/checks
tokenization/script
tokenization/train
tokenization/extend
tokenization/optimize
tokenization/report
tokenization/build
training/sources
training/config
training/events
training/group
training/optimizer
training/tables
training/templates
training/quantized
training/loader
training/outline
training/setting
training/alignment
training/tokens
training/records
training/lessons
training/loss
training/batch
training/blocks
training/transform
training/lora
training/sharding
training/body
training/teacher
training/distill
training/learner
training/held_out
training/state
training/memory
training/fitting
training/estimate
training/loop
training/output
training/trained
training/processes
training/session
training/run
training/probe
comparison/darumeru_data
comparison/darumeru
comparison/loading
generation/engine
generation/passages
generation/prompts
generation/copies
generation/local
generation/server
generation/filters
generation/grader
generation/ranking
generation/journal
generation/report
generation/run
generation/job
comparison/drift
comparison/texts
comparison/broken_tokens
comparison/decoding
comparison/generation
comparison/chat
comparison/copying
comparison/task
comparison/compare
comparison/columns
comparison/card
comparison/report
projects/languages
projects/look
projects/values
projects/init
projects/chain
__init__
commands/logs
commands/console
commands/options
commands/training_progress
commands/estimate
commands/train
commands/tokenizer
commands/import_
commands/plan
commands/run
commands/generate
commands/compare
commands/darumeru
commands/inspect
commands/diff
commands/convert
commands/extract
commands/init
commands/chain
commands/main
__main__
""".split()
"""Every module may import those before it, wherever the import is. Docstring-only packages are left out."""
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Return the modules of lepmerge that a module imports anywhere but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "lepmerge":
            continue
        candidates = ["/".join(parts[1:stop]) for stop in range(len(parts), 1, -1)]
        found.add(next((module_of(c) for c in candidates if module_of(c)), "__init__"))
    return found


def module_of(path: str) -> str:
    return path if path in MODULES else f"{path}/__init__" if f"{path}/__init__" in MODULES else ""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_before_it(module: str) -> None:
    others = imported(MODULES[module]) - {module}
    if module not in ORDER:
        only_docstring = len(ast.parse(MODULES[module].read_text()).body) == 1
        assert module.endswith("__init__") and only_docstring, f"{module} is not in ORDER of this test: add it"
        return
    late = [other for other in others if ORDER.index(other) > ORDER.index(module)]
    assert not late, f"{module} imports {late}, which come after it in ORDER"


def test_the_order_names_every_module_once_and_no_other() -> None:
    assert len(ORDER) == len(set(ORDER)) and set(ORDER) <= MODULES.keys()


def test_files_functions_and_parameter_lists_stay_short() -> None:
    """No file has more than 300 lines, no function more than 60. Commands receive all their options from click."""
    too_long = []
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "eval").rglob("*.py")]:
        text = path.read_text()
        if text.count("\n") > 300:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= 60:
                    too_long.append(f"{path}:{node.lineno}: {node.name} has more than 60 lines")
                if len(node.args.args) > 7 and path.parent.name != "commands":
                    too_long.append(f"{path}:{node.lineno}: {node.name} has more than 7 positional parameters")
    assert not too_long, "\n".join(too_long)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["tokenizer", "extend", "--help"], ["--version"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    done = fresh.command(arguments, "torch", "transformers", "numpy", "tokenizers", "pydantic", "yaml")
    assert done.code == 0 and done.imported == []


def test_a_missing_text_file_is_refused_before_any_heavy_import(tmp_path: Path) -> None:
    command = ["tokenizer", "extend", "base", tmp_path / "ru.txt", "--add", "5", "-o", tmp_path / "new"]
    done = fresh.command(command, "torch", "transformers", "tokenizers")
    assert (done.code, done.imported, done.stdout) == (1, [], []) and "ru.txt: no such file" in done.stderr


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("{op: swap_vocabulary, tokenizr: x}", "did you mean tokenizer?"),
        ("{op: swap_vocabulari, tokenizer: x}", "did you mean swap_vocabulary?"),
        ("{op: propagate_embeddings, base: bas, adapted: a, method: swap}", "unknown model 'bas'"),
        ("{op: swap_vocabulary, tokenizer: x", "expected"),
    ],
    ids=["key", "operation", "model", "syntax"],
)
def test_a_fault_in_a_recipe_is_reported_without_heavy_imports(tmp_path: Path, fault: str, problem: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models: {{base: b, a: a}}\nstart: base\nsteps:\n  - {fault}\noutput: {{path: out}}\n")
    done = fresh.command(["run", recipe], "torch", "transformers", "tokenizers", "numpy")
    assert (done.code, done.imported, done.stdout) == (2, [], [])
    assert problem in done.stderr and "recipe.yaml:" in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "lepmerge.corpus",
        "lepmerge.chats",
        "lepmerge.config.entries",
        "lepmerge.training.config",
        "lepmerge.merge.recipe",
        "lepmerge.merge.mergekit",
    ],
)
def test_readers_and_schemas_import_neither_torch_nor_transformers(module: str) -> None:
    program = f"import sys, {module}\nprint(sorted({{'torch', 'transformers', 'tokenizers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
