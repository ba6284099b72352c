"""The figures that the suite prints at its end, besides pass and fail; the tests have recorded them.

A test records with pytest's ``record_property``; pytest-xdist's workers send what they recorded along.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

LOOPS = (  # over the table of cases
    ("float64", "{} cases, book and faster pairs against torch in float64, value and gradients: worst relative error {:.1e} ({})"),
    ("float32", "{} cases, values and gradients in float32 against the truth: at worst {:.1f} times as far off as torch's ({})"),
    ("gradcheck", "{} cases, gradients in float64 against central differences: worst relative error {:.1e} ({})"),
)

Recorded = list[tuple[str, Any, str]]  # name, value, and the test's node id


def summary(reporter: pytest.TerminalReporter) -> Iterator[str]:
    """One line after the other."""
    reports = [r for several in reporter.stats.values() for r in several if getattr(r, "when", "") == "call"]
    recorded = [(name, value, r.nodeid) for r in reports for name, value in r.user_properties]
    yield from loops(recorded)
    yield from compiled([value for name, value, _ in recorded if name == "cuda"])
    yield from compared([(nodeid, value) for name, value, nodeid in recorded if name == "cuda pair"])
    planted = sum("test_planted_fault_is_caught" in r.nodeid for r in reports)
    yield from faults(planted, [value for name, value, _ in recorded if name == "caught"], reporter.verbosity > 0)
    yield from answers([value for name, value, _ in recorded if name == "wrong answers"])
    yield from wrong_gradients([(nodeid, value) for name, value, nodeid in recorded if name == "wrong gradient"])


def loops(recorded: Recorded) -> Iterator[str]:
    """The table of cases against torch and differences."""
    for loop, text in LOOPS:
        measured = [(value, nodeid.partition("[")[2].rstrip("]")) for name, value, nodeid in recorded if name == loop]
        if measured:
            cases = {case.removeprefix("book-").removeprefix("fast-") for _, case in measured}  # the oracle runs both ways
            yield text.format(len(cases), *max(measured))


def compiled(kernels: list[tuple[str, str, int, int]]) -> Iterator[str]:
    """What NVRTC said: (kernel, architecture, registers of a thread, bytes of shared memory of a block) for each variant."""
    if kernels:
        names, architectures, registers, shared = (sorted(set(column)) for column in zip(*kernels, strict=True))
        yield (
            f"{len(names)} CUDA kernels compiled {len(kernels)} times, as variants for {', '.join(architectures)}: "
            f"at most {registers[-1]} registers and {shared[-1]:,} bytes of static shared memory, no spills"
        )


def compared(pairs: list[tuple[str, tuple[str, str, float]]]) -> Iterator[str]:
    """The CUDA pairs against the book: (op, dtype, error) for each case, by where it ran."""
    runs: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for nodeid, (op, dtype, error) in pairs:
        runs["a GPU" if "[GPU" in nodeid else "the CPU"][op][dtype].append(error)
    for where, ops in runs.items():
        yield f"CUDA pairs run on {where} against the book in float64, cases and worst error of each, relative to the largest number:"
        for op, dtypes in sorted(ops.items()):
            yield f"  {op:22}" + "   ".join(f"{dtype} {len(errors):3} {max(errors):.1e}" for dtype, errors in dtypes.items())


def faults(planted: int, caught: list[tuple[str, str]], one_by_one: bool) -> Iterator[str]:
    """Who caught the planted faults: (fault, check) for each."""
    if planted:
        yield f"{len(caught)} of {planted} planted faults caught, by which check:"
    for check, count in Counter(check.partition("[")[0] for _, check in caught).most_common():
        yield f"{count:4} {check}"
        if one_by_one:
            yield from (f"       {fault:50} {by}" for fault, by in caught if by.partition("[")[0] == check)


def answers(exercises: list[tuple[str, int, int]]) -> Iterator[str]:
    """The exercises of study: (exercise, wrong answers that were named, all its wrong answers), each of which was found."""
    if exercises:
        yield f"{sum(n for _, n, _ in exercises)} of {sum(n for *_, n in exercises)} wrong answers to the exercises named, by exercise:"
        yield "  " + ", ".join(f"{name} {named}/{count}" for name, named, count in exercises)


def wrong_gradients(messages: list[tuple[str, str]]) -> Iterator[str]:
    """(test, what gradcheck said): which input, and what the mistake looks like, here where nothing is cut off at the terminal's width."""
    for nodeid, message in messages:
        where, _, looks_like = message.partition("\nIt looks like ")
        source, _, rest = where.partition(" is wrong for ")
        label, _, numbers = rest.partition(": ")
        yield f"{nodeid.partition('::')[2]}: {source} is wrong for {label}: {looks_like.partition(chr(10))[0] or numbers}"
