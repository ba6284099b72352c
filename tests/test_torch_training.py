"""What the training loops of programs written for torch are made of, beside torch: loaders, layers, hooks, initial values."""

from __future__ import annotations

import collections
import copy
import pickle

import numpy as np
import pytest
import torch

import tensorlite as tl

# --- data -----------------------------------------------------------------------------------------------

Point = collections.namedtuple("Point", "x y")


def plain(batch):
    """Lists and numbers, for comparison; with the dtypes."""
    if isinstance(batch, tl.Tensor | torch.Tensor):
        return (str(batch.dtype).removeprefix("torch."), batch.tolist())
    if isinstance(batch, np.ndarray):
        return (str(batch.dtype), batch.tolist())
    if isinstance(batch, dict):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(*map(plain, batch)) if hasattr(batch, "_fields") else [plain(part) for part in batch]
    return batch


SAMPLES = {
    "numbers": lambda t: [1, 2, 3, 4, 5],
    "floats": lambda t: [0.5, 1.5, 2.5],
    "truth values": lambda t: [True, False, True],
    "text": lambda t: ["a", "b", "c"],
    "tensors": lambda t: [t.ones(2) * i for i in range(5)],
    "arrays": lambda t: [np.arange(2) * i for i in range(5)],
    "pairs": lambda t: [(t.tensor(i), float(i)) for i in range(5)],
    "dicts": lambda t: [{"x": t.tensor(i), "name": str(i)} for i in range(3)],
    "named": lambda t: [Point(i, [i, i + 1]) for i in range(3)],
}
LOADERS = {
    "one by one": {},
    "in twos": {"batch_size": 2},
    "the last one dropped": {"batch_size": 2, "drop_last": True},
    "single samples": {"batch_size": None},
    "in a given order": {"batch_size": 2, "sampler": [2, 0, 1]},
    "given batches": {"batch_sampler": [[0, 2], [1]]},
    "with a function": {"batch_size": 2, "collate_fn": list},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_batches_equal_torchs(samples, options):
    loaders = [t.utils.data.DataLoader(samples(t), **options) for t in (tl, torch)]
    ours, theirs = ([plain(batch) for batch in loader] for loader in loaders)
    assert ours == theirs
    assert len(loaders[0]) == len(loaders[1]) == len(ours)


def test_a_stream_of_samples_gives_torchs_batches():
    for options in ({}, {"batch_size": 2}, {"batch_size": 2, "drop_last": True}, {"batch_size": None}):
        seen = []
        for t in (tl, torch):

            class Count(t.utils.data.IterableDataset):
                def __iter__(self):
                    yield from range(5)

            seen.append([plain(batch) for batch in t.utils.data.DataLoader(Count(), **options)])
        assert seen[0] == seen[1]


def test_shuffled_batches_hold_every_sample_once_and_are_repeatable():
    data = tl.utils.data.TensorDataset(tl.arange(23), tl.arange(23) * 10)
    epochs = []
    for _ in range(2):
        loader = tl.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=tl.Generator().manual_seed(1))
        epochs += [[(a.tolist(), b.tolist()) for a, b in loader] for _ in range(2)]
    numbers = [[number for a, _ in epoch for number in a] for epoch in epochs]
    assert all(sorted(epoch) == list(range(23)) for epoch in numbers)
    assert numbers[0] == numbers[2] != numbers[1] == numbers[3]
    assert all(b == [10 * n for n in a] for epoch in epochs for a, b in epoch)


def test_the_sampler_of_endless_training_draws_as_it_goes():
    sampler = tl.utils.data.RandomSampler(range(7), replacement=True, num_samples=int(1e10), generator=tl.Generator().manual_seed(0))
    drawn = [number for number, _ in zip(sampler, range(5000), strict=False)]
    assert set(drawn) == set(range(7))
    assert len(sampler) == 1e10
    assert sorted(tl.utils.data.RandomSampler(range(7))) == list(range(7))
    assert len(list(tl.utils.data.RandomSampler(range(7), num_samples=17))) == 17


