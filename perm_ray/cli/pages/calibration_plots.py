"""The plots of the calibration page: inline SVG that takes its colours from the page, light or dark.

Matplotlib draws with placeholder colours, which become CSS variables of the page; ids get a prefix, so
that several drawings can live in one document; the text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perm_ray.evaluation.calibration.agreement import FIGURES, Figure
from perm_ray.types import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Placeholder: what it becomes.
_INK, _JUDGE, _PEOPLE = "#010203", "#020304", "#030405"
_COLOURS = {_INK: "currentColor", _JUDGE: "var(--judge)", _PEOPLE: "var(--people)"}
_WIDTH_IN = 4.2  # at 400 px wide its 9 pt text is still 11 px high
_BINS = 5


def agreement_bars(sides: Mapping[str, Mapping[str, Figure]], name: str) -> str:
    """Bars with intervals, a group for each figure: the judge beside people (any sides, in order)."""
    drawing, axes = _new(height_in=0.55 + 0.42 * len(FIGURES) * max(len(sides), 1) / 1.6)
    height = 0.8 / max(len(sides), 1)
    for k, (side, figures) in enumerate(sides.items()):
        for i, figure_name in enumerate(FIGURES):
            figure = figures[figure_name]
            place = i + (k - (len(sides) - 1) / 2) * height
            if figure.value is None:
                axes.text(0.02, place, "not defined", va="center", fontsize=8, color=_INK)
                continue
            colour = _JUDGE if side == "judge" else _PEOPLE
            axes.barh(place, figure.value, height * 0.92, color=colour, label=side if i == 0 else None)
            if figure.low is not None and figure.high is not None:
                axes.plot([figure.low, figure.high], [place, place], color=_INK, linewidth=1.4)
    axes.set_yticks(range(len(FIGURES)), FIGURES)
    axes.invert_yaxis()
    known = [v for side in sides.values() for f in side.values() for v in (f.low, f.value) if v is not None]
    axes.set_xlim(min([0.0, *known]) - 0.02, 1.0)
    axes.axvline(0.0, color=_INK, linewidth=0.8)
    axes.set_xlabel("agreement (1 is perfect, 0 is chance)", color=_INK)
    _legend(axes)
    return _svg(drawing, name)


def reliability(points: Sequence[tuple[float, float]], scale: Scale, name: str, seed: int) -> str:
    """Each item as a dot (moved a little, since many coincide), the mean of people in each fifth of the
    judge's scores, and the diagonal of a judge who says what people say."""
    drawing, axes = _new(height_in=3.2)
    width = scale.high - scale.low
    ends = [scale.low - 0.05 * width, scale.high + 0.05 * width]
    axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle="--")
    if points:
        table = np.array(points)
        moved = table + np.random.default_rng(seed).normal(0, 0.008 * width, table.shape)
        axes.scatter(moved[:, 0], moved[:, 1], s=14, color=_JUDGE, alpha=0.7, linewidths=0, label="a reply")
        order = table[np.argsort(table[:, 0], kind="stable")]
        bins = [part.mean(axis=0) for part in np.array_split(order, _BINS) if len(part)]
        axes.plot(*np.transpose(bins), color=_PEOPLE, marker="o", linewidth=1.6, label="mean of a fifth")
        _legend(axes)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("judge, on the scale of the ratings", color=_INK)
    axes.set_ylabel("mean of people", color=_INK)
    return _svg(drawing, name)


def _new(height_in: float) -> tuple[Drawing, Axes]:
    from matplotlib.figure import Figure as NewDrawing

    drawing = NewDrawing(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = drawing.subplots()
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    return drawing, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, **place)


def _svg(drawing: Drawing, name: str) -> str:
    """The drawing as an <svg> element, without what only a file of its own needs. The same input gives
    the same text: no date, and ids that do not depend on the process."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for placeholder, colour in _COLOURS.items():
        text = text.replace(placeholder, colour)
    return text
