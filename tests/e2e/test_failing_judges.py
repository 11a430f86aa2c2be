"""A whole run whose judges are somebody else's, and go wrong three times in ten."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.test_train import BUILTIN_PERSPECTIVES, metrics, samples, train
from tests.support.fake_endpoint import Behaviour, FakeEndpoint, Request, faults
from tests.support.tiny_model import write_tiny_model

CONFIG = """
run: {{steps: 3, dir: {runs}, name: failing}}
policy: {{model: {model}}}
prompt: {{prefix: "# Analysis\\nShe waits.\\n# Response\\nYes.", max_tokens: 3000}}
rollout:
  prompts_per_step: 3
  completions_per_prompt: 4
  max_completion_tokens: 24
  engine: {{max_model_len: 4096, kv_cache_gb: 0.1}}
models:
  judge: {{base_url: "{url}", model: fake, timeout_s: 2.0, max_retries: 1}}
judges: {{max_failure_rate: 0.9}}
rewards: {{missing_section: mask}}
trainer: {{micro_batch_tokens: 4096, lr: 1.0e-3, num_cpus: 1, num_threads: 1}}
evaluation: {{num_scenarios: 0}}
tracking: {{mlflow: true}}
"""
CRITERIA = ("Content", "Structure", "Efficiency", "Objectivity", "Accuracy")


def answer(request: Request) -> str:
    """A number that depends on the text to judge, so that groups have a spread."""
    content = request["messages"][-1]["content"]
    number = len(re.split(r"\[(?:begin|end) \w+\]", content)[1])
    if "Content: <" in content:
        return "Reason: sound.\n" + "\n".join(f"{name}: {number % 21}" for name in CRITERIA)
    return f"Reason: it has {number} letters.\nScore: {1 + number % 5}"


@pytest.mark.timeout(600)
def test_ok_and_masked_add_up_on_every_step_of_a_run_with_failing_judges(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = tmp_path / "config.yaml"
    kinds = [each for each in Behaviour if each not in (Behaviour.OK, Behaviour.HANG)] + [Behaviour.HANG]
    with FakeEndpoint(answer, faults(0.3, seed=1, kinds=kinds)) as endpoint:
        config.write_text(CONFIG.format(runs=tmp_path, model=model, url=endpoint.base_url))
        train("--config", config)
        served = endpoint.served
    rows = metrics(tmp_path / "failing")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert sum(served.values()) - served[Behaviour.OK] > 0.2 * sum(served.values())
    for row in rows:
        assert row["rollout/ok"] + row["rollout/masked"] == row["rollout/completions"] == 12
        judged = samples(tmp_path / "failing", int(row["step"]))
        for name in BUILTIN_PERSPECTIVES:
            count = Counter(each["judgments"][name]["status"] for each in judged)
            assert count["failed"] + count["unparseable"] == row[f"judge/{name}/failed"]
            assert count["unparseable"] == row[f"judge/{name}/unparseable"]
            assert sum(count.values()) == 12
        for each in judged:
            ok = all(judgment["status"] == "ok" for judgment in each["judgments"].values())
            assert each["masked"] == (not ok)
            assert (each["reward"] is None) == each["masked"]
            scores = [judgment["score"] for judgment in each["judgments"].values()]
            assert all(score is None or 0 <= score <= 100 for score in scores)
    assert sum(row["rollout/masked"] for row in rows) > 0
    assert sum(row["rollout/ok"] for row in rows) > 0
