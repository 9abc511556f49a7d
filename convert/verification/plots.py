"""A report's plots, drawn by matplotlib as SVG: inside its page, and as a file of their own."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from itertools import product

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, offset_copy
from numpy.typing import NDArray

from convert.quantization.mixtures import ALL
from convert.verification.report import FileReport

Draw = Callable[[Axes, Sequence[FileReport]], None]

_INCH = 72
"""A pixel of the SVG is a point."""

_STYLE = {
    "figure.dpi": _INCH,
    "font.size": 12,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "weblab-local",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#8887",
    "legend.frameon": False,
    **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], "#5c5a56"),
    **dict.fromkeys([f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")], False),
    **dict.fromkeys(["xtick.bottom", "xtick.minor.bottom", "ytick.left", "ytick.minor.left"], False),
}

_COLOURS = ("#3d80e6", "#dd5f2a", "#1f9c7f", "#b77d12", "#cf5499", "#6a8f1f", "#7f6be0", "#848484")
"""Seen on a light page and on a dark one: their contrast is at least 3 to either."""

_LANGUAGES = {"ja": ("Japanese", _COLOURS[0], -4), "en": ("English", _COLOURS[1], 4)}
"""Name, colour, and by how many pixels the dots are moved, so that both are seen where they are the same."""

_LEAST_KL = 1e-7
"""The bottom of a logarithmic axis: what is smaller is drawn there."""

_DIRECTIONS = np.array([(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)])
"""From a point to its name, the best first."""


def inline(title: str, draw: Draw, files: Sequence[FileReport]) -> str:
    """Return one plot as an element of an HTML page: nothing behind it, and a note on each dot under the pointer."""
    width, height = 720, 340
    with style.context(["default", _STYLE]):
        figure = Figure((width / _INCH, height / _INCH))
        draw(figure.add_axes((0.09, 0.15, 0.89, 0.75), facecolor="none"), files)
        source = _svg(figure, facecolor="none")
    drawn = source[source.index('<g id="figure_1">') :]
    drawn = re.sub(r' id="note:([^"]*)">', r"><title>\1</title>", drawn)
    drawn = re.sub(r' id="[^"]*"', "", drawn)  # another plot of the page has the same
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{drawn}'


def sizes(title: str, models: Mapping[str, Sequence[FileReport]]) -> str:
    """Return an SVG file with `by_size` for the files of each model, side by side."""
    with style.context(["default", _STYLE]):
        figure = Figure((480 * len(models) / _INCH, 360 / _INCH))
        for number, (name, files) in enumerate(models.items()):
            axes = figure.add_axes(((number + 0.13) / len(models), 0.14, 0.83 / len(models), 0.68))
            axes.set_title(name, loc="left", pad=32)
            by_size(axes, files)
        return _svg(figure, facecolor="white", metadata={"Title": title})


def by_size(axes: Axes, files: Sequence[FileReport]) -> None:
    """A dot for each file and language: mean KL divergence over the file's size, both logarithmic."""
    means = [
        {name: mean for name in _LANGUAGES if name in file.groups and math.isfinite(mean := file.groups[name].mean_kl)}
        for file in files
    ]
    _kl_axis(axes, [mean for of_file in means for mean in of_file.values()])
    unit, name = (1e9, "GB") if max(file.check.size for file in files) >= 1e9 else (1e6, "MB")
    x = [file.check.size / unit for file in files]
    axes.set(xscale="log", xlabel=f"size ({name})", xlim=(min(x) / 1.06, max(x) * 1.06))
    ticks = np.geomspace(min(x), max(x), 5 if len(set(x)) > 1 else 1)
    axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
    for at, file, of_file in zip(x, files, means, strict=True):
        for language, mean in of_file.items():
            _, colour, shift = _LANGUAGES[language]
            _dot(axes, at, mean, colour, f"{file.mixture} {language}: {mean:.3g}", shift)
    _name_points(axes, [(at, list(m.values()), file.mixture) for at, file, m in zip(x, files, means, strict=True) if m])
    _legend_of_languages(axes)


def by_position(axes: Axes, files: Sequence[FileReport]) -> None:
    """A line for each file: mean KL divergence over the position in the text, both logarithmic."""
    _kl_axis(axes, [p.mean_kl for file in files for p in file.positions])
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom, width * 0.78, height))
    longest = max((p.stop for file in files for p in file.positions), default=2)
    ticks = [1 << power for power in range(0, 12, 2) if 1 << power <= longest]
    axes.set(xscale="log", xlabel="tokens read", xlim=(0.9, longest))
    axes.set_xticks(ticks, map(str, ticks))
    ends: list[tuple[float, Line2D]] = []
    for number, file in enumerate(files):
        colour, dashes = _COLOURS[number % len(_COLOURS)], "-" if number < len(_COLOURS) else "--"
        # A bin stands at its middle; positions are counted from 1 here, as tokens read.
        points = [((p.start + 1 + p.stop) / 2, max(p.mean_kl, _LEAST_KL)) for p in file.positions]
        (line,) = axes.plot(*zip(*points, strict=True), dashes, color=colour, linewidth=2, label=file.mixture)
        ends.append((points[-1][1], line))
        for (x, y), p in zip(points, file.positions, strict=True):
            _dot(axes, x, y, colour, f"{file.mixture}, tokens {p.start + 1} to {p.stop}: {p.mean_kl:.3g}")
    downwards = [line for _, line in sorted(ends, key=lambda end: -end[0])]
    axes.legend(handles=downwards, loc="upper left", bbox_to_anchor=(1.01, 1.05))


