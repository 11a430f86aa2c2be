"""The doctor's checks: what is well, what is not, and what to do about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from perm_ray.cli.main import call
from perm_ray.cluster.doctor.finding import Level
from perm_ray.cluster.doctor.machine import Listener, check_exposure, check_machine, check_token_file
from perm_ray.cluster.doctor.services import check_cluster, check_services
from perm_ray.config.load import load_config
from tests.support.tiny_model import write_tiny_model


def levels(findings: object) -> list[Level]:
    assert isinstance(findings, list)
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("address", "level"),
    [
        ("127.0.0.1", Level.OK),
        ("127.0.0.3", Level.OK),
        ("::1", Level.OK),
        ("::ffff:127.0.0.1", Level.OK),
        ("0.0.0.0", Level.WARNING),
        ("::", Level.WARNING),
        ("10.0.0.7", Level.WARNING),
    ],
)
def test_what_listens_beyond_loopback_is_told(address: str, level: Level) -> None:
    finding = check_exposure([Listener("gcs_server", address, 6379)])
    assert finding.level == level
    assert (f"gcs_server {address}:6379" in finding.found) == (level != Level.OK)


def test_a_token_is_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "auth_token"
    assert list(check_token_file(file)) == []
    file.write_text("secret")
    file.chmod(0o644)
    (finding,) = check_token_file(file)
    assert (finding.level, finding.remedy) == (Level.PROBLEM, f"chmod 600 {file}")
    file.chmod(0o600)
    assert levels(list(check_token_file(file))) == [Level.OK]


def test_this_machine_can_run_the_local_configuration(tmp_path: Path) -> None:
    found = list(check_machine(load_config(None, [f"run.dir={tmp_path / 'not' / 'yet'}"])))
    assert Level.PROBLEM not in levels(found)
    assert {"python", "packages", "cores", "memory", "disk", "open files"} == {f.subject for f in found}


def test_a_run_directory_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = load_config(None, [f"run.dir={tmp_path / 'file' / 'runs'}"])
    found = [finding for finding in check_machine(config) if finding.subject == "disk"]
    assert levels(found) == [Level.PROBLEM]


def test_models_are_looked_for_without_loading_them(tmp_path: Path) -> None:
    good = write_tiny_model(tmp_path / "good")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")

    def of(model: str) -> Level:
        config = load_config(None, [f"policy.model={model}"])
        (finding,) = [f for f in check_services(config) if f.subject == "model of policy"]
        assert finding.level == Level.OK or finding.remedy
        return finding.level

    assert of(str(good)) == Level.OK
    assert of(str(bad)) == Level.PROBLEM
    assert of("builtin:smollm2-135m-instruct") == Level.OK
    assert of("builtin:nothing") == Level.PROBLEM
    assert of("nobody/has-this-model") == Level.PROBLEM  # tests are offline


def test_a_judge_endpoint_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    endpoint = "{base_url: 'http://127.0.0.1:9/v1', model: m, max_retries: 0}"
    file.write_text(f"models: {{judge: {endpoint}}}\n")
    (finding,) = [f for f in check_services(load_config(file)) if f.subject == "judge endpoint judge"]
    assert finding.level == Level.PROBLEM
    assert "127.0.0.1:9" in finding.found


def test_the_shipped_configuration_finds_its_models() -> None:
    found = [f for f in check_services(load_config("local")) if f.subject.startswith("model")]
    assert levels(found) == [Level.OK, Level.OK]


def test_a_proxy_before_this_machines_own_servers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def levels_of_proxy() -> list[Level]:
        return levels([f for f in check_services(load_config(None)) if f.subject == "proxy"])

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")
    assert levels_of_proxy() == [Level.WARNING]
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert levels_of_proxy() == []


class Dashboard(BaseHTTPRequestHandler):
    """As much of a Ray dashboard as the doctor asks for; open to anyone when `token` is None."""

    token: str | None = None

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        allowed = self.token is None or given == f"Bearer {self.token}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        nodes = [{"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}}, {"state": "DEAD"}]
        self.wfile.write(json.dumps({"data": {"result": {"result": nodes}}}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_cluster_that_takes_jobs_from_anyone_is_a_problem(dashboard: str) -> None:
    Dashboard.token = None
    found = list(check_cluster(dashboard, "mine"))
    assert levels(found)[0] == Level.PROBLEM
    assert "takes jobs from anyone" in found[0].found


def test_a_cluster_with_a_token(dashboard: str) -> None:
    Dashboard.token = "right"
    found = list(check_cluster(dashboard, "right"))
    assert levels(found) == [Level.OK] * 3
    assert found[-1].found == "1 nodes, 4 CPUs, 1 GPUs"
    assert levels(list(check_cluster(dashboard, "wrong"))) == [Level.OK, Level.PROBLEM]
    assert levels(list(check_cluster("http://127.0.0.1:9", None))) == [Level.PROBLEM]


def test_the_command_prints_findings_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "findings.json"
    code = call("doctor", ["--json", str(file), f"run.dir={tmp_path}", "policy.model=nobody/has-this-model"])
    assert code == 1
    printed = capsys.readouterr().out
    assert "problem  model of policy" in printed
    rows = json.loads(file.read_text())
    assert {"problem", "ok"} <= {row["level"] for row in rows}
    assert all(row["remedy"] for row in rows if row["level"] != "ok")


def test_the_token_file_matters_only_when_the_environment_has_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "auth_token"
    file.write_text("secret")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    call("doctor", [f"run.dir={tmp_path}"])
    assert str(file) not in capsys.readouterr().out
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert call("doctor", [f"run.dir={tmp_path}"]) == 1
    assert f"chmod 600 {file}" in capsys.readouterr().out
