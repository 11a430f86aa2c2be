"""Make chat requests fit a short context, within vLLM's own server: an ASGI middleware.

A benchmark's runner may ask for more tokens than a small model's context holds, which vLLM refuses. Here
`max_tokens` is lowered, and a prompt that is still too long loses its beginning. Every request is logged with
what it asked for and what it got, so that a report can say so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

MIDDLEWARE = "perm_ray.models.fit_context.FitContext"
MAX_TOKENS, CONTEXT, LOG = "PERM_RAY_FIT_MAX_TOKENS", "PERM_RAY_FIT_CONTEXT", "PERM_RAY_FIT_LOG"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FitContext:
    """Lowers `max_tokens` of chat requests, and has vLLM cut what does not fit from their beginning."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._max_tokens, self._context = int(os.environ[MAX_TOKENS]), int(os.environ[CONTEXT])
        self._log = Path(os.environ[LOG])

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/chat/completions"):
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        fitted, asked = fit(body, self._max_tokens, self._context)
        headers = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(fitted)).encode()))
        reply = bytearray()
        given = iter([{"type": "http.request", "body": fitted, "more_body": False}])

        async def replay() -> Message:
            first = next(given, None)
            return first if first is not None else await receive()

        async def record(message: Message) -> None:
            if message["type"] == "http.response.body":
                reply.extend(message.get("body", b""))
            await send(message)

        await self._app({**scope, "headers": headers}, replay, record)
        row = log_row(asked, self._max_tokens, self._context, bytes(reply))
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fit(body: bytes, max_tokens: int, context: int) -> tuple[bytes, int | None]:
    """Return a request's body with what fits, and the `max_tokens` that it asked for; what is no JSON object
    comes back as it is."""
    try:
        request = json.loads(body)
    except ValueError:
        return body, None
    if not isinstance(request, dict):
        return body, None
    asked = request.pop("max_completion_tokens", None) or request.get("max_tokens")
    given = min(asked, max_tokens) if isinstance(asked, int) and asked > 0 else max_tokens
    cut = {"truncate_prompt_tokens": context - given, "truncation_side": "left"}
    return json.dumps(request | {"max_tokens": given} | cut).encode(), asked


def log_row(asked: int | None, max_tokens: int, context: int, reply: bytes) -> dict[str, object]:
    """Return what is kept of a request: tokens read and written, and whether either was cut.

    `truncated` is an answer that ended at its limit, `shortened` a prompt that lost its beginning.
    """
    try:
        answer = json.loads(reply)
        usage, (choice, *_) = answer["usage"], answer["choices"]
    except (ValueError, KeyError, TypeError):
        return {"asked": asked, "failed": reply[:300].decode("utf-8", "replace")}
    given = min(asked or max_tokens, max_tokens)
    return {
        "asked": asked,
        "prompt_tokens": usage["prompt_tokens"],
        "tokens": usage["completion_tokens"],
        "truncated": choice.get("finish_reason") == "length",
        "shortened": usage["prompt_tokens"] >= context - given,
    }


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