def by_text(axes: Axes, files: Sequence[FileReport]) -> None:
    """A column of dots for each file: every text's mean KL divergence; Japanese left, English right."""
    _kl_axis(axes, [text.mean_kl for file in files for text in file.texts])
    axes.set_xlim(-0.5, len(files) - 0.5)
    axes.set_xticks(range(len(files)), [file.mixture.replace(", ", "\n") for file in files])
    for number, file in enumerate(files):
        for text in file.texts:
            _, colour, shift = _LANGUAGES[text.language]
            note = f"{text.label} ({text.n_tokens} tokens): {text.mean_kl:.3g}"
            _dot(axes, number, text.mean_kl, colour, note, 2 * shift)
    _legend_of_languages(axes)


def _kl_axis(axes: Axes, values: Sequence[float]) -> None:
    powers = [math.log10(max(value, _LEAST_KL)) for value in values if math.isfinite(value)] or [-1.0]
    low = math.floor(min(powers))
    ticks = range(low, max(math.ceil(max(powers)), low + 1) + 1)
    axes.set(yscale="log", ylabel="mean KL (nats)", ylim=(10.0 ** ticks[0], 10.0 ** ticks[-1]))
    axes.set_yticks([10.0**n for n in ticks], [f"{10.0**n:g}" if n > -4 else f"1e{n}" for n in ticks])


def _dot(axes: Axes, x: float, y: float, colour: str, note: str, shift: int = 0) -> None:
    """A dot with `note`, moved by `shift` pixels: a line of no length with round ends, which refers to no marker."""
    axes.plot(
        [x, x],
        [max(y, _LEAST_KL)] * 2,
        color=colour,
        linewidth=8,
        solid_capstyle="round",
        alpha=0.7,
        gid=f"note:{note}",
        clip_on=False,
        transform=offset_copy(axes.transData, axes.get_figure(root=True), shift, units="dots"),
    )


def _legend_of_languages(axes: Axes) -> None:
    for name, colour, _ in _LANGUAGES.values():
        axes.plot([], [], color=colour, linewidth=8, solid_capstyle="round", label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.01), ncols=2, handlelength=0)


def _name_points(axes: Axes, points: Sequence[tuple[float, Sequence[float], str]]) -> None:
    """Write each name where it covers nothing, as near as can be; a thin line leads to one that is further off."""
    dots = [axes.transData.transform([(x, max(y, _LEAST_KL)) for y in ys]) for x, ys, _ in points]
    frame = axes.bbox.padded(6)
    names: list[Bbox] = []
    for number, (_, _, name) in enumerate(points):
        others = [box for i, of_point in enumerate(dots) if i != number for box in map(_around_dot, of_point)]
        at, reach = dots[number].mean(axis=0), np.ptp(dots[number][:, 1]) / 2
        weight = "bold" if name in ALL and ALL[name].compensated else "normal"
        half = _half_size(axes, name, weight)
        for distance, direction in product(range(0, 100, 5), _DIRECTIONS):
            middle = at + direction * (half + np.array([12 + distance, 6 + reach + distance]))
            box = Bbox([middle - half, middle + half])
            if frame.contains(*box.min) and frame.contains(*box.max) and not box.count_overlaps([*names, *others]):
                break
        names.append(box)
        line = {"arrowstyle": "-", "color": "#8888", "shrinkB": 7}
        axes.annotate(name, at, middle, "figure pixels", ha="center", va="center", weight=weight, arrowprops=line)


def _half_size(axes: Axes, name: str, weight: str) -> NDArray[np.float64]:
    text = axes.text(0, 0, name, weight=weight)
    size = text.get_window_extent().size
    text.remove()
    return np.array(size) / 2


def _around_dot(middle: NDArray[np.float64]) -> Bbox:
    """The room that belongs to a dot: a name in it would be read as the dot's own."""
    room = np.array([14, 12])
    return Bbox([middle - room, middle + room])


def _svg(figure: Figure, facecolor: str, metadata: Mapping[str, str] | None = None) -> str:
    """Return the file's text, the same for the same plot: nothing in it says when or by what it was made."""
    for artist in figure.findobj():
        artist.set_clip_on(False)  # a clip path would have an id; all values are within their axes
    written = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", facecolor=facecolor, metadata={**nothing, **(metadata or {})})
    return written.getvalue()
