"""TF1's control flow raised to the functional form: frames become While, Switch and Merge become If and Case.

A GraphDef says nothing of contexts, so they are read off its nodes. The frame of a node is that of its inputs, one
deeper behind an Enter and one shallower behind an Exit. The branch of a node is the set of predicates, with the side
taken of each, that the Switches before it lay down; a Merge joins the sides of one predicate again.

Before that, TF1's arrays and stacks become lists, which flow as any tensor does.

The plan, from the innermost frame outwards:
    conditionals   the Merges of one conditional become outputs of one If, its branches cut out of what they read
    loop           the frame's Merges become the variables of one While; condition and body are cut out likewise
The nodes of a frame go; an Exit stays by name and hands on an output of the While, a Merge one of the If. The nodes
of a branch stay for whoever asks for them by name: they are computed as if their branch had been taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradserve.graph.library import Library
from gradserve.graph.raising.conditionals import raise_conditionals
from gradserve.graph.raising.loops import raise_loop
from gradserve.graph.raising.references import resources_for_references
from gradserve.graph.raising.rewriting import ENTERS, EXITS, MERGES, NEXT, RAISED, Raised, Rewriting, is_back_edge
from gradserve.graph.raising.stacks import is_stack, lists_for_stacks
from gradserve.graph.raising.tensor_arrays import is_array, lists_for_arrays
from gradserve.v1 import graph_pb2

__all__ = ["RAISED", "Raised", "is_back_edge", "needs_raising", "raise_control_flow"]

_TELLING = MERGES | ENTERS | EXITS | NEXT


def needs_raising(nodes: Iterable[graph_pb2.NodeDef]) -> bool:
    """Whether there is a conditional or a loop of TF1 among the nodes."""
    return any(node.op in _TELLING or is_array(node.op) or is_stack(node.op) for node in nodes)


def raise_control_flow(nodes: Sequence[graph_pb2.NodeDef], library: Library) -> tuple[list[graph_pb2.NodeDef], Raised]:
    """The nodes of the same graph in functional form, in no order; the functions that they call join the library.

    `nodes` follow their inputs but for the back edges of loops. Raises InvalidGraph where frames or branches do not
    close: a loop variable without NextIteration, an Exit outside of a loop, a Merge of what no Switch has parted.
    """
    raising = Rewriting(nodes, library)
    raising.find_frames()
    arrays = lists_for_arrays(raising.items)
    raising.replaced |= arrays
    if resources_for_references(raising) or arrays:
        raising.find_frames_again()
    if lists_for_stacks(raising):
        raising.find_frames_again()
    for frame in sorted(raising.parents, key=lambda frame: -raising.depths[frame]):
        raise_conditionals(raising, frame)
        raise_loop(raising, frame)
    raise_conditionals(raising, "")
    raising.keep_functions()
    left = raising.items.keys()
    imported = {node.name for node in nodes}
    raised = Raised(frozenset(raising.replaced & left & imported), frozenset(left - imported), raising.inside)
    return [item.message for item in raising.items.values()], raised
