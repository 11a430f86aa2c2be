"""A completions server that streams texts of a test's choice, and any ASGI application on a free port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perm_ray.cluster.rendezvous import free_port
from perm_ray.models.server import HOST, Served


@contextmanager
def on_loopback(app: Starlette) -> Iterator[str]:
    """Serve `app` from a thread; gives its address without a slash at the end."""
    port = free_port(HOST)
    settings = uvicorn.Config(app, host=HOST, port=port, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, name="on-loopback", daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@contextmanager
def scripted_server(pieces: Sequence[str], pause_s: float = 0.0, status: int = 200) -> Iterator[Served]:
    """Stream `pieces` in answer to every request, with a pause before each; or refuse with a status."""

    async def complete(request: Request) -> Response:
        await request.json()
        if status != 200:
            return JSONResponse({"error": {"message": "out of memory"}}, status)
        return StreamingResponse(_chunks(pieces, pause_s), media_type="text/event-stream")

    with on_loopback(Starlette(routes=[Route("/v1/completions", complete, methods=["POST"])])) as address:
        yield Served(f"{address}/v1", "scripted", "key", cast(Any, None))


async def _chunks(pieces: Sequence[str], pause_s: float) -> AsyncIterator[str]:
    for piece in pieces:
        await asyncio.sleep(pause_s)
        choice = {"index": 0, "text": piece, "finish_reason": None, "logprobs": None}
        chunk = {
            "id": "1",
            "object": "text_completion",
            "created": 0,
            "model": "scripted",
            "choices": [choice],
        }
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
