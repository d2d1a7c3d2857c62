"""A plot of latencies on one logarithmic scale, as an SVG that needs nothing but itself."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.stats import Sample

WIDTH = 640
_LEFT, _RIGHT, _TOP, _FOOT = 24, 24, 56, 44
_LANE, _BODY = 78, 40
"""The height of a lane, and of the part of it in which its dots are."""
_DOT = 4
"""The diameter of a dot; dots of one column lie beside each other as far as there is space."""
_STYLE = """\
    text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2933; }
    .name { font-weight: 600; }
    .title { font-weight: 700; font-size: 18px; }
    .note { fill: #52606d; }
    .ground { fill: #ffffff; }
    .band { fill: #f1f4f9; }
    .grid { stroke: #c3cad5; }
    .median { stroke: #1f2933; stroke-width: 3; }
    .range { stroke: #9aa5b4; stroke-width: 2; }
    .dots { fill: none; stroke-width: 4; stroke-linecap: round; }
    .ours { stroke: #4c5fd7; }
    .other { stroke: #0b7a5c; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e7eb; }
      .note { fill: #b4bec9; }
      .ground { fill: #1b1f27; }
      .band { fill: #252b36; }
      .grid { stroke: #47505f; }
      .median { stroke: #e4e7eb; }
      .range { stroke: #7b8794; }
      .dots { fill: none; }
      .ours { stroke: #8f9ef5; }
      .other { stroke: #4fd1a5; }
    }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One row of the plot."""

    name: str
    sample: Sample
    """In seconds. Without its measurements, only their range and the median are shown."""
    ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """A logarithmic scale from a power of ten to the greatest value."""

    low: int
    high: float

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> _Scale:
        least, greatest = min(lane.sample.minimum for lane in lanes), max(lane.sample.maximum for lane in lanes)
        return cls(low=math.floor(math.log10(least)), high=math.log10(greatest) + 0.1)

    def x(self, seconds: float) -> float:
        return _LEFT + (math.log10(seconds) - self.low) / (self.high - self.low) * (WIDTH - _LEFT - _RIGHT)

    @property
    def decades(self) -> range:
        return range(self.low, math.floor(self.high) + 1)


def plot(title: str, lanes: Sequence[Lane], note: str) -> str:
    """Return the picture: a lane for each sample with a dot for each measurement, and a line at the median."""
    scale, height = _Scale.of(lanes), _TOP + _LANE * len(lanes) + _FOOT
    tops = [_TOP + _LANE * number for number in range(len(lanes))]
    described = "; ".join(f"{lane.name}: {described_range(lane.sample)}" for lane in lanes)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
        f'  <title id="title">{_escaped(title)}</title>',
        f'  <desc id="description">{_escaped(described)}</desc>',
        f"  <style>\n{_STYLE}  </style>",
        f'  <rect class="ground" width="{WIDTH}" height="{height}" rx="12"/>',
        f'  <text class="title" x="{_LEFT}" y="34">{_escaped(title)}</text>',
        f'  <text class="note" x="{WIDTH - _RIGHT}" y="34" text-anchor="end">{_escaped(note)}</text>',
        *(f'  <rect class="band" x="8" y="{top}" width="{WIDTH - 16}" height="{_LANE - 6}" rx="8"/>' for top in tops),
        *_axis(scale, height),
        *(line for lane, top in zip(lanes, tops, strict=True) for line in _lane(lane, top, scale)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def described_range(sample: Sample) -> str:
    """Return median and greatest value in words."""
    return f"median {duration(sample.median)}, worst {duration(sample.maximum)}"


def duration(seconds: float) -> str:
    """Return a duration to two digits, in milliseconds below 0.1 s."""
    scaled, unit = (seconds * 1000, "ms") if seconds < 0.0995 else (seconds, "s")  # noqa: PLR2004 - what rounds to 99 ms
    return f"{scaled:.2g} {unit}" if scaled < 9.95 else f"{scaled:.0f} {unit}"  # noqa: PLR2004 - what rounds to 9.9


def _lane(lane: Lane, top: int, scale: _Scale) -> Iterator[str]:
    """Yield the name and the figures, and below them the dots."""
    middle, kind, sample = top + _LANE - 8 - _BODY / 2, "ours" if lane.ours else "other", lane.sample
    yield f'  <text class="name" x="{_LEFT}" y="{top + 20}">{_escaped(lane.name)}</text>'
    yield f'  <text class="note" x="{WIDTH - _RIGHT}" y="{top + 20}" text-anchor="end">{described_range(sample)}</text>'
    yield f'  <path class="range" d="M{scale.x(sample.minimum):.1f} {middle:g}H{scale.x(sample.maximum):.1f}"/>'
    if sample.values:
        yield f'  <path class="dots {kind}" d="{_dots(sample.values, middle, scale)}"/>'
    yield f'  <path class="median" d="M{scale.x(sample.median):.1f} {middle - _BODY / 2:g}v{_BODY}"/>'


def _dots(values: Sequence[float], middle: float, scale: _Scale) -> str:
    """Return a path of points, with those of one column above and below each other: how thick a lane is shows how many there are."""
    columns = Counter(round((scale.x(value) - _LEFT) / _DOT) for value in values)
    step = min(_DOT, (_BODY - _DOT) / max(max(columns.values()) - 1, 1))
    points = (
        (_LEFT + column * _DOT, middle + (number - (count - 1) / 2) * step)
        for column, count in sorted(columns.items())
        for number in range(count)
    )
    return "".join(f"M{x} {y:.1f}h0" for x, y in points)


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    """Yield a line and a label for each power of ten."""
    bottom = height - _FOOT
    for decade in scale.decades:
        x, anchor = scale.x(10.0**decade), "start" if decade == scale.low else "middle"
        yield f'  <path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
        yield f'  <text class="note" x="{x:.1f}" y="{bottom + 24}" text-anchor="{anchor}">{_power(decade)}</text>'


def _power(decade: int) -> str:
    return f"{10 ** (decade + 3)} ms" if -3 <= decade < 0 else f"{10.0**decade:g} s"  # noqa: PLR2004 - a millisecond


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
