"""Checkpoints are whole or not there, whatever happens while one is written."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perm_ray.checkpoint import Checkpoints, RunState, check_agrees
from perm_ray.config.schema import Config, TrainerConfig
from perm_ray.errors import CheckpointError

SAVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from perm_ray.checkpoint import Checkpoints, RunState
from perm_ray.config.schema import Config

def write(folder):
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

state = RunState(2, {}, "digest", "model", 1, None, 0.0, {})
Checkpoints(Path(sys.argv[1]), keep=2).save(state, write)
"""


def state(step: int) -> RunState:
    sampler = {"epoch": 0, "position": 4 * step, "carried": []}
    before = {"metrics": {"reward/mean": 0.1}, "rewards": {"a-1": 0.25}}
    return RunState(step, sampler, "d" * 64, "builtin:smollm2-135m-instruct", 1, "run-7", 12.5, before)


def write_trainer(folder: Path) -> None:
    """What a trainer does: files, and a folder with files."""
    (folder / "rank_0").mkdir()
    (folder / "rank_0" / "weights").write_text(folder.parent.name)


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("step_"))


def test_what_is_saved_is_what_latest_gives_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    final = checkpoints.save(state(4), write_trainer)
    loaded, trainer = checkpoints.latest()
    assert loaded == state(4)
    assert trainer == final / "trainer"
    assert (trainer / "rank_0" / "weights").is_file()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000004"]


def test_a_new_run_has_no_steps_and_agrees_with_its_configuration() -> None:
    config = Config(trainer=TrainerConfig(num_ranks=3))
    new = RunState.new({"position": 0}, "digest", config)
    assert (new.step, new.model, new.num_ranks) == (0, config.policy.model, 3)


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1), write_trainer)
    checkpoints.save(replace(state(1), wall_time_s=99.0), write_trainer)
    assert checkpoints.latest()[0].wall_time_s == 99.0
    assert steps_in(tmp_path) == ["step_000001"]


# ---- a save that does not end ---------------------------------------------------------------


def test_a_save_that_raises_leaves_the_one_before_it(tmp_path: Path) -> None:
    def break_down(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise RuntimeError("a rank died")

    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1), write_trainer)
    with pytest.raises(RuntimeError, match="a rank died"):
        checkpoints.save(state(2), break_down)
    assert checkpoints.latest()[0] == state(1)
    assert steps_in(tmp_path) == ["step_000001"]
    checkpoints.save(state(2), write_trainer)
    loaded, trainer = checkpoints.latest()
    assert loaded == state(2)
    assert [path.name for path in trainer.iterdir()] == ["rank_0"]  # nothing of the broken one


def test_a_process_that_is_killed_while_saving_leaves_the_one_before_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1), write_trainer)
    done = subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert checkpoints.latest()[0] == state(1)
    checkpoints.save(state(2), write_trainer)
    assert checkpoints.latest()[0] == state(2)


def test_a_folder_that_latest_does_not_name_yet_is_not_loaded(tmp_path: Path) -> None:
    """As a kill between the renaming and the naming leaves it."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(1), write_trainer)
    (tmp_path / "step_000002" / "trainer").mkdir(parents=True)
    assert checkpoints.latest()[0] == state(1)
    checkpoints.save(state(2), write_trainer)
    assert checkpoints.latest()[0] == state(2)
    assert steps_in(tmp_path) == ["step_000002"]


def test_what_a_killed_save_left_is_cleared_away_by_the_next_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".saving-step_000002" / "trainer").mkdir(parents=True)
    checkpoints.save(state(3), write_trainer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000003"]


# ---- how many are kept ----------------------------------------------------------------------


def test_the_oldest_are_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 4, 10, 100):
        checkpoints.save(state(step), write_trainer)
    assert steps_in(tmp_path) == ["step_000010", "step_000100"]


def test_the_newest_is_never_pruned_even_when_later_steps_lie_about(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (8, 9, 3):  # 8 and 9 are of a run that was set back to before step 3
        checkpoints.save(state(step), write_trainer)
    assert "step_000003" in steps_in(tmp_path)
    assert checkpoints.latest()[0] == state(3)


# ---- what cannot be resumed is refused in a sentence ----------------------------------------


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from") as caught:
        Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest()
    assert str(tmp_path / "run") in str(caught.value)


def test_a_checkpoint_that_is_named_and_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step_000004\n")
    with pytest.raises(CheckpointError, match=r"step_000004 .*incomplete: it has no state\.json"):
        Checkpoints(tmp_path, keep=1).latest()


def test_a_checkpoint_without_its_state_is_refused(tmp_path: Path) -> None:
    final = Checkpoints(tmp_path, keep=1).save(state(4), write_trainer)
    (final / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: it has no state\.json"):
        Checkpoints(tmp_path, keep=1).latest()


def test_a_checkpoint_without_its_trainer_part_is_refused(tmp_path: Path) -> None:
    final = Checkpoints(tmp_path, keep=1).save(state(4), write_trainer)
    shutil.rmtree(final / "trainer")
    with pytest.raises(CheckpointError, match="trainer"):
        Checkpoints(tmp_path, keep=1).latest()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 4}', json.dumps({"from": "another version"})])
def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    final = Checkpoints(tmp_path, keep=1).save(state(4), write_trainer)
    (final / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        Checkpoints(tmp_path, keep=1).latest()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            replace(state(0), data_digest="e" * 64),
            "set of training scenarios: dddddddddddd then, eeeeeeeeeeee",
        ),
        (replace(state(0), model="org/other"), "policy.model: builtin:smollm2-135m-instruct then, org/other"),
        (replace(state(0), num_ranks=2), "trainer.num_ranks: 1 then, 2 now"),
    ],
)
def test_another_data_set_model_or_number_of_ranks_is_refused(other: RunState, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_agrees(state(4), other)
    assert said in str(caught.value)


def test_what_may_change_between_two_sessions_is_not_compared() -> None:
    check_agrees(state(4), RunState(0, {}, "d" * 64, state(4).model, 1, None, 0.0, {}))
