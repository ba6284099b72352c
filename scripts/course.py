"""Bring the lessons up to date:  python scripts/course.py [NAME …]

The English file of a lesson is the source of its code. Its blocks are run on tensorlite, and if they end in an error also on torch.
Their output is written below them. Blocks and outputs are copied into the other languages, and the notebooks in docs/course
are written.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from study import notebook  # noqa: E402
from study.page import FENCE, LANGUAGES, Code, load, names, path_of  # noqa: E402
from study.runner import run  # noqa: E402

NOTEBOOKS = ROOT / "docs" / "course"


def fences(code: Code) -> str:
    """A block and its outputs, in the format of the file."""
    out = f"```python{' raises' if code.raises else ''}\n{code.source}\n```\n"
    outputs = code.outputs.values()
    if len(set(outputs)) > 1:
        return out + "".join(f"\n```output {engine}\n{text}\n```\n" for engine, text in code.outputs.items())
    return out + "".join(f"\n```output\n{text}\n```\n" for text in set(outputs) if text)


def with_code(text: str, blocks: list[Code]) -> str:
    """``text`` with its n-th block of Python, and the outputs after it, replaced by the n-th of ``blocks``."""
    out, end, used = "", 0, 0
    for match in FENCE.finditer(text):
        if match[1] not in ("python", "output"):
            continue
        between = text[end : match.start()]
        out += between if match[1] == "python" or between.strip() else ""
        if match[1] == "python":
            out += fences(blocks[used])
            used += 1
        end = match.end()
    if used != len(blocks):
        raise SystemExit(f"{used} blocks where the English file has {len(blocks)}:\n{text[:60]}")
    return out + text[end:]


def main(wanted: list[str]) -> None:
    """Run, copy and write."""
    for name in wanted or names():
        page = load(name)
        printed = {
            engine: list(run(page, engine))
            for engine in (("tensorlite", "torch") if any(c.raises for c in page.code()) else ("tensorlite",))
        }
        for i, code in enumerate(page.code()):
            code.outputs = {engine: texts[i][1] for engine, texts in printed.items() if engine == "tensorlite" or code.raises}
        for language in LANGUAGES:
            path = path_of(name, language)
            path.write_text(with_code(path.read_text(encoding="utf-8"), page.code()), encoding="utf-8", newline="\n")
            load.cache_clear()
            print("wrote", notebook.write(load(name, language), NOTEBOOKS).relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
