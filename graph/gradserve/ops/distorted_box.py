"""Random crops of an image that keep enough of one of its objects, drawn as TensorFlow draws them, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define
from gradserve.ops.philox import Philox, unit_floats
from gradserve.ops.random import stateful_generator

Array = np.ndarray[Any, Any]

_WORDS = (1 << 32) - 1
_EPSILON = 0.0000001


class _Box(NamedTuple):
    """Pixels: left and top are inside, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> np.float32:
        return np.float32((self.right - self.left) * (self.bottom - self.top))

    def common(self, other: _Box) -> _Box:
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return _Box(0, 0, 0, 0) if left > right or top > bottom else _Box(left, top, right, bottom)


class _Words:
    """The words of a generator one by one."""

    def __init__(self, generator: Philox) -> None:
        blocks = (generator.blocks(k, 1)[0] for k in itertools.count())
        self._words: Iterator[Any] = (word for block in blocks for word in block)

    def fraction(self) -> np.float32:
        """A float in [0, 1)."""
        return unit_floats(np.array([next(self._words)], np.uint32))[0]

    def below(self, count: int) -> int:
        """An integer from 0 to count-1, each as likely: words from the uneven end are drawn again."""
        if count & (count - 1) == 0:
            return int(next(self._words)) & (count - 1)
        uneven = _WORDS % count + 1
        while (word := int(next(self._words))) < uneven:
            pass
        return word % count


def _rounded(value: np.float32) -> int:
    return int(np.rint(value))


def _height_and_width(
    image: _Box, low: np.float32, high: np.float32, ratio: np.float32, words: _Words
) -> tuple[int, int] | None:
    """The size of a crop of this ratio (width by height) whose area lies in between, or None."""
    single = np.float32
    smallest, largest = (single(single(part * single(image.right)) * single(image.bottom)) for part in (low, high))
    height, highest = _rounded(np.sqrt(smallest / ratio)), _rounded(np.sqrt(largest / ratio))
    if _rounded(single(highest) * ratio) > image.right:
        highest = int((image.right + 0.5 - float(single(_EPSILON))) / float(ratio))
        if _rounded(single(highest) * ratio) > image.right:
            highest -= 1
    highest = min(highest, image.bottom)
    if height < highest:
        height += words.below(highest - height + 1)
    else:
        height = highest
    width = _rounded(single(height) * ratio)
    if single(width * height) < smallest:
        height += 1
        width = _rounded(single(height) * ratio)
    if single(width * height) > largest:
        height -= 1
        width = _rounded(single(height) * ratio)
    fits = smallest <= single(width * height) <= largest and 0 < width <= image.right and 0 < height <= image.bottom
    return (height, width) if fits else None


def _crop(image: _Box, areas: Sequence[float], ratio: np.float32, words: _Words) -> _Box | None:
    low, high = (np.float32(part) for part in areas)
    if image.area <= 0 or low > high:
        return None
    sizes = _height_and_width(image, low, high, ratio, words)
    if sizes is None:
        return None
    height, width = sizes
    top = words.below(image.bottom - height) if height < image.bottom else 0
    left = words.below(image.right - width) if width < image.right else 0
    return _Box(left, top, left + width, top + height)


def _keeps_enough(crop: _Box, share: np.float32, objects: Sequence[_Box]) -> bool:
    shares = [crop.common(box).area / box.area for box in objects if box.area >= 1]
    return bool(crop.area >= 1) and any(part >= share for part in shares)


def _objects(image: _Box, boxes: Any, whole: bool, node: Node) -> list[_Box]:
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or not ((boxes >= 0) & (boxes <= 1)).all():
        raise InvalidArgument(
            f"{node.name}: bounding boxes are [batch, boxes, 4] of fractions of 0 to 1, not {boxes.shape}.",
            node=node.name,
        )
    scale = np.array([image.bottom, image.right, image.bottom, image.right], np.float32)
    corners = (boxes.reshape(-1, 4).astype(np.float32) * scale).astype(np.int32).tolist()
    found = [_Box(left, top, right, bottom) for top, left, bottom, right in corners]
    if not found and not whole:
        raise InvalidArgument(
            f"{node.name}: there are no bounding boxes: give some, or set use_image_if_no_bounding_boxes.",
            node=node.name,
        )
    return found or [image]


