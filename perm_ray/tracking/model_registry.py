"""The trained policy as a version of a registered model, and who is the champion. After training, in the
foreground, within a bound: by then the policy is on the disk, and a failure here is one warning.

The version with the best held-out reward has the alias `champion`. Rewards are compared only where the
same judges, under the same rubrics and reward, judged the same scenarios.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.config.schema import Config
from perm_ray.errors import Interrupted
from perm_ray.files import in_background, json_line, text_digest
from perm_ray.tracking.environment import package_versions
from perm_ray.tracking.mlflow_client import TrackedRun, cause_of, connect, tracking_uri
from perm_ray.types import Message

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_LOG = logging.getLogger(__name__)
_BOUND_S = 900.0
CHAMPION = "champion"
_SCRATCH = ".model-"
_REWARD_TAG = "heldout_reward"
_MEASURE_TAG = "heldout_measure"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to be registered. `reward` is the held-out one, None where there is none; `measure` names
    what it was measured with."""

    folder: Path
    card: str
    step: int
    reward: float | None
    measure: str
    example: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Registered:
    """A version, and why it is or is not the champion."""

    name: str
    version: str
    champion: bool
    why: str

    def __str__(self) -> str:
        title = f", {CHAMPION}" if self.champion else ""
        return f"{self.name} version {self.version}{title} ({self.why})"


def measure_of(config: Config, contents: Mapping[str, str]) -> str:
    """Names what a held-out reward was measured with: scenarios, rubrics, judges and reward."""
    kinds = ("set of held-out", "rubric of", "weights of judge")
    parts = {
        "contents": {name: digest for name, digest in sorted(contents.items()) if name.startswith(kinds)},
        "judges": {
            name: [config.model_of(pool).model, asdict(pool.scoring)]
            for name, pool in sorted(config.judges.pools.items())
        },
        "rewards": asdict(config.rewards),
        "num_scenarios": config.evaluation.num_scenarios,
    }
    return text_digest(json_line(parts))[:12]


def register_policy(config: Config, directory: Path, candidate: Candidate) -> Registered | None:
    """Make a candidate a version of `tracking.register_model`; None, and a warning, when that fails."""
    name, tracked = config.tracking.register_model, TrackedRun.read(directory)
    if name is None:
        return None
    # Fault boundary, the tracking server: the run is finished, whatever becomes of this.
    try:
        if tracked is None:
            raise LookupError("it does not have the run")
        run = tracked
        uri = tracking_uri(config.tracking, directory)
        work = in_background(lambda: register(uri, run, name, candidate, directory), "mlflow-registry")
        return work.result(timeout=_BOUND_S)
    except Interrupted:
        raise
    except Exception as error:
        _LOG.warning(
            "MLflow did not take the policy as a version of %s (%s). The run is finished, and the policy is "
            "in %s.",
            name,
            "it took too long" if isinstance(error, TimeoutError) else cause_of(error),
            candidate.folder,
        )
        return None


def register(uri: str, run: TrackedRun, name: str, candidate: Candidate, scratch: Path) -> Registered:
    """Log the policy's folder as a model of the transformers flavor, make it a version, choose a champion.

    A copy of the policy is made in `scratch` for as long as it takes. Raises what MLflow raises.
    """
    client = connect(uri)
    model = _log_model(client, run, name, candidate, scratch)
    _create_model(client, name)
    tags = {_MEASURE_TAG: candidate.measure, "step": str(candidate.step)}
    if candidate.reward is not None:
        tags[_REWARD_TAG] = repr(candidate.reward)
    told = f"Trained for {candidate.step} steps. The model card is README.md among its files."
    # By its place: `models:/<id>` would be looked up with MLflow's global tracking URI.
    source, model_id = model.artifact_location, model.model_id
    version = client.create_model_version(
        name, source, run.run_id, tags=tags, model_id=model_id, description=told
    ).version
    champion, why = _is_champion(client, name, candidate)
    if champion:
        client.set_registered_model_alias(name, CHAMPION, str(version))
    return Registered(name, str(version), champion, why)


def _log_model(
    client: MlflowClient, run: TrackedRun, name: str, candidate: Candidate, scratch: Path
) -> LoggedModel:
    """Return the logged model; it is not READY before all of it is there."""
    from mlflow.entities import LoggedModelOutput

    figures = {} if candidate.reward is None else {_REWARD_TAG: repr(candidate.reward)}
    model = client.create_logged_model(
        run.experiment_id, name, run.run_id, params=figures, model_type="text-generation"
    )
    for left_by_a_kill in scratch.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=_SCRATCH))
    try:
        _save(folder / "model", model.model_id, run.run_id, candidate)
        client.log_model_artifacts(model.model_id, str(folder / "model"))
    except Exception:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, candidate.step)])
    return model


def _save(folder: Path, model_id: str, run_id: str, candidate: Candidate) -> None:
    """Write an MLflow model: the policy, its signature (chat messages), an example, the card."""
    # It reports what it does not find on a hub, where this model is not.
    for logger in ("mlflow.transformers", "mlflow.utils.requirements_utils"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from mlflow.models import Model
    from mlflow.transformers import save_model

    versions = package_versions()
    save_model(
        str(candidate.folder.absolute()),
        str(folder),
        task="llm/v1/chat",
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        input_example={
            "messages": [{"role": message.role, "content": message.content} for message in candidate.example]
        },
        # Given, because to find them out MLflow would load the model.
        pip_requirements=[
            f"{package}=={versions[package].partition('+')[0]}" for package in ("torch", "transformers")
        ],
    )
    (folder / "README.md").write_text(candidate.card, encoding="utf-8")


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _is_champion(client: MlflowClient, name: str, candidate: Candidate) -> tuple[bool, str]:
    if candidate.reward is None:
        return False, "its held-out reward was not measured"
    aliases: Mapping[str, str] = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return True, f"the first with a held-out reward: {candidate.reward:.3f}"
    holder = client.get_model_version(name, str(aliases[CHAMPION]))
    if holder.tags.get(_MEASURE_TAG) != candidate.measure:
        return False, f"version {holder.version} was measured with other scenarios, judges or rewards"
    theirs = float(holder.tags[_REWARD_TAG])
    better = candidate.reward > theirs
    return better, f"held-out reward {candidate.reward:.3f}, {theirs:.3f} of version {holder.version}"
