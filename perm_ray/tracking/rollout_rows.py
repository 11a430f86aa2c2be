"""Chosen rollouts as plain rows: what the spool can keep, and what traces and tables are made of. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from perm_ray.config.redact import redact
from perm_ray.files import json_line
from perm_ray.tracking.chosen import Chosen
from perm_ray.tracking.samples import judgment_row

Row = Mapping[str, Any]


def chosen_rows(chosen: Sequence[Chosen]) -> list[Row]:
    """A row for each, without secrets, and in what JSON and UTF-8 can hold."""
    lines = [json_line(redact(_row(entry))) for entry in chosen]
    return [json.loads(line.encode("utf-8", errors="replace")) for line in lines]


def trace_key(run_id: str, step: int, row: Row) -> bytes:
    """Names a rollout's trace: the same when it is sent again, another when a step was run anew and gave
    something else."""
    parts = [run_id, str(step), row["scenario_id"], str(row["index"]), row["completion"]]
    return hashlib.sha256("\0".join(parts).encode("utf-8", errors="replace")).digest()


def trace_id(key: bytes) -> str:
    return f"tr-{key[:16].hex()}"


def table(run_id: str, step: int, rows: Sequence[Row]) -> dict[str, list[object]]:
    """The rows as columns, for people who read tables."""
    perspectives = list(dict.fromkeys(name for row in rows for name in row["judgments"]))
    columns: dict[str, list[object]] = {
        "step": [step for _ in rows],
        "scenario_id": [row["scenario_id"] for row in rows],
        "index": [row["index"] for row in rows],
        "why": [row["why"] for row in rows],
        "query": [row["query"] for row in rows],
        "analysis": [row["analysis"] for row in rows],
        "response": [row["response"] for row in rows],
        "reward": [row["reward"] for row in rows],
    }
    for name in perspectives:
        judgments = [row["judgments"].get(name, {}) for row in rows]
        columns[name] = [judgment.get("score") for judgment in judgments]
        columns[f"{name}: reason"] = [judgment.get("reason") for judgment in judgments]
    columns["masked_because"] = [row["masked_because"] for row in rows]
    columns["trace_id"] = [trace_id(trace_key(run_id, step, row)) for row in rows]
    return columns


def _row(entry: Chosen) -> dict[str, object]:
    scenario, rollout = entry.prompt.scenario, entry.rollout
    completion = rollout.completion
    return {
        "scenario_id": completion.scenario_id,
        "index": completion.index,
        "why": entry.why,
        "persona": scenario.persona,
        "scenario": scenario.situation,
        "query": scenario.query,
        "language": scenario.language,
        "culture": scenario.culture,
        "prompt": [{"role": message.role, "content": message.content} for message in entry.prompt.messages],
        "prompt_tokens": len(entry.prompt.token_ids),
        "completion": completion.text,
        "completion_tokens": len(completion.token_ids),
        "analysis": rollout.sections.analysis,
        "response": rollout.sections.response,
        "version": completion.version,
        "finish_reason": str(completion.finish_reason),
        "judgments": {name: judgment_row(judgment) for name, judgment in rollout.judgments.items()},
        "reward": None if rollout.reward is None else rollout.reward.value,
        "masked_because": rollout.masked_because,
        "advantage": entry.advantage,
    }
