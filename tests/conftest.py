"""What holds for every test."""

from __future__ import annotations

import hypothesis
import pytest

try:
    import torch
except ImportError as error:  # not a skip: without the oracle a green suite would prove little
    raise pytest.UsageError("the tests need torch (CPU) as their oracle: pip install -e '.[test]', or run `make test`.") from error

torch.set_num_threads(1)  # the worker processes share the cores
hypothesis.settings.register_profile("tensorlite", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tensorlite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run where CuPy sees a device, and say why where they do not."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from tensorlite.backend import Device, DeviceUnavailableError

    try:
        Device("cupy").module  # noqa: B018 - asking is the test
    except DeviceUnavailableError as error:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=str(error)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the loops over the table of cases measured, in one line; and the planted faults, if they ran."""
    measured: dict[str, list[tuple[float, str]]] = {}
    faults: list[tuple[str, str]] = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") != "call":
                continue
            for name, value in report.user_properties:  # these travel from pytest-xdist's workers, too
                if name == "caught":
                    faults.append(tuple(value))
                elif isinstance(value, float):
                    case = report.nodeid.partition("[")[2].rstrip("]")
                    measured.setdefault(name, []).append((value, case))
    for name, text in (
        ("float64", "cases, value and gradients against torch in float64: worst relative error {worst:.1e} ({case})"),
        ("float32", "values and gradients in float32, against the truth: at worst {worst:.1f} times as far off as torch's ({case})"),
        ("gradcheck", "cases, gradients against central differences in float64: worst relative error {worst:.1e} ({case})"),
    ):
        if name in measured:
            worst, case = max(measured[name])
            terminalreporter.write_line(f"{len(measured[name])} " + text.format(worst=worst, case=case))
