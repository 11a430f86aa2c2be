"""Every package that is installed has a licence under which perm_ray can be used and passed on."""

from __future__ import annotations

import re
from importlib.metadata import distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Copyleft of the kind that would reach perm_ray's users.
FORBIDDEN = re.compile(r"\bA?GPL|(?<!Lesser )General Public License", re.IGNORECASE)
LESSER = re.compile(r"LGPL|Lesser General Public", re.IGNORECASE)
# Tests alone import it, and nothing ships it.
TESTS_ONLY = {"krippendorff"}
# Their metadata name no licence; their LICENSE files do.
READ_BY_HAND = {"huey": "MIT", "oss-harmony": "Apache-2.0", "setuptools": "MIT"}


def licence_of(name: str) -> str:
    """Return what a package's metadata say of its licence, shortened."""
    about = distribution(name).metadata
    classified = [
        c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License")
    ]
    fields = ("License-Expression", "License")
    named = ["".join(about.get_all(field) or []).split("\n")[0] for field in fields]
    texts = [*classified, *named]
    return "; ".join(filter(None, texts))[:200]


def locked() -> list[str]:
    """Return the packages of the lock that are installed here."""
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "cpu.lock").read_text(), re.MULTILINE)
    installed = {d.metadata["Name"].lower().replace("_", "-") for d in distributions()}
    return [name for name in names if name.lower().replace("_", "-") in installed]


def test_no_dependency_is_copyleft() -> None:
    found = {name: licence_of(name) for name in locked()}
    assert len(found) > 150
    wrong = {n: text for n, text in found.items() if FORBIDDEN.search(text) and not LESSER.search(text)}
    assert wrong.keys() - TESTS_ONLY == set(), wrong


def test_every_dependency_names_its_licence() -> None:
    unnamed = {name for name in locked() if not licence_of(name)}
    assert unnamed - READ_BY_HAND.keys() == set(), sorted(unnamed)
