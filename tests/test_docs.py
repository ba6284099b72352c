"""What the documents say is run: every ``python`` block of README, CONTRIBUTING and docs, file by file, top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name, "python")])
def test_the_code_in_the_documents_runs(document, tmp_path):
    # In a process of its own: an example may define an op, and the list of ops belongs to the whole process.
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks(document, "python")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_shown_in_the_readme_is_the_page_in_the_book():
    (excerpt,) = blocks("README.md", "py")
    source = iter((ROOT / "tensorlite" / "ops" / "layernorm.py").read_text(encoding="utf-8").splitlines())
    for line in excerpt.splitlines():
        if not line or "…" in line:  # an ellipsis stands for lines left out
            continue
        assert line in source, f"not in layernorm.py, or not in this order: {line!r}"  # `in` moves the iterator on


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [link for link in links if not (folder / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_named_in_the_documents_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tensorlite|gpt|data|tests|docs|benchmarks|scripts)/[\w./]+)`", text))
    allowed = {"tensorlite/ops/softplus.py", "tests/case_table/softplus.py"}  # the worked example of CONTRIBUTING
    missing = sorted(name for name in named - allowed if not (ROOT / name).exists())
    assert not missing
