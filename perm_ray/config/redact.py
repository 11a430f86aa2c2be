"""Redaction: what must never reach a file, an MLflow server or a log.

A configuration names the environment variables that hold secrets and never holds one. This is the
second fence: every copy of it that leaves the process (`config.yaml`, parameters, artifacts, error
messages) passes through here, so that a token pasted into the wrong place is not published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

REDACTED = "<redacted>"

# Words of a key, split at "_", that announce a secret. Counts are plural ("max_tokens") and the name
# of an environment variable ends in "_env": neither is a secret.
_SECRET_WORDS = frozenset({"token", "secret", "secrets", "password", "passwd", "passphrase", "apikey"})
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
    """`text` with the credentials of every URL in it masked."""
    return _URL_QUERY.sub(rf"\g<1>{REDACTED}", _URL_USER.sub(f"{REDACTED}@", text))


def redact(value: object) -> object:
    """A copy of nested plain values without secrets; tuples become lists, as in YAML and JSON."""
    if isinstance(value, Mapping):
        return {key: _redact_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    return redact_text(value) if isinstance(value, str) else value


def _redact_entry(key: str, value: object) -> object:
    unset = value is None or value == ""
    return REDACTED if is_secret_key(key) and not unset else redact(value)