def test_splits_have_torchs_lengths_and_share_nothing():
    for lengths in ([7, 3], [0.7, 0.3], [0.5, 0.25, 0.25], [0, 10], [0.33, 0.33, 0.34]):
        ours, theirs = (t.utils.data.random_split(range(10), lengths) for t in (tl, torch))
        assert [len(part) for part in ours] == [len(part) for part in theirs]
        assert sorted(sample for part in ours for sample in part) == list(range(10))
    with pytest.raises(ValueError, match="do not add up"):
        tl.utils.data.random_split(range(10), [5, 4])


def test_concatenated_data_sets():
    for t in (tl, torch):
        both = t.utils.data.ConcatDataset([[1, 2], [3], [4, 5]])
        assert [both[i] for i in range(-1, 5)] == [5, 1, 2, 3, 4, 5]
        assert len(both) == 5
        part = t.utils.data.Subset(both, [4, 0])
        assert [part[0], part[1], len(part)] == [5, 1, 2]


REFUSED = {
    "sampler and shuffle": lambda of: of.DataLoader([1], sampler=[0], shuffle=True),
    "batch_sampler and batch_size": lambda of: of.DataLoader([1], batch_sampler=[[0]], batch_size=2),
    "no last one": lambda of: of.DataLoader([1], batch_size=None, drop_last=True),
    "no batch": lambda of: of.BatchSampler([0], 0, False),
    "rows that do not match": lambda of: of.TensorDataset(tl.ones(2) if of is tl.utils.data else torch.ones(2), tl.ones(3)),
    "parts that do not match": lambda of: of.default_collate([(1, 2), (1,)]),
    "no data sets": lambda of: of.ConcatDataset([]),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_arguments_that_torch_refuses_are_refused(make):
    with pytest.raises(ValueError, match=r"."):
        make(tl.utils.data)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        make(torch.utils.data)


def test_a_stream_is_not_shuffled():
    with pytest.raises(ValueError, match="an IterableDataset has an order of its own"):
        tl.utils.data.DataLoader(tl.utils.data.IterableDataset(), shuffle=True)


def test_samples_of_an_unknown_type_are_refused():
    with pytest.raises(TypeError, match="a batch of object cannot be made; pass a collate_fn"):
        tl.utils.data.default_collate([object()])


# --- modules --------------------------------------------------------------------------------------------


def test_a_dict_of_modules_works_as_in_torch():
    for t in (tl, torch):
        made = t.nn.ModuleDict({"a": t.nn.Linear(2, 2), "b": t.nn.ReLU()})
        made["c"] = t.nn.Linear(2, 1)
        made.update([("d", t.nn.Tanh())])
        assert list(made) == list(made.keys()) == ["a", "b", "c", "d"]
        assert [name for name, _ in made.named_parameters()] == ["a.weight", "a.bias", "c.weight", "c.bias"]
        assert "b" in made
        assert made.a is made["a"]
        assert len(made) == 4
        assert type(made.pop("d")).__name__ == "Tanh"
        del made["b"]
        assert [type(module).__name__ for module in made.values()] == ["Linear", "Linear"]
        assert [name for name, _ in made.items()] == ["a", "c"]
        made.clear()
        assert len(made) == 0


def hooked(t, log):
    model = t.nn.Sequential(t.nn.Linear(2, 3), t.nn.Tanh(), t.nn.Linear(3, 1))
    with t.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(t.linspace(-1, 1, p.numel()).reshape(*p.shape) + i)
    handles = [
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        model[1].register_forward_hook(lambda module, args, output: log.append(output.tolist())),
        model[2].register_forward_hook(lambda module, args, output: output + 1),
        model[1].register_full_backward_hook(lambda module, dx, dy: log.append((dx[0].tolist(), dy[0].tolist()))),
        model[2].register_full_backward_hook(lambda module, dx, dy: (dx[0] * 3,)),
        model[0].register_full_backward_hook(lambda module, dx, dy: log.append((dx[0].tolist(), dy[0].tolist()))),
    ]
    return model, handles


def test_hooks_see_and_change_values_as_in_torch():
    seen = []
    for t in (tl, torch):
        log: list = []
        model, handles = hooked(t, log)
        x = t.tensor([[0.1, -0.2]], requires_grad=True)
        y = model(x)
        (y * y).sum().backward()
        log += [y.tolist(), *(p.grad.tolist() for p in model.parameters())]
        for handle in handles:
            handle.remove()
        log.append(model(x).tolist())
        seen.append(log)
    assert len(seen[0]) == len(seen[1]) == 9
    for ours, theirs in zip(*seen, strict=True):
        np.testing.assert_allclose(np.hstack([np.ravel(a) for a in ours]), np.hstack([np.ravel(a) for a in theirs]), rtol=1e-5)


def test_several_hooks_of_a_kind_are_called_in_their_order():
    for t in (tl, torch):
        model, calls = t.nn.Linear(1, 1), []
        handles = [model.register_forward_hook(lambda *_, calls=calls, i=i: calls.append(i)) for i in range(3)]
        model(t.ones(1))
        handles[1].remove()
        model(t.ones(1))
        assert calls == [0, 1, 2, 0, 2]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch advises another hook
def test_a_backward_hook_is_called_where_no_input_requires_a_gradient():
    seen = []
    for t in (tl, torch):
        model = t.nn.Linear(2, 1)
        model.register_full_backward_hook(lambda module, dx, dy: seen.append((dx, [g.tolist() for g in dy])))
        model(t.ones(3, 2)).sum().backward()
    assert seen == [((None,), [[[1.0]] * 3])] * 2


def test_a_copied_module_has_its_own_hooks():
    model = tl.nn.Linear(1, 1)
    calls = []
    handle = model.register_forward_hook(lambda module, args, output: calls.append(module))
    twin = copy.deepcopy(model)
    handle.remove()
    model(tl.ones(1))
    twin(tl.ones(1))
    assert calls == [twin]
    assert pickle.loads(pickle.dumps(tl.nn.Linear(1, 1)))._module_hooks is None


def test_a_backward_hook_leaves_other_outputs_and_no_grad_alone():
    for t in (tl, torch):

        class Counted(t.nn.Module):
            def forward(self, x):
                return x * 2, 7

        model = Counted()
        model.register_full_backward_hook(lambda module, dx, dy: None)
        y, count = model(t.ones(2, requires_grad=True))
        assert (y.tolist(), count) == ([2, 2], 7)
        with t.no_grad():
            assert model(t.ones(2, requires_grad=True))[0].tolist() == [2, 2]


def test_two_inputs_with_gradients_are_refused_by_a_backward_hook():
    class Add(tl.nn.Module):
        def forward(self, x, y):
            return x + y

    module = Add()
    module.register_full_backward_hook(lambda *_: None)
    x = tl.ones(1, requires_grad=True)
    with pytest.raises(NotImplementedError, match="2 of its inputs want a gradient"):
        module(x, x)


def test_grouped_queries_attend_as_in_torch():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, heads, 5, 4)).astype("float32") for heads in (6, 2, 2)]
    seen = []
    for t in (tl, torch):
        q, k, v = (t.tensor(x, requires_grad=True) for x in arrays)
        y = t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y.square().sum().backward()
        seen.append([y.detach().numpy(), q.grad.numpy(), k.grad.numpy(), v.grad.numpy()])
    for ours, theirs in zip(*seen, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="5 heads of queries cannot share 2"):
        tl.nn.functional.scaled_dot_product_attention(tl.ones(1, 5, 2, 4), tl.ones(1, 2, 2, 4), tl.ones(1, 2, 2, 4), enable_gqa=True)


