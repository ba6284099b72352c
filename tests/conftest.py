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
