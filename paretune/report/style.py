"""Colours, shapes and number formats, the same in every figure and table of every study."""

from __future__ import annotations

import colorsys
import itertools
import math

from paretune.analyse.record import group_order

# Full finetuning is orange; LoRA runs from green through blue to purple as its rank grows, always
# darker, so that the order also shows without colour vision. Every stop has a contrast of about
# 3:1 or more against a white and against a nearly black page.
FULL = "#d9600f"
OTHER = "#7d828a"
RANK_STOPS = [(0, "#5fa82f"), (2, "#1fa08c"), (4, "#2191c9"), (6, "#4a6ee0"), (8, "#8848cf")]
LAST_STOP = (11, "#b0308f")
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
# Studies side by side: colours that stay apart without colour vision (after Okabe and Ito, 2008),
# darkened or lightened to about 3:1 against both pages
STUDIES = ["#0a72b8", "#d9600f", "#0a9a74", "#b8589a", "#9a7a08", "#4f93c4", "#7d828a"]


def group_colour(group: str) -> str:
    """Colour of ``full`` or ``lora rN``; a rank has the same colour in every study."""
    if group == "full":
        return FULL
    _, _, rank = group.partition(" r")
    if not rank.isdigit() or int(rank) < 1:
        return OTHER
    place = math.log2(int(rank))
    stops = [*RANK_STOPS, LAST_STOP]
    for (x0, low), (x1, high) in itertools.pairwise(stops):
        if place <= x1:
            return _mix(low, high, (place - x0) / (x1 - x0))
    return LAST_STOP[1]


def groups_in_order(groups: set[str]) -> list[str]:
    """Method groups as legends list them: full, then LoRA by rank."""
    return sorted(groups, key=group_order)


def number(value: float | None, digits: int = 4) -> str:
    """A number to ``digits`` significant digits with a true minus sign; an en dash where none."""
    if value is None or math.isnan(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        text = f"{value:.{digits - 1}e}"
    else:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:.{max(0, min(decimals, 6))}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """``low to high``; an en dash where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "–"
    return f"{number(low, digits)} to {number(high, digits)}"


def tokens(count: int) -> str:
    """A number of tokens in the field's notation: 8M, 1.5B, 65.5k."""
    for size, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # three digits of it are 1 at least
            return f"{count / size:.3g}{suffix}" if count < 999.5 * size else f"{count / size:g}T"
    return str(count)


def seconds(duration: float) -> str:
    """A duration: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(duration)
    if whole < 60:
        return f"{duration:.1f} s" if duration < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _mix(low: str, high: str, share: float) -> str:
    """A colour between two, by hue, lightness and saturation."""
    a, b = (colorsys.rgb_to_hls(*_rgb(colour)) for colour in (low, high))
    mixed = colorsys.hls_to_rgb(*(x + (y - x) * share for x, y in zip(a, b, strict=True)))
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