INITIAL = {
    "kaiming_normal_": {"nonlinearity": "relu"},
    "xavier_normal_": {"gain": 2.0},
    "trunc_normal_": {"std": 2.0, "a": -1.0, "b": 3.0},
    "orthogonal_": {"gain": 0.5},
    "eye_": {},
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_values_have_torchs_mean_and_deviation(name):
    ours, theirs = (getattr(t.nn.init, name)(t.empty(300, 200), **INITIAL[name]) for t in (tl, torch))
    a, b = ours.numpy(), theirs.numpy()
    assert abs(a.mean() - b.mean()) < 0.05 * max(b.std(), 0.1)
    assert 0.95 < a.std() / b.std() < 1.05
    if name == "orthogonal_":
        np.testing.assert_allclose(a.T @ a, 0.25 * np.eye(200), atol=1e-5)
    if name == "trunc_normal_":
        assert a.min() >= -1
        assert a.max() <= 3


def test_parameters_as_one_vector():
    for t in (tl, torch):
        model = t.nn.Linear(2, 1)
        vector = t.nn.utils.parameters_to_vector(model.parameters())
        assert tuple(vector.shape) == (3,)
        t.nn.utils.vector_to_parameters(t.tensor([1.0, 2.0, 3.0]), model.parameters())
        assert model.weight.tolist() == [[1, 2]]
        assert model.bias.tolist() == [3]
        model(t.ones(1, 2)).sum().backward()
        norm = t.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        np.testing.assert_allclose(norm.item(), 3**0.5, rtol=1e-6)


# --- a whole program, written as one for torch is -------------------------------------------------------------


def program(torch):
    """Characters, a table of names, a small recurrent model of Linear layers, an endless loader, evaluation, sampling, a checkpoint."""
    import io

    import numpy as np

    nn, F = torch.nn, torch.nn.functional
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    torch.cuda.manual_seed_all(1)
    words = ["ab", "abba", "baab", "bab", "aa", "abab"]

    class Words(torch.utils.data.Dataset):
        def __len__(self):
            return len(words)

        def __getitem__(self, i):
            ids = torch.tensor([1 + "ab".index(c) for c in words[i]], dtype=torch.long)
            x, y = torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long)
            x[1 : 1 + len(ids)] = ids
            y[: len(ids)] = ids
            y[len(ids) + 1 :] = -1
            return x, y

    class Cell(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.both = nn.Linear(2 * width, width)

        def forward(self, x, h):
            return F.tanh(self.both(torch.cat([x, h], dim=1)))

    class Model(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.start = nn.Parameter(torch.zeros(1, width))
            self.parts = nn.ModuleDict({"wte": nn.Embedding(3, width), "cell": Cell(width), "head": nn.Linear(width, 3)})

        def forward(self, x, targets=None):
            h = self.start.expand((x.size(0), -1))
            hs = []
            for i in range(x.size(1)):
                h = self.parts.cell(self.parts.wte(x)[:, i, :], h)
                hs.append(h)
            logits = self.parts.head(torch.stack(hs, 1))
            loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
            return logits, loss

    model = Model().to(device)
    rng = np.random.default_rng(0)
    for p in model.parameters():  # the same initial values in both
        p.data.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)).astype("float32") * 0.3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    loader = torch.utils.data.DataLoader(Words(), batch_size=3, num_workers=0, pin_memory=False)
    losses = []
    for _ in range(20):
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device)
            _, loss = model(x, y)
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())

    @torch.inference_mode()
    def generate(x, count, top_k=2):
        model.eval()
        for _ in range(count):
            logits, _ = model(x)
            logits = logits[:, -1, :] / 0.8
            v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
            logits[logits < v[:, [-1]]] = -float("Inf")
            probs = F.softmax(logits, dim=-1)
            assert torch.allclose(probs.sum(-1), torch.ones(len(probs)))
            x = torch.cat((x, torch.topk(probs, k=1, dim=-1)[1]), dim=1)
            assert torch.multinomial(probs, num_samples=1).shape == (x.size(0), 1)
        return x

    written = generate(torch.zeros(2, 1, dtype=torch.long, device=device), 4).tolist()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}, file)
    file.seek(0)
    checkpoint = torch.load(file, map_location=device)
    second = Model()
    second.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        assert torch.equal(second(x)[0], model(x)[0])
    return losses, written, f"{loss:.3f}"


def test_a_program_for_torch_trains_generates_and_saves_as_in_torch():
    (ours, our_text, our_loss), (theirs, their_text, their_loss) = program(tl), program(torch)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
    assert ours[-1] < 0.7 * ours[0]
    assert our_text == their_text
    assert abs(float(our_loss) - float(their_loss)) < 0.01
