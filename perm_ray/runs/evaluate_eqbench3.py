"""Run EQ-Bench 3's official runner, unchanged, against endpoints of ours, and read what it wrote.

The runner works in a copy of the user's clone, so that a choice of scenarios changes nothing of it. Its own
result files stay there; run it again, and it goes on with what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perm_ray.config.engines import EndpointModel, EngineModel
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, DataError, RunError
from perm_ray.evaluation.eqbench3 import (
    BOARD_JUDGE,
    RUNNER,
    SCENARIOS,
    chosen_scenarios,
    criteria_of,
    measured_scenarios,
    scenario_rows,
)
from perm_ray.evaluation.model_comparison import Measured
from perm_ray.experience import Report
from perm_ray.files import text_digest, write_jsonl_atomic
from perm_ray.models.resolve import check_context, resolve_model
from perm_ray.models.server import Served, served
from perm_ray.runs.candidates import Candidate, begin_evaluation, find_candidates, kept_rows
from perm_ray.runs.evaluate_pairs import judge_of
from perm_ray.runs.signals import StopSignals

RESULTS = "eqbench3_runs.json"  # of the runner, in its copy of the clone
_THREADS = 4  # requests at once
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint as the runner is told of it."""

    url: str
    model: str
    key: str


@dataclass(frozen=True, slots=True)
class EqBenchPlan:
    """A run of the runner for each candidate, with everything checked; `judge` is an entry of `models`."""

    config: Config
    candidates: Sequence[Candidate]
    clone: Path
    python: str
    prompts: str
    scenarios: Sequence[str]
    judge: str
    judge_folder: Path | None

    @property
    def judge_model(self) -> EngineModel | EndpointModel:
        return self.config.models[self.judge]

    @property
    def comparable(self) -> bool:
        """Return whether the judge is that of the public board, and every scenario is asked."""
        return BOARD_JUDGE in self.judge_model.model and len(self.scenarios) >= 45

    def folder(self, out: Path, candidate: Candidate) -> Path:
        """Return where the runner works for a candidate."""
        return out / "runner" / candidate.digest[:16]


def plan_eqbench3(
    config: Config,
    models: Sequence[str],
    clone: Path,
    scenarios: Sequence[str],
    judge: str | None,
    python: str,
) -> EqBenchPlan:
    """Find the models and the judge, and check the clone and the runner's own needs.

    Args:
        config: `rollout.engine` serves the models, `models` has the judge.
        models: See `find_candidates`.
        clone: The user's clone of the runner.
        scenarios: Ids; none for all.
        judge: An entry of `models`; None for `evaluation.judge_model`, or the first that judges.
        python: The interpreter that has what the runner needs.

    Raises:
        UserError: Something cannot be used as it is.
    """
    prompts, kept = chosen_scenarios(clone, scenarios)
    judge = judge_of(config, judge)
    model = config.models[judge]
    folder = None
    if isinstance(model, EngineModel):
        folder = resolve_model(model.model, model.adapter)
        check_context(folder, model.max_model_len, f"models.{judge}.max_model_len")
    elif model.api_key_env and not os.environ.get(model.api_key_env):
        raise ConfigError(f"{model.api_key_env} must hold the key of models.{judge}, found nothing: set it.")
    candidates = find_candidates(models, config.models)
    for candidate in candidates:
        if isinstance(candidate.model, Path):
            length = config.rollout.engine.max_model_len
            check_context(candidate.model, length, "rollout.engine.max_model_len")
    python = os.path.abspath(python) if os.sep in python else python  # the runner has another directory
    check = [python, RUNNER, "--help"]
    try:
        done = subprocess.run(check, cwd=clone, capture_output=True, text=True, timeout=300, check=False)
    except OSError as error:
        raise ConfigError(
            f"--python must be a Python interpreter, found {python} ({error.strerror})."
        ) from error
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"EQ-Bench 3's runner does not start with {python} ({why}): install its requirements.txt in an "
            "environment of its own, and name that environment's interpreter with --python."
        )
    return EqBenchPlan(config, candidates, clone, python, prompts, kept, judge, folder)


def evaluate_eqbench3(
    plan: EqBenchPlan, folder: Path, stop: StopSignals, report: Report
) -> dict[str, list[Measured]]:
    """Run the runner for every candidate that has no results yet; return what was measured, by candidate.

    Args:
        plan: From `plan_eqbench3`.
        folder: Where `setup.json`, `answers/` and the runner's files are written.
        stop: Says when the evaluation was asked to stop.
        report: Called with the phase, and how much of it is done.

    Raises:
        DataError: The folder holds an evaluation with another setup.
        RunError: The runner failed, or an endpoint ended.
        Interrupted: The evaluation was asked to stop; run it again to go on.
    """
    judge = plan.judge_model
    setup = {
        "scenarios": [*plan.scenarios, text_digest(plan.prompts)],
        "judge": [judge.model, judge.adapter if isinstance(judge, EngineModel) else judge.base_url],
        "engine": plan.config.rollout.engine.max_model_len,
        "seed": plan.config.run.seed,
    }
    criteria = criteria_of(plan.clone)
    for file, candidate in begin_evaluation(folder, setup, plan.candidates).items():
        run = _run(plan, candidate, plan.folder(folder, candidate), stop, report)
        write_jsonl_atomic(file, scenario_rows(run, plan.scenarios, criteria))
    return {each.name: measured_scenarios(kept_rows(each.file(folder))) for each in plan.candidates}


