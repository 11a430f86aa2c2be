"""Declare the verbs of `perm-ray` and their options.

Nothing heavy is imported here: `--help` must answer at once, and what is given is parsed before anything
is loaded that could run it.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perm_ray.config import CONFIGS

BENCHMARKS = ("loop", "rollout", "judging", "evaluation", "learning", "checkpoint", "trainer", "finetune")
BENCHMARKS += ("operations",)
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: the function that runs it (below `perm_ray.cli`), a line of help, its options."""

    target: str
    says: str
    add_options: Callable[[ArgumentParser], None]


def parser_of(name: str) -> ArgumentParser:
    """Return the parser of a verb of `VERBS`."""
    verb = VERBS[name]
    description = verb.says[0].upper() + verb.says[1:] + ("" if verb.says.endswith("?") else ".")
    parser = ArgumentParser(prog=f"perm-ray {name}", description=description)
    verb.add_options(parser)
    return parser


def _file(
    parser: ArgumentParser, name: str, says: str, metavar: str = "FILE", default: Path | None = None
) -> None:
    parser.add_argument(name, type=Path, default=default, help=says, metavar=metavar)


def _config(
    parser: ArgumentParser, said: str = "configs/local.yaml", default: Path | None = CONFIGS / "local.yaml"
) -> None:
    """Add `--config` and the overrides; `default` is None where the verb itself knows what holds then."""
    _file(parser, "--config", f"YAML file (default: {said})", default=default)
    _overrides(parser)


def _overrides(parser: ArgumentParser) -> None:
    says = "configuration values, such as run.steps=20"
    parser.add_argument("overrides", nargs="*", help=says, metavar="a.b=c")


def _address(parser: ArgumentParser) -> None:
    says = f"the head node's dashboard (default: RAY_API_SERVER_ADDRESS, or {DEFAULT_ADDRESS})"
    parser.add_argument("--address", default=None, help=says, metavar="URL")


def _train(parser: ArgumentParser) -> None:
    _config(parser, default=None)
    says = "go on from a run's last checkpoint, or from the one whose folder is given"
    _file(parser, "--resume", says, "RUN_DIR")
    _file(parser, "--replay", "run a failed step's training alone")
    says = "check everything, print what would be run, start nothing"
    parser.add_argument("--dry-run", action="store_true", help=says)


def _finetune(parser: ArgumentParser, data: str = "builtin:demos") -> None:
    parser.add_argument("--data", default=None, help=f"JSONL file (default: {data})", metavar="FILE")
    _config(parser, "configs/finetune.yaml", None)
    _file(parser, "--resume", "go on from a run's last checkpoint", "RUN_DIR")
    parser.add_argument("--dry-run", action="store_true", help="check everything, start nothing")


def _judge_train(parser: ArgumentParser) -> None:
    _finetune(parser, "builtin:graded")
    says = "entry of `models` to train (default: the only engine)"
    parser.add_argument("--model", default=None, help=says, metavar="NAME")


