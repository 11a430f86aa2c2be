"""An endpoint in the place of rollout engines."""

from __future__ import annotations

import pytest

from perm_ray.config.engines import EndpointModel
from perm_ray.config.schema import RolloutConfig
from perm_ray.data.items import make_scenario
from perm_ray.data.prompts import build_messages, load_template
from perm_ray.errors import ConfigError, RunError
from perm_ray.rollout.endpoint_sampler import EndpointSampler
from perm_ray.types import FinishReason, Prompt
from tests.support.fake_endpoint import Behaviour, FakeEndpoint

SCENARIOS = [make_scenario("Ana", "She waits.", f"Call {number}.") for number in range(3)]
PROMPTS = [Prompt(each, build_messages(each, load_template(None)), "", ()) for each in SCENARIOS]


def sampler(endpoint: FakeEndpoint) -> EndpointSampler:
    model = EndpointModel(base_url=endpoint.base_url, model="m", max_retries=0)
    return EndpointSampler("away", model, RolloutConfig(max_completion_tokens=9, top_p=0.9), seed=1)


def test_every_prompt_is_answered_as_often_as_asked() -> None:
    with FakeEndpoint(answer=lambda request: request["messages"][-1]["content"][-7:]) as endpoint:
        found = list(sampler(endpoint).sample(PROMPTS, num_completions=2, step=0))
    assert len({completion.rollout_id for completion in found}) == 6
    assert {completion.text for completion in found} == {"Call 0.", "Call 1.", "Call 2."}
    assert all(len(completion.token_ids) == 2 for completion in found)  # words, to this endpoint
    asked = [request for request in endpoint.requests if request["max_tokens"] == 9]
    assert len(asked) == 6
    assert all((request["top_p"], request["temperature"]) == (0.9, 1.0) for request in asked)
    assert len({request["seed"] for request in asked}) == 6


def test_an_answer_that_was_cut_says_so() -> None:
    with FakeEndpoint(behaviour=lambda _number, _request: Behaviour.CUT_OFF) as endpoint:
        (found,) = sampler(endpoint).sample(PROMPTS[:1], num_completions=1, step=0)
    assert found.finish_reason == FinishReason.LENGTH


def test_a_failure_is_one_sentence() -> None:
    def later(number: int, _request: object) -> Behaviour:
        return Behaviour.OK if number == 0 else Behaviour.HTTP_500

    with (
        FakeEndpoint(behaviour=later) as endpoint,
        pytest.raises(RunError, match=r"The endpoint models\.away failed .*: run again to go on"),
    ):
        list(sampler(endpoint).sample(PROMPTS, num_completions=1, step=0))
    with pytest.raises(ConfigError, match=r"models\.away must be an endpoint that answers"):
        list(sampler(endpoint).sample(PROMPTS, num_completions=1, step=0))  # it is gone
