"""Why a request to an endpoint came to nothing: a cause to count, and a sentence for people.

The `openai` package's errors and the network's end here. No message holds the key.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from enum import StrEnum
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from perm_ray.config.engines import EndpointModel
from perm_ray.config.redact import REDACTED, redact_text


class Cause(StrEnum):
    """Why a request came to nothing."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    CONNECTION = "connection"
    MALFORMED = "malformed"
    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"


WORTH_ANOTHER_TRY = frozenset(
    {Cause.TIMEOUT, Cause.RATE_LIMITED, Cause.SERVER_ERROR, Cause.CONNECTION, Cause.MALFORMED}
)


class EndpointError(Exception):
    """A request that came to nothing; the message has the endpoint and what it said."""

    def __init__(self, cause: Cause, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(cause, message, retry_after_s)  # all in args, so that it pickles whole
        self.cause = cause
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


def explained(error: Exception, name: str, config: EndpointModel, key: str | None) -> EndpointError:
    """Return what a request to the endpoint `name` raised, as one of ours, in a sentence."""
    import openai

    at = f"{name} ({redact_text(config.base_url)})"
    match error:
        case openai.APITimeoutError() | openai.APIStatusError(status_code=408) | TimeoutError():
            return EndpointError(Cause.TIMEOUT, f"{at} gave no answer within {config.timeout_s:g} s")
        case openai.RateLimitError(response=response):
            pause = retry_after_s(response.headers.get("retry-after"), time.time())
            return EndpointError(Cause.RATE_LIMITED, f"{at} allows no more requests now", pause)
        case openai.APIStatusError(status_code=status, response=response) if status >= 500:
            pause = retry_after_s(response.headers.get("retry-after"), time.time())
            return EndpointError(Cause.SERVER_ERROR, f"{at} answered {status}", pause)
        case openai.APIStatusError(status_code=401 | 403 as status):
            variable = config.api_key_env
            sent = f"the key in {variable}" if variable else "a request without a key (set api_key_env)"
            return EndpointError(Cause.UNAUTHORIZED, f"{at} does not accept {sent} ({status})")
        case openai.APIStatusError(status_code=404):
            what = f"has no chat model {config.model!r} at this address (404): mend model or base_url"
            return EndpointError(Cause.REFUSED, f"{at} {what}")
        case openai.APIStatusError(status_code=status):
            return EndpointError(Cause.REFUSED, f"{at} answered {status}: {_said(error, key)}")
        case openai.APIConnectionError():
            what = f"{at} cannot be reached{_through(config.base_url)}: {_root(error, key)}"
            return EndpointError(Cause.CONNECTION, what)
        case _:
            return EndpointError(
                Cause.MALFORMED, f"{at} answered with no chat completion: {_root(error, key)}"
            )


def is_plain_loopback(url: str) -> bool:
    """Return whether `url` is plain HTTP to this machine itself, which needs no proxy and no certificates."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")


def proxy_before(url: str) -> str | None:
    """Return the proxy that the environment puts before `url`, without its password; None without one."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return redact_text(proxy) if proxy and not proxy_bypass(parts.hostname or "") else None


def _through(url: str) -> str:
    """Return the proxy that an endpoint at `url` is asked through, in words; empty without one."""
    proxy = None if is_plain_loopback(url) else proxy_before(url)
    return f" through the proxy {proxy} (NO_PROXY does not name its host)" if proxy else ""


def retry_after_s(header: str | None, now: float) -> float | None:
    """Return the seconds a `Retry-After` header asks to wait (RFC 9110, section 10.2.3: a number or a
    date)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _root(error: BaseException, key: str | None) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    what = "invalid JSON" if isinstance(error, json.JSONDecodeError) else _said(error, key)
    return f"{type(error).__name__}: {what}" if what else type(error).__name__


def _said(error: BaseException, key: str | None) -> str:
    text = " ".join(str(error).split())
    return (text.replace(key, REDACTED) if key else text)[:300]
