"""Mutation tests: plant one small fault at a time, and run the tests that reach it.

    make reached                                     # which test runs which line: the whole suite once, under coverage.py
    python scripts/mutants.py --count 300            # or: make mutants ARGS="--count 300"
    python scripts/mutants.py --rooms data nn        # only there

A mutant is a copy of the tree with one change: an operator or a comparison swapped, a number one larger, `and` for `or`, a
condition negated, a statement dropped. It is *seen* if a test fails or hangs. Mutants that survive are listed with their line. Either
a test is missing, or the change has no effect; such equivalent mutants are listed in `scripts/mutants_equivalent.txt` with the reason.

The tests that run the changed line come first, the fastest of them at the front. If they all pass, the other tests of the room follow,
because they may reach the line from another process, which coverage.py does not observe. For a CUDA kernel, the tests of its wrapper count.

The sample has the same number from each room if possible. It is drawn by a hash of seed, file and changed line, so that work on the rest
of the tree leaves it as it is, and two runs can be compared. Faults are planted by token and not by syntax tree, so that the same code
works for Python and CUDA. The libraries for this do not know CUDA or drop statements.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
COPIED = ("tensorlite", "gpt", "data", "study", "tests", "benchmarks", "scripts", "docs", ".ci")  # and the files beside them
LONGEST = 900.0  # seconds for the tests of one mutant; a mutant that makes them hang is seen
REACHED, TIMES = ROOT / ".reached", ROOT / ".reached.xml"  # coverage.py's data, one context for each test, and pytest's times
BUDGET = 20.0  # seconds for the tests that reach a line, by the time that each took; more of them rarely see what these did not

SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*", "@": "*", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&": "|", "<<": ">>", ">>": "<<", "&&": "||", "||": "&&",
    "and": "or", "or": "and", "not": "", "is": "is not", "True": "False", "False": "True", "true": "false", "false": "true",
    "break": "continue", "continue": "break", "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all",
    "all": "any", "fmaxf": "fminf", "fminf": "fmaxf", "floor": "ceil", "ceil": "floor",
}  # fmt: skip

# A room, the files in it, and their tests. The longest match of a path decides. {stem} is the file's name.
ROOMS: dict[str, tuple[str, list[str]]] = {
    "ops": ("tensorlite/ops/", ["cases_oracle", "cases_hidden", "cases_gradcheck", "faults"]),
    "kernels/cpu": ("tensorlite/kernels/cpu/", ["kernels_cpu", "kernels_cpu_attention", "cases_pairs", "cases_oracle"]),
    "kernels/cuda": ("tensorlite/kernels/cuda/", ["kernels_cuda_*", "cuda_graph"]),
    "engine": (
        "tensorlite/",
        ["tape", "tensor", "op", "creation", "random", "parallel*", "own_loop", "testing", "standin", "gpt_speed", "gpt_trouble"],
    ),
    "inspect": ("tensorlite/inspect/", ["inspect", "study_walk"]),
    "compat": ("tensorlite/compat/", ["torch_*", "from_torch", "in_place"]),
    "microscope": ("gpt/microscope/", ["gpt_look"]),
    "nn": ("tensorlite/nn/", ["nn_*", "gpt_model"]),
    "optim": ("tensorlite/optim/", ["optim_*"]),
    "model": ("gpt/", ["gpt_model", "gpt_config", "checkpoint*", "generate*", "gpt_*"]),
    "training": ("gpt/training/", ["gpt_train*", "gpt_resume", "checkpoint*", "gpt_*"]),
    "finetuning": ("gpt/finetuning/", ["gpt_finetune*", "gpt_lora", "gpt_classify", "gpt_instructions"]),
    "checkpoints": ("gpt/checkpoints/", ["checkpoint*", "hostile_weights", "gpt_pretrained", "gpt_resume"]),
    "generation": ("gpt/generation/", ["gpt_cache", "sampling", "detokenizer", "inference", "gpt_*"]),
    "data": ("data/", ["data_*", "strangers"]),
}


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        path: of the file, from the root of the tree.
        start, stop: which characters of it are replaced.
        text: the replacement.
        line: its number; before and after: the line as it was and as it is.
    """

    room: str
    path: str
    start: int
    stop: int
    text: str
    line: int
    before: str
    after: str


def room_of(path: str) -> str:
    """The room whose folder is the longest that holds ``path``."""
    return max((name for name, (folder, _) in ROOMS.items() if path.startswith(folder)), key=lambda name: len(ROOMS[name][0]))


def mutants_of(path: str) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = (ROOT / path).read_text(encoding="utf-8")
    found = python_places(source) if path.endswith(".py") else cuda_places(source)
    for start, stop, text in found:
        changed = source[:start] + text + source[stop:]
        if path.endswith(".py") and not compiles(changed):
            continue
        line = source.count("\n", 0, start)
        before, after = (content.splitlines()[line].strip() for content in (source, changed))
        yield Mutant(room_of(path), path, start, stop, text, line + 1, before, after)


