"""Numbers that are printed rounded: none may lie so near an edge that another order of adding would round it the other way."""

from __future__ import annotations

import ast
import math

EDGE = 0.02  # of the last digit that is printed


def checked(value, digits: int):
    """``value``, after looking how far it is from the next edge."""
    if isinstance(value, float) and math.isfinite(value):
        place = abs(value) * 10**digits % 1
        assert abs(place - 0.5) > EDGE, f"{value} is at the edge between two numbers of {digits} decimals: choose other digits"
    return value


class _Checked(ast.NodeTransformer):
    """Puts `checked` around every value in an f-string that is printed with a number of decimals."""

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        spec = "".join(part.value for part in node.format_spec.values if isinstance(part, ast.Constant)) if node.format_spec else ""
        kind = spec[-1:]
        if kind in ("f", "%"):
            decimals = int(spec[:-1].rpartition(".")[2]) + (2 if kind == "%" else 0)
            node.value = ast.Call(ast.Name("checked", ast.Load()), [node.value, ast.Constant(decimals)], [])
        return node


def with_checks(source: str) -> str:
    """``source`` with every rounded number looked at."""
    return "from tests.margins import checked\n" + ast.unparse(ast.fix_missing_locations(_Checked().visit(ast.parse(source))))
