"""A section of the configuration: a frozen pydantic dataclass whose errors are `ConfigError`s.

`dataclasses.replace(section, key=value)` copies a section with changes and validates the copy.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from annotated_types import Gt
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from perm_ray.config.redact import REDACTED, is_secret_key, redact_text
from perm_ray.errors import ConfigError

Int = StrictInt  # strict: no text is taken for a number, no number for a truth value
Float = StrictFloat
Bool = StrictBool
Positive = Annotated[StrictFloat, Gt(0)]

_Class = TypeVar("_Class")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def section(prefix: str) -> Callable[[type[_Class]], type[_Class]]:
    """Make a class a section. `prefix` is its dotted key, for errors when it is built by itself."""

    def decorate(cls: type[_Class]) -> type[_Class]:
        made: Any = dataclass(cls, frozen=True, config=_STRICT)
        validate = made.__init__

        @functools.wraps(validate)
        def init(self: Any, *args: Any, **values: Any) -> None:
            try:
                validate(self, *args, **values)
            except ValidationError as error:
                raise config_error(error, made, prefix) from None
            finally:
                made.__init__ = init  # the first use builds the validator, and pydantic sets its own again

        made.__init__ = init
        return made

    return decorate


def require(condition: bool, key: str, expected: str, found: object) -> None:
    """Refuse a value, in a section's validator. `key` is relative to the section."""
    if not condition:
        raise PydanticCustomError("rule", "rule", {"key": key, "expected": expected, "found": found})


def config_error(
    error: ValidationError, schema: type, prefix: str = "", where: Callable[[str], str] = lambda _: ""
) -> ConfigError:
    """Say the first of pydantic's errors in one sentence.

    Args:
        error: What validation raised.
        schema: The section that was validated, at the dotted key `prefix`.
        prefix: That key; empty for the whole configuration.
        where: Returns the place that set a dotted key ("in FILE"), or an empty text.
    """
    first = error.errors(include_url=False)[0]
    # Beside keys, a location holds the tags of unions ("<engine>") and the positions in lists.
    parts = [part for part in first["loc"] if isinstance(part, str) and not part.startswith("<")]
    kind, context, found = first["type"], first.get("ctx", {}), first["input"]
    if kind == "rule":
        parts, found = [*parts, context["key"]] if context["key"] else parts, context["found"]
    key = ".".join([prefix, *parts] if prefix else parts)
    hint, metadata = hint_at(schema, parts)
    if kind == "unexpected_keyword_argument":
        return unknown_key(key, where(key), schema, prefix)
    if kind == "missing":
        place = where(key.rpartition(".")[0])
        return ConfigError(f"{key} {place} must be given ({expected(hint)}): add it.".replace("  ", " "))
    words = bounds(hint, metadata) if kind in _OUT_OF_BOUNDS or kind.endswith("_short") else ""
    words = context["expected"] if kind == "rule" else words or expected(hint)
    if kind == "finite_number":
        words = "a finite number"
    shown = REDACTED if is_secret_key(key.rpartition(".")[2]) else redact_text(repr(found))
    shown = "something else" if key.endswith("_env") and isinstance(found, str) else shown
    place = where(key)
    return ConfigError(
        f"{key} must be {words}, found {shown}{' ' * bool(place)}{place}: change it and start again."
    )


