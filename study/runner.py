"""Runs the code of a page on one of the engines. Only the import lines differ: ``import tensorlite as torch`` or ``import torch``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from typing import Any

from study.errors import StudyError
from study.page import ENGINES, Code, Page

IMPORT = re.compile(r"^(import|from) tensorlite\b", re.MULTILINE)


def on_engine(source: str, engine: str) -> str:
    """``source`` with its imports changed to ``engine``."""
    return source if engine == "tensorlite" else IMPORT.sub(rf"\1 {engine}", source).replace("import torch as torch", "import torch")


def run(page: Page, engine: str = "tensorlite") -> Iterator[tuple[Code, str]]:
    """Each block of ``page`` and what it prints, as the blocks run.

    Raises:
        StudyError: for an engine that is unknown or not installed.
    """
    if engine not in ENGINES:
        raise StudyError(f"there is no engine {engine!r}: --engine is {' or '.join(ENGINES)}.")
    if importlib.util.find_spec(engine) is None:
        raise StudyError(f"{engine} is not installed: pip install {engine}, or leave --engine out.")
    names: dict[str, Any] = {"__name__": f"lesson_{page.number}"}
    for code in page.code():
        yield code, printed(code, engine, names)


def printed(code: Code, engine: str, names: dict[str, Any]) -> str:
    """What a block prints in the namespace ``names``; of an error on purpose, its last line."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(compile(on_engine(code.source, engine), f"<{names['__name__']}>", "exec"), names)
        except Exception as error:  # any error may be what the block is about
            if not code.raises:
                raise
            print(f"{type(error).__name__}: {error}")
        else:
            assert not code.raises, f"this block raises nothing:\n{code.source}"
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