def official_score(plan: EqBenchPlan, folder: Path, candidate: Candidate) -> str:
    """Return the runner's own score from 0 to 100, or its reason that there is none."""
    results = _entry(plan.folder(folder, candidate) / RESULTS, candidate).get("results", {})
    score = results.get("average_rubric_score")
    if isinstance(score, int | float):
        return f"{5 * score:.1f} of 100"
    return f"none ({results.get('rubric_error') or score})"


def fitted_requests(plan: EqBenchPlan, folder: Path, candidate: Candidate) -> str:
    """Return what did not fit into the contexts, in one sentence; empty where everything did."""
    said = []
    for role in ("test", "judge"):
        log = plan.folder(folder, candidate) / f"{role}_requests.jsonl"
        if log.is_file():
            rows = kept_rows(log)
            cut = sum(bool(row.get("truncated")) for row in rows)
            short = sum(bool(row.get("shortened")) for row in rows)
            failed = sum("failed" in row for row in rows)
            if cut or short or failed:
                said.append(
                    f"{'the model' if role == 'test' else 'the judge'}: of {len(rows)} requests {cut} "
                    f"answers were cut off, {short} prompts lost their beginning, {failed} failed"
                )
    return f"{candidate.name}, contexts too short for the runner: {'; '.join(said)}." if said else ""


def _run(
    plan: EqBenchPlan, candidate: Candidate, folder: Path, stop: StopSignals, report: Report
) -> dict[str, Any]:
    """Serve the model and the judge, run the runner to its end, and return its entry in its results."""
    config = plan.config
    _stage(plan, folder)
    report(f"starting {candidate.name}", 0, 1)
    servers: list[Served] = []
    with ExitStack() as stack:

        def serve(model: Path, name: str, engine: Any, role: str) -> Address:
            fit_log, log = folder / f"{role}_requests.jsonl", folder / f"{role}_requests.log"
            serving = served(model, name, engine, config.run.seed, log=log, fit_log=fit_log)
            server = stack.enter_context(serving)
            servers.append(server)
            return Address(f"{server.base_url}/chat/completions", name, server.key)

        judge = plan.judge_model
        if isinstance(candidate.model, EndpointModel):
            test = _address(candidate.model)
        else:
            test = serve(candidate.model, candidate.digest[:16], config.rollout.engine, "test")
        if isinstance(judge, EndpointModel):
            graded = _address(judge)
        else:
            assert plan.judge_folder is not None
            graded = serve(plan.judge_folder, plan.judge, judge, "judge")
        _wait(_start(plan, candidate, folder, test, graded), folder, servers, stop, report)
    return _entry(folder / RESULTS, candidate)


def _stage(plan: EqBenchPlan, folder: Path) -> None:
    """Copy the clone without its history and its boards, with the chosen scenarios."""
    if (folder / RUNNER).is_file():
        return
    ignored = shutil.ignore_patterns(".git", "results", "*.gz", "*.ipynb", ".env", "__pycache__")
    shutil.copytree(plan.clone, folder, ignore=ignored, dirs_exist_ok=True)
    (folder / SCENARIOS).chmod(0o644)
    (folder / SCENARIOS).write_text(plan.prompts, encoding="utf-8")


def _start(
    plan: EqBenchPlan, candidate: Candidate, folder: Path, test: Address, judge: Address
) -> subprocess.Popen[bytes]:
    command = [plan.python, RUNNER, "--test-model", test.model, "--judge-model", judge.model]
    command += ["--model-name", candidate.digest[:16], "--run-id", "perm-ray", "--runs-file", RESULTS]
    command += ["--no-elo", "--ignore-canonical", "--threads", str(_THREADS)]
    environment = {
        **os.environ,
        "TEST_API_URL": test.url,
        "TEST_API_KEY": test.key,
        "JUDGE_API_URL": judge.url,
        "JUDGE_API_KEY": judge.key,
        "MAX_RETRIES": "2",
        "RETRY_DELAY": "1",
        "REQUEST_TIMEOUT": "1800",
    }
    with (folder / "runner.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _wait(
    runner: subprocess.Popen[bytes],
    folder: Path,
    servers: Sequence[Served],
    stop: StopSignals,
    report: Report,
) -> None:
    """Wait for the runner's end; end it when an endpoint ends or the evaluation is asked to stop."""
    try:
        while runner.poll() is None:
            stop.check()
            ended = [server.name for server in servers if server.process.poll() is not None]
            if ended:
                raise RunError(
                    f"The endpoint of {ended[0]} ended while the runner asked it: run again to go on."
                )
            logs = [each.read_bytes().count(b"\n") for each in folder.glob("*_requests.jsonl")]
            report("requests answered", sum(logs), 0)
            try:
                runner.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if runner.poll() is None:
            runner.terminate()
            runner.wait()
    if runner.returncode != 0:
        raise RunError(
            f"EQ-Bench 3's runner ended with exit code {runner.returncode}: its words are in "
            f"{folder / 'runner.log'}; run again to go on."
        )


def _entry(results: Path, candidate: Candidate) -> dict[str, Any]:
    try:
        runs = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The runner's results {results} cannot be read ({error}).") from error
    return next((run for run in runs.values() if run.get("model_name") == candidate.digest[:16]), {})


def _address(model: EndpointModel) -> Address:
    key = os.environ.get(model.api_key_env, "") if model.api_key_env else ""
    return Address(f"{model.base_url.rstrip('/')}/chat/completions", model.model, key or "none")
