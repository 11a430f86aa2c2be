"""Report what probes say about the judges: pass rates, attack scores, and their rise. Pure.

`probe_report` is where the verb `perm-ray judge probe` and training meet; `ProbeWatch` is what a
training loop keeps of it between its probings. A judgment that failed is counted apart: it neither
passes nor fails, as everywhere in this library.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from perm_ray.config.records import ProbeConfig
from perm_ray.evaluation.probes.probe_set import RESERVED_KINDS, Probe, item_id, probe_items
from perm_ray.judges.perspective import Perspective
from perm_ray.types import JudgeItem, Judgment, Sections, Status

Judgments = Mapping[str, Mapping[str, Judgment]]  # by item id, then by perspective


@dataclass(frozen=True, slots=True)
class Outcome:
    """One probe from one perspective. `better` and `worse` are what the texts were given, as shares of
    the scale in [0, 1]; None where the judgment has no score, and then `why` says why."""

    probe: Probe
    perspective: str
    better: float | None
    worse: float | None
    why: str = ""

    @property
    def passed(self) -> bool | None:
        """Return whether the order was kept; None when it cannot be told."""
        if self.better is None or self.worse is None:
            return None
        return self.probe.holds(self.better, self.worse)


@dataclass(frozen=True, slots=True)
class PassRate:
    """The share of `judged` pairs of texts that were put in the right order; `failed` more had no score."""

    passed: int
    judged: int
    failed: int

    @property
    def rate(self) -> float | None:
        """Return the share that passed, in [0, 1]; None of nothing."""
        return self.passed / self.judged if self.judged else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Wilson's score interval of the rate (E. B. Wilson, JASA 22, 1927), from scipy; None of nothing."""
        from scipy.stats import binomtest

        if not self.judged:
            return None
        found = binomtest(self.passed, self.judged).proportion_ci(confidence, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class ProbeReport:
    """Every outcome, and what follows. `perspectives` and `kinds` are in the order of configuration and
    probes; either may be None in what follows, and then means all."""

    outcomes: Sequence[Outcome]
    perspectives: tuple[str, ...]
    kinds: tuple[str, ...]

    def pass_rate(self, perspective: str | None = None, kind: str | None = None) -> PassRate:
        """Over all probes of `kind` from `perspective`."""
        count = Counter(outcome.passed for outcome in self._of(perspective, kind))
        return PassRate(count[True], count[True] + count[False], count[None])

    def attack_score(self, perspective: str | None = None, kind: str | None = None) -> float | None:
        """Return the mean share of the scale that the worse texts were given, in [0, 1]; None of nothing."""
        shares = [outcome.worse for outcome in self._of(perspective, kind) if outcome.worse is not None]
        return fmean(shares) if shares else None

    def failures(self) -> list[Outcome]:
        """Return the probes that did not pass, the one that was missed by most first."""
        failed = [outcome for outcome in self.outcomes if outcome.passed is False]
        return sorted(failed, key=lambda outcome: (outcome.better or 0.0) - (outcome.worse or 0.0))

    def metrics(self) -> dict[str, float]:
        """`probe/<perspective>/<kind>`: the attack score; beside them `pass_rate` and `failed` (pairs
        without a score). A mean over nothing is absent."""
        metrics: dict[str, float] = {}
        for perspective in self.perspectives:
            rate = self.pass_rate(perspective)
            if rate.rate is not None:
                metrics[f"probe/{perspective}/pass_rate"] = rate.rate
            metrics[f"probe/{perspective}/failed"] = float(rate.failed)
            for kind in self.kinds:
                score = self.attack_score(perspective, kind)
                if score is not None:
                    metrics[f"probe/{perspective}/{kind}"] = score
        return metrics

    def rows(self) -> list[dict[str, object]]:
        """Return each outcome as plain values, for a file of rows."""
        return [
            {
                "probe": outcome.probe.probe_id,
                "kind": outcome.probe.kind,
                "perspective": outcome.perspective,
                "better": outcome.better,
                "worse": outcome.worse,
                "passed": outcome.passed,
                "why": outcome.why,
            }
            for outcome in self.outcomes
        ]

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values, for a JSON file."""
        whole = {"all": self._row(None, None)} | {kind: self._row(None, kind) for kind in self.kinds}
        by_perspective = {
            name: {"all": self._row(name, None)} | {kind: self._row(name, kind) for kind in self.kinds}
            for name in self.perspectives
        }
        return {"pass_rates": whole, "perspectives": by_perspective, "outcomes": self.rows()}

    def _row(self, perspective: str | None, kind: str | None) -> dict[str, object]:
        rate = self.pass_rate(perspective, kind)
        return {
            "passed": rate.passed,
            "judged": rate.judged,
            "failed": rate.failed,
            "rate": rate.rate,
            "interval": rate.interval(),
            "attack_score": self.attack_score(perspective, kind),
        }

    def _of(self, perspective: str | None, kind: str | None) -> list[Outcome]:
        return [
            outcome
            for outcome in self.outcomes
            if perspective in (None, outcome.perspective) and kind in (None, outcome.probe.kind)
        ]


def probe_report(
    probes: Sequence[Probe], judgments: Judgments, perspectives: Mapping[str, Perspective]
) -> ProbeReport:
    """`judgments` has one for every item of `probe_items(probes)` and each of `perspectives`; a probe's
    perspective that is not among these is left out. A missing judgment is a `KeyError`."""
    outcomes = [
        _outcome(probe, perspectives[name], judgments)
        for probe in probes
        for name in probe.perspectives
        if name in perspectives
    ]
    kinds = tuple(dict.fromkeys(outcome.probe.kind for outcome in outcomes))
    return ProbeReport(outcomes, tuple(perspectives), kinds)


def _outcome(probe: Probe, perspective: Perspective, judgments: Judgments) -> Outcome:
    low, high = perspective.scale.low, perspective.scale.high
    shares: list[float | None] = []
    why: list[str] = []
    for sections in (probe.better, probe.worse):
        judgment = _judgment(probe, sections, perspective.name, judgments)
        if judgment.status == Status.OK and judgment.score is not None:
            shares.append((judgment.score - low) / (high - low))
        else:
            shares.append(None)
            why.append(f"{judgment.status}: {judgment.reason}")
    return Outcome(probe, perspective.name, shares[0], shares[1], "; ".join(why))


def _judgment(probe: Probe, sections: Sections, perspective: str, judgments: Judgments) -> Judgment:
    return judgments[item_id(probe.scenario, sections)][perspective]


# ---- during training ------------------------------------------------------------------------


class Rise(NamedTuple):
    """An attack score that has risen, from `first` to `now`."""

    metric: str
    first: float
    now: float


def risen(first: Mapping[str, float], now: Mapping[str, float], threshold: float) -> list[Rise]:
    """Return the attack scores of `now` that are at least `threshold` above what they were `first`, the
    largest rise first. Both are `ProbeReport.metrics()`; a score that either lacks is no rise."""
    rises = [
        Rise(name, first[name], value)
        for name, value in now.items()
        if name in first and name.rpartition("/")[2] not in RESERVED_KINDS
        if value - first[name] >= threshold or math.isclose(value - first[name], threshold)
    ]
    return sorted(rises, key=lambda rise: rise.first - rise.now)


@dataclass(frozen=True, slots=True)
class Probing:
    """One look at the judges: its report, its metrics, and the attacks that pay more than at first."""

    report: ProbeReport
    metrics: Mapping[str, float]
    rises: Sequence[Rise]


class ProbeWatch:
    """Probes the judges of a run every `config.every` steps, step 0 (before training) included.

    The loop asks `due`, has `items` judged and gives the judgments to `look`. `first` are the metrics
    of the first look, to which later ones are compared: a run that resumes gives them back.
    """

    def __init__(
        self,
        config: ProbeConfig,
        probes: Sequence[Probe],
        perspectives: Mapping[str, Perspective],
        first: Mapping[str, float] | None = None,
    ) -> None:
        self._config = config
        self._probes = probes
        self._perspectives = perspectives
        self.items: tuple[JudgeItem, ...] = probe_items(probes)
        self.first: Mapping[str, float] = dict(first or {})

    def due(self, step: int) -> bool:
        """Return whether the judges are to be probed after this step."""
        return self._config.every > 0 and step % self._config.every == 0

    def look(self, judged: Iterable[tuple[JudgeItem, Mapping[str, Judgment]]]) -> Probing:
        """Evaluate the judgments of all `items`. `probe/rises` is how many attack scores have risen."""
        judgments = {item.item_id: by_perspective for item, by_perspective in judged}
        report = probe_report(self._probes, judgments, self._perspectives)
        metrics = report.metrics()
        self.first = {**metrics, **self.first}  # a score that was missing at first begins later
        rises = risen(self.first, metrics, self._config.rise_threshold)
        return Probing(report, {**metrics, "probe/rises": float(len(rises))}, rises)
