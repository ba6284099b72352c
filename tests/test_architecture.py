"""The architecture: which module may import which, what is documented, and that importing does no work.

`ROOMS` is the drawing in docs/architecture.md as a table. A new arrow between rooms is a decision: make it here, and
draw it there.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tensorlite", "gpt", "data", "study")
ENGINE = {"tensorlite.backend", "tensorlite.random", "tensorlite.tape", "tensorlite.tensor", "tensorlite.op", "tensorlite.creation"}

MODEL_LEVEL = {"gpt.model", "gpt.llama", "gpt.int8", "gpt.config", "gpt.errors", "tensorlite", "tensorlite.*", "data", "numpy"}
WEIGHTS_ON_DISK = {"gpt.checkpoints.weights", "gpt.checkpoints.llama_layout", "gpt.checkpoints.hugging_face"}

# Room -> what it may import besides itself and the standard library. The longest matching name is a module's room.
ROOMS: dict[str, set[str]] = {
    "tensorlite.backend": {"numpy", "cupy"},
    "tensorlite.context": set(),
    "tensorlite.missing": set(),
    "tensorlite.lazy": {"tensorlite.missing"},
    "tensorlite.port": {"tensorlite", "tensorlite.missing", "tensorlite.tensor"},
    "tensorlite.random": {"tensorlite.backend", "tensorlite.context", "numpy"},
    "tensorlite.precision": {"tensorlite.context", "numpy", "ml_dtypes"},
    "tensorlite.tape": {"tensorlite.backend", "tensorlite.context", "numpy"},
    "tensorlite.index": {"tensorlite.backend"},
    "tensorlite.tensor": {"tensorlite.tape", "tensorlite.backend", "numpy"},
    "tensorlite.op": {"tensorlite.tensor", "tensorlite.tape", "tensorlite.backend", "tensorlite.context"},
    "tensorlite.creation": {"tensorlite.tensor", "tensorlite.random", "tensorlite.backend", "numpy", "ml_dtypes"},
    "tensorlite.ops": {
        "tensorlite.ops.in_place",
        "tensorlite.op",
        "tensorlite.tensor",
        "tensorlite.index",
        "tensorlite.random",
        "tensorlite.backend",
        "numpy",
    },
    "tensorlite.ops.in_place": {"tensorlite.ops", "tensorlite.tensor", "tensorlite.tape", "tensorlite.index", "tensorlite.backend"},
    "tensorlite.kernels": {"tensorlite.kernels.cuda", "tensorlite.op", "tensorlite.random", "tensorlite.backend", "numpy"},
    "tensorlite.kernels.cuda": {
        "tensorlite.kernels",
        "tensorlite.precision",
        "tensorlite.op",
        "tensorlite.random",
        "tensorlite.backend",
        "numpy",
        "cupy",
    },
    "tensorlite.nn": ENGINE | {"tensorlite.ops", "tensorlite.lazy", "numpy"},
    "tensorlite.nn.hooks": {"tensorlite.nn", "tensorlite.ops", "tensorlite.tensor"},
    "tensorlite.nn.parallel": {"tensorlite.lazy", "tensorlite.missing"},
    "tensorlite.nn.utils": {"tensorlite.lazy", "tensorlite.ops", "tensorlite.optim", "tensorlite.tensor"},
    "tensorlite.nn.further_functional": {"tensorlite.ops", "tensorlite.compat", "tensorlite.tensor", "tensorlite.backend", "numpy"},
    "tensorlite.optim": {"tensorlite.op", "tensorlite.tensor", "tensorlite.tape", "tensorlite.backend", "tensorlite.lazy", "numpy"},
    "tensorlite.compat": ENGINE
    | {"tensorlite.ops", "tensorlite.ops.in_place", "tensorlite.lazy", "tensorlite.missing", "numpy", "safetensors"},
    "tensorlite.cuda": {"tensorlite.amp", "tensorlite.lazy", "tensorlite.backend"},
    "tensorlite.amp": {"tensorlite.optim", "tensorlite.tensor", "tensorlite.missing", "tensorlite.context", "tensorlite.backend", "numpy"},
    "tensorlite.distributed": {"tensorlite.lazy", "tensorlite.missing"},
    "tensorlite.backends": {"tensorlite.lazy"},
    "tensorlite.utils": ENGINE | {"tensorlite.ops", "tensorlite.lazy", "numpy", "tensorboardX"},
    "tensorlite.parallel": ENGINE | {"tensorlite.optim", "tensorlite.memory", "numpy", "threadpoolctl", "mpi4py", "cupy"},
    "tensorlite.memory": set(),
    "tensorlite.profile": {"tensorlite.op", "tensorlite.backend"},
    "tensorlite.testing": ENGINE | {"numpy"},
    "tensorlite.inspect": ENGINE | {"tensorlite.context", "tensorlite.nn", "numpy"},
    "tensorlite": {"tensorlite.*"},
    "data": {"numpy", "tqdm", "py7zr", "backports", "compression", "tokenizers", "tiktoken"},
    "gpt.config": {"tensorlite.precision"},
    "gpt.errors": {"data", "tensorlite.backend"},
    "gpt.checkpoints.weights": {"gpt.config", "gpt.errors", "numpy", "safetensors"},
    "gpt.checkpoints.llama_layout": {"gpt.config", "numpy"},
    "gpt.checkpoints.hugging_face": {
        "gpt.checkpoints.weights",
        "gpt.checkpoints.llama_layout",
        "gpt.config",
        "data",
        "numpy",
        "safetensors",
    },
    "gpt.generation.sampling": {"gpt.errors", "tensorlite", "tensorlite.*", "numpy"},
    "gpt.llama": {"gpt.config", "tensorlite", "tensorlite.*"},
    "gpt.int8": {"gpt.errors", "tensorlite", "tensorlite.*", "numpy"},
    "gpt.model": {
        "gpt.llama",
        "gpt.checkpoints.hugging_face",
        "gpt.checkpoints.weights",
        "gpt.generation.sampling",
        "gpt.config",
        "tensorlite",
        "tensorlite.*",
        "data",
        "numpy",
    },
    "gpt.finetuning.lora": {"gpt.model", "gpt.config", "gpt.errors", "tensorlite", "tensorlite.*"},
    "gpt.generation": MODEL_LEVEL | {"gpt.generation.sampling", "threadpoolctl", "jinja2"},
    "gpt.plots": MODEL_LEVEL | {"matplotlib"},
    "gpt.microscope": MODEL_LEVEL | {"gpt.cli", "gpt.generation.sampling", "gpt.plots"},
    "gpt.serving": MODEL_LEVEL
    | {"gpt.generation", "gpt.generation.sampling", "gpt.finetuning", "gpt.microscope", "fastapi", "starlette", "pydantic"},
    "gpt.evaluation": MODEL_LEVEL | {"gpt.finetuning", "gpt.training", "gpt.checkpoints", "gpt.generation"},
    "gpt.checkpoints": MODEL_LEVEL | WEIGHTS_ON_DISK | {"gpt.finetuning.lora", "safetensors", "threadpoolctl", "gguf"},
    "gpt.training": MODEL_LEVEL | WEIGHTS_ON_DISK | {"gpt.checkpoints", "gpt.generation", "gpt.plots", "tqdm", "tensorboardX"},
    "gpt.cli": {"gpt.config", "gpt.errors", "gpt.generation.sampling", "tensorlite.*", "jsonargparse"},
    "gpt.finetuning": MODEL_LEVEL
    | WEIGHTS_ON_DISK
    | {"gpt.finetuning.lora", "gpt.cli", "gpt.training", "gpt.checkpoints", "gpt.generation", "safetensors"},
    "gpt": {"gpt.*", "tensorlite", "tensorlite.*", "data", "numpy"},
    "gpt.serve": {"gpt.*", "data", "uvicorn"},
    "study": {"study.torch_twins", "gpt", "gpt.*", "tensorlite", "tensorlite.*", "data", "numpy"},
    "study.torch_twins": {"tensorlite.*", "numpy", "torch"},  # asks torch, if it is installed; nothing else outside of tests does
}


@dataclass(frozen=True)
class Import:
    """One import statement: ``module`` names ``target`` in ``line``."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the packages: dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


