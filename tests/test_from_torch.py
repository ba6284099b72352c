"""docs/from-torch.md: each line of "Different on purpose", and what is missing says so."""

from __future__ import annotations

import io
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite import missing, port

ROOT = Path(__file__).resolve().parent.parent


def dtype_and_shape():
    assert tl.ones(2).dtype == np.dtype("float32")
    assert type(tl.ones(2).shape) is tuple


def device_prints():
    assert str(tl.ones(2).device) == "numpy"
    assert tl.ones(2).device == "cpu"


def one_stream():
    tl.manual_seed(1)
    first = tl.rand(3).tolist()
    tl.manual_seed(1)
    tl.cuda.manual_seed_all(2)
    assert tl.rand(3).tolist() == first


def empty_is_zeros():
    assert tl.empty(3).tolist() == [0, 0, 0]


def flip_is_a_view():
    x = tl.arange(3)
    assert np.shares_memory(x.flip(0).array, x.array)


def integers_compute():
    assert (tl.ones(2, 2, dtype=tl.int64) @ tl.ones(2, 2)).dtype == tl.float32
    with pytest.raises(RuntimeError):
        torch.ones(2, 2, dtype=torch.int64) @ torch.ones(2, 2)


def tensor_keeps_the_dtype():
    assert tl.Tensor([1, 2]).dtype == tl.int64
    assert torch.Tensor([1, 2]).dtype == torch.float32


def after_save():
    for t in (tl, torch):
        w = t.ones(2, requires_grad=True)
        h = w.exp()
        h += 1
        if t is torch:
            with pytest.raises(RuntimeError):
                h.sum().backward()
        else:
            h.sum().backward()


def view_grown_old():
    for t in (tl, torch):
        h = t.ones(2, requires_grad=True) * 2
        view = h.view(2, 1)
        h *= 3
        if t is tl:
            with pytest.raises(RuntimeError, match="its memory was written to in place through another tensor"):
                (view * 2).sum()
        else:
            (view * 2).sum().backward()


def setitem_on_the_tape():
    for t in (tl, torch):
        h = t.ones(2, requires_grad=True) * 2
        if t is tl:
            with pytest.raises(RuntimeError, match=r"use where\(\) or masked_fill\(\)"):
                h[0] = 5
        else:
            h[0] = 5


def multinomial_of_too_many():
    with pytest.raises(RuntimeError):
        tl.multinomial(tl.tensor([0.0, 1.0]), 2)
    assert torch.multinomial(torch.tensor([0.0, 1.0]), 2).tolist() == [1, 0]


def kl_div_at_0():
    for t, right in ((tl, 0.0), (torch, float("nan"))):
        p = t.tensor([0.0, 1.0], requires_grad=True)
        t.nn.functional.kl_div(t.zeros(2), p, reduction="sum").backward()
        np.testing.assert_equal(p.grad[0].item(), right)


def sorting_is_stable():
    assert tl.tensor([1, 0] * 50).sort().indices.tolist() == [*range(1, 100, 2), *range(0, 100, 2)]


def load_builds_no_object():
    file = io.BytesIO()
    torch.save({"model": torch.nn.Linear(1, 1)}, file)
    file.seek(0)
    with pytest.raises(ValueError, match=r"the file asks for torch\.nn\.modules\.linear\.Linear"):
        tl.load(file)
    with pytest.raises(ValueError, match="weights_only=False would run whatever code"):
        tl.load(file, weights_only=False)


def save_writes_safetensors():
    from safetensors.numpy import load

    file = io.BytesIO()
    tl.save({"w": tl.ones(2)}, file)
    assert [array.tolist() for array in load(file.getvalue()).values()] == [[1, 1]]


def shapes_are_values():
    for t, error in ((tl, ValueError), (torch, RuntimeError)):
        with pytest.raises(error):
            t.ones(2, 3) @ t.ones(2, 3)


def options_are_known():
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "lr_scale": 2.0}
    assert torch.optim.SGD([group], lr=0.1).param_groups[0]["lr_scale"] == 2
    with pytest.raises(ValueError, match="SGD has no option 'lr_scale'"):
        tl.optim.SGD([group | {"params": [tl.nn.Parameter(tl.ones(2))]}], lr=0.1)


