"""Writes docs/ops.md from the catalogue: `python docs/ops.py`, or `make docs`."""

from __future__ import annotations

from pathlib import Path

import gradserve.autodiff  # some ops are made of gradients
import gradserve.ops  # noqa: F401
from gradserve.graph import op
from gradserve.graph.op import NoRule, Op
from gradserve.graph.other_calls import BECOME_CALLS
from gradserve.ops.left_out import FAMILIES, REASONS
from gradserve.workers.engines.xla_kernels import KERNELS

PAGE = Path(__file__).with_name("ops.md")

_HEAD = """# Ops

Written from the catalogue by `make docs`: do not edit it by hand. {count} op types are defined, {differentiable} of \
them with a gradient; {left_out} are left out, each with its reason.

- **Gradient**: *yes*: a rule. *none*: the result is None, as the op is registered as not differentiable. *refused* \
and *missing* raise LookupError.
- **Higher order**: rules are made of ops that have rules themselves, so *any* means that no order is the last.
- **Engines**: *all*: traced and compiled by `xla`, run on the GPU by `cupy`. *host*: it runs on NumPy beside them, as \
strings, variants, and outputs whose shape depends on data can't be compiled. *xla, host*: `xla` compiles it with a \
kernel of its own, elsewhere it runs on NumPy. *engine*: the engine handles it itself (placeholders, calls of \
functions).
- {calls} become calls of functions when a graph is imported.

| op | forward | gradient | higher order | engines |
|---|---|---|---|---|
"""
_LEFT_OUT = """
## Left out

A graph with one of these can be stored, differentiated around it and given back; running it raises `UnsupportedOp` \
with the reason.

| op | reason |
|---|---|
"""
_FAMILIES = """
Whole families are left out too: every op whose name matches and that is in no table above.

| family | pattern of the names | reason |
|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    known = op.catalogue()
    head = _HEAD.format(
        count=len(known),
        differentiable=sum(not isinstance(definition.gradient, NoRule) for definition in known.values()),
        left_out=len(REASONS),
        calls=" and ".join(f"`{name}`" for name in BECOME_CALLS),
    )
    rows = [_row(known[name]) for name in sorted(known)]
    reasons = [f"| `{name}` | {REASONS[name]} |" for name in sorted(REASONS)]
    families = [f"| {family} | `{_escaped(pattern)}` | {why} |" for family, pattern, why in FAMILIES]
    parts = [head, *rows, _LEFT_OUT[:-1], *reasons, _FAMILIES[:-1], *families]
    return parts[0] + "\n".join(parts[1:]) + "\n"


def _escaped(pattern: str) -> str:
    return pattern.replace("|", "\\|")


def _row(definition: Op) -> str:
    rule = definition.gradient
    if isinstance(rule, NoRule):
        gradient, order = rule.kind if rule.kind != "refused" else f"refused: {rule.why}", ""
    else:
        gradient, order = "yes", "any"
    return f"| `{definition.name}` | yes | {gradient} | {order} | {_engines(definition)} |"


def _engines(definition: Op) -> str:
    if definition.kernel is None:
        return "engine"
    arguments = (*definition.signature.inputs, *definition.signature.outputs)
    on_host = definition.dynamic or any(entry.dtype is not None and entry.dtype.kind in "sv" for entry in arguments)
    if definition.name in KERNELS:
        return "xla, host"
    return "host" if on_host else "all"


if __name__ == "__main__":
    PAGE.write_text(page())
