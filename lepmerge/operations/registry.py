"""The registry of operations. A file registers an operation by decorating its function with its recipe entry:

class ScaleEmbeddings(Step):
    op: Literal["scale_embeddings"]
    factor: float

@operation(ScaleEmbeddings)
def scale_embeddings(model: "Model", *, factor: float) -> "Model": ...

The file imports torch only inside the function, so that recipes can be read without it. The function receives the
fields of the entry as keyword arguments, converted by their type:
    ModelName            a Model
    list[ModelName]      a list of models
    dict[ModelName, X]   name → (Model, X)
    TokenizerReference   a Vocabulary
    PerTable             table role → value
If the function has a keyword `models` that is not a field of its entry, it receives all models of the recipe by name.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from lepmerge import operations as package
from lepmerge.config.entries import Step
from lepmerge.errors import LepmergeError

if TYPE_CHECKING:
    from lepmerge.models.model import Model

ENTRY_POINTS = "lepmerge.operations"
"""Other packages list their modules with operations in this group of entry points."""
Function = TypeVar("Function", bound="Callable[..., Model]")


@dataclass(frozen=True)
class Operation:
    """A recipe entry and the function that implements it."""

    entry: type[Step]
    function: "Callable[..., Model]"
    takes_all_models: bool


_registered: dict[str, Operation] = {}


def operation(entry: type[Step]) -> Callable[[Function], Function]:
    """Register the decorated function under the name in the entry's `op`."""
    name = entry.operation()

    def register(function: Function) -> Function:
        _, *parameters = inspect.signature(function).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        keywords = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        fields = [field for field in entry.model_fields if field != "op"]
        takes_all_models = "models" in keywords and "models" not in fields
        expected = {*fields, "models"} if takes_all_models else set(fields)
        if set(keywords) - expected or (expected - set(keywords) and not takes_any):
            raise TypeError(
                f"operation {name}: the entry has the fields {fields}, the function the keywords {keywords}"
            )
        if name in _registered:
            other = _registered[name].function.__module__
            raise LepmergeError(f"operation {name} is defined by {other} and by {function.__module__}: remove one")
        _registered[name] = Operation(entry, function, takes_all_models)
        return function

    return register


@cache
def operations() -> Mapping[str, Operation]:
    """Return name → operation of this package and of other packages, sorted by name.

    Raises:
        LepmergeError: a module of another package cannot be imported.
    """
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            point.load()
        except ImportError as error:
            raise LepmergeError(
                f"the operation {point.name} of another package ({point.value}) cannot be imported: {error}; update or "
                f"uninstall that package"
            ) from error
    return dict(sorted(_registered.items()))
