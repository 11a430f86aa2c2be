"""A judge endpoint on loopback that misbehaves as it is told: real HTTP, made-up answers.

    with FakeEndpoint(answer=lambda request: "Score: 4", behaviour=faults(0.3, seed=1)) as endpoint:
        EndpointModel(base_url=endpoint.base_url, model="fake")

It speaks `/v1/models` and `/v1/chat/completions`. Every fault is one that real endpoints have.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Behaviour(StrEnum):
    """What becomes of a request."""

    OK = "ok"
    SLOW = "slow"  # OK, after a while
    HTTP_500 = "http_500"
    HTTP_429 = "http_429"
    HANG = "hang"
    TRUNCATE = "truncate"
    NONSENSE = "nonsense"
    OFF_THE_SCALE = "off_the_scale"
    INVALID_JSON = "invalid_json"
    NO_CHOICES = "no_choices"
    CUT_OFF = "cut_off"


FAULTS = tuple(each for each in Behaviour if each not in (Behaviour.OK, Behaviour.SLOW))
Request = Mapping[str, Any]
_TEXTS = {
    Behaviour.NONSENSE: "I am sure it is lovely, four or five stars of ten.",
    Behaviour.OFF_THE_SCALE: "Score: 250",
    Behaviour.CUT_OFF: "Reason: the reply says that",
}


def always(behaviour: Behaviour) -> Callable[[int, Request], Behaviour]:
    """The same for every request."""
    return lambda _number, _request: behaviour


def scripted(behaviours: Sequence[Behaviour]) -> Callable[[int, Request], Behaviour]:
    """One after the other, then OK."""
    return lambda number, _: behaviours[number] if number < len(behaviours) else Behaviour.OK


def faults(
    rate: float, seed: int, kinds: Sequence[Behaviour] = FAULTS
) -> Callable[[int, Request], Behaviour]:
    """A share `rate` of all requests goes wrong, in one of `kinds` each; decided by what is asked, so that
    asking the same again goes wrong in the same way, whatever the order."""

    def behave(_number: int, request: Request) -> Behaviour:
        dice = random.Random(f"{seed}/{json.dumps(request['messages'])}")
        return dice.choice(kinds) if dice.random() < rate else Behaviour.OK

    return behave


class FakeEndpoint:
    """Serves from a thread of its own between `__enter__` and `__exit__`.

    `answer(request)` writes the text of a good answer; `logprobs(request)` its first token's likeliest
    tokens. `requests` has every chat request, `served` counts what became of them, `most_at_once` how many
    were under way together. `retry_after` is sent with a 429; a hanging request is let go when the endpoint
    closes.
    """

    def __init__(
        self,
        answer: Callable[[Request], str] = lambda _: "Score: 4",
        behaviour: Callable[[int, Request], Behaviour] = lambda _number, _request: Behaviour.OK,
        logprobs: Callable[[Request], Mapping[str, float]] | None = None,
        retry_after: str | None = None,
        key: str | None = None,
        slow_s: float = 0.2,
    ) -> None:
        self.answer = answer
        self.behaviour = behaviour
        self.logprobs = logprobs
        self.retry_after = retry_after
        self.key = key
        self.slow_s = slow_s
        self.requests: list[Request] = []
        self.served: Counter[Behaviour] = Counter()
        self.most_at_once = 0
        self.closing = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="fake-endpoint", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def decide(self, request: Request) -> Behaviour:
        """Count a request and say what becomes of it."""
        with self._lock:
            behaviour = self.behaviour(len(self.requests), request)
            self.requests.append(request)
            self.served[behaviour] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return behaviour

    def done(self) -> None:
        """Count a request as no longer under way: its answer is about to leave."""
        with self._lock:
            self._at_once -= 1

    def completion(self, request: Request, behaviour: Behaviour) -> dict[str, Any]:
        """The body of an answer that has one."""
        text = _TEXTS.get(behaviour) or self.answer(request)
        finish = "length" if behaviour == Behaviour.CUT_OFF else "stop"
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": finish,
            "message": {"role": "assistant", "content": text},
        }
        if request.get("logprobs") and self.logprobs is not None:
            top = [
                {"token": token, "logprob": lp, "bytes": None} for token, lp in self.logprobs(request).items()
            ]
            first = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": top}
            choice["logprobs"] = {"content": [first], "refusal": None}
        written, read = len(text.split()), sum(len(m["content"].split()) for m in request["messages"])
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": read // 2},
        }
        body = {"id": "chat-1", "object": "chat.completion", "created": 0, "model": request["model"]}
        return body | {"choices": [] if behaviour == Behaviour.NO_CHOICES else [choice], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default of 5 drops connections that come together


def _handler(endpoint: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if endpoint.key is not None and self.headers["authorization"] != f"Bearer {endpoint.key}":
                message = f"Incorrect API key provided: {self.headers['authorization']}"
                return self._send(401, {"error": {"message": message}})
            behaviour = endpoint.decide(request)
            if behaviour in (Behaviour.SLOW, Behaviour.HANG):
                endpoint.closing.wait(endpoint.slow_s if behaviour == Behaviour.SLOW else None)
            endpoint.done()
            match behaviour:
                case Behaviour.HTTP_500:
                    self._send(500, {"error": {"message": "overloaded"}})
                case Behaviour.HTTP_429:
                    self._send(429, {"error": {"message": "too many"}}, endpoint.retry_after)
                case Behaviour.HANG:
                    self.close_connection = True
                case Behaviour.TRUNCATE:
                    self._send(200, endpoint.completion(request, behaviour), cut=True)
                case Behaviour.INVALID_JSON:
                    self._write(200, b"<html>gateway</html>")
                case _:
                    self._send(200, endpoint.completion(request, behaviour))
            return None

        def _send(
            self, status: int, body: Mapping[str, Any], retry_after: str | None = None, cut: bool = False
        ) -> None:
            self._write(status, json.dumps(body).encode(), retry_after, cut)

        def _write(self, status: int, body: bytes, retry_after: str | None = None, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            if retry_after is not None:
                self.send_header("retry-after", retry_after)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)

    return Handler
