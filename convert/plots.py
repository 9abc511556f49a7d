"""Plots as inline SVG: no script, no file beside it, colours from the page's own variables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from convert.report import FileReport

WIDTH, HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 130, 32, 44

_LEAST_KL = 1e-7
"""The bottom of a logarithmic axis: what is smaller is drawn there."""

N_COLOURS = 8


@dataclass(frozen=True)
class _Axis:
    """A range of values drawn between two pixels, on a logarithmic scale."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)


def by_position(files: Sequence[FileReport]) -> str:
    """A line for each file: mean KL divergence over the position in the text, both logarithmic."""
    y = _kl_axis([p.mean_kl for file in files for p in file.positions])
    longest = max((p.stop for file in files for p in file.positions), default=2)
    x = _Axis(1, max(longest, 2), _LEFT, WIDTH - _RIGHT)
    parts = _grid(y) + _x_ticks(x, [1 << power for power in range(0, 12, 2) if 1 << power <= longest], str)
    ends = []
    for number, file in enumerate(files):
        # A bin stands at its middle; positions are counted from 1 here, as tokens read.
        points = [(x.at((p.start + 1 + p.stop) / 2), y.at(p.mean_kl)) for p in file.positions]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline class="{_line_class(number)}" points="{line}"/>')
        parts += [
            _dot(px, py, 4, number, f"{file.mixture}, tokens {p.start + 1} to {p.stop}: {p.mean_kl:.3g}")
            for (px, py), p in zip(points, file.positions, strict=True)
        ]
        ends.append((points[-1][1], number, file.mixture))
    return _svg("Mean KL divergence by position", [*parts, *_end_labels(ends)], "tokens read", "mean KL (nats)")


def by_text(files: Sequence[FileReport]) -> str:
    """A column of dots for each file: every text's mean KL divergence; Japanese left, English right."""
    y = _kl_axis([text.mean_kl for file in files for text in file.texts])
    step = (WIDTH - _LEFT - 20) / max(len(files), 1)
    parts = _grid(y, WIDTH - 20)
    for number, file in enumerate(files):
        middle = _LEFT + step * (number + 0.5)
        for line, name in enumerate(file.mixture.split(", ")):
            parts.append(_text(middle, HEIGHT - _BOTTOM + 18 + 14 * line, name, "middle"))
        for text in file.texts:
            shift = -0.14 * step if text.language == "ja" else 0.14 * step
            note = f"{text.label} ({text.n_tokens} tokens): {text.mean_kl:.3g}"
            parts.append(_dot(middle + shift, y.at(text.mean_kl), 4, 0 if text.language == "ja" else 1, note))
    parts += _legend()
    return _svg("Mean KL divergence by text", parts, "", "mean KL (nats)")


def by_size(files: Sequence[FileReport]) -> str:
    """A dot for each file and language: mean KL divergence over the file's size, both logarithmic."""
    values = [file.groups[name].mean_kl for file in files for name in ("ja", "en") if name in file.groups]
    y = _kl_axis(values)
    sizes = [file.check.size for file in files]
    unit, name = (1e9, "GB") if max(sizes) >= 1e9 else (1e6, "MB")
    x = _Axis(min(sizes) / 1.06, max(sizes) * 1.06, _LEFT, WIDTH - _RIGHT + 60)
    ticks = [min(sizes) * (max(sizes) / min(sizes)) ** (i / 4) for i in range(5 if len(set(sizes)) > 1 else 1)]
    parts = _grid(y, WIDTH - _RIGHT + 60) + _x_ticks(x, ticks, lambda size: f"{size / unit:.2f}")
    labels = []
    for file in files:
        px = x.at(file.check.size)
        means = {name: file.groups[name].mean_kl for name in ("ja", "en") if name in file.groups}
        heights = [y.at(mean) for mean in means.values()]
        parts.append(
            f'<line class="join" x1="{px:.1f}" x2="{px:.1f}" y1="{min(heights):.1f}" y2="{max(heights):.1f}"/>'
        )
        for language, mean in means.items():
            colour, shift = (0, -4) if language == "ja" else (1, 4)  # side by side, also where they are the same
            parts.append(_dot(px + shift, y.at(mean), 5, colour, f"{file.mixture} {language}: {mean:.3g}"))
        labels.append((px, min(heights), max(heights), file.mixture))
    parts += _point_labels(labels) + _legend()
    return _svg("Mean KL divergence by file size", parts, f"size ({name})", "mean KL (nats)")


