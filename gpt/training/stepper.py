"""A training step as a CUDA graph: recorded once, launched from then on.

The first steps are plain: they compile the kernels, and show how much memory a step needs. Then one is recorded, with the batch, the
dropout's key, the learning rates and the step counts in arrays of its own. Each step after that copies the new values in, and launches.
What a plain step changes on Python's side, the counts of the optimizer above all, is changed here as well: whoever looks, saves or
evaluates between two steps finds what a plain step would have left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from data.loader import Batch
from gpt.errors import fail
from tensorlite import Tensor, optim
from tensorlite.backend import Array
from tensorlite.kernels.cuda.graph import CaptureError, Recorder, Recording
from tensorlite.op import kernel_mode

if TYPE_CHECKING:
    from gpt.training.trainer import Trainer

WARM_UP = 3  # plain steps before the one that is recorded


class CapturedStep:
    """Called with the batches of a step, it makes the step of ``trainer``, and returns what `Trainer.plain_step` does.

    The two tensors that it returns are filled anew by the next step.

    Attributes:
        why_not: why all steps are plain; None if they are not.
    """

    _recorder: Recorder | None
    _recording: Recording[tuple[Tensor, Tensor]] | None
    _dials: optim.Dials | None
    _batches: list[tuple[Tensor, Tensor]]
    _keys: Array

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.why_not: str | None = None
        self._begin()
        if obstacle := _obstacle(trainer):
            self._give_up(obstacle)

    def __call__(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Make a step.

        Raises:
            UserError: if it cannot be recorded, and the user insists.
        """
        if self._dials and not self._dials.still_fit():
            self._begin()  # the optimizer's arrays are others now
        if self.why_not is None and self._recorder is None:
            self._recorder = Recorder()
        if self._recorder is None:
            return self.trainer.plain_step(batches)
        if self._warm < WARM_UP:
            self._warm += 1
            return self._recorder.run(lambda: self.trainer.plain_step(batches))
        if self._recording is None:
            try:
                self._recording = self._record(self._recorder, batches)
            except CaptureError as error:
                self._give_up(str(error).strip().rstrip("."))
                return self.trainer.plain_step(batches)
        return self._launch(self._recording, batches)

    @property
    def memory(self) -> int:
        """Bytes that belong to the graph, and to nobody else."""
        return self._recorder.memory if self._recorder else 0

    def _begin(self) -> None:
        """From the start: nothing is recorded."""
        self._recorder = self._recording = self._dials = None
        self._warm, self._batches = 0, []

    def _record(self, recorder: Recorder, batches: list[Batch]) -> Recording[tuple[Tensor, Tensor]]:
        """Write down a step on arrays like those of ``batches``."""
        trainer = self.trainer
        self._batches = [trainer.to_device(batch) for batch in batches]
        keys = self._keys = trainer.dropout_keys()
        memory = trainer.optimizer.dials_memory()  # like batches and keys from before the capture, see `Optimizer.dials`

        def step() -> tuple[Tensor, Tensor]:
            loss, norm = trainer.gradients(self._batches, keys)
            self._dials = trainer.optimizer.dials(memory)
            trainer.make_step(norm, self._dials)
            return loss, norm

        try:
            recording = recorder.record(step)
        finally:
            trainer.optimizer.zero_grad()  # the places are known now, but nothing was written there
        tqdm.write(f"step {trainer.step}: recorded as a CUDA graph, which works in {recorder.memory / 2**20:,.0f} MiB")
        return recording

    def _launch(self, recording: Recording[tuple[Tensor, Tensor]], batches: list[Batch]) -> tuple[Tensor, Tensor]:
        assert self._dials is not None
        for held, batch in zip(self._batches, batches, strict=True):
            for tensor, new in zip(held, self.trainer.to_device(batch), strict=True):
                tensor.array[...] = new.array
        self._keys[...] = self.trainer.dropout_keys()
        self._dials.turn()
        recording.launch()
        return recording.result

    def _give_up(self, why: str) -> None:
        """From now on all steps are plain, and it is said so.

        Raises:
            UserError: if the user insists.
        """
        if self.trainer.config.cuda_graph is True:
            fail(f"--cuda-graph true, but the step cannot be recorded: {why}.")
        self._begin()
        self.why_not = why
        tqdm.write(f"step {self.trainer.step}: no CUDA graph, every op is queued by Python: {why}.")


def _obstacle(trainer: Trainer) -> str | None:
    """What is known beforehand to stand against a graph."""
    if not trainer.steps_are_alike:
        return "batches are as wide as their longest row"
    if kernel_mode() == "book":
        return "TENSORLITE_KERNELS=book, and the book's AdamW takes its rates from Python"
    return None
