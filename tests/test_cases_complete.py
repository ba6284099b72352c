"""The table covers everything: an op that no case runs fails here."""

import importlib
import pkgutil

from tensorlite import ops
from tensorlite.op import REGISTRY
from tests import case_table
from tests.cases import all_cases
from tests.compare import run_ours

for page in pkgutil.iter_modules(ops.__path__):  # also those that are only imported when they are asked for
    importlib.import_module(f"tensorlite.ops.{page.name}")


def ran_by(cases):
    return set().union(*(run_ours(case.call, case.draw()).seen for case in cases))


def test_every_op_is_run_by_a_case():
    missing = set(REGISTRY) - ran_by(all_cases())
    assert not missing, f"no case in tests/case_table runs {sorted(missing)}: add one"


STEPS = {"to"}  # rounding to another dtype is a staircase, seen as closely as differences see it


def test_every_op_is_run_by_a_case_that_is_checked_by_differences():
    missing = set(REGISTRY) - STEPS - ran_by([case for case in all_cases() if case.smooth])
    assert not missing, f"only cases with smooth=False run {sorted(missing)}: add one away from the kinks"


def test_every_page_has_cases():
    pages = {m.name for m in pkgutil.iter_modules(ops.__path__) if has_ops(f"tensorlite.ops.{m.name}")}
    tables = {m.name for m in pkgutil.iter_modules(case_table.__path__)}
    assert pages <= tables, f"pages of the book without a table of cases: {sorted(pages - tables)}"


def has_ops(module):
    return any(op.__module__ == importlib.import_module(module).__name__ for op in REGISTRY.values())


def test_no_table_is_empty():
    names = [case.name for case in all_cases()]
    for module in pkgutil.iter_modules(case_table.__path__):
        table = importlib.import_module(f"tests.case_table.{module.name}").CASES
        assert table, f"tests/case_table/{module.name}.py holds no cases"
        assert {case.name for case in table} <= set(names)


def test_a_case_draws_the_same_arrays_every_time():
    for case in all_cases():
        for first, second in zip(case.draw(), case.draw(), strict=True):
            assert first.dtype == second.dtype
            assert first.tobytes() == second.tobytes(), case.name