def _line_class(number: int) -> str:
    return f"line c{number % N_COLOURS}" + (" dashed" if number >= N_COLOURS else "")


def _kl_axis(values: Sequence[float]) -> _Axis:
    finite = [max(value, _LEAST_KL) for value in values if math.isfinite(value)] or [_LEAST_KL]
    low = 10.0 ** math.floor(math.log10(min(finite)))
    high = 10.0 ** math.ceil(math.log10(max(finite)) + 1e-9)
    return _Axis(low, max(high, 10 * low), HEIGHT - _BOTTOM, _TOP)


def _grid(y: _Axis, right: float = WIDTH - _RIGHT) -> list[str]:
    parts = []
    for power in range(round(math.log10(y.low)), round(math.log10(y.high)) + 1):
        at = y.at(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        label = f"{10.0**power:g}" if power > -4 else f"1e{power}"
        parts.append(_text(_LEFT - 8, at + 4, label, "end"))
    return parts


def _x_ticks(x: _Axis, values: Sequence[float], label: Callable[[Any], str]) -> list[str]:
    return [_text(x.at(value), HEIGHT - _BOTTOM + 18, label(value), "middle") for value in values]


def _end_labels(ends: Sequence[tuple[float, int, str]]) -> list[str]:
    """Names at the right end of lines, moved apart where they would overlap."""
    parts = []
    last = -math.inf
    for height, number, name in sorted(ends):
        last = max(height, last + 15)
        at = WIDTH - _RIGHT + 12
        parts.append(f'<rect class="fill c{number % N_COLOURS}" x="{at}" y="{last - 4:.1f}" width="9" height="9"/>')
        parts.append(_text(at + 14, last + 5, name, "start"))
    return parts


def _point_labels(labels: Sequence[tuple[float, float, float, str]]) -> list[str]:
    """Names of points that reach from `top` to `bottom`: above or below, as near as they overlap nothing."""
    placed = [(px, end + 4, 18.0) for px, top, bottom, _ in labels for end in (top, bottom)]  # middle, base line, width
    parts = []
    for px, top, bottom, name in sorted(labels):
        width = 7.2 * len(name)

        def is_free(at: float, px: float = px, width: float = width) -> bool:
            inside = _TOP - 8 < at < HEIGHT - _BOTTOM
            return inside and all(abs(px - x) >= (width + w) / 2 or abs(at - y) >= 13 for x, y, w in placed)

        places = [at for step in range(12) for at in (top - 11 - 13 * step, bottom + 19 + 13 * step)]
        at = next(filter(is_free, places), places[0])
        placed.append((px, at, width))
        parts.append(_text(px, at, name, "middle"))
    return parts


def _legend() -> list[str]:
    parts = []
    for number, name in enumerate(("Japanese", "English")):
        at = WIDTH - 185 + 95 * number
        parts.append(f'<circle class="fill c{number}" cx="{at}" cy="10" r="5"/>')
        parts.append(_text(at + 10, 14, name, "start"))
    return parts


def _dot(x: float, y: float, radius: int, colour: int, note: str) -> str:
    return (
        f'<circle class="dot c{colour % N_COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escape(note)}</title></circle>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], x_title: str, y_title: str) -> str:
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_title, "middle")
        + f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
        + "</svg>"
    )
