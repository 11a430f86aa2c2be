"""Redaction: what must never reach a file, an MLflow server or a log.

A configuration names the environment variables that hold secrets and never holds one. This is the
second fence: every copy of it that leaves the process (`config.yaml`, parameters, artifacts, error
messages) passes through here, so that a token pasted into the wrong place is not published.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping

REDACTED = "<redacted>"

# Words of a key, split at "_", that announce a secret. Counts are plural ("max_tokens") and the name
# of an environment variable ends in "_env": neither is a secret.
_SECRET_WORDS = frozenset({"token", "secret", "secrets", "password", "passwd", "passphrase", "apikey"})
# The same of environment variables, whose values are masked wherever they appear: a key that was pasted into
# a persona, or came back in a server's error. Shorter values are no secrets, and would mask ordinary words.
_VARIABLE_WORDS = frozenset({"TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "KEY", "APIKEY"})
_SHORTEST = 8
# Greedy up to the last "@" before the path: a password may itself hold an "@".
_URL_USER = re.compile(r"(?<=://)[^/\s]+@")
_URL_QUERY = re.compile(r"(?i)([?&][\w-]*(?:token|secret|password|api_?key)=)[^&#\s]+")


def is_secret_key(key: str) -> bool:
    """True when a key's name says that its value is a secret."""
    lowered = key.lower().replace("-", "_")
    if lowered.endswith("_env"):
        return False
    return "api_key" in lowered or not _SECRET_WORDS.isdisjoint(lowered.split("_"))


def redact_text(text: str) -> str:
    """`text` with the credentials of every URL in it masked, and this process's secret variables."""
    masked = _URL_QUERY.sub(rf"\g<1>{REDACTED}", _URL_USER.sub(f"{REDACTED}@", text))
    secrets = _environment_secrets()
    return _any_of(secrets).sub(REDACTED, masked) if secrets else masked


def _environment_secrets() -> tuple[str, ...]:
    """Return the values of environment variables whose names announce a secret, the longest first."""
    found = {value for name, value in os.environ.items() if _holds_secret(name) and len(value) >= _SHORTEST}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


@functools.cache
def _holds_secret(name: str) -> bool:
    return not _VARIABLE_WORDS.isdisjoint(name.upper().split("_"))


@functools.lru_cache(maxsize=8)
def _any_of(secrets: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, secrets)))


def redact(value: object) -> object:
    """Return a copy of nested plain values without secrets; tuples become lists, as in YAML and JSON."""
    if isinstance(value, Mapping):
        return {key: _redact_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    return redact_text(value) if isinstance(value, str) else value


def _redact_entry(key: str, value: object) -> object:
    unset = value is None or value == ""
    return REDACTED if is_secret_key(key) and not unset else redact(value)