def compiles(source: str) -> bool:
    """Whether it is Python."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def python_places(source: str) -> Iterator[tuple[int, int, str]]:
    """Tokens to swap, and statements to drop. Type annotations, texts, and zip's ``strict``, which is an assertion, stay as they are."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    left_alone = [span for node in ast.walk(tree) for span in spans_to_leave(node)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.OP, tokenize.NAME, tokenize.NUMBER) or any(a <= token.start < b for a, b in left_alone):
            continue
        if (swapped := swap(token.string)) is not None:
            yield starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1], swapped
    lines = source.splitlines()
    for node in ast.walk(tree):
        dropped = isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        if isinstance(node, ast.stmt) and dropped and node.end_lineno is not None and node.end_col_offset is not None:
            begin, end = lines[node.lineno - 1].encode()[: node.col_offset], lines[node.end_lineno - 1].encode()[: node.end_col_offset]
            yield starts[node.lineno - 1] + len(begin.decode()), starts[node.end_lineno - 1] + len(end.decode()), "pass"


def spans_to_leave(node: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a node begin and end, or the value of ``strict=``."""
    strict = node.value if isinstance(node, ast.keyword) and node.arg == "strict" else None
    for child in (getattr(node, "annotation", None), getattr(node, "returns", None), strict):
        if isinstance(child, ast.expr):
            yield (child.lineno, child.col_offset), (child.end_lineno or child.lineno, child.end_col_offset or 0)


CUDA_TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"[^"\n]*"|^\s*\#[^\n]*     # comments, texts, directives
    |[A-Za-z_]\w*|\d[\w.]*|(?<=\ )[-+*/%<>=!&|^]+(?=\ )  # names, numbers, operators between blanks: others are pointers and templates
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def cuda_places(source: str) -> Iterator[tuple[int, int, str]]:
    """Tokens to swap outside of comments, texts and directives of the preprocessor."""
    for match in CUDA_TOKENS.finditer(source):
        if (swapped := swap(match[0])) is not None:
            yield match.start(), match.end(), swapped


def swap(token: str) -> str | None:
    """The replacement of a token; None if it has none."""
    if token in SWAPS:
        return SWAPS[token]
    return str(int(token) + 1) if re.fullmatch(r"\d+", token) else None


def tests_of(mutant: Mutant) -> list[str]:
    """pytest's arguments: the tests that most likely see the mutant come first."""
    stem, names = Path(mutant.path).stem, ROOMS[mutant.room][1]
    files = [path for name in names for path in sorted(ROOT.glob(f"tests/test_{name}.py"))]
    own = [path for path in files if stem in path.stem]
    ordered = list(dict.fromkeys([*own, *files]))
    arguments = [str(path.relative_to(ROOT)) for path in ordered]
    if mutant.room == "ops" and (ROOT / "tests/case_table" / f"{stem}.py").exists():
        arguments += ["-k", " or ".join(case_names(stem))]
    return arguments


class Reached:
    """The tests that run a line, from coverage.py's data and pytest's times."""

    def __init__(self) -> None:
        import coverage  # in the extra [dev]; the tests of this script do not need it

        self.data = coverage.CoverageData(str(REACHED))
        self.data.read()
        self.files = {Path(path).relative_to(ROOT).as_posix(): path for path in self.data.measured_files() if path.startswith(str(ROOT))}
        cases = ElementTree.parse(TIMES).iter("testcase")
        self.seconds = {f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0)) for case in cases}

    def lines(self, path: str) -> dict[int, set[str]]:
        """Line to tests. Lines that run at import belong to no test."""
        if path not in self.files:
            return {}
        found = self.data.contexts_by_lineno(self.files[path])
        return {line: {context.rsplit("|", 1)[0] for context in contexts if context} for line, contexts in found.items()}

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that run the place of a mutant, those of its own file first, then the quickest, within BUDGET."""
        path = Path(mutant.path)
        if path.suffix == ".py":
            lines = self.lines(mutant.path)
            first, last = around(mutant)
            near = [line for line in range(mutant.line, first - 1, -1) if lines.get(line)]
            found = lines[near[0]] if near else set().union(*(lines.get(line, set()) for line in range(first, last + 1)))
        else:
            wrappers = [path.with_suffix(".py")] if path.suffix == ".cu" else [other.with_suffix(".py") for other in includers(path)]
            found = set().union(*(tests for wrapper in wrappers for tests in self.lines(wrapper.as_posix()).values()))
        own = re.compile(rf"test_\w*{re.escape(path.stem)}|\b{re.escape(path.stem)}\b")
        ordered = sorted(found & self.seconds.keys(), key=lambda test: (not own.search(test), self.seconds[test], test))
        spent, chosen = 0.0, []
        for test in ordered[:400]:
            spent += self.seconds[test]
            if chosen and spent > BUDGET:
                break
            chosen.append(test)
        return chosen


def around(mutant: Mutant) -> tuple[int, int]:
    """The first and the last line of the innermost function that holds a mutant; of the file, if none does."""
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    spans = [(node.body[0].lineno, node.end_lineno or node.lineno) for node in functions]
    inside = [span for span in spans if span[0] <= mutant.line <= span[1]]
    return max(inside, default=(1, source.count("\n") + 1))


def includers(header: Path) -> list[Path]:
    """The .cu files that include a header, directly or by another header."""
    files = [path.relative_to(ROOT) for path in (ROOT / header.parent).glob("*.cu*")]
    direct = [path for path in files if f'"{header.name}"' in (ROOT / path).read_text(encoding="utf-8")]
    return [found for path in direct for found in ([path] if path.suffix == ".cu" else includers(path))]


def case_names(stem: str) -> list[str]:
    """The names by which pytest's -k finds the cases of a page."""
    sys.path.insert(0, str(ROOT))
    import importlib

    names = {re.split(r"[^\w]", case.name)[0] for case in importlib.import_module(f"tests.case_table.{stem}").CASES}
    return sorted(names)


