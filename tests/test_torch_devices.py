"""Devices under torch's names, and `tl.cuda`, on machines with a GPU (or the stand-in) and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.backend import DeviceUnavailableError


@pytest.mark.parametrize(("ours", "torchs"), [("numpy", "cpu"), ("cupy", "cuda"), ("cupy:0", "cuda:0"), ("cupy:1", "cuda:1")])
def test_torchs_names_mean_the_same_devices(ours, torchs):
    device = tl.device(torchs)
    assert device == tl.device(ours)
    assert hash(device) == hash(tl.device(ours))
    assert device == torchs
    assert device == ours
    assert device.type == torch.device(torchs).type
    assert str(device) == str(tl.device(ours))


def test_a_device_by_number_or_in_two_parts():
    assert tl.device(1) == tl.device("cuda", 1) == "cuda:1"
    assert tl.device("cuda:1") != "cuda:0"
    assert tl.device("cpu") != "cuda"
    assert tl.device("cpu") != "mps"
    assert tl.device(None) == "cpu"
    assert isinstance(tl.zeros(1).device, tl.device)


def test_moving_to_the_same_device_returns_the_same_object():
    x = tl.ones(2, requires_grad=True)
    assert x.cpu() is x
    assert x.to("cpu", non_blocking=True) is x
    assert x.to(tl.device("cpu")) is x
    assert x.to("cpu", copy=True) is not x
    model = tl.nn.Linear(2, 2)
    weight = model.weight
    assert model.cpu() is model
    assert model.to(tl.device("cpu"), non_blocking=True).weight is weight
    for make in (tl.zeros, tl.ones, tl.rand, tl.randn, tl.empty):
        assert make(2, device="cpu").device == "cpu"
    assert tl.arange(3, device=None).device == "cpu"


def test_the_first_cell_of_every_notebook():
    device = "cuda" if tl.cuda.is_available() else "mps" if tl.backends.mps.is_available() else "cpu"
    assert tl.ones(2).to(device).sum().item() == 2


class TestWithoutAGpu:
    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        def unavailable(index):
            raise DeviceUnavailableError("there is no GPU here.")

        monkeypatch.setattr("tensorlite.backend._import_cupy", unavailable)

    def test_queries_about_the_gpu_are_answered(self):
        assert not tl.cuda.is_available()
        assert tl.cuda.device_count() == 0
        assert tl.cuda.memory_allocated() == tl.cuda.max_memory_allocated() == tl.cuda.memory_reserved() == 0
        assert not tl.cuda.is_bf16_supported()
        tl.cuda.empty_cache()
        tl.cuda.manual_seed_all(1)

    @pytest.mark.parametrize("ask", ["get_device_name", "get_device_capability", "synchronize", "current_device", "get_device_properties"])
    def test_functions_that_need_a_gpu_say_so(self, ask):
        with pytest.raises(RuntimeError, match="there is no GPU here"):
            getattr(tl.cuda, ask)()

    def test_moving_to_a_missing_gpu_says_so(self):
        for move in (lambda: tl.ones(1).cuda(), lambda: tl.nn.Linear(1, 1).cuda(), lambda: tl.ones(1, device="cuda:0")):
            with pytest.raises(RuntimeError, match="there is no GPU here"):
                move()


def test_a_gpu_is_detected(any_cupy):
    assert tl.cuda.is_available()
    assert tl.cuda.device_count() >= 1
    assert tl.cuda.current_device() == 0
    assert isinstance(tl.cuda.get_device_name(), str)
    assert tl.cuda.get_device_properties().total_memory > 2**20
    assert tl.cuda.get_device_capability() == tl.device("cuda").compute_capability
    before = tl.cuda.memory_allocated()
    x = tl.ones(1024, 1024).cuda()
    tl.cuda.synchronize()
    assert tl.cuda.memory_allocated() >= before + x.nbytes
    assert tl.cuda.max_memory_allocated() >= tl.cuda.memory_allocated()
    assert x.is_cuda
    assert x.device == "cuda"
    assert x.type() == "torch.cuda.FloatTensor"
    assert x.to(0) is x
    assert not x.cpu().is_cuda
    del x
    tl.cuda.empty_cache()
    assert tl.cuda.memory_allocated() == before


def test_as_tensor_puts_data_where_it_is_asked_to(standin):
    for data in ([1.0, 2.0], np.ones(2, np.float32), tl.ones(2)):
        assert tl.as_tensor(data, device="cuda").is_cuda
        assert not tl.as_tensor(data).is_cuda
        assert tl.as_tensor(data, device="cuda").tolist() == tl.as_tensor(data).tolist()


def test_running_out_of_memory_has_torchs_name(standin):
    tl.device("cuda").limit_memory(2**20)
    with pytest.raises(tl.cuda.OutOfMemoryError):
        tl.zeros(2**20, device="cuda")


def test_the_out_of_memory_error_exists_before_a_gpu_is_used():
    try:
        np.zeros(3)[5]
    except tl.cuda.OutOfMemoryError:
        pytest.fail("an IndexError is none")
    except IndexError:
        pass
    assert issubclass(tl.cuda.OutOfMemoryError, Exception)
