"""Write rollouts as MLflow traces: how an answer came to its reward, with every judge's reason beside it.

A trace has the spans `generate` and `judge.<perspective>`, and one feedback for each perspective, where
people add their own. It is built whole and sent with an explicit client: MLflow's tracing of running
code, its thread-local state and its exporter are not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perm_ray.tracking.chosen import Chosen
from perm_ray.tracking.samples import RolloutRow, judgment_row
from perm_ray.types import Judgment, Status, TokenUsage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Feedback, Span, TraceInfo
    from mlflow.tracing.client import TracingClient

_PREVIEW_CHARS = 1000
_MAX_TRACES = 500  # of one step, when looking for those that MLflow has
_SOURCE_RUN = "mlflow.sourceRun"
_FINALIZED = "mlflow.trace.infoFinalized"  # MLflow's mark of a trace that is whole


@dataclass(frozen=True)
class TraceWriter:
    """Sends traces that belong to one run."""

    client: MlflowClient
    tracing: TracingClient
    experiment_id: str
    run_id: str

    def write(self, step: int, time_ms: int, chosen: Sequence[Chosen]) -> None:
        """Send the traces of rollouts that MLflow does not have yet."""
        present = self._present(step)
        for row, why in chosen:
            key = trace_key(self.run_id, step, row)
            if trace_id(key) not in present:
                trace = _Trace(key, time_ms * 1_000_000, row, why)
                self.tracing.log_spans(self.experiment_id, trace.spans())
                self.tracing.start_trace(trace.info(self.experiment_id, self.run_id, step))

    def _present(self, step: int) -> set[str]:
        found = self.client.search_traces(
            locations=[self.experiment_id],
            run_id=self.run_id,
            filter_string=f"tags.step = '{step}'",
            include_spans=False,
            max_results=_MAX_TRACES,
        )
        return {trace.info.trace_id for trace in found if _FINALIZED in trace.info.trace_metadata}


@dataclass(frozen=True)
class _Trace:
    """One rollout. No time of a single completion is known, so that `generate` takes none here; the
    judges begin together where it ends."""

    key: bytes
    began_ns: int
    row: RolloutRow
    why: str

    @property
    def _seconds(self) -> float:
        return max((judgment.latency_s for judgment in self.row.judgments.values()), default=0.0)

    def spans(self) -> list[Span]:
        row = self.row
        told = {name: getattr(row, name) for name in ("persona", "scenario", "query", "language", "culture")}
        answer = {"analysis": row.analysis, "response": row.response}
        root = self._span(
            "rollout",
            None,
            "CHAIN",
            told,
            answer,
            seconds=self._seconds,
            attributes={
                "why": self.why,
                "reward": row.reward and row.reward.value,
                "advantage": row.advantage,
                "masked_because": row.masked_because,
                "version": row.version,
                "finish_reason": row.finish_reason,
            },
            error=row.masked_because,
        )
        generate = self._span(
            "generate",
            "rollout",
            "CHAT_MODEL",
            {"messages": [{"role": each.role, "content": each.content} for each in row.prompt]},
            {"role": "assistant", "content": row.completion},
            attributes={"mlflow.chat.tokenUsage": _usage(TokenUsage(row.prompt_tokens, 0, row.tokens))},
        )
        return [root, generate, *(self._judge(name) for name in row.judgments)]

    def info(self, experiment_id: str, run_id: str, step: int) -> TraceInfo:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        row = self.row
        return TraceInfo(
            trace_id=trace_id(self.key),
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=self.began_ns // 1_000_000,
            execution_duration=round(self._seconds * 1000),
            state=TraceState.ERROR if row.masked_because else TraceState.OK,
            request_preview=row.query[:_PREVIEW_CHARS],
            response_preview=(row.response or row.completion)[:_PREVIEW_CHARS],
            trace_metadata={_SOURCE_RUN: run_id},
            tags={
                "mlflow.traceName": "rollout",
                "run": run_id,
                "step": str(step),
                "scenario_id": row.scenario_id,
                "index": str(row.index),
                "why": self.why[:200],
            },
            assessments=[self._feedback(name) for name in row.judgments],
        )

    def _judge(self, name: str) -> Span:
        judgment = self.row.judgments[name]
        shown = ("score", "sampled", "mass", "entropy", "spread", "criteria", "distribution", "reason")
        told = ("persona", "scenario", "query", "analysis", "response")
        return self._span(
            f"judge.{name}",
            "rollout",
            "EVALUATOR",
            {key: getattr(self.row, key) for key in told},
            {key: value for key, value in judgment_row(judgment).items() if key in shown},
            seconds=judgment.latency_s,
            attributes={
                "judge": judgment.judge,
                "rubric_digest": judgment.rubric_digest,
                "tries": judgment.tries,
                "status": str(judgment.status),
                "mlflow.chat.tokenUsage": _usage(judgment.tokens),
            },
            error="" if judgment.status == Status.OK else f"{judgment.status}: {judgment.reason}",
        )

    def _feedback(self, name: str) -> Feedback:
        from mlflow.entities import AssessmentError, AssessmentSource, Feedback

        judgment: Judgment = self.row.judgments[name]
        failed = judgment.status != Status.OK
        return Feedback(
            name=name,
            value=None if failed else judgment.score,
            error=AssessmentError(judgment.status.upper(), judgment.reason) if failed else None,
            rationale=judgment.reason or None,
            source=AssessmentSource("LLM_JUDGE", judgment.judge or "no judge was asked"),
            trace_id=trace_id(self.key),
            create_time_ms=self.began_ns // 1_000_000,
            last_update_time_ms=self.began_ns // 1_000_000,
        )

    def _span(
        self,
        name: str,
        parent: str | None,
        kind: str,
        inputs: object,
        outputs: object,
        *,
        seconds: float = 0.0,
        attributes: Mapping[str, Any],
        error: str = "",
    ) -> Span:
        from mlflow.entities import Span

        values = {
            "mlflow.traceRequestId": trace_id(self.key),
            "mlflow.spanType": kind,
            "mlflow.spanInputs": inputs,
            "mlflow.spanOutputs": outputs,
            **attributes,
        }
        return Span.from_dict(
            {
                "trace_id": f"0x{self.key[:16].hex()}",
                "span_id": self._span_id(name),
                "parent_span_id": None if parent is None else self._span_id(parent),
                "name": name,
                "start_time_unix_nano": self.began_ns,
                "end_time_unix_nano": self.began_ns + round(seconds * 1e9),
                "status": {"code": "ERROR" if error else "OK", "message": error},
                "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()},
            }
        )

    def _span_id(self, name: str) -> str:
        return hashlib.sha256(self.key + name.encode()).hexdigest()[:16]


def trace_key(run_id: str, step: int, row: RolloutRow) -> bytes:
    """Return what names a rollout's trace: the same when it is sent again, another when a step was run anew
    and gave something else."""
    parts = [run_id, str(step), row.scenario_id, str(row.index), row.completion]
    return hashlib.sha256("\0".join(parts).encode("utf-8", errors="replace")).digest()


def trace_id(key: bytes) -> str:
    """Return the trace's id in MLflow."""
    return f"tr-{key[:16].hex()}"