def run(mutant: Mutant | None, arguments: list[str], tree: Path) -> bool:
    """Whether the tests notice ``mutant`` (None: nothing is changed) in a copy of the tree."""
    original = None
    if mutant:
        path = tree / mutant.path
        original = path.read_text(encoding="utf-8")
        path.write_text(original[: mutant.start] + mutant.text + original[mutant.stop :], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | one | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=LONGEST)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        if mutant and original is not None:
            path.write_text(original, encoding="utf-8")


def copy_of_the_tree(folder: Path) -> Path:
    """Where a mutant can live."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    return tree


def sample(rooms: list[str], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants, as evenly from the rooms as possible."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.cu", "*.cuh"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    files = [path for path in listed if path.startswith(("tensorlite/", "gpt/", "data/")) and room_of(path) in rooms]
    places: dict[str, list[Mutant]] = {room: [] for room in rooms}
    for path in files:
        places[room_of(path)] += mutants_of(path)
    for found in places.values():
        found.sort(key=lambda mutant: hashlib.sha256(f"{seed}\n{mutant.path}\n{mutant.before}\n{mutant.after}".encode()).digest())
    chosen: list[Mutant] = []
    while len(chosen) < count and any(places.values()):
        for found in places.values():
            if found and len(chosen) < count:
                chosen.append(found.pop())
    return chosen


def equivalent() -> dict[tuple[str, str, str], str]:
    """Mutants that change nothing: (path, line before, line after) to the reason."""
    known = {}
    if EQUIVALENT.exists():
        for block in EQUIVALENT.read_text(encoding="utf-8").split("\n\n"):
            lines = [line for line in block.splitlines() if line and not line.startswith("#")]
            if len(lines) == 4:
                path, before, after, why = lines
                known[path, before.removeprefix("- "), after.removeprefix("+ ")] = why
    return known


def main() -> None:
    """Plant, run, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=list(ROOMS), default=list(ROOMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--near", action="store_true", help="only the tests that reach the line, not those of its room as well")
    parser.add_argument(
        "--out", type=Path, help="a file for the outcome of each mutant, one line of JSON each; what is there is not done again"
    )
    options = parser.parse_args()
    if not (REACHED.exists() and TIMES.exists()):
        sys.exit("It is not known which test runs which line: say `make reached` first (the whole suite once, half an hour).")
    chosen, known = sample(options.rooms, options.count, options.seed), equivalent()
    reached = Reached()
    earlier = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out and options.out.exists() else []
    seen: dict[Mutant, bool] = {Mutant(**record["mutant"]): record["seen"] for record in earlier}
    left = [m for m in chosen if m not in seen and (m.path, m.before, m.after) not in known]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        trees = [copy_of_the_tree(Path(folder) / str(i)) for i in range(options.workers)]

        def judge(mutant: Mutant) -> None:
            tree = trees.pop()
            try:
                near = reached.tests(mutant)
                seen[mutant] = (bool(near) and run(mutant, near, tree)) or (not options.near and run(mutant, tests_of(mutant), tree))
            finally:
                trees.append(tree)
            print(f"{'seen' if seen[mutant] else 'SURVIVED'}  {mutant.path}:{mutant.line}  {mutant.before}  ->  {mutant.after}", flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps({"mutant": asdict(mutant), "seen": seen[mutant]}) + "\n")

        list(pool.map(judge, left))
    print(f"\n{'room':<14}{'planted':>9}{'change nothing':>16}{'seen':>7}{'survived':>10}")
    for room in options.rooms:
        own = [m for m in chosen if m.room == room]
        nothing = [m for m in own if (m.path, m.before, m.after) in known]
        noticed = [m for m in own if m not in nothing and seen.get(m)]
        print(f"{room:<14}{len(own):>9}{len(nothing):>16}{len(noticed):>7}{len(own) - len(nothing) - len(noticed):>10}")
    survivors = [m for m in chosen if not seen.get(m) and (m.path, m.before, m.after) not in known]
    counted = len(chosen) - sum((m.path, m.before, m.after) in known for m in chosen)
    print(f"\n{counted - len(survivors)} of {counted} that change something were seen.")
    for mutant in survivors:
        print(f"\n{mutant.path}\n- {mutant.before}\n+ {mutant.after}")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
