"""Static shapes: what is known of a tensor's shape before anything runs.

A shape is a tuple of dimensions, each an int or None (unknown), or None when not even the rank is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradserve.errors import InvalidShape

Dimension = int | None
Shape = tuple[Dimension, ...] | None
StaticShape = tuple[int, ...]

SCALAR: Shape = ()


def is_static(shape: Shape) -> bool:
    """Whether rank and every dimension are known."""
    return shape is not None and None not in shape


def num_elements(shape: Shape) -> int | None:
    """The number of elements, or None where a dimension is unknown (unless another one is 0)."""
    if shape is None:
        return None
    count = 1
    unknown = False
    for dimension in shape:
        if dimension == 0:
            return 0
        if dimension is None:
            unknown = True
        else:
            count *= dimension
    return None if unknown else count


def merge_dimension(a: Dimension, b: Dimension) -> Dimension:
    """What two statements about one dimension say together. Raises InvalidShape if they differ."""
    if a is None:
        return b
    if b is None or a == b:
        return a
    raise InvalidShape(f"Dimensions must be equal, but are {a} and {b}.", a=a, b=b)


def merge(a: Shape, b: Shape) -> Shape:
    """What two statements about one shape say together. Raises InvalidShape if they contradict."""
    if a is None or a == b:
        return b
    if b is None:
        return a
    if len(a) != len(b) or any(x is not None and y is not None and x != y for x, y in zip(a, b, strict=True)):
        raise InvalidShape(f"Shapes {a} and {b} are not compatible.", a=a, b=b)
    return tuple(y if x is None else x for x, y in zip(a, b, strict=True))


def compatible(a: Shape, b: Shape) -> bool:
    """Whether one array could have both shapes."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))


def is_kept(a: Shape, b: Shape) -> bool:
    """Whether static shapes say that an array of shape a keeps it when it is broadcast against one of shape b."""
    if a is None or b is None or len(a) < len(b):
        return False
    right = (1,) * (len(a) - len(b)) + b
    return all(y == 1 or (x == y and x is not None) for x, y in zip(a, right, strict=True))


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape of an elementwise result under NumPy's broadcasting. Raises InvalidShape."""
    if a == b and is_static(a):
        return a
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    left = (1,) * (rank - len(a)) + a
    right = (1,) * (rank - len(b)) + b
    result: list[Dimension] = []
    for x, y in zip(left, right, strict=True):
        if x == 1:
            result.append(y)
        elif y == 1:
            result.append(x)
        elif x is None or y is None:
            result.append(y if x is None else x)
        elif x == y:
            result.append(x)
        else:
            raise InvalidShape(f"Shapes {a} and {b} can't be broadcast together.", a=a, b=b)
    return tuple(result)


def reduction_axes(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The axes over which an array of the broadcast shape `target` is summed to give shape `source` back."""
    lead = len(target) - len(source)
    return list(range(lead)) + [
        lead + axis for axis, size in enumerate(source) if size == 1 and target[lead + axis] != 1
    ]


def normalise_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as one in [0, rank). Raises InvalidShape when it is outside."""
    if not -rank <= axis < rank:
        raise InvalidShape(f"Axis {axis} is out of range for rank {rank}.", axis=axis, rank=rank)
    return axis % rank if rank else 0


def widen(a: Shape, b: Shape) -> Shape:
    """What holds of both shapes: dimensions that differ are unknown."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))
