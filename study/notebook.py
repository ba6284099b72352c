"""A page as a Jupyter notebook, with what its blocks print. The format is JSON (nbformat 4.5): writing it needs no library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.page import Code, Page

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def text_of(page: Page, engine: str = "tensorlite") -> str:
    """The notebook of ``page`` as the text of an .ipynb file; its outputs are those of the page's own file."""
    head = f"# {page.number} · {page.title}\n\n*{page.subtitle}*"
    cells = [_markdown(head)]
    for part in page.parts:
        cells.append(_code(part, engine, len(cells)) if isinstance(part, Code) else _markdown(part.text))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    content = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(page: Page, folder: Path) -> Path:
    """Write the notebook of ``page`` into ``folder``, which is made if it is not there; returns its path.

    Raises:
        StudyError: if it cannot be written.
    """
    path = folder / f"{page.path.stem}.ipynb"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(page), encoding="utf-8", newline="\n")
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _markdown(text: str) -> dict[str, Any]:
    text = re.sub(r"\]\((\d\d\w*(?:\.zh-TW)?)\.md", r"](\1.ipynb", text)  # the other lessons are notebooks as well
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(code: Code, engine: str, count: int) -> dict[str, Any]:
    output = code.output(engine)
    if code.raises:
        name, _, message = output.partition(": ")
        outputs = [{"output_type": "error", "ename": name, "evalue": message, "traceback": [output]}]
    else:
        outputs = [{"output_type": "stream", "name": "stdout", "text": (output + "\n").splitlines(keepends=True)}] if output else []
    return {
        "cell_type": "code",
        "execution_count": count,
        "metadata": {"tags": ["raises-exception"]} if code.raises else {},
        "outputs": outputs,
        "source": code.source.splitlines(keepends=True),
    }
