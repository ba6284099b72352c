"""The graph behind a tensor, as a tree for a terminal and as SVG for a notebook.

    cross_entropy  ()  3.29
    └─ linear  (8, 65)  lm_head
       ├─ layernorm  (8, 32)  ln_f
       …

A result is above its inputs. A tensor that is used twice is drawn at its first use; later uses point to its number. With
a `trace`, the ops of one module form a group, and ``fold`` draws such a group as one box.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tensorlite.inspect.trace import call_of
from tensorlite.nn import Module
from tensorlite.tape import Node
from tensorlite.tensor import Tensor

LIMIT = 2000  # boxes: a larger graph is cut there, and the drawing says so
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 190, 40, 22, 34  # pixels
STYLE = (
    "rect{fill:#eef3fb;stroke:#4a6fa5}.leaf rect{fill:#f4f1e6;stroke:#8a7a3c}.module rect{fill:#e7f4ea;stroke:#3f7d54}"
    "text{fill:#1c2733}.detail{fill:#4d5b6a;font-size:11px}path{stroke:#7b8794;fill:none}"
)


@dataclass
class Box:
    """One op, leaf or folded module.

    Attributes:
        number: in the order of the drawing, from 0.
        title: the op's name, the parameter's, or the module's path.
        detail: shape, value, number of ops.
        module: the module in which it ran; None if that is not known.
        kind: "op", "leaf" or "module".
        below: the numbers of the boxes it was computed from, in the order of the arguments.
    """

    number: int
    title: str
    detail: str
    module: str | None
    kind: str
    below: list[int] = field(default_factory=list)


class Drawing:
    """Prints as a tree; a notebook shows the SVG.

    Attributes:
        boxes: the first one is the result.
        is_cut: whether the graph has more boxes than were drawn.
    """

    def __init__(self, boxes: list[Box], is_cut: bool) -> None:
        self.boxes, self.is_cut = boxes, is_cut

    def __str__(self) -> str:
        lines = list(self._tree())
        if self.is_cut:
            lines.append(f"… cut after {len(self.boxes):,} boxes: fold modules, or draw a smaller part.")
        return "\n".join(lines)

    __repr__ = __str__

    def _tree(self) -> Iterator[str]:
        """Depth first, without recursion: a chain may be longer than Python's stack."""
        times = [0] * len(self.boxes)
        for box in self.boxes:
            for number in box.below:
                times[number] += 1
        drawn: set[int] = set()
        stack = [(0, "", "")]
        while stack:
            number, lead, indent = stack.pop()
            box = self.boxes[number]
            mark = f"  [{number}]" if times[number] > 1 else ""
            yield f"{lead}{box.title}  {box.detail}{mark}".rstrip() if number not in drawn else f"{lead}↑ [{number}] {box.title}"
            if number in drawn:
                continue
            drawn.add(number)
            for place, below in reversed(list(enumerate(box.below))):
                last = place == len(box.below) - 1
                stack.append((below, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")))

    def _repr_svg_(self) -> str:
        """One self-contained SVG, the result at the top."""
        places, width, height = self._places()
        body = [*self._lines(places), *self._boxes(places)]
        size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif" font-size="12">'
        return f"{head}<title>The graph behind a tensor</title><style>{STYLE}</style>{''.join(body)}</svg>"

    def _places(self) -> tuple[list[tuple[float, float]], float, float]:
        """The position of each box, one row below the lowest box that uses it, and the size of the drawing."""
        rows = [0] * len(self.boxes)
        for box in self.boxes:  # those that use a box come before it
            for number in box.below:
                rows[number] = max(rows[number], rows[box.number] + 1)
        columns: list[int] = []
        filled: dict[int, int] = {}
        for row in rows:
            columns.append(filled.get(row, 0))
            filled[row] = columns[-1] + 1
        widest = max(filled.values())
        places: list[tuple[float, float]] = []
        for row, column in zip(rows, columns, strict=True):
            centring = (widest - filled[row]) / 2
            places.append((GAP_X + (column + centring) * (BOX_WIDTH + GAP_X), GAP_Y + row * (BOX_HEIGHT + GAP_Y)))
        return places, GAP_X + widest * (BOX_WIDTH + GAP_X), GAP_Y + (max(rows) + 1) * (BOX_HEIGHT + GAP_Y)

    def _lines(self, places: list[tuple[float, float]]) -> Iterator[str]:
        """From the bottom of each box to the top of those below it."""
        for box in self.boxes:
            x, y = places[box.number][0] + BOX_WIDTH / 2, places[box.number][1] + BOX_HEIGHT
            for number in box.below:
                to_x, to_y = places[number][0] + BOX_WIDTH / 2, places[number][1]
                yield f'<path d="M{x:g} {y:g} C{x:g} {y + GAP_Y:g} {to_x:g} {to_y - GAP_Y:g} {to_x:g} {to_y:g}"/>'

    def _boxes(self, places: list[tuple[float, float]]) -> Iterator[str]:
        for box in self.boxes:
            x, y = places[box.number]
            whole = f"{box.title}  {box.detail}" + (f" in {box.module}" if box.module else "")
            yield f'<g class="{box.kind}"><title>{html.escape(whole)}</title>'
            yield f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
            yield f'<text x="{x + 8:g}" y="{y + 17:g}">{html.escape(_cut(box.title, 27))}</text>'
            yield f'<text class="detail" x="{x + 8:g}" y="{y + 32:g}">{html.escape(_cut(box.detail, 30))}</text></g>'


def draw(result: Tensor, model: Module | None = None, fold: bool | int = False, limit: int = LIMIT) -> Drawing:
    """The graph behind ``result``.

    Args:
        result: any tensor; one without a graph is a single box.
        model: gives leaves their names.
        fold: draw each module as one box, down to this depth of paths (``h.2`` has depth 2; True stands for 1). It needs a `trace`.
        limit: of boxes.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()} if model is not None else {}
    depth = int(fold)
    boxes: list[Box] = []
    keys: dict[Any, int] = {}
    is_cut = False

    def key_of(target: Any) -> Any:
        if not isinstance(target, tuple):
            return ("leaf", id(target))
        module = _module_of(target[0])
        return ("module", ".".join(module.split(".")[:depth])) if depth and module else ("op", target[0].number)

    def box_of(target: Any) -> int | None:
        nonlocal is_cut
        key = key_of(target)
        if key not in keys:
            if len(boxes) >= limit:
                is_cut = True
                return None
            keys[key] = len(boxes)
            boxes.append(_box(len(boxes), key, target, names))
        return keys[key]

    start: Any = result.source or result
    first = box_of(start)
    assert first is not None
    if result.array.size == 1 and boxes[0].kind == "op":
        boxes[0].detail += f"  {result.array.item():.6g}"
    pending = [start[0]] if isinstance(start, tuple) else []
    seen = {node.number for node in pending}
    while pending:
        node = pending.pop()
        own = keys[key_of((node, 0))]
        for parent in node.parents:
            if parent is None:
                continue
            target = parent[0]
            if boxes[own].kind == "module" and names.get(id(target), "").startswith(boxes[own].title + "."):
                continue  # a parameter of a folded module
            below = box_of(target)
            if below is None:
                continue
            if below != own and below not in boxes[own].below:
                boxes[own].below.append(below)
            if isinstance(target, tuple) and target[0].number not in seen:
                seen.add(target[0].number)
                pending.append(target[0])
    return Drawing(_users_first(boxes), is_cut)


def _box(number: int, key: tuple[str, Any], target: Any, names: dict[int, str]) -> Box:
    if key[0] == "leaf":
        gradient = "" if target.grad is None else "  has a gradient"
        return Box(number, names.get(id(target), "leaf"), f"{target.array.shape}{gradient}", None, "leaf")
    node, position = target
    if key[0] == "module":
        return Box(number, key[1], f"{node.outputs[position][0]}", key[1], "module")
    return Box(number, node.name, f"{node.outputs[position][0]}", _module_of(node), "op")


def _users_first(boxes: list[Box]) -> list[Box]:
    """The same boxes, numbered so that each comes before its inputs; the result is 0."""
    waiting = [0] * len(boxes)
    for box in boxes:
        for number in box.below:
            waiting[number] += 1
    ready, order = [box.number for box in reversed(boxes) if not waiting[box.number]], []
    while ready:
        number = ready.pop()
        order.append(number)
        for below in boxes[number].below:
            waiting[below] -= 1
            if not waiting[below]:
                ready.append(below)
    if len(order) < len(boxes):  # folded modules may use each other in a circle: then keep the order in which they were found
        order = [box.number for box in boxes]
    new = {number: place for place, number in enumerate(order)}
    return [Box(new[b.number], b.title, b.detail, b.module, b.kind, [new[number] for number in b.below]) for b in (boxes[n] for n in order)]


def _module_of(node: Node) -> str | None:
    call = call_of(node)
    return call.site.module if call else None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