def zeros_stay_beside_nan():
    for t, right in ((tl, 0.0), (torch, math.nan)):
        p = t.nn.Parameter(t.ones(2))
        p.grad = t.tensor([0.0, math.nan])
        t.nn.utils.clip_grad_norm_([p], 1.0)
        np.testing.assert_equal(p.grad.tolist(), [right, math.nan])


def shared_batches():
    weights = []
    for workers in (1, 2):
        tl.manual_seed(0)
        model = tl.nn.Linear(2, 2)
        with tl.parallel.shared(
            model, tl.optim.SGD(model.parameters(), lr=1), tl.nn.functional.cross_entropy, workers=workers, shards=2
        ) as step:
            step(tl.ones(4, 2), tl.tensor([0, 1, 1, 1]))
        weights.append(model.weight.tolist())
    assert weights[0] == weights[1]


def loader_in_this_process():
    data = tl.utils.data.TensorDataset(tl.arange(4))
    batches = [[b.tolist() for (b,) in tl.utils.data.DataLoader(data, batch_size=2, num_workers=n)] for n in (0, 4)]
    assert batches[0] == batches[1] == [[0, 1], [2, 3]]


DIFFERENCES = [
    dtype_and_shape, device_prints, one_stream, empty_is_zeros, flip_is_a_view, integers_compute, tensor_keeps_the_dtype, after_save,
    view_grown_old, setitem_on_the_tape, multinomial_of_too_many, kl_div_at_0, sorting_is_stable, load_builds_no_object,
    save_writes_safetensors, shared_batches, shapes_are_values, options_are_known, zeros_stay_beside_nan, loader_in_this_process,
]  # fmt: skip


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.__name__)
def test_a_difference_on_purpose(difference):
    difference()


def test_the_page_lists_as_many_differences_as_are_tested():
    page = (ROOT / "docs" / "from-torch.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| here \| in torch \| why \|\n\|---.*\n((?:\|.*\n)+)", page)
    assert table.count("\n") == len(DIFFERENCES)


# --- what is missing says so ----------------------------------------------------------------------------

MISSING = {
    "conv3d": (lambda: tl.conv3d, r"tensorlite\.conv3d is not here: convolutions .* nn\.Linear on the k shifted inputs"),
    "nn.LSTM": (lambda: tl.nn.LSTM, r"tensorlite\.nn\.LSTM is not here: recurrent layers .* write the cell"),
    "F.max_pool2d": (lambda: tl.nn.functional.max_pool2d, r"functional\.max_pool2d is not here: pooling"),
    "optim.LBFGS": (lambda: tl.optim.LBFGS, r"tensorlite\.optim\.LBFGS is not here: the optimizers here are"),
    "compile": (lambda: tl.compile, r"tensorlite\.compile is not here: nothing is compiled"),
    "cuda.Stream": (lambda: tl.cuda.Stream, r"tensorlite\.cuda\.Stream is not here: one stream"),
    "a method": (lambda: tl.ones(2, 2).svd(), r"Tensor\.svd is not here: decompositions"),
    "nobody knows it": (lambda: tl.no_such_thing, r"tensorlite\.no_such_thing is not here: .* docs/from-torch\.md"),
}


def test_a_shell_completes_only_the_methods_of_a_tensor_that_are_here():
    x = tl.ones(2, 2)
    names = dir(x)
    assert {"sum", "softmax", "cuda", "normal_"} <= set(names)
    for name in names:
        assert hasattr(x, name), name


IMPORTS = {
    "from a package": ("from tensorlite.nn import Linear, LSTM", r"tensorlite\.nn\.LSTM is not here: recurrent layers"),
    "from a module": ("from tensorlite.nn.functional import conv1d", r"tensorlite\.nn\.functional\.conv1d is not here: convolutions"),
    "from the top": ("from tensorlite import fft", r"tensorlite\.fft is not here: complex"),
    "a module": ("import tensorlite.distributions", r"tensorlite\.distributions is not here: distributions are not here; there are"),
    "from a missing module": ("from tensorlite.autograd import Function", r"tensorlite\.autograd is not here: an op of your own"),
    "a schedule": ("from tensorlite.optim.lr_scheduler import CyclicLR", r"CyclicLR is not here: write it as a function of the step"),
    "initial numbers": ("from tensorlite.nn.init import dirac_", r"init\.dirac_ is not here: that initial distribution"),
    "a sampler": ("from tensorlite.utils.data import WeightedRandomSampler", r"WeightedRandomSampler is not here: batches"),
    "of a process": ("from tensorlite.distributed import all_reduce", r"distributed\.all_reduce is not here: there is one process"),
}


