"""The summary at the end of the suite has the worst recorded figures of all cases, with their names."""

from __future__ import annotations

from tests.summary import compared, compiled, faults, loops


def test_the_worst_error_is_reported_with_its_case():
    errors = {"book-add": 1e-14, "fast-add": 3e-13, "mul": 2e-15}
    (line,) = loops([("float64", error, f"tests/x.py::test[{case}]") for case, error in errors.items()])
    assert line.startswith("2 cases") and line.endswith("worst relative error 3.0e-13 (fast-add)")


def test_the_largest_kernel_is_reported():
    (line,) = compiled([("a.cu f", "sm_80", 40, 0), ("a.cu f", "sm_90", 255, 128), ("b.cu g", "sm_90", 12, 4224)])
    assert line.startswith("2 CUDA kernels compiled 3 times, as variants for sm_80, sm_90: at most 255 registers and 4,224 bytes")


def test_pairs_are_listed_by_device_and_type():
    on_cpu = [("t[stand-in-a]", ("gelu", "float32", 1e-7)), ("t[stand-in-b]", ("gelu", "float32", 3e-7))]
    cpu, cpus_gelu, gpu, gpus_gelu = compared([*on_cpu, ("t[GPU-a]", ("gelu", "float16", 2e-4))])
    assert "on the CPU" in cpu and cpus_gelu.split() == ["gelu", "float32", "2", "3.0e-07"]
    assert "on a GPU" in gpu and gpus_gelu.split() == ["gelu", "float16", "1", "2.0e-04"]


def test_only_caught_faults_are_counted():
    lines = list(faults(3, [("x", "gradcheck[a]"), ("y", "gradcheck[b]")], one_by_one=False))
    assert lines == ["2 of 3 planted faults caught, by which check:", "   2 gradcheck"]
