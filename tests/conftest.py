"""Fixtures and hooks for all tests."""

from __future__ import annotations

import gc
import importlib.util
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.groups import groups_of
from tests.summary import summary

pytest.register_assert_rewrite("tests.compare")  # so that its assertions, too, show their values


def pytest_configure(config: pytest.Config) -> None:
    """Set up torch and Hypothesis wherever tests run: in pytest-xdist's workers, not in the process that only hands out the tests."""
    if importlib.util.find_spec("torch") is None:  # not a skip: without the oracle a green suite would prove little
        raise pytest.UsageError("the tests need torch (CPU) as their oracle: pip install -e '.[test]', or run `make test`.")
    stop_ignoring_signals()
    if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    import hypothesis
    import torch

    torch.set_num_threads(1)  # the worker processes share the cores
    hypothesis.settings.register_profile("tensorlite", deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("tensorlite")


def stop_ignoring_signals() -> None:
    """Restore the default action of signals that this process was started to ignore.

    A script's background job ignores Ctrl-C, and under ``nohup`` also a closed terminal. Every program that a test starts would inherit
    that, and the tests that interrupt one would wait in vain.
    """
    for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without looking for garbage: of the million objects of thousands of tests all stay, and looking takes a fifth of the time.

    One look at the end tells Python that they are old. It looks through all of them again when the new ones are a quarter of the old.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before ``-m`` looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the groups of files; tests marked ``gpu`` run where CuPy sees a device, and say why where they do not."""
    for item in items:
        for group in groups_of(item.path.name):
            item.add_marker(group)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from tensorlite.backend import Device, DeviceUnavailableError

    try:
        Device("cupy").module  # noqa: B018 - asking is the test
    except DeviceUnavailableError as error:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Of a wrong gradient, show the diagnosis in pytest's line about the test, and hand the message to `summary`."""
    report = yield
    if call.excinfo and call.excinfo.typename == "GradientError":
        message = str(call.excinfo.value)
        report.user_properties.append(("wrong gradient", message))
        report.longrepr.reprcrash.message = message.partition("\nIt looks like ")[2] or message
    return report


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a home folder, as in a container that was started with a user number instead of a name."""

    def unknown(who: object) -> None:
        raise KeyError(who)

    for name in ("HOME", "USERPROFILE", "HOMEPATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "win32":
        import pwd

        monkeypatch.setattr(pwd, "getpwuid", unknown)
        monkeypatch.setattr(pwd, "getpwnam", unknown)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CuPy; see `tests.standin`."""
    from gpt.training import speed
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
    """What was measured on the way; see `tests.summary`."""
    for line in summary(terminalreporter):
        terminalreporter.write_line(line)