@pytest.mark.parametrize(("line", "said"), IMPORTS.values(), ids=IMPORTS)
def test_an_import_of_what_is_missing_says_the_same_sentence(line, said):
    with pytest.raises(ModuleNotFoundError, match=said):
        exec(line, {})


def test_an_import_of_what_is_not_there_at_all_is_pythons_own_error():
    with pytest.raises(ImportError, match="cannot import name '__nothing__'"):
        exec("from tensorlite.nn import __nothing__", {})
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        exec("import no_such_package.tensorlite", {})


def test_what_several_processes_need_may_be_imported_and_asked_about_but_not_used():
    from tensorlite.distributed import destroy_process_group, init_process_group, is_available, is_initialized
    from tensorlite.nn.parallel import DataParallel, DistributedDataParallel

    assert not is_available()
    assert not is_initialized()
    assert not isinstance(tl.nn.Linear(1, 1), tl.nn.DataParallel | DistributedDataParallel | DataParallel)
    for absent in (init_process_group, destroy_process_group, DataParallel, DistributedDataParallel):
        with pytest.raises(NotImplementedError, match=rf"{absent.__name__} is not here: there is one process"):
            absent(tl.nn.Linear(1, 1))


@pytest.mark.parametrize(("ask", "said"), MISSING.values(), ids=MISSING)
def test_a_missing_name_raises_a_clear_error(ask, said):
    with pytest.raises(AttributeError, match=said) as caught:
        ask()
    assert "\n" not in str(caught.value)


def is_room(owner, name):
    """A module of our own, such as tensorlite.parallel, which is an attribute once somebody has imported it."""
    return isinstance(getattr(owner, name), types.ModuleType)


def test_no_name_in_the_list_of_missing_ones_exists():
    owners = (tl, tl.nn, tl.nn.functional, tl.optim, tl.optim.lr_scheduler, tl.utils.data, tl.nn.init, tl.Tensor)
    here = {(owner, name) for name in missing._BY_NAME for owner in owners if hasattr(owner, name) and not is_room(owner, name)}
    there_to_be_refused = {"autocast", "DataParallel"}
    assert {name for _, name in here} == {"grad", *there_to_be_refused}  # x.grad; torch.autograd.grad is what is missing


PROGRAM = """\
import torch, torchvision
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.cuda.amp import autocast

class Net(nn.Module):
    def forward(self, x):
        x = nn.ReLU(inplace=True)(F.conv1d(x, self.w))
        return torch.softmax(x, dim=-1).svd()

torch.manual_seed(0)
model = torch.compile(Net())
loss = F.cross_entropy(model(torch.randn(2, 3)), torch.tensor([0, 1]))
loss.backward(create_graph=True)
torch.add(loss, 1, out=loss)
grad = self.svd
if dist.is_available():
    dist.init_process_group("nccl")
    model = DDP(model)
with autocast(enabled=False), torch.autocast("cuda"):
    pass
from torch import optim
optimizer = optim.LBFGS(model.parameters())
"""


def test_port_names_each_line_that_cannot_run_here(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    assert port.main([str(script)]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [(int(line.split(":")[1]), line.split(": ")[1]) for line in lines]
    assert [number for number, _ in found] == [1, 4, 11, 11, 12, 15, 17, 18, 21, 22, 23, 26]
    assert "torchvision is not here" in found[0][1]
    assert "WeightedRandomSampler is not here" in found[1][1]
    assert "functional.conv1d is not here" in {text.removeprefix("tensorlite.nn.") for number, text in found if number == 11}
    assert found[-1][1].startswith("tensorlite.optim.LBFGS is not here")


def test_port_finds_nothing_in_what_runs_and_does_not_run_it(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import torch\nimport torch.nn as nn\nraise SystemExit(torch.cuda.is_available() and nn.Linear(1, 1))\n")
    assert port.main([str(script)]) == 0
    assert "is here: write `import tensorlite as torch`" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["def", None, "\0"])
def test_port_reports_a_file_that_it_cannot_parse(tmp_path, capsys, content):
    script = tmp_path / "script.py"
    if content is not None:
        script.write_text(content)
    assert port.main([str(script)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {script} cannot be read as a Python program")
    assert port.main([]) == 2
