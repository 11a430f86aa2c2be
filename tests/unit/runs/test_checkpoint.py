"""Checkpoints are whole or not there, whatever happens while one is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from perm_ray.config.schema import CheckpointConfig, Config
from perm_ray.errors import CheckpointError, RunError
from perm_ray.files import FileDigest, file_digest, write_hashed
from perm_ray.runs.checkpoint import Checkpoints, checkpoint_of
from perm_ray.runs.run_state import RunState

KEEP_TWO = CheckpointConfig(keep=2)


def state(step: int) -> RunState:
    sampler = {"epoch": 0, "position": 4 * step, "carried": []}
    before = {"metrics": {"reward/mean": 0.1}, "rewards": {"a-1": 0.25}}
    new = RunState.new(sampler, {"set of training scenarios": "d" * 64}, Config())
    return replace(new, step=step, mlflow_run_id="run-7", wall_time_s=12.5, before=before)


def begin_trainer(folder: Path) -> Callable[[], Mapping[str, FileDigest]]:
    """What a trainer does: files in a folder, written later, each with its digest."""

    def write() -> Mapping[str, FileDigest]:
        (folder / "rank").mkdir()
        text = folder.parent.name.encode()
        return {"rank/weights": write_hashed(folder / "rank" / "weights", lambda file: file.write(text))}

    return write


def saved(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(state(step), begin_trainer)
    checkpoints.wait()


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("step_"))


def test_what_is_saved_is_what_load_gives_back(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(folder, KEEP_TWO)
    saved(checkpoints, 4)
    loaded, trainer = checkpoints.load()
    assert loaded == state(4)
    assert trainer == folder / "step_000004" / "trainer"
    assert (trainer / "rank" / "weights").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_000004"]
    manifest = json.loads((folder / "step_000004" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["state.json", "trainer/rank/weights"]


def test_a_state_holds_the_configuration_and_the_versions_it_ran_with(tmp_path: Path) -> None:
    saved(Checkpoints(tmp_path, KEEP_TWO), 4)
    loaded, _ = Checkpoints(tmp_path, KEEP_TWO).load()
    assert loaded.config["trainer"]["num_ranks"] == 1
    assert {"python", "torch", "deepspeed", "transformers", "ray", "perm_ray"} <= loaded.packages.keys()


def test_the_loop_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    may_end = threading.Event()

    def slow(folder: Path) -> Callable[[], Mapping[str, FileDigest]]:
        write = begin_trainer(folder)

        def wait_and_write() -> Mapping[str, FileDigest]:
            assert may_end.wait(30)
            return write()

        return wait_and_write

    checkpoints = Checkpoints(tmp_path, KEEP_TWO)
    checkpoints.save(state(1), slow)
    checkpoints.check()
    assert not (tmp_path / "latest").exists()  # saving came back, and nothing is named before it is whole
    may_end.set()
    cost = checkpoints.wait()
    assert cost is not None
    assert cost.blocked_s <= cost.total_s
    assert checkpoints.load()[0] == state(1)
    assert checkpoints.wait() is None


# ---- a save that does not end ---------------------------------------------------------------


def break_down(folder: Path) -> Callable[[], Mapping[str, FileDigest]]:
    def write() -> Mapping[str, FileDigest]:
        (folder / "weights").write_text("half")
        raise OSError("No space left on device")

    return write


@pytest.mark.parametrize("notice", [Checkpoints.wait, lambda checkpoints: saved(checkpoints, 3)])
def test_a_write_that_fails_ends_the_run_with_a_sentence(
    tmp_path: Path, notice: Callable[[Checkpoints], object]
) -> None:
    checkpoints = Checkpoints(tmp_path, KEEP_TWO)
    saved(checkpoints, 1)
    checkpoints.save(state(2), break_down)
    with pytest.raises(RunError, match=r"could not be written .*OSError: No space left on device.*mend"):
        notice(checkpoints)
    assert checkpoints.load()[0] == state(1)
    assert steps_in(tmp_path) == ["step_000001"]
    saved(checkpoints, 3)
    loaded, trainer = checkpoints.load()
    assert loaded == state(3)
    assert [path.name for path in trainer.iterdir()] == ["rank"]  # nothing of the broken one
    assert not list(tmp_path.glob(".saving-*"))


KILLED_AT_RANDOM = """
import json, os, random, signal, sys, time
from pathlib import Path
from perm_ray.files import in_background
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.config.schema import CheckpointConfig, Config
from perm_ray.files import write_hashed
from perm_ray.runs.run_state import RunState

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
new = RunState.new({}, {}, Config())

def begin(step):
    def begin_trainer(trainer):  # as the ranks do: a thread, several files
        def write():
            data = bytes([step % 256]) * 100_000
            names = [f"rank_{rank}" for rank in range(3)]
            return {name: write_hashed(trainer / name, lambda file: file.write(data)) for name in names}
        return in_background(write, "rank").result
    return begin_trainer

def save_until_killed(step):
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=2, keep_every=50))
    while True:
        step += 1
        checkpoints.save(RunState(**{**vars_of(new), "step": step}), begin(step))

def vars_of(state):
    return {name: getattr(state, name) for name in state.__dataclass_fields__}

# On a slow disk a save takes longer: kill within the time of a few saves, whatever that is here.
began = time.monotonic()
checkpoints = Checkpoints(folder, CheckpointConfig())
for done in range(1, 4):
    checkpoints.save(RunState(**{**vars_of(new), "step": done}), begin(done))
checkpoints.wait()
several_s = time.monotonic() - began

