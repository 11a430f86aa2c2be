"""`perm-ray doctor`: look at the machine, the cluster and the services of a configuration, with remedies."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perm_ray.cli.jobs import add_address, resolve_address
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray doctor`."""
    parser = argparse.ArgumentParser(
        prog="perm-ray doctor",
        description="Look at what a run will stand on; each problem comes with a remedy.",
    )
    add_address(parser)
    parser.add_argument(
        "--config", type=Path, default=CONFIGS / "local.yaml", help="YAML file", metavar="FILE"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the findings here", metavar="FILE")
    parser.add_argument("overrides", nargs="*", help="configuration values", metavar="a.b=c")
    return parser


def run(arguments: Sequence[str]) -> int:
    """0 when nothing is a problem, 1 otherwise."""
    options = parser().parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)
    from perm_ray.cluster.doctor.finding import Level
    from perm_ray.cluster.doctor.machine import check_exposure, check_machine, check_token_file, listeners
    from perm_ray.cluster.doctor.services import check_cluster, check_services
    from perm_ray.files import write_json_atomic

    token = os.environ.get("RAY_AUTH_TOKEN")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    findings = [
        *check_machine(config),
        *check_services(config),
        check_exposure(listeners()),
        *([] if token else check_token_file(token_file)),  # Ray reads it when the environment has none
    ]
    asked = options.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if asked or config.ray.address is not None:
        address = resolve_address(options.address).rstrip("/")
        findings += check_cluster(address, token or _text(token_file))
    width = 2 + max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<9}{finding.subject:<{width}}{finding.found}")
        if finding.remedy:
            print(f"{'':<{9 + width}}-> {finding.remedy}")
    if options.json is not None:
        write_json_atomic(options.json, [dataclasses.asdict(finding) for finding in findings])
    return 1 if any(finding.level == Level.PROBLEM for finding in findings) else 0


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("doctor", sys.argv[1:]))
