"""Where things go in a chart: axis ranges that one far point does not spoil, labels kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FAR = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
WORTH = 0.6  # an axis is cut where that leaves at most this share of it
NARROW, WIDE = 290, 560  # pixels of a chart's plot on a phone and on a desk
LETTER, LINE = 6.6, 13.0  # pixels of a bold letter's width and a line's height at 11 px


@dataclass(frozen=True)
class Range:
    """What an axis shows: [low, high], of [whole_low, whole_high] when all were shown."""

    low: float
    high: float
    whole_low: float
    whole_high: float

    @property
    def cut(self) -> bool:
        """Whether some values lie beyond the axis."""
        return (self.low, self.high) != (self.whole_low, self.whole_high)

    def outside(self, values: Iterable[float]) -> list[int]:
        """Indices of the values beyond the axis."""
        return [i for i, v in enumerate(values) if not self.low <= v <= self.high]


def axis_range(
    values: Iterable[float],
    *,
    keep: Iterable[float] = (),
    zero: bool = True,
    below: float = 0.06,
    above: float = 0.06,
) -> Range:
    """A range for finite ``values`` (and 0), with margins as shares of it.

    Values beyond Tukey's far fences, other than those to ``keep``, are left outside where that
    frees at least two fifths of the axis: one arm that exploded must not flatten all others to a
    line.
    """
    finite = sorted(v for v in values if math.isfinite(v))
    if not finite:
        return Range(0.0, 1.0, 0.0, 1.0)
    low_quarter, high_quarter = _quantile(finite, 0.25), _quantile(finite, 0.75)
    fence = FAR * (high_quarter - low_quarter)
    near = [v for v in finite if low_quarter - fence <= v <= high_quarter + fence]
    ends = [v for v in keep if math.isfinite(v)] + ([0.0] if zero else [])
    whole = _with_margin(min(finite + ends), max(finite + ends), below, above)
    inner = _with_margin(min(near + ends), max(near + ends), below, above)
    if fence > 0 and inner[1] - inner[0] <= WORTH * (whole[1] - whole[0]):
        return Range(*inner, *whole)
    return Range(*whole, *whole)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """``values`` moved as little as keeps them ``gap`` apart, within [low, high] where they fit.

    Least squares: values that are too close form a block around their mean (pool adjacent
    violators).
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    blocks: list[tuple[float, int]] = []  # mean of value - place * gap, and how many
    for place, i in enumerate(order):
        block = (values[i] - place * gap, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, count = blocks.pop()
            total = count + block[1]
            block = ((mean * count + block[0] * block[1]) / total, total)
        blocks.append(block)
    flat = [mean for mean, count in blocks for _ in range(count)]
    moved = [0.0] * len(values)
    for place, i in enumerate(order):
        least, most = low + place * gap, high - (len(values) - 1 - place) * gap
        moved[i] = min(max(flat[place] + place * gap, least), most)
    return moved


def labels_that_fit(
    anchors: Sequence[tuple[float, float]],
    texts: Sequence[str],
    points: Sequence[tuple[float, float]],
    size: tuple[float, float],
) -> list[bool]:
    """Which labels, right of and below their anchors, touch no point, label or edge.

    Anchors and points are shares of the plot (0 to 1, from the lower left), ``size`` its pixels.
    Earlier labels have precedence.
    """
    width, height = size
    taken: list[tuple[float, float, float, float]] = [
        (x * width - 4, y * height - 4, x * width + 4, y * height + 4) for x, y in points
    ]
    fits = []
    for (x, y), text in zip(anchors, texts, strict=True):
        left, top = x * width + 9, y * height - 3
        box = (left, top - LINE, left + LETTER * len(text), top)
        free = box[2] <= width and box[1] >= 0 and not any(_touch(box, other) for other in taken)
        fits.append(free)
        if free:
            taken.append(box)
    return fits


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _with_margin(low: float, high: float, below: float, above: float) -> tuple[float, float]:
    span = (high - low) or abs(high) or 1.0
    return low - below * span, high + above * span


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
