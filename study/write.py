"""A page to write:  python -m study write softmax

It has the formula, the shapes, numbers to check by hand and the forward; the backward is left. Without a name it is the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from study.errors import Parser, StudyError
from study.exercise import Exercise, all_names, find, load
from study.exercises import GROUPS
from study.mysteries import MYSTERIES
from study.screen import Screen, width_of, wrapped

KIND = "write"  # also what progress calls the exercises that are solved
WORDS = {
    "en": ("Write the gradients yourself: {} of {} pages are yours, {} of {} mysteries are solved", "mysteries"),
    "zh-TW": ("自己寫梯度：已完成 {} / {} 頁，解開 {} / {} 個謎題（頁面為英文）", "謎題"),
}


def main(argv: Sequence[str]) -> int:
    """Write the page of an exercise into my_study; returns the exit code.

    Raises:
        StudyError: for an exercise that there is not, or a page that is there already.
    """
    parser = Parser(prog="python -m study write", description="Put a page without its backward into my_study.")
    parser.add_argument("exercise", nargs="?", help="softmax, or mystery_3; without one, the next in the list of python -m study")
    parser.add_argument("--again", action="store_true", help="a fresh page; what you have written is kept beside it, as softmax.old.py")
    options = parser.parse_args(argv)
    exercise = find(options.exercise) if options.exercise else _next_page()
    path = exercise.path()
    kept = path.with_suffix(".old.py")
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and not options.again:
            raise StudyError(
                f"{path} is there already, with your lines perhaps: --again makes a fresh page, and keeps yours as {kept.name}."
            )
        if path.exists():
            path.replace(kept)
        path.write_text(exercise.start, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StudyError(f"{path} cannot be written: {error.strerror}.") from error
    screen = Screen.of_stdout()
    to_do = "find the line that is wrong, and mend it" if exercise.name in MYSTERIES else "write what is left out"
    for line in wrapped(screen.plain(f"{path}: {exercise.title}"), screen.width):
        print(line)
    for line in wrapped(f"Open it, {to_do}, then: python -m study check {exercise.name}", screen.width):
        print(line)
    return 0


def _next_page() -> Exercise:
    """The first exercise of which there is no page yet.

    Raises:
        StudyError: if there is a page of each.
    """
    for name in all_names():
        if not load(name).path().exists():
            return load(name)
    raise StudyError("there is a page of every exercise in my_study already: python -m study check says how they are.")


def listing(screen: Screen, language: str, done: Sequence[str]) -> Iterator[str]:
    """All exercises by group, with a tick for each that is solved."""
    heading, mysteries = WORDS[language]
    solved = [name for name in all_names() if name in done]
    count = sum(name in MYSTERIES for name in solved)
    total = sum(map(len, GROUPS.values()))
    yield from (
        screen.styled(line, "heading") for line in wrapped(heading.format(len(solved) - count, total, count, len(MYSTERIES)), screen.width)
    )
    yield from (screen.styled(line, "dim") for line in wrapped("python -m study write softmax", screen.width))
    groups = {**GROUPS, mysteries: tuple(MYSTERIES)}
    widest = max(map(width_of, groups))
    for group, names in groups.items():
        items = (f"{screen.plain('✔') if name in done else '·'}{name}" for name in names)
        lead = f" {group}{' ' * (widest - width_of(group))} "
        yield from wrapped(screen.plain("  ".join(items)), screen.width, screen.plain(lead))
