"""The charts of the report as plans: a title, what it says, and the metrics that are its lines. Pure.

`curves.py` looks the metrics up; a further chart of metrics that are there is one more line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perm_ray.cli.pages.run_data import PerspectiveView


@dataclass(frozen=True, slots=True)
class Plan:
    """A chart before the metrics are looked up: its lines are (name, metric), or with a band's metric."""

    title: str
    says: str
    lines: Sequence[tuple[str, ...]]
    low: float | None = None
    high: float | None = None
    colors: Sequence[int] = field(default=())


def reward_plans() -> list[Plan]:
    parts = [(part, f"reward/{part}") for part in ("empathy", "bystander", "length")]
    return [
        Plan(
            "Reward",
            "mean of the step's rollouts, and one standard deviation around it",
            [("reward", "reward/mean", "reward/std")],
        ),
        Plan("Reward's parts", "they add up to the reward", parts),
    ]


def perspective_plans(perspectives: Sequence[PerspectiveView]) -> list[Plan]:
    return [
        Plan(
            each.name.capitalize(),
            f"mean score of what was judged, from {each.low:g} to {each.high:g}, and one standard deviation",
            [(each.name, f"judge/{each.name}/mean", f"judge/{each.name}/std")],
            low=each.low,
            high=each.high,
            colors=(number,),
        )
        for number, each in enumerate(perspectives)
    ]


def answer_plans() -> list[Plan]:
    shares = [
        ("both sections", "format/valid"),
        ("cut at the limit", "rollout/truncated"),
        ("judge markup removed", "guard/removed"),
    ]
    groups = [("nothing to teach", "group/zero_variance"), ("drawn instead", "group/resampled")]
    return [
        Plan("Completion length", "mean, in tokens", [("tokens", "rollout/length_mean")], low=0),
        Plan("Form of the answers", "shares of the step's completions", shares, low=0, high=1),
        Plan(
            "Masked rollouts",
            "not learned from, since a judgment is missing",
            [("masked", "rollout/masked")],
            low=0,
        ),
        Plan("Groups", "with equal rewards, and prompts that were drawn instead", groups, low=0),
    ]


def policy_plans() -> list[Plan]:
    apart = [("mean", "policy/logprob_diff_mean"), ("max", "policy/logprob_diff_max")]
    ratio = [("mean", "policy/mismatch_mean"), ("max", "policy/mismatch_max")]
    return [
        Plan("KL", "distance from the reference model, in nats a token", [("KL", "policy/kl")], low=0),
        Plan("Entropy", "of a token, in nats", [("entropy", "policy/entropy")], low=0),
        Plan("Gradient norm", "before clipping", [("norm", "policy/grad_norm")], low=0),
        Plan("Learning rate", "of the step's last update", [("lr", "policy/lr")], low=0),
        Plan("Loss", "of the objective; it need not fall", [("loss", "policy/loss")]),
        Plan(
            "Clipped tokens",
            "share of tokens at the ratio's bounds",
            [("clipped", "policy/clip_fraction")],
            low=0,
        ),
        Plan(
            "Sampler against trainer", "how far the log-probabilities of the same tokens differ", apart, low=0
        ),
        Plan("Sampler against trainer, ratio", "trainer's probability over the sampler's", ratio, low=0),
    ]


def judge_plans(perspectives: Sequence[PerspectiveView]) -> list[Plan]:
    def each(metric: str) -> list[tuple[str, str]]:
        return [(view.name, f"judge/{view.name}/{metric}") for view in perspectives]

    return [
        Plan(
            "Failed judgments", "no score though asked, the unreadable ones included", each("failed"), low=0
        ),
        Plan("Unparseable judgments", "the judge answered, and not with a score", each("unparseable"), low=0),
        Plan("Skipped judgments", "the answer lacks the section to be judged", each("skipped"), low=0),
        Plan("Probability of a valid answer", "the judges' mass on the scale", each("mass"), low=0, high=1),
        Plan("Judges' entropy", "of the distribution over scores, in nats", each("entropy"), low=0),
    ]


def load_plans(perspectives: Sequence[PerspectiveView]) -> list[Plan]:
    def each(metric: str) -> list[tuple[str, str]]:
        return [(view.name, f"judge/{view.name}/{metric}") for view in perspectives]

    together = [("all at once", "judge/busy_together")]
    return [
        Plan(
            "Waiting for judges", "seconds the step waited for a pool after sampling", each("wait_s"), low=0
        ),
        Plan(
            "Busy judges",
            "share of the judging time with work running",
            [*each("busy"), *together],
            low=0,
            high=1,
        ),
        Plan("Time of a judgment", "mean, in seconds", each("latency_s"), low=0),
        Plan("Sampling speed", "tokens a second, all engines", [("tokens/s", "rollout/tokens_per_s")], low=0),
    ]
