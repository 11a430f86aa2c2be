"""Completions of one turn and of several, from one policy version and from two."""

from __future__ import annotations

from perm_ray.types import Completion, FinishReason, Span


def test_a_dialogues_tokens_are_those_that_the_policy_sampled() -> None:
    spans = (
        Span("assistant", (1, 2, 3), (-0.1, -0.2, -0.3), ((4, 1), (5, 2))),
        Span("user", (7, 8)),
        Span("assistant", (9,), (-0.4,), ((5, 1),)),
    )
    completion = Completion("s", 2, "Oh. And? Yes.", spans, FinishReason.STOP)
    assert completion.token_ids == (1, 2, 3, 9)
    assert completion.logprobs == (-0.1, -0.2, -0.3, -0.4)
    assert completion.version == 4  # the oldest
    assert completion.rollout_id == "s/2"


def test_an_empty_completion_still_has_its_version() -> None:
    completion = Completion("s", 0, "", (Span("assistant", (), (), ((6, 0),)),), FinishReason.STOP)
    assert (completion.token_ids, completion.version) == ((), 6)
