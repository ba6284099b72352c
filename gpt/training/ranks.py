"""A run on several ranks of MPI: who speaks, what must be the same everywhere, and how all end when one does.

    mpiexec -n 4 python -m gpt.train …

Every rank runs the whole program, draws the same batches, and computes its own rows of them (`tensorlite.parallel.shards`). The first
rank alone prints, and writes the folder of the run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoints.model_folder import versions
from gpt.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, fail, run_main
from gpt.training.trainer import Trainer
from tensorlite.op import kernel_mode
from tensorlite.parallel.ranks import RankError, World, connect, hash_of_arrays

NUMBERS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")  # where a launcher says which of its processes this is
_MAY_DIFFER = ("workers", "team", "out")  # between ranks: a machine may have more cores than another


def run_on_ranks(main: Callable[[], int | None]) -> int:
    """`run_main` for a program that mpiexec may have started several times. An error in one rank ends all, with its sentence."""
    try:
        world = connect()
    except RankError as error:
        is_first = next((os.environ[name] for name in NUMBERS if name in os.environ), "0") == "0"
        return run_main(functools.partial(fail, str(error))) if is_first else EXIT_USER_ERROR
    if world.size == 1:
        return run_main(main)
    errors = sys.stderr
    if world.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the program ends

    def end_all(error: BaseException) -> None:
        def raise_again() -> None:
            if isinstance(error, RankError):
                fail(str(error))
            raise error

        sys.stderr = errors
        try:
            code = run_main(raise_again)
        except Exception:  # noqa: BLE001 - a bug of any kind; its traceback is shown
            sys.excepthook(*sys.exc_info())
            code = 1
        world.abort(code or 1)

    def guarded() -> int | None:
        try:
            return main()
        except BaseException as error:
            if not world.knows(error) and not isinstance(error, SystemExit):
                end_all(error)
            raise

    code = run_main(guarded)
    if code == EXIT_INTERRUPTED:  # on all ranks; `gpt.errors.leave` does not wait for threads that compute, and so not for MPI's end
        world.finalize()
    return code


def require_same(world: World, values: Mapping[str, Any]) -> None:
    """Compare ``values``, under the names that a user knows, among all ranks.

    Raises:
        UserError: on all ranks, if one of them differs in one rank.
    """
    difference = world.difference(values)
    with world.together():
        if difference is not None:
            fail(f"all ranks must run the same: {difference}.")


def require_same_program(world: World, given: Mapping[str, Any]) -> None:
    """Compare the code, the versions and the given settings.

    Raises:
        UserError: on all ranks, if one differs.
    """
    if world.size > 1:
        require_same(world, {"the code": _hash_of_code(), **versions(), "the mode of the kernels": kernel_mode(), **_options(given)})


def require_same_run(trainer: Trainer) -> None:
    """Compare what a run computes: its settings, the number of shards, the data, and the weights that it begins with.

    Raises:
        UserError: on all ranks, if one differs.
    """
    world = trainer.world
    if world.size > 1:
        shards = {"the number of shards (--shards, or ranks times --workers)": trainer.stepper.shard_count}
        with world.together():
            found = {f"the {name}": f"{entry[0]:,} tokens with hash {entry[1][-12:]}" for name, entry in trainer.fingerprint.items()}
        weights = {"the hash of the weights": hash_of_arrays(tensor.numpy() for tensor in trainer.model.state_dict().values())}
        require_same(world, {**_options(dataclasses.asdict(trainer.config)), **shards, **found, **weights})


@functools.cache
def _hash_of_code() -> str:
    """Of all pages of the packages that train."""
    digest, root = hashlib.sha256(), Path(__file__).resolve().parents[2]
    for package in ("tensorlite", "gpt", "data"):
        for page in sorted((root / package).rglob("*.py")):
            digest.update(page.read_bytes())
    return digest.hexdigest()[:16]


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"--{name.replace('_', '-')}": value for name, value in settings.items() if name not in _MAY_DIFFER}
