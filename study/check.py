"""Check a page:  python -m study check softmax [--hint] [--solution]

It runs your backward and compares it with central differences: where it is wrong, both numbers, what kind of mistake that looks like, and a
hint. Without a name it checks all pages in my_study. The exit code is 0 if all are right, and 1 if not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from study import progress
from study.errors import Parser, StudyError
from study.examiner import verdicts
from study.exercise import Exercise, all_names, find, load
from study.mysteries import MYSTERIES
from study.screen import Screen, wrapped
from study.verdict import Verdict
from study.write import KIND

HEADINGS = {"en": "Have them checked, with central differences and three hints", "zh-TW": "檢查你寫的梯度：中央差分，以及三個提示"}
HINT = "hint"  # what progress calls the hints that were shown: "softmax 2"


def main(argv: Sequence[str]) -> int:
    """Check one page, or all; returns the exit code.

    Raises:
        StudyError: for an exercise or a page that is not there.
    """
    parser = Parser(prog="python -m study check", description="Compare the gradients of your pages with central differences.")
    parser.add_argument("exercise", nargs="?", help="softmax, or mystery_3; without one, all pages in my_study")
    parser.add_argument("--hint", action="store_true", help="the next hint of three, instead of a check")
    parser.add_argument("--solution", action="store_true", help="the lines that solve it, instead of a check")
    options = parser.parse_args(argv)
    screen = Screen.of_stdout()
    if options.hint or options.solution:
        if not options.exercise:
            raise StudyError(f"--{'hint' if options.hint else 'solution'} is for one exercise: python -m study check softmax --hint")
        lines = _solution if options.solution else _next_hint
        _print(lines(find(options.exercise), screen))
        return 0
    return _check_one(find(options.exercise), screen) if options.exercise else _check_all(screen)


def _check_one(exercise: Exercise, screen: Screen) -> int:
    if not exercise.path().exists():
        raise StudyError(f"there is no {exercise.path()}: python -m study write {exercise.name} makes it.")
    (verdict,) = verdicts([(exercise.name, exercise.path())])
    _print(_told(verdict, screen))
    if verdict.right:
        _print(_onward(screen))
    return 0 if verdict.right else 1


def _check_all(screen: Screen) -> int:
    """One mark for each page; then what is wrong with the first one that is."""
    pages = [(name, load(name).path()) for name in all_names() if load(name).path().exists()]
    if not pages:
        raise StudyError("there is no page in my_study yet: python -m study write square makes the first.")
    found = []
    for verdict in verdicts(pages):
        found.append(verdict)
        if verdict.right:
            progress.mark(KIND, verdict.name)
    marks = [f"{'✔' if v.right else '✘' if v.written else '·'}{v.name}" for v in found]
    _print(wrapped(screen.plain("  ".join(marks)), screen.width))
    wrong = [v for v in found if not v.right]
    if wrong:
        print()
        _print(_told(next((v for v in wrong if v.written), wrong[0]), screen))
    else:
        _print(_onward(screen))
    return 1 if wrong else 0


def _told(verdict: Verdict, screen: Screen) -> Iterator[str]:
    """What is wrong with a page, and the latest hint; or that it is right."""
    if verdict.right:
        progress.mark(KIND, verdict.name)
        yield from wrapped(screen.plain(f"{verdict.name} is right: {verdict.says}"), screen.width, screen.plain("✔ "))
        return
    yield from wrapped(screen.plain(f"{verdict.name}: {verdict.says}"), screen.width, screen.plain("✘ " if verdict.written else "· "))
    if verdict.looks_like:
        yield from wrapped(screen.plain(f"It looks like {verdict.looks_like}"), screen.width, "  ")
    if verdict.written:
        exercise = load(verdict.name)
        shown = max(1, _hints_shown(exercise))
        yield from _hint(exercise, shown, screen)


def _hint(exercise: Exercise, number: int, screen: Screen) -> Iterator[str]:
    count = len(exercise.hints)
    yield from wrapped(screen.plain(f"Hint {number} of {count}: {exercise.hints[number - 1]}"), screen.width, "  ")
    following = "--hint shows the next" if number < count else "--solution shows the lines that solve it"
    yield from wrapped(
        screen.styled(f"{following}: python -m study check {exercise.name} {following.split()[0]}", "dim"), screen.width, "  "
    )
    progress.mark(HINT, f"{exercise.name} {number}")


def _next_hint(exercise: Exercise, screen: Screen) -> Iterator[str]:
    """The hint after the last one that was shown."""
    yield from _hint(exercise, min(_hints_shown(exercise) + 1, len(exercise.hints)), screen)


def _solution(exercise: Exercise, screen: Screen) -> Iterator[str]:
    yield from screen.code(exercise.lines.rstrip("\n"))


def _hints_shown(exercise: Exercise) -> int:
    shown = progress.read().get(HINT, [])
    return max((i for i in range(1, len(exercise.hints) + 1) if f"{exercise.name} {i}" in shown), default=0)


def _onward(screen: Screen) -> Iterator[str]:
    """How far the reader is, and what comes next."""
    solved = [name for name in all_names() if name in progress.read().get(KIND, [])]
    pages, mysteries = len(all_names()) - len(MYSTERIES), sum(name in MYSTERIES for name in solved)
    yield from wrapped(
        f"{len(solved) - mysteries} of {pages} pages are yours, {mysteries} of {len(MYSTERIES)} mysteries are solved.", screen.width, "  "
    )
    following = next((name for name in all_names() if name not in solved), None)
    advice = f"Next: python -m study write {following}" if following else "All are yours: python -m study train"
    yield from wrapped(advice, screen.width, "  ")


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """How a page is checked; the pages are listed by `study.write`."""
    yield from (screen.styled(line, "heading") for line in wrapped(HEADINGS[language], screen.width))
    yield from (screen.styled(line, "dim") for line in wrapped("python -m study check, python -m study check softmax --hint", screen.width))