def _plan(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _file(parser, "--config", "the same as CONFIG")
    says = "of one GPU (default: 80; MiB / 1024 of nvidia-smi; a GB is 2^30 bytes)"
    add("--gpu-memory", type=float, default=80.0, help=says, metavar="GB")
    add("--gpus-per-node", type=int, default=8, help="GPUs of one node (default: 8)", metavar="N")
    _file(parser, "--json", "also write the figures here")
    says = "YAML file (default: configs/local.yaml), and values such as trainer.zero_stage=3"
    add("arguments", nargs="*", help=says, metavar="CONFIG | a.b=c")


def _score(parser: ArgumentParser) -> None:
    says = "JSONL with persona, scenario, query, response and perhaps analysis"
    parser.add_argument("input", type=Path, help=says, metavar="IN.jsonl")
    parser.add_argument("output", type=Path, help="appended to, one row an item", metavar="OUT.jsonl")
    parser.add_argument("--again", action="store_true", help="judge items once more that have no reward yet")
    _config(parser)


def _probe(parser: ArgumentParser) -> None:
    _config(parser)
    _file(parser, "--json", "write all outcomes here")
    parser.add_argument("--kinds", default=None, help="only these kinds of probes", metavar="A,B")
    _file(parser, "--probes", "folder with probes of your own", "DIR")
    parser.add_argument("--verbose", action="store_true", help="show the worst failures with their texts")


def _calibrate(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _config(parser)
    add("--data", type=Path, required=True, help="rated replies: a file or a folder", metavar="PATH")
    says = "hold a dimension against a perspective; -p turns it over, none leaves it out"
    add("--map", action="append", default=[], help=says, metavar="DIMENSION=PERSPECTIVE")
    says = "lowest and highest rating, for JSONL rows without"
    add("--scale", action="append", default=[], help=says, metavar="DIMENSION=LOW:HIGH")
    add("--limit", type=int, default=None, help="only the first N replies", metavar="N")
    add("--out", type=Path, default=Path("calibration"), help="default: calibration", metavar="DIR")
    _file(parser, "--fit-map", "write a map for rewards.score_map")
    add("--mlflow", action="store_true", help="log the report to tracking.mlflow_uri")


def _compare(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("first", type=Path, help="of perm-ray judge score", metavar="A.jsonl")
    add("second", type=Path, help="of perm-ray judge score", metavar="B.jsonl")
    _file(parser, "--json", "write the report here")
    add("--show", type=int, default=5, help="items they disagree on most (default: 5)", metavar="N")
    add("--seed", type=int, default=42, help="of the intervals (default: 42)")


def _evaluate(parser: ArgumentParser, name: str) -> None:
    add = parser.add_argument
    says = "built-in names, folders, hub ids or run directories, and values such as evaluation.judge_model=x"
    add("arguments", nargs="+", help=says, metavar="MODEL | a.b=c")
    _file(parser, "--config", "YAML file (default: configs/local.yaml)")
    add("--out", type=Path, default=Path(name), help=f"default: {name}", metavar="DIR")
    add("--mlflow", action="store_true", help="log the figures to tracking.mlflow_uri")


def _evaluate_data(parser: ArgumentParser, name: str, data: str, items: str) -> None:
    _evaluate(parser, name)
    parser.add_argument("--data", default=None, help=data, metavar="PATH")
    parser.add_argument("--limit", type=int, default=None, help=f"only N {items}", metavar="N")


_HELDOUT = "scenarios (default: data.heldout of the configuration)"
_perm = partial(_evaluate_data, name="evaluation", data=_HELDOUT, items="scenarios")
_truth = partial(_evaluate_data, name="truth", data="items (default: builtin:truth)", items="items")
_emobench = partial(_evaluate_data, name="emobench", data="EmoBench's folder `data`", items="items")


def _judge_choice(parser: ArgumentParser) -> None:
    says = "entry of `models` that grades (default: evaluation.judge_model, or the first that judges)"
    parser.add_argument("--judge", default=None, help=says, metavar="NAME")


def _pairs(parser: ArgumentParser) -> None:
    _evaluate_data(parser, "comparison", _HELDOUT, "scenarios")
    _judge_choice(parser)


def _eqbench3(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _evaluate(parser, "eqbench3")
    says = "your clone of github.com/EQ-bench/eqbench3"
    add("--eqbench-dir", type=Path, required=True, help=says, metavar="DIR")
    add("--scenarios", default=None, help="only these, such as 1,4,401", metavar="A,B")
    _judge_choice(parser)
    says = "the interpreter that has what the runner needs (default: this one)"
    add("--python", default=None, help=says, metavar="FILE")


def _ablate(parser: ArgumentParser) -> None:
    add = parser.add_argument
    says = "a file of variants, such as configs/ablations.yaml, and values for every cell (run.steps=20)"
    add("arguments", nargs="*", help=says, metavar="FILE | a.b=c")
    says = "instead of a file: every combination of these values"
    add("--grid", nargs="+", default=[], help=says, metavar="a.b=c,d")
    add("--base", default="local", help="configuration of --grid (default: local)", metavar="FILE")
    add("--seeds", default=None, help="instead of the file's, such as 1,2,3 (--grid: 42)", metavar="N,M")
    add("--out", type=Path, default=Path("ablation"), help="default: ablation", metavar="DIR")
    add("--address", default=None, help="run the cells as jobs of this Ray cluster", metavar="URL")
    add("--jobs", type=int, default=1, help="jobs at a time (default: 1)", metavar="N")
    add("--mlflow", action="store_true", help="log the figures to tracking.mlflow_uri")


def _serve(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="built-in name, folder, hub id or run directory", metavar="MODEL_OR_RUN")
    add("--before", action="store_true", help="of a run: the policy that its training began with")
    add("--port", type=int, default=8000, help="on this machine (default: 8000; 0: any)", metavar="N")
    add("--name", default=None, help="the model's name at the endpoint (default: as it is given)")
    _config(parser, "the run's own, or configs/local.yaml", None)


def _chat(parser: ArgumentParser) -> None:
    add = parser.add_argument
    says = "a run directory, which is its policy before and after; or one or two models; and values"
    add("arguments", nargs="+", help=says, metavar="RUN | MODEL | a.b=c")
    _file(parser, "--config", "YAML file (default: the run's own, or configs/local.yaml)")
    add("--terminal", action="store_true", help="talk here, not on a page")
    add("--hidden", action="store_true", help="--terminal: random sides, names and scores after the choice")
    add("--no-judges", action="store_true", help="start no judges")
    add("--port", type=int, default=8080, help="on this machine (default: 8080; 0: any)", metavar="N")
    says = "for ratings.jsonl and the servers' logs (default: chat in the run directory, or here)"
    _file(parser, "--out", says, "DIR")


def _submit(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _address(parser)
    add("--config", type=Path, required=True, help="YAML file", metavar="FILE")
    says = "go on with this run (its directory, as the cluster sees it)"
    add("--resume", default=None, help=says, metavar="RUN_DIR")
    says = "environment variable of yours that the run needs, by name (its value is not shown anywhere)"
    add("--env", action="append", default=[], help=says, metavar="NAME")
    add("--installed", action="store_true", help="use the perm_ray that the cluster has, send no code")
    says = "submit although the cluster has too few yet"
    add("--wait-for-resources", action="store_true", help=says)
    add("--follow", action="store_true", help="print the job's output until it ends")
    _overrides(parser)


def _status(parser: ArgumentParser) -> None:
    _address(parser)
    says = "name of a run; without it: all runs"
    parser.add_argument("run", nargs="?", default=None, help=says, metavar="RUN")


def _logs(parser: ArgumentParser) -> None:
    _address(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on until it ends")
    parser.add_argument("run", help="name of the run", metavar="RUN")


def _stop(parser: ArgumentParser) -> None:
    _address(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    parser.add_argument("run", help="name of the run", metavar="RUN")


def _doctor(parser: ArgumentParser) -> None:
    _address(parser)
    _file(parser, "--json", "write the findings here")
    _config(parser)


def _report(parser: ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, metavar="RUN_DIR", help="such as runs/<name>")
    _file(parser, "--out", "the page (default: RUN_DIR/report.html)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def _pull(parser: ArgumentParser) -> None:
    says = "a run directory, or an MLflow run id (with --uri)"
    parser.add_argument("run", help=says, metavar="RUN")
    _file(parser, "--out", "default: human_feedback.jsonl in the run directory, or here")
    parser.add_argument("--uri", default=None, help="where MLflow is; default: where the run was tracked")


def _benchmark(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHMARKS)
    _file(parser, "--json", "write the figures here")
    _config(parser, "the benchmark's own", None)


VERBS = {
    "train": Verb("train.run", "train a policy with PERM's reward: sample, judge, update, sync", _train),
    "finetune": Verb("finetune.run", "teach a policy from demonstrations, before rewards", _finetune),
    "plan": Verb("plan.run", "compute the memory that each role of a configuration takes", _plan),
    "judge score": Verb("judging.score.run", "score every line of a file: PERM as a reward model", _score),
    "judge probe": Verb(
        "judging.probe.run", "do the judges withstand attacks, and see what is plain?", _probe
    ),
    "judge calibrate": Verb("judging.calibrate.run", "do the judges agree with people?", _calibrate),
    "judge train": Verb("judging.train.run", "teach a judge from ratings", _judge_train),
    "judge compare": Verb("judging.compare.run", "do two judges, or two rubrics, agree?", _compare),
    "evaluate perm": Verb("evaluate.perm", "compare models on scenarios, from four perspectives", _perm),
    "evaluate truth": Verb("evaluate.truth", "do models hold to facts, boundaries and safety?", _truth),
    "evaluate emobench": Verb("evaluate.emobench", "ask models EmoBench's questions", _emobench),
    "evaluate compare": Verb("evaluate.compare", "which model's replies does a judge prefer?", _pairs),
    "evaluate eqbench3": Verb("evaluate.eqbench3", "run EQ-Bench 3's own runner on models", _eqbench3),
    "ablate": Verb("ablate.run", "train variants of a run times seeds, and compare them", _ablate),
    "serve": Verb("serve.run", "serve a model by vLLM's OpenAI-compatible server, on this machine", _serve),
    "chat": Verb("chat.run", "talk to a policy before and after training, and keep what you prefer", _chat),
    "submit": Verb("submit.run", "run perm-ray train as a job of a Ray cluster", _submit),
    "status": Verb("jobs.status", "list the runs of a Ray cluster, or show one of them", _status),
    "logs": Verb("jobs.logs", "print the output of a run in a Ray cluster", _logs),
    "stop": Verb("jobs.stop", "checkpoint a run in a Ray cluster and end it", _stop),
    "doctor": Verb("doctor.run", "look at the machine, the cluster and the services, with remedies", _doctor),
    "report": Verb("report.run", "make a run one HTML page: figures, and rollouts with judgments", _report),
    "feedback pull": Verb("feedback.run", "write what people said in MLflow as rated replies", _pull),
    "benchmark": Verb("benchmark.run", "measure on this machine", _benchmark),
}
