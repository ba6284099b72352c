"""A lesson of the course:  python -m study 7 [--language zh-TW] [--engine torch] [--notebook [DIR]] [--script [DIR]]

The blocks run while the page is printed, so what stands below a block is what it printed just now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from study import notebook, progress
from study.errors import Parser, StudyError
from study.page import ENGINES, LANGUAGES, Code, Page, find, load, names, number_of
from study.runner import on_engine, run
from study.screen import Screen, wrapped

KIND = "lesson"
WORDS = {
    "en": {"heading": "The course: 21 lessons, and pages beside them", "next": "Next: ", "run on": "run on"},
    "zh-TW": {"heading": "課程：21 課，以及旁邊的補充頁", "next": "下一課：", "run on": "執行於"},
}


def main(argv: Sequence[str]) -> int:
    """Print and run a lesson, or write it as a notebook or as a script; returns the exit code.

    Raises:
        StudyError: for a lesson, a language or an engine that there is not.
    """
    parser = Parser(prog="python -m study", description="Run a lesson of the course.")
    parser.add_argument("lesson", help="its number (7, 7b), a word of its name (attention), or all, to write them")
    parser.add_argument("--language", default="en", metavar="NAME", help=f"{' or '.join(LANGUAGES)} (default: en)")
    parser.add_argument("--engine", default="tensorlite", metavar="NAME", help=f"{' or '.join(ENGINES)} (default: tensorlite)")
    parser.add_argument(
        "--notebook", nargs="?", const=".", metavar="DIR", help="write it as .ipynb, with its outputs, instead of running it"
    )
    parser.add_argument(
        "--script", nargs="?", const="my_study", metavar="DIR", help="write its code as .py, to change it (default: my_study)"
    )
    options = parser.parse_args(argv)
    writing = options.notebook is not None or options.script is not None
    wanted = names() if options.lesson == "all" and writing else [find(options.lesson)]
    for name in wanted:
        page = load(name, options.language)
        if options.notebook is not None:
            print(f"wrote {notebook.write(page, Path(options.notebook))}")
        if options.script is not None:
            print(f"wrote {write_script(page, Path(options.script), options.engine)}")
    if writing:
        return 0
    screen = Screen.of_stdout()
    check(screen, options.language)
    for line in lines(page, screen, options.engine, options.language):
        print(line)
    progress.mark(KIND, page.number)
    return 0


def check(screen: Screen, language: str) -> None:
    """Refuse a language that the terminal's encoding cannot show.

    Raises:
        StudyError: if it cannot.
    """
    if not screen.can_show(WORDS[language]["heading"] if language in WORDS else ""):
        raise StudyError(f"the encoding of this terminal, {screen.encoding}, has no Chinese: set PYTHONIOENCODING=utf-8.")


def lines(page: Page, screen: Screen, engine: str, language: str) -> Iterator[str]:
    """The page for ``screen``, its blocks run on the way."""
    words = WORDS[language]
    outputs = run(page, engine)
    lead = f"{page.number} "
    yield from (screen.styled(line, "title") for line in wrapped(screen.plain(page.title), screen.width, lead))
    yield from (screen.styled(line, "dim") for line in wrapped(screen.plain(f"{page.subtitle} · {words['run on']} {engine}"), screen.width))
    yield ""
    for part in page.parts:
        if isinstance(part, Code):
            yield from screen.code(on_engine(part.source, engine))
            _, printed = next(outputs)
            yield from screen.error(printed) if part.raises else screen.output(printed)
            yield ""
        else:
            yield from screen.markdown(part.text)
    following = names()[names().index(page.name) + 1 :][:1]
    if following:
        yield from wrapped(screen.plain(f"{words['next']}python -m study {number_of(following[0])}{suffix(language)}"), screen.width)


def suffix(language: str) -> str:
    """What is typed for ``language``."""
    return "" if language == "en" else f" --language {language}"


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """The part of the list of everything that is ours: every page, with a tick for those in ``done``."""
    yield screen.styled(WORDS[language]["heading"], "heading")
    yield screen.styled(f"python -m study 7{suffix(language)}", "dim")
    for name in names():
        page = load(name, language)
        start = re.search(r"\d:\d\d:\d\d", page.subtitle)
        lead = f"{'✔' if page.number in done else ' '} {page.number.rjust(2) if not page.is_beside else '   ' + page.number} "
        lead = screen.plain(f"{lead}{start[0]}  " if start and not page.is_beside else lead)
        yield from wrapped(screen.plain(page.title), screen.width, lead)


def write_script(page: Page, folder: Path, engine: str) -> Path:
    """Write the code of ``page`` as a program into ``folder``; returns its path.

    Raises:
        StudyError: if it is there already, and may have been changed, or cannot be written.
    """
    path = folder / f"{page.name}.py"
    blocks = [caught(code, engine) for code in page.code()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(f'"""{page.number} · {page.title}"""\n\n' + "\n\n".join(blocks) + "\n")
    except FileExistsError as error:
        raise StudyError(f"{path} is there already, with your changes perhaps: rename or remove it first.") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def caught(code: Code, engine: str) -> str:
    """The source for a script, which must not end with the first error on purpose."""
    source = on_engine(code.source, engine)
    if not code.raises:
        return source
    inside = "\n".join("    " + line if line else "" for line in source.splitlines())
    return f'try:\n{inside}\nexcept Exception as error:\n    print(f"{{type(error).__name__}}: {{error}}")'
