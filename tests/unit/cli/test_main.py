"""The command line as a person meets it: help, a dry run, and one clear sentence for everything wrong.

One process makes all the mistakes in turn, in a folder laid out for them: each costs milliseconds, and at
its end the process says what it has loaded and whether it ever started Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from tests.support.fakes import write_fake_model
from tests.support.program import environment

HEAVY = ("torch", "vllm", "deepspeed", "mlflow")
SCENARIO = {"persona": "Noor, 75", "scenario": "Her garden is in flower.", "dialogue": ["Look at it!"]}
FAKE = ("policy.model=model", "models.judge.model=model", "prompt.max_tokens=2048")
FITS = ("rollout.engine.max_model_len=4096", "run.dir=runs", "run.name=mine")


@dataclass(frozen=True)
class Mistake:
    arguments: tuple[str, ...]
    said: tuple[str, ...]


MISTAKES = {
    "a key nobody knows": Mistake(
        ("rollout.completions_per_promt=4",),
        ("Unknown key rollout.completions_per_promt", "did you mean rollout.completions_per_prompt"),
    ),
    "a key in the wrong section": Mistake(("trainer.temperature=1",), ("did you mean rollout.temperature",)),
    "a value of the wrong type": Mistake(
        ("run.steps=ten",), ("run.steps must be a whole number", "found 'ten'")
    ),
    "a value out of bounds": Mistake(("run.steps=0",), ("run.steps must be greater than 0", "found 0")),
    "an override that is none": Mistake(("run.steps",), ("'run.steps'", "expected a.b=c")),
    "a missing configuration file": Mistake(("--config", "no.yaml"), ("no configuration file at no.yaml",)),
    "a configuration file that is no YAML": Mistake(
        ("--config", "bad.yaml"), ("bad.yaml is not valid YAML", "line 2")
    ),
    "a perspective nobody knows": Mistake(
        ("--config", "pools.yaml"), ("no built-in perspective 'resonance'", "did you mean 'resonation'")
    ),
    "a perspective nobody knows, as an override": Mistake(
        ("judges.pools.resonance.retries=2",), ("did you mean judges.pools.resonation",)
    ),
    "fewer cores than the run takes": Mistake(("ray.num_cpus=1",), ("ray.num_cpus must be at least 4",)),
    "a missing data file": Mistake(("data.train=no.jsonl",), ("no data file no.jsonl", "builtin:train")),
    "an empty data set": Mistake(("data.train=empty.jsonl",), ("empty.jsonl has no scenarios",)),
    "more prompts a step than scenarios": Mistake(
        ("data.train=two.jsonl",), ("rollout.prompts_per_step", "number of scenarios in data.train, 2")
    ),
    "more held-out scenarios than there are": Mistake(
        ("data.heldout=two.jsonl",), ("evaluation.num_scenarios must be at most 2", "two.jsonl, found 32")
    ),
    "a missing rubric": Mistake(("judges.pools.bystander.rubric=no.md",), ("bystander.rubric", "no.md")),
    "a missing prompt template": Mistake(("prompt.template=no.md",), ("prompt.template", "no.md")),
    "a model folder that does not exist": Mistake(
        ("policy.model=./no-model",), ("model folder './no-model' does not exist", "builtin:")
    ),
    "an empty model folder": Mistake(
        ("policy.model=empty-model",), ("empty-model is not a Hugging Face model folder", "config.json")
    ),
    "a judge's model folder that does not exist": Mistake(
        ("policy.model=model", "models.judge.model=./no-judge"), ("'./no-judge' does not exist",)
    ),
    "a built-in model nobody knows": Mistake(("policy.model=builtin:gpt9",), ("no built-in model",)),
    "a model the hub cannot give": Mistake(("policy.model=no/such",), ("'no/such' is no folder here",)),
    "a model name the hub cannot have": Mistake(
        ("policy.model=no/such one",), ("'no/such one' is no folder",)
    ),
    "a prompt that is too long": Mistake(
        (*FAKE, *FITS, "prompt.max_tokens=100"), ("may have 100 tokens (prompt.max_tokens)", "raise prompt.")
    ),
    "an engine longer than its model": Mistake(
        (*FAKE, *FITS, "rollout.engine.max_model_len=8192"),
        ("rollout.engine.max_model_len must be at most 4096, the context of model, found 8192",),
    ),
    "a judge engine longer than its model": Mistake(
        (*FAKE, *FITS, "models.judge.max_model_len=8192"),
        ("models.judge.max_model_len must be at most 4096", "found 8192"),
    ),
    "an engine shorter than prompt and completion": Mistake(
        ("rollout.engine.max_model_len=600",), ("rollout.engine.max_model_len must be at least", "= 672")
    ),
    "a model without a chat template": Mistake(
        (*FITS, "policy.model=no-chat", "models.judge.model=model"), ("has no chat template",)
    ),
    "a model with a broken config.json": Mistake(
        (*FITS, "policy.model=broken-model", "models.judge.model=model"), ("config.json must be",)
    ),
    "resuming what is no run": Mistake(("--resume", "model"), ("--resume expects a run directory",)),
    "resuming what is not there": Mistake(("--resume", "nowhere"), ("--resume expects a run directory",)),
    "resuming a run without a checkpoint": Mistake(
        ("--resume", "begun/mine"), ("has no checkpoint to resume from",)
    ),
    "resuming a run whose name reads as a number": Mistake(
        ("--resume", "begun #1/1e5"), ("begun #1/1e5 has no checkpoint to resume from",)
    ),
    "the name of a run that is there": Mistake(
        (*FAKE, "rollout.engine.max_model_len=4096", "run.dir=begun", "run.name=mine"),
        ("begun/mine already holds a run",),
    ),
}

MAKE_THEM_ALL = """
import contextlib, io, json, sys
from perm_ray.cli.main import main

