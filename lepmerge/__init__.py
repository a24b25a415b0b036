"""lepmerge adapts instruct LLMs to another language: vocabulary swap, embedding propagation, arithmetic.

recipe = lepmerge.load_recipe("recipe.yaml")
plan = lepmerge.make_plan(recipe)
print(plan.sizes)
folder = lepmerge.run_plan(plan)
"""

from typing import TYPE_CHECKING, Any

from lepmerge.version import __version__

__all__ = ["LepmergeError", "__version__", "load_recipe", "make_plan", "open_model", "run_plan", "trained_models"]

if TYPE_CHECKING:
    from lepmerge.errors import LepmergeError
    from lepmerge.merge.execute import run_plan
    from lepmerge.merge.plan import make_plan
    from lepmerge.merge.recipe import load_recipe
    from lepmerge.models.adapters import open_model
    from lepmerge.training.trained import trained_models

_HOMES = {
    "LepmergeError": "errors",
    "load_recipe": "merge.recipe",
    "make_plan": "merge.plan",
    "open_model": "models.adapters",
    "run_plan": "merge.execute",
    "trained_models": "training.trained",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import lepmerge` itself does not import torch and transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lepmerge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"lepmerge.{_HOMES[name]}"), name)
