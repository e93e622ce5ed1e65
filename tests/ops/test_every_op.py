"""Every op with an example: shape rule against kernel, gradient and second gradient against differences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradserve.autodiff.symbolic_gradient
import gradserve.ops  # noqa: F401
from gradserve.graph import op as catalogue
from gradserve.graph import shapes
from tests.ops.differences import Built, run
from tests.ops.draw import Draw
from tests.ops.precision import complexified, doubled, has_complex, in_double_precision

_EXAMPLES = sorted(name for name, op in catalogue.catalogue().items() if op.examples is not None)
_WITH_RULE = [name for name in _EXAMPLES if isinstance(catalogue.lookup(name).gradient, catalogue.BoundRule)]


class _Known(NamedTuple):
    """What a graph says before it runs: the shapes of what is fed, and integers; these are fed, too, where it doesn't."""

    shapes: bool
    integers: bool
    most_examples: int


_KNOWN = {
    "all": _Known(shapes=True, integers=True, most_examples=8),
    "no shapes": _Known(shapes=False, integers=True, most_examples=3),
    "nothing": _Known(shapes=False, integers=False, most_examples=3),
}


def _cases(names: Sequence[str]) -> list[Any]:
    return [
        pytest.param(name, _KNOWN[known], id=f"{name}-{known}")
        for name in names
        for known in (_KNOWN if _reads_integers(name) else ("all", "no shapes"))
    ]


def _reads_integers(name: str) -> bool:
    """Whether an input of the op is no floating number, or must be known on the host."""

    def is_one(value: Any) -> bool:
        return any(map(is_one, value)) if isinstance(value, list) else np.asarray(value).dtype.kind in "iubO"

    drawn = _examples(name, Draw(lambda low, high: high))
    return bool(catalogue.lookup(name).host) or any(is_one(list(example.inputs)) for example in drawn)


def _examples(name: str, draw: Draw) -> Sequence[catalogue.Example]:
    examples = catalogue.lookup(name).examples
    assert examples is not None
    return examples(draw)


def _middle(name: str) -> Sequence[catalogue.Example]:
    """Examples of sizes in the middle."""
    return _examples(name, Draw(lambda low, high: min(high, max(low, 2)), 1))


def _search(name: str, known: _Known, look: Callable[[catalogue.Example], None]) -> None:
    """Looks at examples of sizes in the middle, and at those that Hypothesis draws: the smallest, and others.

    Each case has a search of its own: Hypothesis chains the settings of one search that is run again and again, until
    the chain is deeper than Python's stack.
    """

    @settings(
        max_examples=known.most_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        draw = Draw(lambda low, high: data.draw(st.integers(low, high)), data.draw(st.integers(0, 99)))
        for example in _examples(name, draw):
            look(example)

    for example in _middle(name):
        look(example)
    search()


@pytest.mark.parametrize(("name", "known"), _cases(_EXAMPLES))
def test_the_kernel_gives_the_shapes_and_dtypes_that_the_rules_promise(name: str, known: _Known) -> None:
    def look(example: catalogue.Example) -> None:
        built = Built(catalogue.lookup(name), example, known_shapes=known.shapes, known_integers=known.integers)
        for tensor, value in zip(built.outputs, run(built.outputs, built.sources, built.values), strict=True):
            assert shapes.compatible(tensor.shape, value.shape), (tensor, value.shape)
            assert np.dtype(value.dtype) == tensor.dtype.base.numpy, (tensor, value.dtype)

    _search(name, known, look)


@pytest.mark.parametrize(("name", "known"), _cases(_WITH_RULE))
def test_gradients_of_each_order_agree_with_central_differences(name: str, known: _Known) -> None:
    orders: list[int] = []

    def look(example: catalogue.Example) -> None:
        if not example.differences:
            return
        # What computes in float32 whatever it gets says so by the step that it wants.
        is_single = example.step != catalogue.Example._field_defaults["step"]
        with contextlib.nullcontext() if is_single else in_double_precision():
            given = example if is_single else doubled(example)
            built = Built(catalogue.lookup(name), given, known_shapes=known.shapes, known_integers=known.integers)
            orders.append(built.check(order=given.order, step=given.step))

    _search(name, known, look)
    assert not orders or max(orders) >= 2, f"No second derivative of {name} was other than zero."


def _turned(name: str) -> list[catalogue.Example]:
    """Examples turned into some of complex numbers, where the op takes them and no example has them anyway."""
    op, examples = catalogue.lookup(name), [example for example in _middle(name) if example.build is None]
    if any(has_complex(list(example.inputs)) for example in examples):
        return []
    found = [complexified(op, doubled(example)) for example in examples if example.differences]
    return [example for example in found if has_complex(list(example.inputs))]


_NOT_COMPLEX = {
    **dict.fromkeys(("Svd", "BatchSvd", "Eig", "SelfAdjointEigV2"), "vectors have free phases: see test_factors"),
    **dict.fromkeys(("ClipByValue", "SparseSparseMaximum", "SparseSparseMinimum"), "complex numbers have no order"),
}
_COMPLEX = [name for name in _WITH_RULE if name not in _NOT_COMPLEX and _turned(name)]


@pytest.mark.parametrize("known", [_KNOWN["all"], _KNOWN["nothing"]], ids=["all", "nothing"])
@pytest.mark.parametrize("name", _COMPLEX)
def test_gradients_of_complex_numbers_agree_with_central_differences(name: str, known: _Known) -> None:
    with in_double_precision():
        for example in _turned(name):
            built = Built(catalogue.lookup(name), example, known_shapes=known.shapes, known_integers=known.integers)
            built.check(order=2)
