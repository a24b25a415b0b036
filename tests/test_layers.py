"""Imports go down the layers only, and the command's help starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lepmerge"
LAYERS = {  # module or folder → layer; a module may import lower layers, and its own
    "errors": 0,
    "provenance": 0,
    "references": 0,
    "tensors": 0,
    "safetensors_io": 1,
    "checkpoint": 1,
    "model": 1,
    "recipe": 1,
    "schema": 1,
    "variables": 1,
    "yaml_tree": 1,
    "expression": 1,
    "tokenizer_json": 1,
    "vocabulary": 1,
    "conversion": 1,
    "least_squares": 1,
    "carried_files": 1,
    "staging": 1,
    "operations": 2,
    "tokenization": 2,
    "plan": 3,
    "training": 3,
    "execute": 4,
    "card": 4,
    "plots": 1,
    "darumeru": 4,
    "comparison": 4,
    "inspection": 5,
    "console": 5,
    "commands": 5,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
METHODS = {("recipe", "plan"), ("recipe", "execute"), ("plan", "execute")}
"""Imports inside a method that hands on to an upper layer: Recipe.plan(), Recipe.run(), Plan.run()."""
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[tuple[str, bool]]:
    """Return (top module of lepmerge, whether the import stands inside a function) of every import."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("lepmerge."):
                top = name.split(".")[1]
                if top in LAYERS:
                    found.add((top, id(node) in inside))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    top = module.split("/")[0]
    assert top in LAYERS, f"lepmerge/{module}.py is not in the layer table of this test: give it a layer"
    for other, in_function in imported(MODULES[module]):
        allowed = LAYERS[other] <= LAYERS[top] or (in_function and (top, other) in METHODS)
        assert allowed, f"{module} (layer {LAYERS[top]}) imports {other} (layer {LAYERS[other]})"


def test_no_circles_between_modules() -> None:
    """What is imported when a module is loaded has no circle, so that every module can be imported first."""
    edges = {module: {o for o, inner in imported(path) if not inner} for module, path in MODULES.items()}
    tops: dict[str, set[str]] = {}
    for module, others in edges.items():
        top = module.split("/")[0]
        tops.setdefault(top, set()).update(others - {top})
    tops.pop("__init__", None)
    while tops:
        free = [top for top, others in tops.items() if not others & tops.keys()]
        assert free, f"a circle among {sorted(tops)}"
        for top in free:
            del tops[top]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom lepmerge.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'tokenizers', 'pydantic', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
