"""The report as one HTML page that needs nothing else: no network, no server, no other file.

Everything a model or a judge wrote is foreign text. Jinja escapes what stands in the page, the data blocks
hold no `<`, the script makes text nodes only, and the page's own policy lets run the one script and the one
style sheet whose digests it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from markupsafe import Markup

from perm_ray.cli.pages.base import page_template
from perm_ray.cli.pages.curves import Curves, curves_of, waits_in_words
from perm_ray.cli.pages.pack import pack_rollouts
from perm_ray.cli.pages.run_data import RunReport, Span, steps_in_words

_TEMPLATES = Path(__file__).parent / "templates"
# One script: util.js is what the others use, main.js starts them.
_SCRIPTS = ("util.js", "charts.js", "list.js", "detail.js", "rollouts.js", "heldout.js", "main.js")


def report_page(report: RunReport) -> str:
    """The page."""
    template = page_template(_TEMPLATES / "report.html.j2", {"number": number, "signed": signed})
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = _script()
    curves = curves_of(report)
    return template.render(
        report=report,
        steps=steps_in_words(report),
        waits=waits_in_words(report),
        curves=curves,
        main_spans=_main_spans(report),
        evaluation_rows=_evaluation_rows(report, slices=False),
        slice_rows=_evaluation_rows(report, slices=True),
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
        chart_data=Markup(_data_block(_charts(curves))),
        rollout_data=Markup(pack_rollouts(report)),  # base64 has no character that HTML knows
    )


def number(value: float | None) -> str:
    """Three digits after the point, or as many as a small number needs."""
    if value is None:
        return ""
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.3f}" if abs(value) < 10_000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """A difference."""
    text = number(value)
    return text if not text or text.startswith("-") else f"+{text}"


def _script() -> str:
    parts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _data_block(value: object) -> str:
    """JSON that cannot end the element it stands in, whatever it says."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _charts(curves: Curves) -> dict[str, list[dict[str, object]]]:
    """In the order in which the template has places for them."""
    charts = [chart for section in curves.sections for chart in section.charts]
    return {
        "charts": [asdict(chart) for chart in (*charts, *curves.timeline)],
        "others": [asdict(chart) for chart in curves.others],
    }


def _main_spans(report: RunReport) -> list[Span]:
    scores = [f"judge/{view.name}/mean" for view in report.perspectives]
    names = ["reward/mean", *scores, "format/valid", "rollout/length_mean", "policy/kl", "time/step_s"]
    by_name = {span.name: span for span in report.spans}
    return [by_name[name] for name in names if name in by_name]


def _evaluation_rows(report: RunReport, slices: bool) -> list[tuple[str, float, float]]:
    """Metric, before, after; those of slices, or the others."""
    if report.evaluation is None:
        return []
    before, after = report.evaluation.before, report.evaluation.after
    names = [name for name in before if name in after and name.startswith("slice/") == slices]
    return [(name, before[name], after[name]) for name in names]
