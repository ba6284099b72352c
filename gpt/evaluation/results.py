"""The results of a model: a file of JSON, and a table of several models."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import explain, write_atomically
from data.paths import expand_path
from gpt.checkpoints.model_folder import versions
from gpt.errors import UserError, fail
from gpt.evaluation.measures import Figure, Measurement


class ResultsError(UserError):
    """A file of results that cannot be used; the message says why."""


@dataclass(frozen=True)
class Results:
    """What one model achieves in some tasks.

    Attributes:
        model: its name.
        sources: of each task, what it was measured on: the path, and the SHA-256 of its content.
    """

    model: str
    parameters: int
    measurements: list[Measurement]
    sources: dict[str, str]


def write_results(path: str | os.PathLike[str], results: Results) -> Path:
    """Write a file that `read_results` reads; return its path.

    Raises:
        UserError: if it cannot be written.
    """
    file = expand_path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({**asdict(results), "versions": versions()}, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        fail(f"the results cannot be written: {explain(error, file)}")
    return file


def read_results(path: str | os.PathLike[str]) -> Results:
    """The results in a file.

    Raises:
        ResultsError: if there are none.
    """
    file = expand_path(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        measurements = []
        for one in record["measurements"]:
            figures = {str(name): _figure(figure) for name, figure in one["figures"].items()}
            settings = {str(name): int(value) for name, value in one["settings"].items()}
            measurements.append(Measurement(str(one["task"]), int(one["count"]), figures, settings, int(one["cropped"])))
        sources = {one.task: str(record["sources"][one.task]) for one in measurements}
        return Results(str(record["model"]), int(record["parameters"]), measurements, sources)
    except OSError as error:
        raise ResultsError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ResultsError(f"{file} is no file of results that python -m gpt.evaluate has written ({error}).") from error


def format_table(several: Sequence[Results]) -> str:
    """A line for each figure, and a column for each model; a dash where a model was not measured on the same data in the same way.

    After ± is one standard error.
    """
    lines = [["", *(results.model for results in several)]]
    lines.append(["parameters", *(f"{results.parameters:,}" for results in several)])
    seen: list[tuple[str, str]] = []
    for results in several:
        seen += [
            (task.task, results.sources[task.task]) for task in results.measurements if (task.task, results.sources[task.task]) not in seen
        ]
    for task, source in seen:
        found = [_measurement(results, task, source) for results in several]
        first = next(one for one in found if one)
        unit = "tokens" if "bits a byte" in first.figures else "examples"
        counts = {one.count for one in found if one}
        lines.append([f"{task}, {first.count:,} {unit}" if len(counts) == 1 else task, *("" for _ in several)])
        lines += [
            [f"  {name}", *(_shown(one.figures[name], name) if one and name in one.figures else "-" for one in found)]
            for name in first.figures
        ]
        lines += [
            [f"  {name}", *(f"{one.settings[name]:,}" if one and name in one.settings else "-" for one in found)] for name in first.settings
        ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip() for line in lines
    )


def _measurement(results: Results, task: str, source: str) -> Measurement | None:
    found = (one for one in results.measurements if one.task == task and results.sources[task] == source)
    return next(found, None)


def _figure(record: dict[str, float | None]) -> Figure:
    value, error = record["value"], record["error"]
    return Figure(float(value), None if error is None else float(error))  # type: ignore[arg-type]


def _shown(figure: Figure, name: str) -> str:
    value, error = figure.value, figure.error
    if name.startswith("accuracy"):
        return f"{value:.1%}" + ("" if error is None else f" ± {error:.1%}")
    written = (lambda number: f"{number:.3g}") if value >= 1e5 else (lambda number: f"{number:,.{3 if value < 100 else 1}f}")
    return written(value) + ("" if error is None else f" ± {written(error)}")
