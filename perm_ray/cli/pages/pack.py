"""Rollouts made small for the page: columns of numbers, every text once, gzip and base64. Pure.

`templates/rollouts.js` reads the same columns. Texts are named by their place in `texts`; -1 is no text.
An answer is kept as its frame (the answer with its two sections cut out, often the same for many) and the
sections, so that nothing stands in the page twice.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from typing import Any

from perm_ray.cli.pages.run_data import PerspectiveView, RunReport
from perm_ray.tracking.samples import RolloutRow
from perm_ray.types import Judgment, Status

ANALYSIS, RESPONSE = "\ue000", "\ue001"  # stand for the sections in a frame; private characters
STATUSES = tuple(map(str, Status))
_PER_MILLE = 1000


def pack_rollouts(report: RunReport) -> str:
    """The training rollouts and the held-out answers, as base64 of gzip of JSON."""
    packer = _Packer(report.perspectives)
    for row in report.rollouts:
        packer.add(row, heldout=False)
    for rows in report.heldout.values():
        for row in rows:
            packer.add(row, heldout=True)
    text = json.dumps(packer.packed(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(text.encode("utf-8", errors="replace"), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def frame_of(completion: str, analysis: str | None, response: str | None) -> tuple[str, bool]:
    """`completion` with its sections cut out, and true; or as it is, and false, where they cannot be put back
    exactly."""
    frame = completion
    for section, mark in ((response, RESPONSE), (analysis, ANALYSIS)):
        if section:
            frame = frame.replace(section, mark, 1)
    whole = put_together(frame, analysis, response)
    return (frame, True) if frame != completion == whole else (completion, False)


def put_together(frame: str, analysis: str | None, response: str | None) -> str:
    """The completion of a frame, as `templates/detail.js` makes it."""
    return frame.replace(ANALYSIS, analysis or "", 1).replace(RESPONSE, response or "", 1)


class _Packer:
    """Collects columns; texts and scenarios are given numbers as they come."""

    def __init__(self, perspectives: Sequence[PerspectiveView]) -> None:
        self._perspectives = perspectives
        self._texts: dict[str, int] = {}
        self._scenarios: dict[tuple[object, ...], int] = {}
        self._scenario_rows: list[dict[str, object]] = []
        self._rows: dict[str, list[object]] = {}
        self._judgments: dict[str, dict[str, list[object]]] = {view.name: {} for view in perspectives}

    def add(self, row: RolloutRow, heldout: bool) -> None:
        reward = row.reward
        frame, framed = frame_of(row.completion, row.analysis, row.response)
        columns: dict[str, object] = {
            "heldout": int(heldout),
            "step": row.step,
            "scenario": self._scenario(row),
            "index": row.index,
            "frame": self._text(frame),
            "framed": int(framed),
            "analysis": self._text(row.analysis),
            "response": self._text(row.response),
            "reward": _short(reward and reward.value),
            "empathy": _short(reward and reward.empathy),
            "bystander": _short(reward and reward.bystander),
            "length": _short(reward and reward.length),
            "masked": -1 if reward else self._text(row.masked_because),
            "ambiguous": [self._text(reason) for reason in row.ambiguous],
            "advantage": _short(row.advantage),
            "version": row.version,
            "finish": self._text(row.finish_reason),
            "tokens": row.tokens,
        }
        for name, value in columns.items():
            self._rows.setdefault(name, []).append(value)
        for view in self._perspectives:
            columns = self._judgment(row.judgments.get(view.name))
            into = self._judgments[view.name]
            for name, value in columns.items():
                into.setdefault(name, []).append(value)

    def packed(self) -> dict[str, object]:
        return {
            "perspectives": [
                {"name": v.name, "low": v.low, "high": v.high, "reads": v.reads, "kind": v.kind}
                for v in self._perspectives
            ],
            "statuses": STATUSES,
            "texts": list(self._texts),
            "scenarios": self._scenario_rows,
            "rows": self._rows,
            "judgments": self._judgments,
        }

    def _text(self, text: str | None) -> int:
        return -1 if text is None else self._texts.setdefault(text, len(self._texts))

    def _scenario(self, row: RolloutRow) -> int:
        key = (row.scenario_id, row.language, row.culture, row.prompt)
        if key not in self._scenarios:
            self._scenarios[key] = len(self._scenarios)
            parts = (row.persona, row.scenario, row.query)
            self._scenario_rows.append(
                {
                    "id": row.scenario_id,
                    "language": row.language,
                    "culture": row.culture,
                    "parts": list(map(self._text, parts)) if row.query else None,
                    "messages": [[each.role, self._text(each.content)] for each in row.prompt],
                }
            )
        return self._scenarios[key]

    def _judgment(self, judgment: Judgment | None) -> dict[str, Any]:
        if judgment is None:
            judgment = _ABSENT
        return {
            "status": -1 if judgment is _ABSENT else STATUSES.index(judgment.status),
            "score": _short(judgment.score),
            "sampled": _short(judgment.sampled),
            "mass": _short(judgment.mass),
            "entropy": _short(judgment.entropy),
            "spread": _short(judgment.spread),
            "distribution": _per_mille(judgment.distribution),
            "criteria": [[name, _short(value)] for name, value in judgment.criteria.items()],
            "reason": self._text(judgment.reason or None),
            "judge": self._text(judgment.judge or None),
            "rubric": self._text(judgment.rubric_digest or None),
            "tries": judgment.tries,
            "latency_s": _short(judgment.latency_s),
            "tokens": [judgment.tokens.prompt, judgment.tokens.cached, judgment.tokens.completion],
        }


_ABSENT = Judgment("", Status.SKIPPED)


def _short(value: float | None) -> float | None:
    """Four digits after the point; a whole number without one."""
    if value is None:
        return None
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded


def _per_mille(shares: Iterable[float]) -> list[int]:
    return [round(share * _PER_MILLE) for share in shares]