def imports(module: str, tree: ast.Module | None = None) -> Iterator[Import]:
    """Every import in a module: at its top, inside functions, for type checkers, and by ``import_module("name")``.

    ``tree`` is read in the place of the module's own.
    """

    def walk(node: ast.AST) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            targets: list[str] = []
            if isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{module}, line {child.lineno}: relative imports are not used here"
                source = child.module or ""
                targets = [f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in child.names]
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                targets = [arg.value for arg in child.args[:1] if isinstance(arg, ast.Constant)]
            for target in dict.fromkeys(targets):
                yield Import(module, target, child.lineno)
            yield from walk(child)

    yield from walk(tree_of(module) if tree is None else tree)


def room(module: str) -> str:
    """The longest name in `ROOMS` that ``module`` is in; outside our packages the top-level name."""
    names = [name for name in ROOMS if module == name or module.startswith(name + ".")]
    return max(names, key=len) if names else module.partition(".")[0]


def forbidden(arrow: Import) -> bool:
    """Whether an import is none of those that `ROOMS` allows."""
    source, target = room(arrow.module), room(arrow.target)
    if source == "tensorlite" and arrow.module != "tensorlite":
        return True  # a new module at the top of the package needs a room of its own
    page = arrow.module.rpartition(".")[2]
    without_op = ("axes", "broadcasting", "masking", "special", "summation")
    pages = [f"tensorlite.optim.{page}", *(f"tensorlite.ops.{name}" for name in (page, *without_op))]
    return not (
        target == source
        or (target in sys.stdlib_module_names and target not in PACKAGES)
        or target in ROOMS[source]
        or any(f"{package}.*" in ROOMS[source] and target.startswith(f"{package}.") for package in PACKAGES)
        or (source.startswith("tensorlite.kernels") and arrow.target in pages)  # the page it replaces, and those without an op
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_import_follows_an_arrow(module):
    wrong = [str(arrow) for arrow in imports(module) if forbidden(arrow)]
    assert not wrong, f"not among the arrows of docs/architecture.md: {wrong}"


def test_an_import_against_the_arrows_is_detected():
    def arrow(module: str, target: str) -> Import:
        return Import(module, target, 1)

    for module, target in [
        ("tensorlite.ops.linear", "torch"),
        ("tensorlite.ops.linear", "cupy"),
        ("tensorlite.ops.linear", "scipy.special"),
        ("tensorlite.ops.linear", "tensorlite.nn"),
        ("tensorlite.ops.linear", "tensorlite"),
        ("tensorlite.op", "tensorlite.ops.linear"),
        ("tensorlite.op", "tensorlite.kernels"),
        ("tensorlite.tape", "tensorlite.tensor"),
        ("tensorlite.kernels.cpu.linear", "tensorlite.ops.softmax"),
        ("tensorlite.kernels.cpu.linear", "cupy"),
        ("tensorlite.nn.module", "gpt.model"),
        ("tensorlite.new_module", "tensorlite.op"),
        ("data.loader", "tensorlite"),
        ("gpt.model", "torch"),
        ("gpt.model", "cupy"),
        ("gpt.model", "study"),
        ("tensorlite.tape", "study.table"),
        ("data.loader", "study"),
        ("study.runner", "torch"),
        ("gpt.training.trainer", "gpt.finetuning.lora"),
        ("gpt.generation.decoder", "gpt.training.trainer"),
        ("gpt.plots.curves", "gpt.training.trainer"),
        ("gpt.generation.stream", "gpt.serving.engine"),
        ("gpt.generate", "fastapi"),
    ]:
        assert forbidden(arrow(module, target)), f"{module} -> {target} should be refused"
    assert not forbidden(arrow("tensorlite.kernels.cpu.linear", "tensorlite.ops.linear"))
    assert not forbidden(arrow("tensorlite.kernels.cuda.linear", "cupy"))
    assert not forbidden(arrow("gpt.model", "tensorlite.nn.functional"))


def circle_in(graph: Mapping[str, Collection[str]]) -> list[str]:
    """The files of a circle, the first of them once more at the end; empty if there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for target in sorted(graph[module]):
                if found := visit(target, [*path, module]):
                    return found
            finished.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def arrows() -> dict[str, set[str]]:
    """Every file, and the files that it imports: at its top, inside functions, and for the type checker."""
    return {module: {arrow.target for arrow in imports(module) if arrow.target in MODULES} for module in MODULES}


def test_no_files_import_each_other_in_a_circle():
    assert circle_in(arrows()) == []


@pytest.mark.parametrize(
    "module, planted",
    [
        ("tensorlite.tape", "from tensorlite.tensor import Tensor"),
        ("tensorlite.tape", "def f():\n    from tensorlite import tensor"),
        ("gpt.checkpoints.weights", "def f():\n    import gpt.model"),
        ("gpt.checkpoints.hugging_face", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gpt.model import GPT"),
        ("gpt.training.stepper", "class A:\n    def f(self):\n        from gpt.training.trainer import Trainer"),
        ("gpt.finetuning.lora", "import importlib\nf = lambda: importlib.import_module('gpt.checkpoints.adapter')"),
        ("data.files", "from data import prepare"),
    ],
)
def test_a_planted_circle_of_imports_is_detected(module, planted):
    graph = arrows()
    graph[module] = {*graph[module], *(arrow.target for arrow in imports(module, ast.parse(planted)))} & set(MODULES)
    assert module in circle_in(graph)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    tree = tree_of(module)
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    missing = [f"{node.name}, line {node.lineno}" for node in public if not ast.get_docstring(node)]
    missing += [] if ast.get_docstring(tree) else ["the module itself"]
    assert not missing, f"{module}: no docstring on {missing}"


HEART = {
    "linear": "linear",
    "embedding": "embedding",
    "layernorm": "layernorm",
    "softmax": "softmax",
    "attention": "attention",
    "activation": "gelu",
    "cross_entropy": "cross_entropy",
}


@pytest.mark.parametrize("page", HEART)
def test_the_main_pages_of_the_book_have_derivations(page):
    functions = {node.name: node for node in tree_of(f"tensorlite.ops.{page}").body if isinstance(node, ast.FunctionDef)}
    forward = ast.get_docstring(functions[f"{HEART[page]}_forward"]) or ""
    for part in ("Shapes:", "Saves:", "Source:"):
        assert part in forward, f"the docstring of {HEART[page]}_forward does not say what it {part.lower().rstrip(':')}"
    backward = ast.get_docstring(functions[f"{HEART[page]}_backward"]) or ""
    assert len(backward.split()) > 60, f"the docstring of {HEART[page]}_backward is no derivation"


def test_every_op_is_two_plain_functions_on_one_page():
    import tensorlite
    from tensorlite.op import REGISTRY

    assert tensorlite
    for module in MODULES:  # also pages that are only imported when they are asked for
        if module.startswith("tensorlite.ops."):
            importlib.import_module(module)
    for name, op in REGISTRY.items():
        forward, backward = op.book.forward, op.book.backward
        for function, kind in ((forward, "forward"), (backward, "backward")):
            assert type(function).__name__ == "function", f"{name}: the book's {kind} is a {type(function).__name__}"
            assert function.__name__.removeprefix("_").endswith(f"_{kind}"), f"{name}: {function.__name__} is not named *_{kind}"
            assert function.__closure__ is None, f"{name}: {function.__name__} keeps something unseen in a closure"
            assert function.__doc__, f"{name}: {function.__name__} has no docstring"
        assert forward.__module__ == op.__module__, f"{name}: its Op and its forward are on different pages"
        assert forward.__module__.startswith("tensorlite.ops."), f"{name} is not in the book"


def test_the_model_fits_on_a_few_screens():
    assert len(MODULES["gpt.model"].read_text(encoding="utf-8").splitlines()) < 250
    assert len(MODULES["gpt.llama"].read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("package", ["tensorlite", "gpt.model", "data", "study"])
def test_importing_a_module_does_no_work(package):
    """Heavy or optional packages come in when they are used; no thread starts, no random stream moves, nothing is printed."""
    program = f"""
import random, sys, threading
import numpy as np
state = random.getstate(), np.random.get_state()[1].tolist()
import {package}
heavy = {{"cupy", "cupyx", "torch", "matplotlib", "scipy", "jsonargparse", "tokenizers", "tiktoken", "py7zr"}} & set(sys.modules)
assert not heavy, f"imported {{sorted(heavy)}}"
assert threading.active_count() == 1, threading.enumerate()
assert state == (random.getstate(), np.random.get_state()[1].tolist()), "the global random streams were used"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


# The words are cut in two here so that this file does not hold what it looks for.
NOT_FOR_THE_PUBLIC = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me)/\w",  # a path of somebody's machine
            r"pypi\.o" + r"rg|pythonhosted\.o" + r"rg|download\.pytorch\.o" + r"rg|anaconda\.o" + r"rg|registry\.npmjs",
            r"BEGIN [A-Z ]*PRIVATE K" + r"EY",
        ]
    )
)


def test_no_file_names_a_private_machine_or_a_package_host():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    found = []
    for name in filter(None, listed):
        path = ROOT / name
        if not path.is_file():
            continue  # deleted, and not committed yet
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name}: {match.group()}" for match in NOT_FOR_THE_PUBLIC.finditer(text)]
    assert not found


def test_the_public_names_of_gpt_are_imported_at_first_use():
    program = """
import sys
import gpt
assert not {"gpt.model", "gpt.generation.stream", "tensorlite"} & set(sys.modules)
assert sorted(gpt.__all__) == sorted(name for names in gpt._MODULES.values() for name in names)
for name in gpt.__all__:
    assert getattr(gpt, name).__name__ == name
from gpt import GPT, generate_text, load_model, stream_text
try:
    gpt.nothing
except AttributeError:
    pass
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
