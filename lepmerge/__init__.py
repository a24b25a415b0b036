"""lepmerge adapts instruct LLMs to another language: vocabulary swap, embedding propagation, arithmetic.

recipe = lepmerge.load_recipe("recipe.yaml")
print(recipe.plan().num_bytes)
folder = recipe.run()
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LepmergeError", "load_recipe", "make_plan", "open_model", "run_plan"]

if TYPE_CHECKING:
    from lepmerge.errors import LepmergeError
    from lepmerge.execute import run_plan
    from lepmerge.plan import make_plan, open_model
    from lepmerge.recipe import load_recipe

_HOMES = {
    "LepmergeError": "errors",
    "load_recipe": "recipe",
    "make_plan": "plan",
    "open_model": "plan",
    "run_plan": "execute",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import lepmerge` imports nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lepmerge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"lepmerge.{_HOMES[name]}"), name)
