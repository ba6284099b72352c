"""Names that are imported at their first use.

Programs written for torch use many names that training a GPT does not need. These names are defined in separate pages. A page is imported
at the first use of one of its names, so these pages do not make `import tensorlite` slower.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from typing import Any


def _as_it_is(value: Any) -> Any:
    return value


def on_demand(module: str, pages: Mapping[str, str], finish: Callable[[Any], Any] = _as_it_is) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module``, which has the names in ``pages`` as if it had imported them.

    Args:
        pages: page -> its names, separated by blanks. Under ``module`` itself: the names of its submodules.
        finish: applied once to what the page defines.

    A name that is on no page raises an AttributeError with a sentence about it, see `tensorlite.missing`.
    """
    page_of = {name: page for page, names in pages.items() for name in names.split()}
    vars(sys.modules[module]).setdefault("__path__", [])  # of a package Python looks for `name` as a module, too, and asks MissingModules

    def look_up(name: str) -> Any:
        page = page_of.get(name)
        if page is None:
            raise AttributeError(_sentence(module, name))
        value = importlib.import_module(f"{page}.{name}") if page == module else finish(getattr(importlib.import_module(page), name))
        setattr(sys.modules[module], name, value)  # later uses do not come here
        return value

    return look_up


class MissingModules(MetaPathFinder):
    """Raises the sentence about a missing name for ``import tensorlite.name`` and ``from tensorlite import name``, too.

    Python asks it after all others, for a module that they did not find. Of itself it would say no more than "cannot import name".
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        parent, _, name = fullname.rpartition(".")
        if parent.partition(".")[0] == "tensorlite" and not name.startswith("__"):
            try:
                getattr(sys.modules[parent], name)
            except AttributeError as error:
                raise ModuleNotFoundError(str(error)) from None  # without name=, for of such an error "from … import" takes no notice


class Later:
    """A method that is imported from a page at its first use: ``Tensor.topk = Later("topk", "tensorlite.ops.sorting", "topk")``.

    Args:
        name: of the method.
        function: its name on the page.
        finish: applied once to the function.
    """

    def __init__(self, name: str, page: str, function: str, finish: Callable[[Any], Any] = _as_it_is) -> None:
        self.name, self.page, self.function, self.finish = name, page, function, finish

    def __get__(self, instance: Any, owner: type) -> Any:
        method = self.finish(getattr(importlib.import_module(self.page), self.function))
        base = next(cls for cls in owner.__mro__ if vars(cls).get(self.name) is self)
        setattr(base, self.name, method)
        return getattr(owner if instance is None else instance, self.name)


def _sentence(module: str, name: str) -> str:
    if name.startswith("__"):
        return f"module {module!r} has no attribute {name!r}."
    from tensorlite.missing import sentence

    return sentence(f"{module}.{name}")


__all__ = ["Later", "MissingModules", "on_demand"]
