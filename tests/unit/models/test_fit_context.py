"""Requests are made to fit a short context, and what did not fit is logged."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from perm_ray.models import fit_context
from perm_ray.models.fit_context import FitContext, fit, log_row


def reply(prompt: int, tokens: int, reason: str = "stop") -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return json.dumps({"usage": usage, "choices": [{"finish_reason": reason}]}).encode()


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"max_tokens": 12000}, 256),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 900}, 256),
        ({}, 256),
    ],
)
def test_no_more_is_asked_than_fits(asked: dict[str, int], given: int) -> None:
    body, told = fit(json.dumps({"model": "m", **asked}).encode(), 256, 1024)
    request = json.loads(body)
    assert request == {
        "model": "m",
        "max_tokens": given,
        "truncate_prompt_tokens": 1024 - given,
        "truncation_side": "left",
    }
    assert told == next(iter(asked.values()), None)


@pytest.mark.parametrize("body", [b"no json", b"[1]"])
def test_what_is_no_request_is_left_to_the_server(body: bytes) -> None:
    assert fit(body, 256, 1024) == (body, None)


def test_the_log_says_what_was_cut() -> None:
    whole, cut = log_row(100, 256, 1024, reply(300, 90)), log_row(12000, 256, 1024, reply(768, 256, "length"))
    assert (whole["truncated"], whole["shortened"]) == (False, False)
    assert (cut["truncated"], cut["shortened"], cut["tokens"]) == (True, True, 256)
    assert "refused" in str(log_row(100, 256, 1024, b'{"error": "refused"}')["failed"])


def test_the_server_behind_reads_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen = tmp_path / "log.jsonl", []
    given = {fit_context.MAX_TOKENS: "256", fit_context.CONTEXT: "1024", fit_context.LOG: str(log)}
    for key, value in given.items():
        monkeypatch.setenv(key, value)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        seen.append((dict(scope["headers"]), (await receive())["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": reply(10, 20)})

    async def ask(path: str) -> list[Any]:
        parts = iter([{"body": b'{"max_tokens"', "more_body": True}, {"body": b": 9000}"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(parts)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": [(b"content-length", b"3")]}
        await FitContext(server)(scope, receive, send)
        return sent

    sent = asyncio.run(ask("/v1/chat/completions"))
    headers, body = seen[0]
    assert json.loads(body)["max_tokens"] == 256
    assert int(headers[b"content-length"]) == len(body)
    assert sent[1]["body"] == reply(10, 20)
    assert json.loads(log.read_text())["asked"] == 9000
    asyncio.run(ask("/health"))
    assert seen[1][1] == b'{"max_tokens"'
