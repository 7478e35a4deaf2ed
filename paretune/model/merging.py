"""Adapted products of one input become one, in the graph of a block that is being compiled.

An attention's queries, keys and values, or the two halves of a gated layer, take the same input.
Which matrices do is read off the traced graph, so that no model family is known by name.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

from torch.fx import GraphModule, Node

from paretune.model.product_operator import TARGETS


def merge_products(block: GraphModule) -> int:
    """Merge products that take the same input and belong to the same banks, in place.

    Returns:
        How many products there are less.
    """
    order = {node: place for place, node in enumerate(block.graph.nodes)}
    groups: dict[Any, list[Node]] = defaultdict(list)
    for node in block.graph.nodes:
        if node.op == "call_function" and node.target in TARGETS:
            groups[_kind(node)].append(node)
    fewer = 0
    for nodes in groups.values():
        # The merged node stands where the first one stood: what it takes must be there by then
        ready = [node for node in nodes if _last_input(node, order) < order[nodes[0]]]
        if len(ready) > 1:
            _merge(block, ready)
            fewer += len(ready) - 1
    if fewer:
        block.recompile()
    return fewer


# Places of the arguments that belong to a matrix and are put side by side
_X, _WEIGHTS, _BIASES, _TRAINED, _CASTS, _GAMMAS, _DROPOUTS = range(7)
_OWN = (_WEIGHTS, _BIASES, _TRAINED, _CASTS, _DROPOUTS)


def _kind(node: Node) -> tuple[Any, ...]:
    """What two products must have in common."""
    gammas, rest = node.args[_GAMMAS], node.args[_DROPOUTS + 1 :]
    return node.args[_X], tuple(gammas), len(node.args[_BIASES]), *map(_frozen, rest)  # type: ignore[arg-type]


def _frozen(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list | tuple) else argument


def _last_input(node: Node, order: dict[Node, int]) -> int:
    return max(order[each] for each in node.all_input_nodes)


def _merge(block: GraphModule, nodes: list[Node]) -> None:
    first = nodes[0]
    arguments = list(first.args)
    for place in _OWN:
        arguments[place] = [each for node in nodes for each in node.args[place]]  # type: ignore[union-attr]
    with block.graph.inserting_before(first):
        merged = block.graph.call_function(TARGETS[0], tuple(arguments))
        products = block.graph.call_function(operator.getitem, (merged, 0))
        own = [
            block.graph.call_function(operator.getitem, (products, place))
            for place in range(len(nodes))
        ]
    # Only these nodes are erased: to torch.fx, in-place operations elsewhere look like dead code
    for node, product in zip(nodes, own, strict=True):
        for output in list(node.users):
            for use in list(output.users):
                use.replace_all_uses_with(product)
                block.graph.erase_node(use)
            block.graph.erase_node(output)
        block.graph.erase_node(node)
