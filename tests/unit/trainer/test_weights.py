"""Exporting a policy, and what of a model folder must not change when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from perm_ray.files import fingerprint
from perm_ray.trainer.packing import load_policy
from perm_ray.trainer.weights import PolicyWeights, export_model
from tests.support.tiny_model import write_tiny_model

# transformers refuses to save it: a temperature without sampling.
CONTRADICTORY = {"eos_token_id": 510, "pad_token_id": 511, "do_sample": False, "temperature": 0.7}


def test_generation_defaults_that_contradict_each_other_do_not_lose_a_trained_policy(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps(CONTRADICTORY))
    model = load_policy(source, torch.float32)
    export_model(model, PolicyWeights(model), source, tmp_path / "policy", rank=0)
    assert json.loads((tmp_path / "policy" / "generation_config.json").read_text()) == CONTRADICTORY
    again = load_policy(tmp_path / "policy", torch.float32)
    for (name, before), after in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_a_resume_may_mend_sampling_defaults_but_not_the_chat_template(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(CONTRADICTORY))
    first = fingerprint(folder)
    (folder / "generation_config.json").write_text(json.dumps(CONTRADICTORY | {"do_sample": True}))
    assert fingerprint(folder) == first
    (folder / "generation_config.json").write_text(json.dumps(CONTRADICTORY | {"eos_token_id": 509}))
    assert fingerprint(folder) != first
    (folder / "generation_config.json").write_text(json.dumps(CONTRADICTORY))
    template = folder / "chat_template.jinja"
    template.write_text(f"{template.read_text()} " if template.is_file() else "{{ messages }}")
    assert fingerprint(folder) != first