def _sampled(
    generator: Philox, image_size: Any, boxes: Any, share: float, ratios: Sequence[float], areas: Sequence[float],
    attempts: int, whole: bool, node: Node,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Begin [3] and size [3] for Slice, and the crop as fractions [1, 1, 4]; the whole image where no try succeeds."""
    if image_size.shape != (3,) or share < 0 or min(ratios) <= 0 or not 0 < min(areas) <= max(areas) <= 1:
        raise InvalidArgument(
            f"{node.name}: wants an image size [3], a share of at least 0, ratios over 0 and areas from 0 to 1.",
            node=node.name,
        )
    height, width = (int(length) for length in image_size[:2])
    image = _Box(0, 0, width, height)
    objects = _objects(image, boxes, whole, node)
    words = _Words(generator)
    narrowest, widest = (np.float32(ratio) for ratio in ratios)
    crop: _Box = image
    for _ in range(attempts):
        ratio = words.fraction() * (widest - narrowest) + narrowest
        found = _crop(image, areas, ratio, words)
        if found is not None and _keeps_enough(found, np.float32(share), objects):
            crop = found
            break
    begin, size = [crop.top, crop.left, 0], [crop.bottom - crop.top, crop.right - crop.left, -1]
    sides = np.array([crop.top, crop.left, crop.bottom, crop.right], np.float32)
    with np.errstate(invalid="ignore"):
        fractions = sides / np.array([height, width, height, width], np.float32)
    kind = image_size.dtype
    return np.array(begin).astype(kind), np.array(size).astype(kind), fractions.reshape(1, 1, 4)


def _stateful(
    xp: Any, image_size: Any, boxes: Any, *, min_object_covered: float, aspect_ratio_range: list[float],
    area_range: list[float], max_attempts: int, use_image_if_no_bounding_boxes: bool, node: Node, state: Any,
) -> Any:  # fmt: skip
    generator = stateful_generator(node, state, max_attempts)
    rest = aspect_ratio_range, area_range, max_attempts, use_image_if_no_bounding_boxes, node
    return _sampled(generator, image_size, boxes, min_object_covered, *rest)


def _stateful_share(
    xp: Any, image_size: Any, boxes: Any, share: Any, *, aspect_ratio_range: list[float], area_range: list[float],
    max_attempts: int, use_image_if_no_bounding_boxes: bool, node: Node, state: Any,
) -> Any:  # fmt: skip
    generator = stateful_generator(node, state, max_attempts)
    rest = aspect_ratio_range, area_range, max_attempts, use_image_if_no_bounding_boxes, node
    return _sampled(generator, image_size, boxes, float(share), *rest)


def _stateless(
    xp: Any, image_size: Any, boxes: Any, share: Any, seed: Any, *, aspect_ratio_range: list[float],
    area_range: list[float], max_attempts: int, use_image_if_no_bounding_boxes: bool, node: Node,
) -> Any:  # fmt: skip
    rest = aspect_ratio_range, area_range, max_attempts, use_image_if_no_bounding_boxes, node
    return _sampled(Philox.from_stateless_seed(seed), image_size, boxes, float(share), *rest)


_RANGES = (
    "aspect_ratio_range: list(float) = [0.75, 1.3300000429153442], area_range: list(float) = [0.05000000074505806, 1.0],"
    " max_attempts: int = 100, use_image_if_no_bounding_boxes: bool = false) -> (begin: T, size: T, bboxes: float32)"
)
_TYPES = "T: int16|int32|int64|int8|uint8"
_SHAPES = [(3,), (3,), (1, 1, 4)]


def _inputs(draw: Any) -> tuple[Array, Array]:
    size = np.array([draw.size(1, 9), draw.size(1, 9), 3], np.int32)
    return size, np.array([[[0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]]], np.float32)


def _examples(*more: Any, **attrs: Any) -> Any:
    def examples(draw: Any) -> list[Example]:
        return [call(*_inputs(draw), *more, **attrs)]

    return examples


define(
    f"SampleDistortedBoundingBox(image_size: T, bounding_boxes: float32; {_TYPES}, seed: int = 0, seed2: int = 0,"
    f" min_object_covered: float = 0.10000000149011612, {_RANGES}",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_stateful, stateful=True, dynamic=True,
    examples=_examples(seed=3, seed2=4),
)  # fmt: skip
define(
    "SampleDistortedBoundingBoxV2(image_size: T, bounding_boxes: float32, min_object_covered: float32;"
    f" {_TYPES}, seed: int = 0, seed2: int = 0, {_RANGES}",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_stateful_share, stateful=True, dynamic=True,
    examples=_examples(np.float32(0.3), seed=3, seed2=4),
)  # fmt: skip
define(
    "StatelessSampleDistortedBoundingBox(image_size: T, bounding_boxes: float32, min_object_covered: float32,"
    f" seed: Tseed; {_TYPES}, Tseed: index, {_RANGES}",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_stateless, host=("seed",), dynamic=True,
    examples=_examples(np.float32(0.3), np.array([5, 6])),
)  # fmt: skip