def unknown_key(key: str, where: str, schema: type, prefix: str = "") -> ConfigError:
    """Name the nearest key: beside it, else of the same name anywhere, else the likest of all."""
    parts = key.removeprefix(f"{prefix}." if prefix else "").split(".")
    parent, start = ".".join(key.split(".")[:-1]), f"{prefix}." if prefix else ""
    siblings = list(children(hint_at(schema, parts[:-1])[0]))
    if parts[-1] in siblings:
        return ConfigError(f"{key} {where} is a key of another kind of entry: an endpoint has a base_url.")
    beside = difflib.get_close_matches(parts[-1], siblings, n=1)
    everywhere = [start + each for each in leaf_keys(schema)]
    named = [each for each in everywhere if each.rpartition(".")[2] == parts[-1]]
    nearest = difflib.get_close_matches(key, named or everywhere, n=1, cutoff=0.0 if named else 0.6)
    if beside:
        advice = f"did you mean {f'{parent}.' if parent else ''}{beside[0]}"
    elif nearest:
        advice = f"did you mean {nearest[0]}"
    else:
        advice = f"the keys of {parent or 'a configuration'} are {', '.join(siblings or children(schema))}"
    return ConfigError(f"Unknown key {key}{' ' * bool(where)}{where}: {advice}.")


def sections(hint: Any) -> tuple[Any, ...]:
    """Return the section classes that a type allows: one, several for a union, none for a plain value."""
    if dataclasses.is_dataclass(hint):
        return (hint,)
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return sections(args[0])
    return tuple(each for arg in args for each in sections(arg)) if _is_union(hint) else ()


def children(hint: Any) -> dict[str, Any]:
    """Return the fields (pydantic's `FieldInfo`) of a section type by name; none for a plain value."""
    return {name: each for cls in sections(hint) for name, each in cls.__pydantic_fields__.items()}


def entry_type(hint: Any) -> Any:
    """Return the type of a dict's entries, or None for another type."""
    return typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None


def hint_at(schema: Any, parts: list[str]) -> tuple[Any, list[Any]]:
    """Return the type and the constraints at a path of keys; (None, []) where the schema has no such key."""
    hint, metadata = schema, []
    for part in parts:
        field = children(hint).get(part)
        hint = field.annotation if field else entry_type(hint)
        metadata = list(field.metadata) if field else []
    return hint, [*metadata, *(typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ())]


def leaf_keys(schema: Any) -> Iterator[str]:
    """Yield the dotted keys of all plain values; an entry of a dict of sections is `<name>`."""
    for name, field in children(schema).items():
        entry = entry_type(field.annotation)
        inner, prefix = (entry, f"{name}.<name>.") if sections(entry) else (field.annotation, f"{name}.")
        below = [f"{prefix}{key}" for key in leaf_keys(inner)]
        yield from below or [name]


def plain_types(hint: Any) -> tuple[Any, ...]:
    """Return what a type is made of, without `Annotated` and unions: `str | None` is (str, NoneType)."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return plain_types(args[0])
    return tuple(each for arg in args for each in plain_types(arg)) if _is_union(hint) else (hint,)


def expected(hint: Any) -> str:
    """Return a type in words: "a whole number or null"."""
    if sections(hint):
        return f"a section with keys ({', '.join(children(hint))})"
    return " or ".join(_plain_words(each) for each in plain_types(hint))


def bounds(hint: Any, metadata: list[Any]) -> str:
    """Return the constraints of a value in words: "greater than 0", "in [0, 1)"; "" without any."""
    limit = {name: getattr(each, name) for each in metadata for name in _LIMITS if hasattr(each, name)}
    low, high = limit.get("gt", limit.get("ge")), limit.get("lt", limit.get("le"))
    words = ""
    if low is not None and high is not None:
        words = f"in {'(' if 'gt' in limit else '['}{low}, {high}{')' if 'lt' in limit else ']'}"
    elif low is not None:
        words = f"greater than {low}" if "gt" in limit else f"{low} or more"
    elif "min_length" in limit:
        words = "text that is not empty" if str in plain_types(hint) else "a list that is not empty"
    return f"{words} or null" if words and type(None) in plain_types(hint) else words


_LIMITS = ("gt", "ge", "lt", "le", "min_length")


def _plain_words(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, args))
    if typing.get_origin(hint) is tuple:
        return "a list of names" if args[-1] is Ellipsis else f"a list of {len(args)} numbers"
    return _WORDS.get(hint, "a section with names of your choice")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