def table(run_id: str, step: int, chosen: Sequence[Chosen]) -> dict[str, list[object]]:
    """Return the rollouts as columns, for people who read tables."""
    rows = [row for row, _ in chosen]
    columns: dict[str, list[object]] = {"step": [step for _ in rows]}
    for name in ("scenario_id", "index"):
        columns[name] = [getattr(row, name) for row in rows]
    columns["why"] = [why for _, why in chosen]
    for name in ("query", "analysis", "response"):
        columns[name] = [getattr(row, name) for row in rows]
    columns["reward"] = [row.reward and row.reward.value for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.judgments):
        judgments = [row.judgments.get(name) for row in rows]
        columns[name] = [judgment and judgment.score for judgment in judgments]
        columns[f"{name}: reason"] = [judgment and judgment.reason for judgment in judgments]
    columns["masked_because"] = [row.masked_because for row in rows]
    columns["trace_id"] = [trace_id(trace_key(run_id, step, row)) for row in rows]
    return columns


def _usage(tokens: TokenUsage) -> dict[str, int]:
    usage = {"input_tokens": tokens.prompt, "output_tokens": tokens.completion}
    usage["total_tokens"] = tokens.prompt + tokens.completion
    return usage | ({"cache_read_input_tokens": tokens.cached} if tokens.cached else {})
