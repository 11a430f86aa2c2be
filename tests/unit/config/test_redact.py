"""A secret of the environment, planted wherever it might be carried along, is in nothing that is put out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from perm_ray.cli import main as cli
from perm_ray.cli.pages.page import report_page
from perm_ray.cli.pages.run_data import read_run
from perm_ray.cluster.jobs.package import make_package
from perm_ray.config.load import dump_config, load_config
from perm_ray.config.redact import REDACTED, redact, redact_text
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError
from perm_ray.runs.run_state import RunState
from perm_ray.tracking.environment import gather
from perm_ray.tracking.model_card import TrainedPolicy, model_card
from perm_ray.tracking.samples import judgment_row
from perm_ray.types import Judgment, Status
from tests.support.fake_run import write_fake_run

SECRET = "sk-planted-Zx9+/(0123456789)"  # with letters that a pattern would read otherwise


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_API_KEY", SECRET)


@pytest.fixture
def config() -> Config:
    """The secret where a person may have pasted it: a model's name, an address, a run's folder."""
    base = load_config(None, [])
    return dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, dir=f"/runs/{SECRET}"),
        policy=dataclasses.replace(base.policy, model=f"org/{SECRET}"),
        tracking=dataclasses.replace(
            base.tracking, experiment=SECRET, mlflow_uri=f"https://me:{SECRET}@host/?token={SECRET}"
        ),
    )


def test_texts_and_nested_values_are_masked() -> None:
    assert redact_text(f"401: key {SECRET} is not known") == f"401: key {REDACTED} is not known"
    assert redact({"a": [{"b": (SECRET, 1)}]}) == {"a": [{"b": [REDACTED, 1]}]}


@pytest.mark.parametrize(
    ("name", "value", "masked"),
    [
        ("HF_TOKEN", "hf_0123456789", True),
        ("MLFLOW_TRACKING_PASSWORD", "correct horse", True),
        ("JUDGE_KEY", "0123456789", True),
        ("SHORT_KEY", "yes", False),  # it would mask ordinary words
        ("TOKENIZERS_PARALLELISM", "falsehood", False),
        ("KEYBOARD", "qwertyuiop", False),
    ],
)
def test_which_variables_are_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, masked: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert (value not in redact_text(f"<{value}>")) == masked


def test_config_dump_state_and_tracking(config: Config) -> None:
    facts = gather(config, {"data": SECRET})
    state = RunState.new({}, {}, config)
    out = [dump_config(config), json.dumps(state.config), json.dumps(dict(facts.params)), facts.config_text]
    out += [json.dumps(dict(facts.documents)), json.dumps(dict(facts.tags))]
    assert [text for text in out if SECRET in text or SECRET in json.loads(json.dumps(text))] == []
    assert sum(REDACTED in text for text in out) >= 4


def test_model_card(config: Config) -> None:
    card = model_card(config, TrainedPolicy("run", 1, {}, {}, {}))
    assert SECRET not in card


def test_a_job_is_refused_rather_than_sent_with_it(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a secret"):
        make_package(tmp_path, config, {}, with_code=False)
    assert list(tmp_path.rglob("*.yaml")) == []


def test_what_a_judge_server_echoes_is_not_written_down() -> None:
    judgment = Judgment("resonation", Status.FAILED, reason=f"401: {SECRET}")
    assert SECRET not in json.dumps(judgment_row(judgment))


def test_report(tmp_path: Path) -> None:
    write_fake_run(tmp_path, num_steps=1, rollouts_per_step=2)
    config = tmp_path / "config.yaml"
    config.write_text(f"{config.read_text()}\n# {SECRET}\n")
    assert SECRET not in report_page(read_run(tmp_path))


def test_error_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run", f"policy.mdel={SECRET}"]) == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "perm-ray train:" in printed.err
