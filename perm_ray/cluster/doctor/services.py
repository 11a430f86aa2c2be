"""Check what a run talks to: the Ray cluster, MLflow, models, judge endpoints. Every question has a bound."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from perm_ray.cluster.doctor.finding import Finding, ok, problem, warning
from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.errors import ConfigError, ModelError
from perm_ray.models.endpoint_errors import proxy_before

ANSWER_S = 10.0


def check_services(config: Config) -> Iterator[Finding]:
    """Models, endpoints and MLflow of a configuration."""
    yield _model("policy", config.policy.model)
    for name, engine in config.judge_engines.items():
        yield _model(f"judge engine {name}", engine.model, engine.adapter)
    for name in config.judge_endpoints:
        yield _endpoint(config, name)
    yield from _proxy()
    yield _mlflow(config.tracking)


def _model(role: str, model: str, adapter: str | None = None) -> Finding:
    """Find a model as a run does before it begins; one that is not here is left to the run, a built-in one is
    made."""
    from perm_ray.models.resolve import is_here, resolve_model

    subject = f"model of {role}"
    if not is_here(model):
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            return problem(
                subject, f"{model} is not on this machine", "unset HF_HUB_OFFLINE, or give a folder"
            )
        return warning(
            subject, f"{model} is not on this machine", "it will be downloaded when the run starts"
        )
    try:
        folder = resolve_model(model, adapter)
    except ModelError as error:
        return problem(
            subject, str(error), "give a built-in name, a folder that save_pretrained wrote, or a hub id"
        )
    return ok(subject, f"{model}, in {folder}")


def _endpoint(config: Config, name: str) -> Finding:
    """Ask an endpoint as a run does before it begins: the list of models, or one token."""
    from perm_ray.models.endpoint import Endpoint

    async def ask() -> None:
        await Endpoint(name, config.judge_endpoints[name]).check()

    subject = f"judge endpoint {name}"
    try:
        asyncio.run(ask())
    except ConfigError as error:
        return problem(subject, str(error), "mend it, or let the pools ask another engine")
    return ok(subject, f"answers at {redact_text(config.judge_endpoints[name].base_url)}")


def _proxy() -> Iterator[Finding]:
    """Warn when requests to this machine's own servers (Ray's dashboard, MLflow) would go to a proxy."""
    proxy = proxy_before("http://127.0.0.1")
    if proxy is not None:
        found = f"{proxy} stands before this machine's own servers too"
        yield warning("proxy", found, "export NO_PROXY=127.0.0.1,localhost")


def _mlflow(config: TrackingConfig) -> Finding:
    if not config.mlflow:
        return warning(
            "mlflow", "tracking.mlflow is false", "set it to true to see curves; files are written anyway"
        )
    if config.mlflow_uri is None:
        return ok("mlflow", "an sqlite file in the run directory")
    uri = redact_text(config.mlflow_uri)
    if not config.mlflow_uri.startswith("http"):
        return ok("mlflow", uri)
    from perm_ray.tracking.mlflow_client import cause_of, connect, tracking_uri

    # Fault boundary, the tracking server: whatever MLflow raises is a finding.
    try:
        connect(tracking_uri(config, Path())).search_experiments(max_results=1)
    except Exception as error:
        why = cause_of(error)[:160]
        return problem(
            "mlflow", f"{uri} does not answer ({why})", "start the server, or check tracking.mlflow_uri"
        )
    return ok("mlflow", f"{uri} answers")


def check_cluster(address: str, token: str | None) -> Iterator[Finding]:
    """Ask a cluster's dashboard at `address`: is it there, does it take our token, does it ask for one?"""
    try:
        status = _status(f"{address}/api/version", None)
    except OSError as error:
        why = getattr(error, "reason", error)
        yield problem(
            "cluster", f"nothing answers at {address} ({why})", "start the head node, or check --address"
        )
        return
    if status == 200:
        # The version may be told to anyone; jobs may not.
        status = _status(f"{address}/api/jobs/", None)
    if status == 200:
        yield problem(
            "cluster",
            f"{address} takes jobs from anyone",
            "start every node with RAY_AUTH_MODE=token and a token (RAY_AUTH_TOKEN)",
        )
    else:
        yield ok("cluster", f"{address} asks for a token")
    mine = _status(f"{address}/api/jobs/", token)
    if mine == 200:
        yield ok("cluster", f"{address} takes this token" if token else f"{address} answers")
        yield from _nodes(address, token)
    elif mine in (401, 403):
        remedy = "put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        yield problem("cluster", f"{address} does not take this token", remedy)
    else:
        yield problem("cluster", f"{address} answers with HTTP {mine}", "look at the head node's logs")


def _nodes(address: str, token: str | None) -> Iterator[Finding]:
    listed = json.loads(_body(f"{address}/api/v0/nodes?detail=true", token))["data"]["result"]["result"]
    alive = [node for node in listed if node["state"] == "ALIVE"]
    sums: dict[str, float] = {}
    for node in alive:
        for name in ("CPU", "GPU"):
            sums[name] = sums.get(name, 0.0) + node["resources_total"].get(name, 0.0)
    yield ok("cluster", f"{len(alive)} nodes, {sums.get('CPU', 0):g} CPUs, {sums.get('GPU', 0):g} GPUs")


def _status(url: str, token: str | None) -> int:
    try:
        _body(url, token)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def _body(url: str, token: str | None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=ANSWER_S) as answer:
        return answer.read()
