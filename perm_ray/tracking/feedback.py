"""Pull what people said in MLflow of a run's rollouts, as rated replies for `perm-ray judge calibrate`.

One row is one reply in the neutral format of `evaluation/calibration/labels.py`: the ratings of all its
raters are together, since agreement is measured between the raters of a reply. `raters` has every feedback by
itself, also those that are no number on their perspective's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perm_ray.config.redact import redact, redact_text
from perm_ray.errors import DataError, RunError
from perm_ray.tracking.mlflow_client import TrackedRun, cause_of, connect
from perm_ray.types import Scale

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Pulled:
    """The rows, how many feedbacks are in them, and those of which no number could be made."""

    rows: list[dict[str, object]]
    num_feedbacks: int
    num_without_rating: int


def pull_feedback(uri: str, run_id: str, scales: Mapping[str, Scale]) -> Pulled:
    """Return every feedback of people on the traces of a run. `scales` are those of the perspectives.

    Raises `RunError` when MLflow does not answer, `DataError` when it does not know the run.
    """
    rows: list[dict[str, object]] = []
    num_feedbacks = num_without = 0
    for trace, given in _rated_traces(uri, run_id):
        row, unrated = _row(trace, given, scales)
        rows.append(row)
        num_feedbacks += len(given)
        num_without += unrated
    rows.sort(key=lambda row: (row["step"], str(row["id"])))
    return Pulled(rows, num_feedbacks, num_without)


def find_run(run: str, uri: str | None, configured_uri: str | None) -> tuple[str, str]:
    """Return the run id and the tracking URI of what the command line was given: a run directory or a run
    id."""
    directory = Path(run)
    if directory.is_dir():
        tracked = TrackedRun.read(directory)
        if tracked is None:
            raise DataError(
                f"{run} has no run in MLflow (there is no mlflow_run.json in it): give the directory of a "
                "run that was tracked, or an MLflow run id."
            )
        return tracked.run_id, uri or configured_uri or tracked.uri
    if uri is None:
        raise DataError(
            f"{run!r} is no run directory; if it is an MLflow run id, say with --uri where MLflow is, for "
            "example http://127.0.0.1:5000 or sqlite:////absolute/path/mlflow.db."
        )
    return run, uri


def _rated_traces(uri: str, run_id: str) -> Iterator[tuple[Trace, list[Assessment]]]:
    """Yield the traces that people gave feedback on, with that feedback."""
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment_id = client.get_run(run_id).info.experiment_id
        token: str | None = None
        while True:
            page = client.search_traces(
                locations=[experiment_id],
                run_id=run_id,
                max_results=_PAGE,
                page_token=token,
                include_spans=False,
            )
            for found in page:
                given = [entry for entry in found.info.assessments if _is_of_people(entry)]
                if given:
                    yield client.get_trace(found.info.trace_id, display=False), given
            token = page.token
            if not token:
                return
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DataError(f"MLflow at {redact_text(uri)} has no run {run_id}: check both.") from error
        raise RunError(
            f"MLflow at {redact_text(uri)} did not give the traces of run {run_id} ({cause_of(error)}): is "
            "it up, and are its credentials set?"
        ) from error


def _is_of_people(entry: Assessment) -> bool:
    """Neither a judge's nor taken back or overridden by a later one."""
    return entry.source.source_type == "HUMAN" and entry.feedback is not None and entry.valid is not False


def _row(trace: Trace, given: list[Assessment], scales: Mapping[str, Scale]) -> tuple[dict[str, object], int]:
    """Return a reply with its ratings, and how many of its feedbacks gave none. A rater's latest counts."""
    told, answered = _told_and_answered(trace)
    labels: dict[str, dict[str, float]] = {}
    raters, unrated = [], 0
    for entry in sorted(given, key=lambda entry: entry.last_update_time_ms or 0):
        value = entry.feedback.value if entry.feedback is not None else None
        rating = _rating(value, scales.get(entry.name))
        rater = entry.source.source_id or "unknown"
        if rating is None:
            unrated += 1
        else:
            labels.setdefault(entry.name, {})[rater] = rating
        raters.append(
            {
                "perspective": entry.name,
                "value": value,
                "rater": rater,
                "rater_kind": entry.source.source_type,
                "time": _iso(entry.last_update_time_ms or entry.create_time_ms or 0),
                "rationale": entry.rationale,
            }
        )
    row = {
        "id": trace.info.trace_id,
        **{name: told.get(name) for name in ("persona", "scenario", "query")},
        **{name: answered.get(name) for name in ("analysis", "response")},
        **{name: told[name] for name in ("language", "culture") if told.get(name)},
        "labels": labels,
        "model_labels": _of_judges(trace, labels),
        "scale": {name: [scales[name].low, scales[name].high] for name in labels},
        "raters": raters,
        "step": int(trace.info.tags.get("step", 0)),
        "scenario_id": trace.info.tags.get("scenario_id"),
        "index": int(trace.info.tags.get("index", 0)),
    }
    clean = redact(row)
    assert isinstance(clean, dict)
    return clean, unrated


def _of_judges(trace: Trace, rated: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """Return what the judge gave, on the perspectives that people rated too."""
    found: dict[str, dict[str, float]] = {}
    for entry in trace.info.assessments:
        value = entry.feedback.value if entry.feedback is not None else None
        if entry.source.source_type == "LLM_JUDGE" and entry.name in rated and isinstance(value, int | float):
            found.setdefault(entry.name, {})[entry.source.source_id or "judge"] = float(value)
    return found


def _told_and_answered(trace: Trace) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the root span's inputs and outputs; an answer without a response section is one as a whole."""
    spans = {span.name: span for span in trace.data.spans}
    root, generate = spans.get("rollout"), spans.get("generate")
    if root is not None and generate is not None and isinstance(root.inputs, Mapping):
        answered = dict(root.outputs)
        answered["response"] = answered["response"] or generate.outputs["content"]
        return root.inputs, answered
    raise DataError(
        f"The trace {trace.info.trace_id} has no span with a scenario and an answer: it is not of perm_ray, "
        "or its spans were deleted; delete the trace or give another run."
    )


def _rating(value: object, scale: Scale | None) -> float | None:
    """Return a feedback's value as a number on the scale; people may also type it as text."""
    if scale is None or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if scale.low <= number <= scale.high else None


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
