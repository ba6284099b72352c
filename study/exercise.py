"""An exercise as it is handed out: what stands in the page at first, what solves it, and its hints."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from study.errors import StudyError, nearest
from study.exercises import FOR_THE_CHECKER, NAMES, WRITE_FROM_HERE
from study.mysteries import MYSTERIES
from study.progress import FOLDER

TO_WRITE = '    # Write from here.\n    raise NotImplementedError("write me")\n'
BODY = re.compile(rf"^{re.escape(WRITE_FROM_HERE)}(?:    .*\n|\n(?=    ))+", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """One page to write, or a mystery to solve.

    Attributes:
        name: ``softmax``, or ``mystery_3``.
        page: the exercise whose page it is; the same, but for a mystery.
        title: the page's first line.
        start: what `write` puts into the file.
        solution: the page as it should be.
        lines: those that the student has to write, or to find.
        hints: three.
        module: the solved page and what the checker needs.
    """

    name: str
    page: str
    title: str
    start: str
    solution: str
    lines: str
    hints: tuple[str, ...]
    module: ModuleType

    def path(self, folder: Path = FOLDER) -> Path:
        """Where the student's page is."""
        return folder / f"{self.name}.py"


def all_names() -> tuple[str, ...]:
    """Every exercise in its order, then the mysteries."""
    return (*NAMES, *MYSTERIES)


def find(wanted: str) -> Exercise:
    """The exercise that is meant by ``wanted``: its name, or its file's.

    Raises:
        StudyError: if there is none; it names the nearest.
    """
    name = Path(wanted).name.removesuffix(".py").lower().replace("-", "_").replace(" ", "_")
    if name not in all_names():
        near = nearest(name, all_names())
        advice = f"did you mean {near}?" if near else "python -m study lists all."
        raise StudyError(f"there is no exercise {wanted!r}: {advice}")
    return load(name)


@functools.cache
def load(name: str) -> Exercise:
    """Cut the page of an exercise out of its file, or plant the fault of a mystery."""
    mystery = MYSTERIES.get(name)
    page = mystery.page if mystery else name
    module = importlib.import_module(f"study.exercises.{page}")
    written = inspect.getsource(module).partition(FOR_THE_CHECKER)[0].rstrip("\n") + "\n"
    solution = written.replace(WRITE_FROM_HERE, "")
    title = (module.__doc__ or "").partition("\n")[0].rstrip(".")
    if mystery:
        assert solution.count(mystery.right + "\n") == 1, f"{name}: the line that is exchanged is not once in {page}.py"
        start = solution.replace(mystery.right + "\n", mystery.wrong + "\n")
        note = (
            f'"""A mystery: one line of this page is wrong. {mystery.story}\n\nFind it with python -m study check {name}, and mend it.\n\n'
        )
        return Exercise(name, page, mystery.story, start.replace('"""', note, 1), solution, mystery.right + "\n", mystery.hints, module)
    assert len(BODY.findall(written)) == 1, f"{name}: nothing to write, or in two places"
    lines = BODY.search(written)[0].removeprefix(WRITE_FROM_HERE)  # type: ignore[index]
    return Exercise(name, page, title, BODY.sub(lambda _: TO_WRITE, written), solution, lines, module.HINTS, module)
