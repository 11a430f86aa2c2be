"""The Ray Jobs API as the verbs use it: submit, status, logs, stop.

Every failure of the far side (no head yet, a token that is refused, a name that is taken) is one sentence.
A run is one job, or several: each resume is a job of its own, called after the run.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from perm_ray.cluster.jobs import variables
from perm_ray.cluster.placement import Demand, missing_resources
from perm_ray.errors import RunError, UserError

ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
ENTRYPOINT = "exec python -m perm_ray.cli.job"
POLL_S = 0.5


class JobError(UserError):
    """The cluster's Jobs API refused something, or there is no such run."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a run. Times are seconds since 1970; `message` is Ray's own."""

    submission_id: str
    run: str
    status: str
    message: str
    started_s: float | None
    ended_s: float | None
    metadata: Mapping[str, str]

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def lines(self) -> list[str]:
        """Return the lines that `perm-ray status RUN` prints."""
        times = [
            f"{word} {datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S %Z}"
            for word, at in (("started", self.started_s), ("ended", self.ended_s))
            if at is not None
        ]
        rows = {"job": self.submission_id, "status": self.status, "times": ", ".join(times)}
        rows |= {"message": " ".join(self.message.split()), **self.metadata}
        return [f"{name:<16}{value}" for name, value in rows.items() if value]


class JobsClient:
    """Talks to the head node's dashboard at `address` (http://host:8265). Raises `JobError`s."""

    def __init__(self, address: str) -> None:
        self._address = address
        # Ray's client would go where these lead, whatever address it is given.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        with self._explained("reach the cluster"):
            from ray.job_submission import JobSubmissionClient

            self._client: Any = JobSubmissionClient(address)

    @property
    def address(self) -> str:
        return self._address

    def check_resources(self, rows: Sequence[Demand]) -> None:
        """Refuse what the live cluster lacks: in sum, and for each actor on a single node."""
        with self._explained("read the cluster's resources"):
            from ray.util.state import list_nodes

            listed: Any = list_nodes(address=self._address, detail=True, filters=[("state", "=", "ALIVE")])
            nodes: list[dict[str, float]] = [node.resources_total for node in listed]
        lacking = missing_resources(rows, nodes)
        if lacking:
            raise JobError(
                f"The run needs {lacking} in the cluster at {self._address}: add nodes, lower replicas, or "
                "submit with --wait-for-resources where nodes come by themselves (autoscaling)."
            )

    def submit(
        self,
        run: str,
        folder: Path,
        arguments: Sequence[str],
        env: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> str:
        """Upload `folder` and start the run in it; returns the submission id, the run's name.

        `arguments` are those of `perm-ray train`. A resume of a run that had jobs is called `<run>-resume-N`.
        """
        number = sum(1 for job in self.jobs() if job.run == run)
        if number and "--resume" not in arguments:
            raise JobError(
                f"The cluster has a job {run} already: choose another run.name, or go on with --resume."
            )
        submission_id = f"{run}-resume-{number}" if number else run
        with self._explained(f"submit {submission_id}"):
            self._client.submit_job(
                entrypoint=f"{ENTRYPOINT} {shlex.join(arguments)}",
                submission_id=submission_id,
                metadata={"run": run, **metadata},
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {**env, variables.SUBMISSION_ID: submission_id},
                },
            )
        return submission_id

    def jobs(self) -> list[Job]:
        """Return the jobs that this project submitted, the newest last."""
        with self._explained("list jobs"):
            found = [
                _job(details) for details in self._client.list_jobs() if (details.metadata or {}).get("run")
            ]
        return sorted(found, key=lambda job: job.started_s or 0.0)

    def job(self, name: str) -> Job:
        """Return the newest job of the run `name`, or the job with this submission id."""
        jobs = self.jobs()
        fitting = [job for job in jobs if name in (job.run, job.submission_id)]
        if not fitting:
            known = ", ".join(sorted({job.run for job in jobs})) or "none"
            raise JobError(f"There is no run {name} in the cluster at {self._address}; its runs: {known}.")
        return fitting[-1]

    def logs(self, submission_id: str) -> str:
        """Return the job's output so far."""
        with self._explained(f"read the logs of {submission_id}"):
            return self._client.get_job_logs(submission_id)

    async def follow(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the job's output from its beginning, as it comes, until it ends."""
        with self._explained(f"follow {submission_id}"):
            async for text in self._client.tail_job_logs(submission_id):
                yield text

    def stop(self, submission_id: str) -> None:
        """Query the job to stop: it writes a checkpoint and ends. Returns at once."""
        with self._explained(f"stop {submission_id}"):
            self._client.stop_job(submission_id)

    def wait(self, submission_id: str, timeout_s: float) -> Job:
        """Wait until the job has ended; raises `RunError` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._explained(f"ask for {submission_id}"):
                job = _job(self._client.get_job_info(submission_id))
            if job.ended:
                return job
            if time.monotonic() > deadline:
                raise RunError(f"{submission_id} is {job.status} after {timeout_s:.0f} s: look at its logs.")
            time.sleep(POLL_S)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Fault boundary, the cluster: what Ray's client raises becomes one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise JobError(f"Could not {doing}: {explain(error, self._address)}") from error


def explain(error: Exception, address: str) -> str:
    """Return why a request to the Jobs API failed and what to do, in a sentence."""
    text = " ".join(str(error).split())
    if type(error).__name__ == "AuthenticationError" or " 401" in text or " 403" in text:
        return (
            f"the cluster at {address} does not accept the token: put its token into RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, and set RAY_AUTH_MODE=token."
        )
    if "already exists" in text:
        return "the cluster has a job of this name already: choose another run.name."
    if isinstance(error, ConnectionError) or "connect" in text.lower():
        return f"nothing answers at {address}: start the head node, or give its dashboard with --address."
    if "status code 500" in text or "status code 503" in text:
        return f"the head node at {address} is not ready yet, try again in a moment ({text[-200:]})."
    return f"{type(error).__name__}: {text[:300]}"


def _job(details: Any) -> Job:
    metadata = dict(details.metadata or {})
    seconds = [at / 1000 if at else None for at in (details.start_time, details.end_time)]
    return Job(
        submission_id=str(details.submission_id),
        run=metadata.pop("run", ""),
        status=str(details.status.value),
        message=str(details.message or ""),
        started_s=seconds[0],
        ended_s=seconds[1],
        metadata=metadata,
    )