answers = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", *arguments])
    answers.append([code, out.getvalue(), err.getvalue()])
loaded = sorted(sys.modules)
import ray
json.dump({"answers": answers, "loaded": loaded, "ray": ray.is_initialized()}, sys.stdout)
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Answers:
    """What the process with all mistakes said, what it had loaded, and the folder it ran in."""

    by_name: dict[str, Answer]
    loaded: set[str]
    ray_started: bool
    folder: Path
    before: set[Path]


def python(*arguments: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Without the token of this test process: the program must make its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        input=given,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lay_out(folder: Path) -> None:
    """Everything the mistakes name."""
    (folder / "bad.yaml").write_text("run: [1\n")
    (folder / "pools.yaml").write_text("judges:\n  pools:\n    resonance: {retries: 2}\n")
    (folder / "empty.jsonl").write_text("\n \n")
    (folder / "two.jsonl").write_text(2 * (json.dumps(SCENARIO) + "\n"))
    write_fake_model(folder / "model")
    (folder / "empty-model").mkdir()
    (write_fake_model(folder / "no-chat") / "tokenizer_config.json").write_text("{}")
    (write_fake_model(folder / "broken-model") / "config.json").write_text("[]")
    for run in ("begun/mine", "begun #1/1e5"):
        (folder / run).mkdir(parents=True)
        (folder / run / "config.yaml").write_text("run: {steps: 2}\nevaluation: {num_scenarios: 2}\n")
        (folder / run / "metrics.jsonl").write_text("")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("mistakes")
    lay_out(folder)
    before = set(folder.rglob("*"))
    arguments = [mistake.arguments for mistake in MISTAKES.values()]
    done = python("-c", MAKE_THEM_ALL, cwd=folder, given=json.dumps(arguments))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    by_name = {name: Answer(*answer) for name, answer in zip(MISTAKES, told["answers"], strict=True)}
    loaded = {name.partition(".")[0] for name in told["loaded"]}
    return Answers(by_name, loaded, told["ray"], folder, before)


# ---- what is wrong is said in one sentence --------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_one_sentence_and_exit_code_2(answers: Answers, name: str) -> None:
    answer = answers.by_name[name]
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("perm-ray train: ")
    assert answer.err.find("\n") == len(answer.err) - 1  # one line, and no traceback
    for part in MISTAKES[name].said:
        assert part in answer.err


def test_no_mistake_starts_ray_loads_anything_heavy_or_leaves_a_file_behind(answers: Answers) -> None:
    assert not answers.ray_started
    assert answers.loaded.isdisjoint(HEAVY)
    assert set(answers.folder.rglob("*")) == answers.before


def test_all_bad_lines_of_a_data_file_are_told_at_once_by_the_real_program(tmp_path: Path) -> None:
    bad = [{**SCENARIO, "dialogue": []}, SCENARIO, {**SCENARIO, "persona": 7, "secnario": "x"}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad) + "{\n")
    done = python(
        "-m", "perm_ray.cli.main", "train", "data.train=bad.jsonl", f"run.dir={tmp_path}/runs", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    first, *lines = done.stderr.splitlines()
    assert first == "perm-ray train: bad.jsonl has 4 problems; mend it and start again:"
    assert [line.partition(":")[0] for line in lines] == [
        "  bad.jsonl, line 1, field dialogue",
        "  bad.jsonl, line 3, field secnario",
        "  bad.jsonl, line 3, field persona",
        "  bad.jsonl, line 4",
    ]
    assert not (tmp_path / "runs").exists()


def test_a_verb_nobody_knows_is_answered_with_the_verbs(tmp_path: Path) -> None:
    done = python("-m", "perm_ray.cli.main", "trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("perm-ray: there is no verb 'trian'.\n")
    assert "train a policy" in done.stderr


# ---- help and dry run -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "unloaded"),
    [
        (["--help"], (*HEAVY, "ray", "omegaconf")),
        (["train", "--help"], (*HEAVY, "ray")),
        (["benchmark", "--help"], (*HEAVY, "ray")),
        (["plan", "--help"], (*HEAVY, "ray", "omegaconf")),
        (["plan"], (*HEAVY, "ray")),
        (["report", "--help"], (*HEAVY, "ray", "omegaconf", "jinja2")),
        (["feedback", "pull", "--help"], (*HEAVY, "ray", "omegaconf")),
        (["train", "--dry-run"], HEAVY),
    ],
)
def test_help_and_dry_run_load_nothing_heavy(
    arguments: list[str], unloaded: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        f"import sys\nfrom perm_ray.cli.main import main\ntry: code = main({arguments})\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, *sorted(sys.modules), file=sys.stderr)"
    )
    done = python("-c", code, cwd=tmp_path)
    returned, *modules = done.stderr.split()
    assert returned == "0"
    assert done.stdout
    assert {name.partition(".")[0] for name in modules}.isdisjoint(unloaded)


def test_a_dry_run_prints_configuration_arithmetic_and_resources(tmp_path: Path) -> None:
    done = python(
        "-m", "perm_ray.cli.main", "train", "--dry-run", "run.steps=20", "run.dir=here", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    configuration, _, rest = done.stdout.partition("\n\nOne step\n")
    title, _, printed = configuration.partition("\n-------------\n")
    assert title == "Configuration"
    (tmp_path / "printed.yaml").write_text(printed)
    resolved = load_config(CONFIGS / "local.yaml", ["run.steps=20", "run.dir=here"])
    assert load_config(tmp_path / "printed.yaml") == resolved
    step, _, resources = rest.partition("\n\nResources\n")
    assert step.splitlines()[1:] == [
        "4 prompts x 4 completions = 16 completions",
        "16 completions x 160 tokens = 2,560 sampled at most",
        "16 completions x 4 perspectives = 64 judgments",
        "4,608 tokens trained on at most, in micro-batches of 2,048 over 1 rank(s)",
        "1 update(s) of the policy",
        "20 steps x 4 prompts = 1.00 epochs of 80 scenarios",
        "32 held-out completions judged before and after training",
    ]
    rows = [line.split() for line in resources.splitlines()[2:]]
    policy = "builtin:supporter"
    assert rows == [
        ["rollout", "engine", "1", "1", "0", policy],
        ["judge", "engine", "judge", "1", "1", "0", "builtin:judge"],
        *(
            ["judge", name, "1", "0", "0", "asks", "judge"]
            for name in ("resonation", "expression", "reception", "bystander")
        ),
        ["trainer", "rank", "1", "2", "0", policy],
        ["together", "7", "4", "0"],
    ]
