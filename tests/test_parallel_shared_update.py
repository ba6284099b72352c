"""A step of the optimizer that processes share out: the bits of one thread, and a whole step whatever happens to any of them."""

import contextlib
import functools

import pytest

import tensorlite as tl
from gpt.model import GPT
from tensorlite.parallel import BatchShards, Processes, TeamError, Workers, shared_update
from tensorlite.random import make_generator
from tests.test_parallel_processes import CONFIG, batch, digest, extended


@pytest.mark.parametrize("rule", [tl.optim.AdamW, tl.optim.SGD, functools.partial(tl.optim.Adam, amsgrad=True)])
def test_processes_share_out_the_steps_of_an_optimizer(rule, monkeypatch):
    """AdamW's with two groups, a state that is loaded in between, and a step in which a parameter has no gradient."""
    monkeypatch.setattr(shared_update, "TILE", 40)
    shared_out = []
    tell = shared_update.SharedUpdate._tiles

    def note(self, spans):
        shared_out.append(spans)
        return tell(self, spans)

    monkeypatch.setattr(shared_update.SharedUpdate, "_tiles", note)

    def run(team):
        tl.manual_seed(4)
        model = GPT(CONFIG)
        *most, last = model.parameters()
        optimizer = rule([{"params": most}, {"params": [last], "lr": 0.1}])
        parallel = BatchShards(model, optimizer.flats, 2, team, optimizer=optimizer)
        for step in range(4):
            parallel.forward_backward(batch(4, step), functools.partial(make_generator, step))
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            if step == 2:
                most[3].grad = None
                saved = optimizer.state_dict()
                optimizer.load_state_dict(saved)
            team.update(optimizer, tl.optim.clip_factor(model.parameters(), 0.3)[1])
            optimizer.zero_grad()
        return digest(model, optimizer)

    with Workers(1) as thread, Processes(3) as processes:
        assert run(processes) == run(thread)
    assert len(shared_out) == 4


def test_a_rule_for_whole_matrices_is_not_shared_out():
    weight = tl.nn.Parameter(tl.ones(3, 2))
    assert [shared_update.SharedUpdate.suits(rule([weight], lr=0.1)) for rule in (tl.optim.SGD, tl.optim.Muon)] == [True, False]


class Interruption(Exception):
    pass


class HalfDone(shared_update.UpdatedArrays):
    """A process that ends at its second tile: before it is saved, while it is saved, while it is changed, or when it is finished."""

    def __init__(self, arrays, moment):
        super().__init__(arrays.rule, arrays.flats, arrays.journals)
        self.moment, self.tiles = moment, 0

    def send(self, message):
        with contextlib.suppress(Interruption):
            self.run(*message[1])

    def receive(self):
        raise TeamError("it has ended.")

    def update(self, tile, group, factor, journal=None):
        self.tiles += 1
        if self.tiles < 2:
            return super().update(tile, group, factor, journal)
        arrays = self._arrays(tile, group)
        if self.moment == "saving":
            journal._pairs(arrays)[0][1][...] = 7
        if self.moment == "changing":
            changed = [arrays[0], *arrays[2:]]
            journal.change(changed, functools.partial(self._spoil, changed[:-1]))
        if self.moment == "after":
            super().update(tile, group, factor, journal)
        raise Interruption

    def _spoil(self, arrays):
        for array in arrays:
            array[...] = 5
        raise Interruption


@pytest.mark.parametrize("moment", ["before", "saving", "changing", "after"])
def test_a_process_that_ends_in_the_middle_of_an_update_leaves_it_to_the_others(moment, monkeypatch):
    monkeypatch.setattr(shared_update, "TILE", 40)

    def run(team, interrupt):
        model, optimizer = extended()
        parallel = BatchShards(model, optimizer.flats, 2, team, optimizer=optimizer)
        for step in range(3):
            parallel.forward_backward(batch(4, step), functools.partial(make_generator, step))
            if interrupt and step == 1:
                update = team._memory.update
                update.step([HalfDone(update.arrays, moment)], None)
            else:
                team.update(optimizer)
            optimizer.zero_grad()
        return digest(model, optimizer)

    with Workers(1) as thread, Processes(2) as processes:
        assert run(processes, interrupt=True) == run(thread, interrupt=False)
