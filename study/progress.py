"""What a reader has done, kept in ``my_study/progress.json`` in the current folder: ``{"lesson": ["1", "7b"]}``."""

from __future__ import annotations

import json
from pathlib import Path

from study.errors import StudyError

FOLDER = Path("my_study")
FILE = "progress.json"


def read(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Kind -> what was done of it, in the order in which it was done.

    Raises:
        StudyError: if the file is there and is no such table.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}): mend or delete it.") from error
    if not isinstance(content, dict) or not all(
        isinstance(done, list) and all(isinstance(one, str) for one in done) for done in content.values()
    ):
        raise StudyError(f"{path} is no table of what was done: delete it.")
    return content


def mark(kind: str, name: str, folder: Path = FOLDER) -> None:
    """Remember that ``name`` was done.

    Raises:
        StudyError: if it cannot be written.
    """
    content = read(folder)
    if name in content.get(kind, []):
        return
    content.setdefault(kind, []).append(name)
    try:
        folder.mkdir(exist_ok=True)
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(f"what you did cannot be remembered: {folder / FILE} cannot be written ({error.strerror}).") from error
