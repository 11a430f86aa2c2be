"""`perm-ray doctor`: look at the machine, the cluster and the services of a configuration, with remedies."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from perm_ray.cli.jobs import resolve_address
from perm_ray.cluster.doctor.finding import Level
from perm_ray.cluster.doctor.gpus import check_gpus
from perm_ray.cluster.doctor.machine import check_exposure, check_machine, check_token_file, listeners
from perm_ray.cluster.doctor.services import check_cluster, check_services
from perm_ray.config.load import load_config
from perm_ray.files import write_json_atomic


def run(options: argparse.Namespace) -> int:
    """Print the findings; 0 when none is a problem, 1 otherwise."""
    config = load_config(options.config, options.overrides)
    token = os.environ.get("RAY_AUTH_TOKEN")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    findings = [
        *check_machine(config),
        *check_gpus(config),
        *check_services(config),
        check_exposure(listeners()),
        *([] if token else check_token_file(token_file)),  # Ray reads it when the environment has none
    ]
    asked = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if asked or config.ray.address is not None:
        address = resolve_address(options.address).rstrip("/")
        if not token and token_file.exists():
            token = token_file.read_text(encoding="utf-8").strip()
        findings += check_cluster(address, token)
    width = 2 + max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<9}{finding.subject:<{width}}{finding.found}")
        if finding.remedy:
            print(f"{'':<{9 + width}}-> {finding.remedy}")
    if options.json is not None:
        write_json_atomic(options.json, [dataclasses.asdict(finding) for finding in findings])
    return 1 if any(finding.level == Level.PROBLEM for finding in findings) else 0
