"""`perm-ray plan` as a person meets it: the project's configurations, their comments, refusals, the file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perm_ray.cli.main import call
from perm_ray.cluster.planning.memory import GB, rank_memory
from perm_ray.cluster.planning.plan import Machine, Plan, make_plan, term_sizes
from perm_ray.cluster.planning.shapes import model_shape
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.errors import ConfigError, UserError

ON_GPUS = ("qwen2.5-7b.yaml", "qwen2.5-32b-two-nodes.yaml")
SEVEN, THIRTY_TWO = (str(CONFIGS / name) for name in ON_GPUS)


def planned(name: str, *overrides: str, machine: Machine | None = None) -> Plan:
    return make_plan(load_config(CONFIGS / name, overrides), machine or Machine())


# ---- the configurations that come with the project ------------------------------------------


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_configuration_fits(name: str) -> None:
    plan = planned(name)
    assert plan.problems == ()
    text = (CONFIGS / name).read_text()
    assert "NOT RUN on a GPU by this project" in text


def test_the_configuration_of_one_gpu_fits_a_card_of_24_gb() -> None:
    plan = planned("one-gpu.yaml", machine=Machine(24 * GB, gpus_per_node=1))
    assert plan.problems == ()
    assert sum(role.num_gpus for role in plan.roles) == pytest.approx(1.0)
    assert sum(role.total for role in plan.roles) < 24 * GB
    assert "NOT RUN on a GPU by this project" in (CONFIGS / "one-gpu.yaml").read_text()


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_arithmetic_written_out_in_a_comment_is_right(name: str) -> None:
    text = (CONFIGS / name).read_text()
    size = model_shape(load_config(CONFIGS / name).policy.model).parameters
    formulas = {
        "2 P": 2 * size,
        "(4 + 8) P / 4 ranks": 12 * size / 4,
        "(2 + 4) P / 4 ranks": 6 * size / 4,
        "(2 + 12 + 6) P / 8": 20 * size / 8,
        "2 P / 8 ranks": 2 * size / 8,
        "2 P / 2 GPUs": 2 * size / 2,
    }
    told = re.findall(r"([(\d][^=,\n]*?)\s+= ([\d.]+) GB", text)
    assert len(told) >= 4
    for formula, written in told:
        assert f"{formulas[formula] / GB:.1f}" == written, formula
    (parameters,) = re.findall(r"P = ([\d.]+e\d+)", text)
    assert float(parameters) == pytest.approx(size, rel=0.001)


def test_the_papers_settings_are_in_the_first_of_them() -> None:
    config = load_config(SEVEN)
    rollout, trainer = config.rollout, config.trainer
    assert (rollout.prompts_per_step, rollout.completions_per_prompt) == (8, 8)
    assert (config.prompt.max_tokens, rollout.max_completion_tokens) == (1024, 1024)
    assert (trainer.lr, trainer.warmup_ratio, trainer.objective.kl_coef) == (1e-6, 0.1, 0.01)
    assert len({pool.model for pool in config.judges.pools.values()}) == 4


def test_the_configuration_for_a_cpu_is_planned_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", []) == 0
    assert "GB of host memory" in capsys.readouterr().out
    plan = planned("local.yaml")
    assert {role.budget for role in plan.roles} == {None}
    rank = plan.roles[-1].memory
    trainer = load_config(CONFIGS / "local.yaml").trainer
    assert rank == rank_memory(plan.roles[-1].shape, trainer, load_config(CONFIGS / "local.yaml").sync, 672)


def test_the_whole_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", [SEVEN]) == 0
    out = capsys.readouterr().out
    for role in ("rollout engine 0-1", "judge engine bystander 0", "trainer rank 0-3"):
        assert role in out
    for told in ("73.2 of 80", "33.5 of 40", "weight sync", "host memory"):
        assert told in out


# ---- what does not fit ----------------------------------------------------------------------

REFUSED = {
    "a trainer that does not shard enough": (
        (SEVEN, "trainer.zero_stage=1"),
        r"A trainer rank of Qwen/Qwen2\.5-7B-Instruct takes [\d.]+ GB in its backward and has 80\.0 GB: "
        r"shard more \(trainer\.zero_stage=3",
    ),
    "a micro-batch that is too large": (
        (SEVEN, "trainer.micro_batch_tokens=65536"),
        r"takes [\d.]+ GB in its backward .* lower trainer\.micro_batch_tokens",
    ),
    "a policy trained whole that is too large": (
        (THIRTY_TWO, "trainer.lora.rank=0"),
        r"train an adapter \(trainer\.lora\.rank\)",
    ),
    "smaller GPUs": (
        (SEVEN, "--gpu-memory", "40"),
        r"has 20\.0 GB: change models\.\w+\.kv_cache_gb.* \(4 more above\.\)",
    ),
    "a model too large for an engine's GPUs": (
        (THIRTY_TWO, "models.resonation.model=Qwen/Qwen2.5-72B-Instruct"),
        r"judge engine resonation of .*-72B-Instruct needs 139\.\d GB before its KV cache, .* more "
        r"GPUs \(models\.resonation\.tensor_parallel_size and models\.resonation\.num_gpus\)\.",
    ),
    "a cache beyond an engine's share": (
        (SEVEN, "models.resonation.kv_cache_gb=24"),
        r"takes 41\.5 GB, and has 40\.0 GB: change models\.resonation\.kv_cache_gb",
    ),
    "an engine that spans other GPUs than it asks for": (
        (THIRTY_TWO, "rollout.engine.num_gpus=4"),
        r"num_gpus must be rollout\.engine\.tensor_parallel_size.*found 4 and 2",
    ),
    "heads that cannot be divided": (
        (THIRTY_TWO, "rollout.engine.num_gpus=3", "rollout.engine.tensor_parallel_size=3"),
        r"divide heads of the model, 40, found 3: set it to 2",
    ),
    "a rank on a share of a GPU": (
        (SEVEN, "trainer.num_gpus=0.5"),
        r"trainer\.num_gpus must be a whole number",
    ),
    "more than one machine has": (
        (SEVEN, "trainer.num_ranks=6"),
        r"take 10 GPUs, and ray\.address: null is one machine of 8",
    ),
    "a model that nobody knows": (
        (SEVEN, "policy.model=no-such-org/model"),
        r"is not known.*give the folder",
    ),
    "a cache without room for one sequence": (
        ("rollout.engine.kv_cache_gb=0.01",),
        r"KV cache of 0\.0 GB, which holds no sequence of 1024 tokens: raise rollout\.engine\.kv_cache_gb",
    ),
    "two configurations": ((SEVEN, THIRTY_TWO), "One configuration can be planned at a time"),
    "a GPU without memory": (("--gpu-memory", "0"), "--gpu-memory must be greater than 0, found 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(name: str) -> None:
    arguments, said = REFUSED[name]
    with pytest.raises(UserError, match=said) as caught:
        call("plan", list(arguments))
    assert "\n" not in str(caught.value)


def test_a_refusal_comes_after_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        call("plan", [SEVEN, "trainer.zero_stage=1"])
    out = capsys.readouterr().out
    assert "Does not fit: A trainer rank" in out
    assert "trainer rank 0-3" in out


def test_what_is_worth_knowing_is_noted() -> None:
    assert planned(ON_GPUS[0]).notes == ("Each trainer rank also takes up to 36.5 GB of host memory.",)
    tight = planned(ON_GPUS[0], machine=Machine(gpu_bytes=75 * GB)).notes
    assert "A trainer rank takes 98% of its GPU" in tight[-1]
    waiting, measured, _ = planned(
        ON_GPUS[0],
        "models.resonation.kv_cache_gb=null",
        "models.expression.kv_cache_gb=4",
    ).notes
    assert "shares a GPU: set its kv_cache_gb" in waiting
    assert "holds 18 sequences of full length, fewer than" in measured


# ---- the file, and the program itself -------------------------------------------------------


def test_the_file_has_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert call("plan", [SEVEN, "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    plan = planned(ON_GPUS[0])
    for row, role in zip(told["roles"], plan.roles, strict=True):
        assert (row["role"], row["count"], row["model"]) == (role.name, role.count, role.model)
        assert (row["total_bytes"], row["budget_bytes"]) == (role.total, role.budget)
        assert sum(term_sizes(role.terms).values()) == role.total
    assert told["roles"][-1]["peak"] == "backward"
    assert told["roles"][0]["memory"]["kv_bytes_per_token"] == 57_344
    assert told["problems"] == []


def test_the_file_is_written_for_a_run_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        call("plan", ["--config", SEVEN, "trainer.zero_stage=1", "--json", str(tmp_path / "plan.json")])
    assert json.loads((tmp_path / "plan.json").read_text())["problems"] == [str(caught.value)]


def test_the_real_program_answers_with_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perm_ray.cli.main", "plan", SEVEN, "policy.model=x/y"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("perm-ray plan: The shape of 'x/y' is not known")
    assert done.stderr.count("\n") == 1


def test_help_comes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perm_ray.cli.main", "plan", "--help"]
    answers = []
    for _ in range(3):  # the machine may be busy with something else
        start = time.monotonic()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        answers.append((time.monotonic() - start, done.stdout))
    seconds, out = min(answers)
    assert "--gpus-per-node N" in out
    assert seconds < 1.0
