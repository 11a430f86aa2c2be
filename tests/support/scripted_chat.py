"""A chat between scripted servers and scripted judges, for tests of the session and of its page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from perm_ray.config.load import load_config
from perm_ray.judges.startup import Judges
from perm_ray.runs.chat_session import Chat, plan_chat
from perm_ray.types import JudgeItem, Judgment, Status
from tests.support.scripted_server import scripted_server

GOOD = ("# Analysis\nShe is ", "tired.\n# Resp", "onse\nThat sounds ", "heavy.")


class ScriptedJudges(Judges):
    """Judges that give everything a 4, with a reason that names the answer."""

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Mapping[str, Judgment]]]:
        for item in items:
            reason = f"It says: {item.sections.response}"
            yield (
                item,
                {name: Judgment(name, Status.OK, score=4.0, reason=reason) for name in self.perspectives},
            )


@contextmanager
def scripted_chat(
    models: Sequence[Path], scripts: Sequence[Sequence[str]], ratings: Path, **settings: Any
) -> Iterator[Chat]:
    """A chat whose models write `scripts`, one after the other; `settings` are `scripted_server`'s."""
    config = load_config("local", ["prompt.max_tokens=3000", "rollout.engine.max_model_len=4096"])
    plan = plan_chat(config, [str(each) for each in models])
    with ExitStack() as stack:
        servers = [stack.enter_context(scripted_server(each, **settings)) for each in scripts]
        yield Chat(plan, servers, ScriptedJudges("local"), ratings)
