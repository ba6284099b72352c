"""The tape: the chain rule for a whole network, walked backwards

Forward has left one node for each op. A node has parents, the nodes that it was computed
from. Its gradients(dy) is a backward such as you have written: it turns the gradient of
the node's output into the gradients of its parents. You write the walk: it calls them
in the right order, and adds up what arrives.

    node.number           greater than the numbers of all nodes that it was computed from
    node.parents          a list of nodes; a leaf, such as a parameter, has none: []
    node.gradients(dy)    a list: one gradient for each parent, in their order

By hand: x is a leaf, a = x · x has the parents [x, x], and y = a + x has the parents
[a, x]. For x = 3 and dy = 1, y gives 1 to a and 1 to x. Then a gives 3 to x, twice. The
sum for x is 7, which is the derivative of x² + x. gradients(dy) of a node is called once,
when everything has arrived at it.
"""

import heapq


def walk(last, dy):
    """A dict from each leaf that was reached to its gradient. `last` is where the walk begins, dy its gradient."""
    # --- write from here ---
    arrived = {last: dy}
    waiting = [(-last.number, last)]
    leaves = {}
    while waiting:
        node = heapq.heappop(waiting)[1]
        dy = arrived.pop(node)
        if not node.parents:
            leaves[node] = dy
            continue
        for parent, dx in zip(node.parents, node.gradients(dy), strict=True):
            if parent in arrived:
                arrived[parent] = arrived[parent] + dx
            else:
                arrived[parent] = dx
                heapq.heappush(waiting, (-parent.number, parent))
    return leaves


# --- for the checker ---

HINTS = (
    "Keep a dict from nodes to what has arrived so far. Where two paths meet, gradients add up: a = a + dx, never a += dx.",
    "The order is the difficulty. At which of the waiting nodes can nothing more arrive? Look at the numbers.",
    "Take the waiting node with the highest number, ask it for its gradients, add each to what its parent has, and let new parents wait.",
)


class Node:
    """A node on numbers: y = f(parents), with its derivative for each parent."""

    def __init__(self, number, parents=(), slopes=()):
        self.number, self.parents, self.slopes, self.asked = number, list(parents), slopes, 0

    def gradients(self, dy):
        """dy times the derivatives."""
        self.asked += 1
        return [dy * slope for slope in self.slopes]

    def __lt__(self, other):  # so that a heap of (number, node) never has to compare nodes in vain
        return self.number < other.number


def _graph(*edges):
    """Nodes 1, 2, …: for each a list of (parent's number, slope)."""
    nodes = []
    for number, parents in enumerate(edges, 1):
        nodes.append(Node(number, [nodes[parent - 1] for parent, _ in parents], [slope for _, slope in parents]))
    return nodes


ASKED_TWICE = "a walk along each path by itself. A node is asked once, when all has arrived: add up first, then go on."

GRAPHS: tuple = (  # what is asked, what a mistake here looks like, the graph
    (
        "a chain of two ops",
        "a walk that ends too early, or derivatives that are not multiplied: each node's gradients(dy) leads one step further.",
        ([], [(1, 3.0)], [(2, 5.0)]),
    ),
    (
        "two leaves",
        "gradients that reach the wrong parent: gradients(dy) has one for each parent, in their order.",
        ([], [], [(1, 3.0), (2, 5.0)]),
    ),
    (
        "a value that is used twice, by one op: x · x",
        "a gradient that replaces an earlier one: where a value is used twice, its gradients add up.",
        ([], [(1, 3.0), (1, 4.0)]),
    ),
    (
        "a value that is used by two ops, as around a residual connection",
        "a gradient that replaces an earlier one: where paths meet, gradients add up.",
        ([], [(1, 3.0)], [(2, 5.0)], [(3, 1.0), (1, 1.0)]),
    ),
    (
        "a short path and a long one to a node with parents of its own",
        "a node that was asked before all had arrived, or asked twice: take the waiting node with the highest number.",
        ([], [(1, 2.0)], [(2, 3.0)], [(3, 5.0)], [(2, 7.0), (4, 1.0)]),
    ),
    (
        "the same two paths in the other order",
        "a node that was asked before all had arrived, or asked twice: take the waiting node with the highest number.",
        ([], [(1, 2.0)], [(2, 3.0)], [(3, 5.0)], [(4, 1.0), (2, 7.0)]),
    ),
    (
        "a chain of 3,000 ops",
        "a function that calls itself once for each op: Python allows about 1,000 such calls. A loop has no limit.",
        ([], *[[(i, 1.0)] for i in range(1, 3001)]),
    ),
    (
        "twenty diamonds, one after the other",
        "a walk along each path: there are 2²⁰ paths. Each node has to be asked once only, when all has arrived.",
        ([], *[edge for i in range(20) for edge in ([(3 * i + 1, 0.5)], [(3 * i + 1, 0.5)], [(3 * i + 2, 1.0), (3 * i + 3, 1.0)])]),
    ),
)


def check(page):
    """(what is wrong, what that looks like) for the first graph that comes out wrong, or None."""
    for name, looks_like, edges in GRAPHS:
        right, yours = _graph(*edges), _graph(*edges)
        expected = walk(right[-1], 2.0)
        try:
            got = page.walk(yours[-1], 2.0)
        except RecursionError:
            return f"{name}: Python's limit of calls was reached.", looks_like
        if not isinstance(got, dict):
            return f"walk returns a {type(got).__name__} in the place of a dict from leaves to gradients.", None
        for node, twin in zip(right, yours, strict=True):
            if node.parents and twin in got:
                return (
                    f"{name}: node {twin.number} is in the result, and it has parents.",
                    "a result with all nodes: only leaves belong there.",
                )
            if node in expected and twin not in got:
                return f"{name}: the leaf {twin.number} is missing in the result.", looks_like
            if node in expected and got[twin] != expected[node]:
                return f"{name}: leaf {twin.number} receives {got[twin]:g}, and should receive {expected[node]:g}.", looks_like
            if twin.asked > 1:
                return f"{name}: node {twin.number} was asked {twin.asked} times.", ASKED_TWICE
        if len(got) > len(expected):
            return f"{name}: there are {len(got)} leaves in the result in the place of {len(expected)}.", None
    return None
