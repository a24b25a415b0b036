"""The modules have one total order, lazy imports included; help and text readers import no heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lepmerge"
ORDER = """
version
errors
paths
progress
text_files
corpus
pieces
chats
device
tensors
least_squares
config/yaml_tree
config/variables
config/schema
config/kinds
config/entries
config/numbers
vocabulary/valid_json
vocabulary/token_names
vocabulary/autotokenizer
vocabulary/tokenizer_json
vocabulary/token_bytes
vocabulary/vocabulary
vocabulary/union
vocabulary/conversion
models/references
models/safetensors_io
models/gguf_file
models/gguf_tensor
models/gguf_vocabulary
models/configs
models/tables
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
output/carried_files
output/chat_templates
operations/__init__
operations/registry
operations/operands
operations/inits
operations/expression
operations/arithmetic
operations/pad_vocabulary
operations/propagate_embeddings
operations/swap_vocabulary
operations/merge_methods/__init__
operations/merge_methods/registry
operations/merge_methods/reductions
operations/merge_methods/random_masks
operations/merge_methods/task_vectors
operations/merge_methods/task_arithmetic
operations/merge_methods/ties
operations/merge_methods/dare
operations/merge_methods/della
operations/merge_methods/breadcrumbs
operations/merge_methods/linear
operations/merge_methods/slerp
operations/merge_methods/model_stock
operations/merge_methods/karcher
operations/merge_methods/sce
operations/merge_methods/arcee_fusion
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
training/config
training/events
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
training/run
training/probe
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
comparison/prompts
comparison/generation
comparison/chat
comparison/copying
comparison/task
comparison/compare
comparison/columns
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
"""Every module may import those before it, wherever the import stands. Docstring-only packages are left out."""
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


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["tokenizer", "extend", "--help"], ["--version"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom lepmerge.commands.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'tokenizers', 'pydantic', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_missing_text_file_is_refused_before_any_heavy_import(tmp_path: Path) -> None:
    command = ["tokenizer", "extend", "base", str(tmp_path / "ru.txt"), "--add", "5", "-o", str(tmp_path / "new")]
    program = (
        "import sys\nfrom lepmerge.commands.main import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as end:\n    print(end.code)\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "[]"] and "ru.txt: no such file" in done.stderr


@pytest.mark.parametrize(
    "module", ["lepmerge.corpus", "lepmerge.chats", "lepmerge.config.entries", "lepmerge.training.config"]
)
def test_readers_and_schemas_import_neither_torch_nor_transformers(module: str) -> None:
    program = f"import sys, {module}\nprint(sorted({{'torch', 'transformers', 'tokenizers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
