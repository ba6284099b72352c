"""``python -m tensorlite.port script.py``: each line of a program for torch that cannot run here, and what to write instead.

The program is parsed, not run. The names that it takes from torch are looked up in tensorlite. Of its operations on tensors, only the
names of methods can be checked.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tensorlite.missing import is_known, sentence

_OTHER_PACKAGES = ("torchvision", "torchaudio", "torchtext", "pytorch_lightning", "lightning", "accelerate", "timm", "torchmetrics")


class Finding(NamedTuple):
    """A line, and a sentence about it."""

    line: int
    text: str


class _Missing(NamedTuple):
    """The shortest part of a dotted name that is not here."""

    path: str


def findings(source: str) -> list[Finding]:
    """The parts of a program that cannot run here, in the order of its lines.

    Raises:
        SyntaxError: if it is not valid Python.
    """
    tree = ast.parse(source)
    names = _names_of_torch(tree)
    found = {Finding(node.lineno, text) for node in ast.walk(tree) for text in _said_of(node, names)}  # type: ignore[attr-defined]
    return sorted(found)


def _names_of_torch(tree: ast.Module) -> dict[str, str]:
    """Every name that an import binds to a part of torch, and this part: ``{"F": "torch.nn.functional"}``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_torchs(alias.name):
                    names[alias.asname or "torch"] = alias.name if alias.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and node.module and _is_torchs(node.module):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _is_torchs(module: str) -> bool:
    return module.partition(".")[0] == "torch"


def _said_of(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    """The sentences about one node of the tree."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _is_torchs(alias.name):
                yield from _missing(alias.name)
            elif alias.name.partition(".")[0] in _OTHER_PACKAGES:
                yield sentence(alias.name)
    elif isinstance(node, ast.ImportFrom) and node.module:
        if _is_torchs(node.module):
            for alias in node.names:
                yield from _missing(node.module if alias.name == "*" else f"{node.module}.{alias.name}")
        elif node.module.partition(".")[0] in _OTHER_PACKAGES:
            yield sentence(node.module)
    elif isinstance(node, ast.Attribute):
        dotted = _dotted(node, names)
        if dotted:
            yield from _missing(dotted)
    elif isinstance(node, ast.Call):
        yield from _said_of_call(node, names)


def _said_of_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    given = {keyword.arg for keyword in node.keywords if not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)}
    function = node.func
    dotted = _dotted(function, names)
    if dotted and getattr(_found(dotted), "is_absent", False):
        yield sentence(_ours(dotted))
    if (
        dotted
        and dotted.endswith("autocast")
        and not any(keyword.arg == "enabled" and keyword.arg not in given for keyword in node.keywords)
    ):
        yield f"where there is such a device: {sentence(_ours(dotted))}"
    if dotted and "out" in given:
        yield f"{_ours(dotted)} takes no out=: assign the result, or write it with x.copy_(…)."
    if "inplace" in given:
        yield "inplace=True is not here: no function writes to its input; leave it out."
    if "create_graph" in given:
        yield f"create_graph=True is not here: {sentence('grad').partition(': ')[2]}"
    if isinstance(function, ast.Attribute) and not dotted and is_known(function.attr) and not _is_a_module(function, names):
        from tensorlite.tensor import Tensor

        if not hasattr(Tensor, function.attr) and function.attr not in ("stream", "compile", "export", "fold", "grad"):
            yield f"if that is a tensor: {sentence('Tensor.' + function.attr)}"


def _is_a_module(function: ast.Attribute, names: dict[str, str]) -> bool:
    """Whether the method's object is an imported name, and so not a tensor."""
    return isinstance(function.value, ast.Name) and function.value.id in names


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """``torch.nn.functional.relu`` for ``F.relu``; None for an expression that does not begin with a name of torch's."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])


def _found(dotted: str) -> object:
    """What tensorlite has under this name of torch; a `_Missing` if it has nothing."""
    import tensorlite

    found: object = tensorlite
    path = "tensorlite"
    for part in dotted.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return _Missing(path)
        found = getattr(found, part)
    return found


def _missing(dotted: str) -> Iterator[str]:
    """A sentence, if tensorlite has no such thing."""
    found = _found(dotted)
    if isinstance(found, _Missing):
        yield sentence(found.path)


def _ours(dotted: str) -> str:
    return dotted.replace("torch", "tensorlite", 1)


def main(arguments: list[str]) -> int:
    """Print the findings. Return 0 if there are none, 1 if there are some, 2 if the file is not a Python program."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m tensorlite.port script.py", file=sys.stderr)
        return 2
    try:
        found = findings(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
        print(f"error: {arguments[0]} cannot be read as a Python program: {error}", file=sys.stderr)
        return 2
    for line, text in found:
        print(f"{arguments[0]}:{line}: {text}")
    if not found:
        print(f"Everything that {arguments[0]} takes from torch by name is here: write `import tensorlite as torch`.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
