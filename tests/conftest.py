"""What holds for every test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

try:
    import torch
except ImportError as error:  # not a skip: without the oracle a green suite would prove little
    raise pytest.UsageError("the tests need torch (CPU) as their oracle: pip install -e '.[test]', or run `make test`.") from error

pytest.register_assert_rewrite("tests.compare")  # so that its assertions, too, show their values
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


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CuPy; see `tests.standin`."""
    from gpt import speed
    from tests.standin import installed

    monkeypatch.setitem(speed.SIZE, "cupy", 64)  # the product that measures a GPU's peak would take this one a minute
    with installed() as cupy:
        yield cupy


@pytest.fixture(params=["stand-in", pytest.param("GPU", marks=pytest.mark.gpu)])
def any_cupy(request: pytest.FixtureRequest) -> Any:
    """The stand-in, and where there is a GPU, CuPy itself."""
    if request.param == "stand-in":
        return request.getfixturevalue("standin")
    from tensorlite.backend import Device

    return Device("cupy").module


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the loops over the table of cases measured, a line each; and who caught the planted faults, with -v one by one."""
    reports = [r for several in terminalreporter.stats.values() for r in several if getattr(r, "when", "") == "call"]
    recorded = [(name, value, r.nodeid) for r in reports for name, value in r.user_properties]  # pytest-xdist's workers send them, too
    write = terminalreporter.write_line
    for property_name, text in (
        ("float64", "{} cases, book and faster pairs against torch in float64, value and gradients: worst relative error {:.1e} ({})"),
        ("float32", "{} cases, values and gradients in float32 against the truth: at worst {:.1f} times as far off as torch's ({})"),
        ("gradcheck", "{} cases, gradients in float64 against central differences: worst relative error {:.1e} ({})"),
    ):
        measured = [(value, nodeid.partition("[")[2].rstrip("]")) for name, value, nodeid in recorded if name == property_name]
        if measured:
            cases = {case.removeprefix("book-").removeprefix("fast-") for _, case in measured}  # the oracle runs both ways
            write(text.format(len(cases), *max(measured)))

    planted = [r for r in reports if "test_planted_fault_is_caught" in r.nodeid]
    caught = [value for name, value, _ in recorded if name == "caught"]
    if planted:
        write(f"{len(caught)} of {len(planted)} planted faults caught, by which check:")
    for check, count in Counter(check.partition("[")[0] for _, check in caught).most_common():
        write(f"{count:4} {check}")
        if terminalreporter.verbosity > 0:
            for fault, by in caught:
                if by.partition("[")[0] == check:
                    write(f"       {fault:50} {by}")