randomly, report = random.Random(7), []
for _ in range(kills):
    child = os.fork()
    if child == 0:
        save_until_killed(done)
    time.sleep(randomly.uniform(0, several_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    aside = len(list(folder.glob(".saving-*")))
    state, trainer = Checkpoints(folder, CheckpointConfig()).load()
    assert (trainer / "rank_2").read_bytes()[:1] == bytes([state.step % 256])
    done = state.step
    report.append([done, aside])
print(json.dumps(report))
"""


def test_a_process_killed_at_any_instant_leaves_a_latest_that_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_RANDOM, str(tmp_path), "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    steps = [step for step, _ in report]
    assert steps == sorted(steps)
    assert steps[-1] > 15  # they did get somewhere ...
    assert sum(aside > 0 for _, aside in report) > 5  # ... and were killed in the middle of saves


def test_a_folder_that_latest_does_not_name_yet_is_not_loaded(tmp_path: Path) -> None:
    """As a kill between the renaming and the naming leaves it."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1))
    saved(checkpoints, 1)
    (tmp_path / "step_000002" / "trainer").mkdir(parents=True)
    assert checkpoints.load()[0] == state(1)
    saved(checkpoints, 2)
    assert checkpoints.load()[0] == state(2)
    assert steps_in(tmp_path) == ["step_000002-2"]


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, KEEP_TWO)
    saved(checkpoints, 1)
    checkpoints.save(replace(state(1), wall_time_s=99.0), begin_trainer)
    checkpoints.wait()
    assert checkpoints.load()[0].wall_time_s == 99.0
    assert steps_in(tmp_path) == ["step_000001-2"]


# ---- what is kept ---------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saved(Checkpoints(tmp_path, KEEP_TWO), 1, 2, 3)
    assert steps_in(tmp_path) == ["step_000002", "step_000003"]


def test_every_nth_is_kept(tmp_path: Path) -> None:
    saved(Checkpoints(tmp_path, CheckpointConfig(keep=1, keep_every=4)), *range(1, 11))
    assert steps_in(tmp_path) == ["step_000004", "step_000008", "step_000010"]


def test_the_best_are_kept_by_their_held_out_reward(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1, keep_best=2))
    checkpoints.rate(0, 9.0)  # before training, which no checkpoint is of
    for step, reward in enumerate([0.1, 0.4, 0.3, -0.2, 0.2], start=1):
        checkpoints.rate(step, reward)
        saved(checkpoints, step)
    assert steps_in(tmp_path) == ["step_000002", "step_000003", "step_000005"]


def test_the_best_step_is_one_of_training_and_the_first_of_equals(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.best_step() is None
    checkpoints.rate(0, 9.0)
    assert checkpoints.best_step() is None
    for step, reward in ((10, 0.2), (9, 0.2), (11, 0.1)):
        checkpoints.rate(step, reward)
    assert checkpoints.best_step() == 9


# ---- damage, and going back -----------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: flip_a_bit(folder / "trainer/rank/weights"),
            "content of trainer/rank/weights is not",
        ),
        (lambda folder: os.truncate(folder / "trainer/rank/weights", 5), r"weights has 5 bytes, \d+ were"),
        (lambda folder: (folder / "trainer/rank/weights").unlink(), "trainer/rank/weights is missing"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json has 2 bytes"),
        (lambda folder: (folder / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"manifest\.json is not a list"),
        (shutil.rmtree, "it is not there"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    checkpoints = Checkpoints(tmp_path, KEEP_TWO)
    saved(checkpoints, 3, 4)
    damage(tmp_path / "step_000004")
    with pytest.raises(CheckpointError, match=rf"step_000004 cannot be used: .*{said}") as caught:
        checkpoints.load()
    assert f"go on from it with --resume {tmp_path / 'step_000003'}." in str(caught.value)
    assert checkpoints.load("step_000003")[0] == state(3)
    damage(tmp_path / "step_000003")
    with pytest.raises(CheckpointError, match="no whole one before it: start a new run"):
        checkpoints.load("step_000003")


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, KEEP_TWO)
    saved(checkpoints, 4)
    file, manifest = tmp_path / "step_000004" / "state.json", tmp_path / "step_000004" / "manifest.json"
    file.write_text('{"step": 4}')
    digest = file_digest(file)
    manifest.write_text(json.dumps({"files": {"state.json": {"size": digest.size, "sha256": digest.sha256}}}))
    with pytest.raises(CheckpointError, match=r"state\.json is not the state of a run as this version"):
        checkpoints.load()


def test_going_back_makes_an_earlier_one_the_latest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=5))
    for step in (1, 2, 3):
        checkpoints.rate(step, step / 10)
        saved(checkpoints, step)
    _, trainer = checkpoints.load("step_000002")
    checkpoints.go_back(trainer)
    assert steps_in(tmp_path) == ["step_000001", "step_000002"]
    assert checkpoints.load()[0] == state(2)
    assert json.loads((tmp_path / "heldout.json").read_text()) == {"1": 0.1, "2": 0.2}


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from") as caught:
        Checkpoints(tmp_path / "run" / "checkpoints", KEEP_TWO).load()
    assert str(tmp_path / "run") in str(caught.value)


def test_a_run_or_one_of_its_checkpoints_can_be_named() -> None:
    assert checkpoint_of(Path("/runs/a")) == (Path("/runs/a"), None)
    assert checkpoint_of(Path("/runs/a/checkpoints/step_000004")) == (Path("/runs/a"), "step_000004")
