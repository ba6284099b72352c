"""Everything to study under one name:  python -m study

A new command is a file with ``main(argv) -> exit code`` and ``listing(screen, language, done)``, the lines that stand for it in the
list of everything, and one entry in `COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data.errors import run_main
from study import check, lab, lesson, progress, train, walk, write
from study.errors import Parser, StudyError, nearest
from study.page import LANGUAGES
from study.screen import Screen


@dataclass(frozen=True)
class Command:
    """One kind of study.

    Attributes:
        main: runs it with the arguments that follow its name; returns the exit code.
        listing: its lines in the list of everything, for a screen, a language and the names of what was done.
    """

    main: Callable[[Sequence[str]], int]
    listing: Callable[[Screen, str, Sequence[str]], Iterator[str]]


COMMANDS = {
    lesson.KIND: Command(lesson.main, lesson.listing),
    write.KIND: Command(write.main, write.listing),
    "check": Command(check.main, check.listing),
    "train": Command(train.main, train.listing),
    walk.KIND: Command(walk.main, walk.listing),
    lab.KIND: Command(lab.main, lab.listing),
}


def main(argv: Sequence[str] | None = None) -> int:
    """List everything, or hand the arguments to the command that is named; a number is a lesson.

    Raises:
        StudyError: for a command or a lesson that is not there.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("--") and not _asks_for_a_lesson(arguments)):
        return list_everything(arguments)
    if arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]].main(arguments[1:])
    try:
        return COMMANDS[lesson.KIND].main(arguments)
    except StudyError as error:
        meant = nearest(arguments[0], COMMANDS)
        raise StudyError(f"{error} Did you mean python -m study {meant}?") if meant else error from None


def list_everything(argv: Sequence[str]) -> int:
    """Print what there is, with ticks for what was done; returns the exit code."""
    parser = Parser(
        prog="python -m study",
        description="List what there is to study, with a tick for what you have done. With a number, run that lesson.",
        epilog=f"Commands: {', '.join(COMMANDS)}. python -m study 7 --help says what a lesson takes.",
    )
    parser.add_argument("--language", default="en", metavar="NAME", help=f"{' or '.join(LANGUAGES)} (default: en)")
    language = parser.parse_args(argv).language
    if language not in LANGUAGES:
        raise StudyError(f"there are no lessons in {language!r}: --language is {' or '.join(LANGUAGES)}.")
    screen = Screen.of_stdout()
    lesson.check(screen, language)
    done = progress.read()
    for kind, command in COMMANDS.items():
        for line in command.listing(screen, language, done.get(kind, [])):
            print(line)
        print()
    return 0


def _asks_for_a_lesson(arguments: Sequence[str]) -> bool:
    """Whether a lesson is named behind its options, as in ``--language zh-TW 7``."""
    return any(argument[:1].isdigit() for argument in arguments)


if __name__ == "__main__":
    sys.exit(run_main(main))
