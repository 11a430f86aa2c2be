"""Serve the chat's page: one page on loopback, behind a path that nobody else can guess.

Everything a model wrote is foreign text: the script makes text nodes only, and the page's policy lets run
the one script and the one style sheet that come with it, and speak to this server alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from perm_ray.cli.pages.base import page_template
from perm_ray.cli.pages.run_data import view_of
from perm_ray.data.items import make_scenario
from perm_ray.errors import UserError
from perm_ray.files import json_line
from perm_ray.runs.chat_session import Chat, Pair

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_BODY = 64 * 1024  # bytes
_SCRIPTS = ("util.js", "detail.js", "chat.js")
_STYLES = ("report.css", "chat.css")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8000)]


class _Asked(BaseModel):
    """A scenario that a person chose or wrote; `hidden` when the models' names are told after the choice."""

    model_config = ConfigDict(extra="forbid")
    persona: _Text
    scenario: _Text
    query: _Text
    language: str | None = None
    culture: str | None = None
    hidden: bool = False


class _Preferred(BaseModel):
    """The side of a pair that a person prefers."""

    model_config = ConfigDict(extra="forbid")
    pair: str
    side: int


def chat_app(chat: Chat, title: str, secret: str) -> Starlette:
    """Return the application; its page is at `/<secret>/`.

    Args:
        chat: What answers and keeps.
        title: The page's heading.
        secret: A path that only who started the chat knows: others on this machine reach loopback too.
    """
    template = page_template(_TEMPLATES / "chat.html.j2", {})
    page = template.render(title=title, num_models=len(chat.plan.candidates), file=str(chat.ratings))
    setup = {
        "scenarios": _scenarios(chat),
        "perspectives": [asdict(view_of(each)) for each in chat.perspectives.values()],
    }

    async def ask(request: Request) -> Response:
        asked = _Asked.model_validate_json(await _body(request))
        scenario = make_scenario(asked.persona, asked.scenario, asked.query, asked.language, asked.culture)
        return StreamingResponse(
            _events(chat, chat.begin(scenario, asked.hidden), asked.hidden),
            media_type="application/x-ndjson",
            headers=_HEADERS,
        )

    async def keep(request: Request) -> Response:
        preferred = _Preferred.model_validate_json(await _body(request))
        pair = chat.keep(preferred.pair, preferred.side)
        return JSONResponse({"names": chat.names(pair), "preferred": pair.preferred}, headers=_HEADERS)

    routes = [
        _fixed("/", HTMLResponse(page, headers=_HEADERS)),
        _fixed("/style.css", Response(_joined(_STYLES), media_type="text/css", headers=_HEADERS)),
        _fixed("/chat.js", Response(_joined(_SCRIPTS), media_type="text/javascript", headers=_HEADERS)),
        _fixed("/setup", JSONResponse(setup, headers=_HEADERS)),
        Route("/ask", ask, methods=["POST"]),
        Route("/keep", keep, methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount(f"/{secret}", routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        exception_handlers={UserError: _refused, ValidationError: _refused},
    )


async def _events(chat: Chat, pair: Pair, hidden: bool) -> AsyncIterator[str]:
    names = None if hidden else chat.names(pair)
    yield json_line({"event": "pair", "pair": pair.pair_id, "names": names})
    async for event in chat.answer(pair):
        yield json_line(event)


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise HTTPException(413, f"A request may have {_MAX_BODY} bytes: shorten the scenario.")
    return body


async def _refused(request: Request, error: Exception) -> Response:
    del request
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}."
    return JSONResponse({"error": text}, 400, headers=_HEADERS)


def _fixed(path: str, response: Response) -> Route:
    async def answer(request: Request) -> Response:
        del request
        return response

    return Route(path, answer)


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def _scenarios(chat: Chat) -> list[dict[str, str | None]]:
    return [
        {
            "id": each.scenario_id,
            "persona": each.persona,
            "scenario": each.situation,
            "query": each.query,
            "language": each.language,
            "culture": each.culture,
        }
        for each in chat.plan.scenarios
    ]
