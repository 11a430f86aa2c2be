"""Make the report one HTML page that needs nothing else: no network, no server, no other file.

Everything a model or a judge wrote is foreign text. Jinja escapes what stands in the page, the rollouts are
base64, the script makes text nodes only, and the page's own policy lets run the one script and the one
style sheet whose digests it names, and load nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from markupsafe import Markup

from perm_ray.cli.pages.base import page_template
from perm_ray.cli.pages.run_data import RunReport
from perm_ray.tracking.samples import plain_row

_TEMPLATES = Path(__file__).parent / "templates"
# One script: util.js is what the others use, main.js starts them.
_SCRIPTS = ("util.js", "list.js", "detail.js", "rollouts.js", "heldout.js", "main.js")
_MAIN = ("reward/mean", "format/valid", "rollout/length_mean", "policy/kl", "time/step_s")


def report_page(report: RunReport) -> str:
    """Return the page."""
    template = page_template(_TEMPLATES / "report.html.j2", {"number": number, "signed": signed})
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(scripts) + "})();\n"
    return template.render(
        report=report,
        main_rows=[row for row in report.metrics if row.name in _MAIN or _is_score(row.name)],
        heldout_rows=[row for row in report.evaluation if not row.name.startswith("slice/")],
        slice_rows=[row for row in report.evaluation if row.name.startswith("slice/")],
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
        rollout_data=Markup(_packed(report)),  # base64 has no character that HTML knows
    )


def number(value: float) -> str:
    """Format a number with three digits after the point, or as many as a small number needs."""
    if value and abs(value) < 0.01:
        return f"{value:.3g}"
    return f"{value:,.3f}" if abs(value) < 10_000 else f"{value:,.0f}"


def signed(value: float) -> str:
    """Format a difference."""
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def _is_score(name: str) -> bool:
    return name.startswith("judge/") and name.endswith("/mean")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _packed(report: RunReport) -> str:
    """Return the rows as they are in `samples/`, as base64 of gzip of JSON."""
    document = {
        "perspectives": [asdict(view) for view in report.perspectives],
        "rollouts": [plain_row(row) for row in report.rollouts],
        "heldout": [plain_row(row) for row in report.heldout],
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(text.encode("utf-8", errors="replace"), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")
