"""What weight sync concludes from what the engines report."""

from __future__ import annotations

import pytest

from perm_ray.errors import RunError
from perm_ray.runs.weight_sync import check_delivery

SENT = 77  # the checksum


def test_all_engines_have_what_was_sent() -> None:
    check_delivery(3, SENT, [(3, 77), (3, 77)])
    check_delivery(3, None, [(3, None)])  # vLLM's own backends take no checksum


@pytest.mark.parametrize(
    ("versions", "checksums", "message"),
    [
        ([3, 2], [77, 77], "engine 1 holds version 2"),
        ([3, 3], [78, 77], "engine 0 got other weights"),
        ([3, 3], [77, None], "engine 1 got other weights"),
        ([1, 3], [77, 78], "engine 0 holds version 1, engine 1 got other weights"),
    ],
)
def test_an_engine_that_has_something_else_is_named(
    versions: list[int], checksums: list[int | None], message: str
) -> None:
    with pytest.raises(RunError, match=f"Version 3 did not reach .*{message}"):
        check_delivery(3, SENT, list(zip(versions, checksums, strict=True)))
