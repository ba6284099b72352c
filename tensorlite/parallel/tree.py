"""The order in which the gradients of shards are added: a binary tree that the number of shards fixes alone.

    shard   0   1   2   3   4   5
            └─+─┘   └─+─┘   └─+─┘
              └───+───┘       │
                  └─────+─────┘

A sum of floating point numbers depends on its order, so the order must not depend on who computes it. In a tree, whoever holds some
neighbours adds them, and sends the sums of whole subtrees instead of single gradients: a rank with a power of two of shards, the same on
all ranks, sends one. And the rounding error of a sum of n numbers grows with log n, where that of a sum one by one grows with n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Node = tuple[int, int]  # the shards from the first number up to, but without, the second


def middle(node: Node) -> int:
    """Where a node with two or more shards is divided: its left part has the largest power of two of shards below their number."""
    first, last = node
    return first + (1 << ((last - first - 1).bit_length() - 1))


def largest_nodes(node: Node, own: range) -> list[Node]:
    """The largest nodes in the tree of ``node`` whose shards are all in ``own``, from left to right."""
    first, last = node
    if last <= own.start or own.stop <= first:
        return []
    if own.start <= first and last <= own.stop:
        return [node]
    return largest_nodes((first, middle(node)), own) + largest_nodes((middle(node), last), own)


def add_tree(node: Node, values: Mapping[Node, T | None], add: Callable[[T, T], T]) -> T | None:
    """The sum of all ``values`` below ``node``, in the order of the tree. None is no value, and adds nothing.

    Args:
        values: those of nodes that together are all shards of ``node``.
    """
    if node in values:
        return values[node]
    left = add_tree((node[0], middle(node)), values, add)
    right = add_tree((middle(node), node[1]), values, add)
    if left is None or right is None:
        return right if left is None else left
    return add(left, right)
