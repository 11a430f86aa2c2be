"""Loading: schema defaults <- a YAML file <- `a.b=c` overrides, into one frozen `Config`.

The only user of OmegaConf, and quick to import: every verb of the command line parses and validates
here before anything heavy is loaded. The keys of each layer are checked against the schema by hand,
so that a mistake is reported with its full dotted path, where it was made and the nearest valid key;
OmegaConf converts the values, merges the layers and builds the dataclasses.

Two rules to know:

- A file that names any entry of `judges.engines` (or of `judges.pools`) replaces that whole default
  set: a file with one engine `shared` has one engine, not five. Of the default engines that it does
  not name, those that none of its pools asks are left out: pools that ask endpoints start no engine.
  An override changes a single value of an entry that exists (`judges.pools.resonation.retries=2`).
- `${...}` is refused. It would let a file read the environment, and secrets with it; YAML anchors
  (`&judge`, `*judge`) repeat a value as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from perm_ray.config.judges import JudgePoolConfig
from perm_ray.config.redact import REDACTED, is_secret_key, redact, redact_text
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError

# The dicts whose entries are sections of their own.
_ENTRY_SETS = ("judges.engines", "judges.endpoints", "judges.pools")
_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*", re.DOTALL)
_NO_INTERPOLATION = (
    "${...} is not read, since it could read the environment; secrets are given as names of environment "
    "variables, and values are repeated with YAML anchors."
)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run. Raises ConfigError, in one sentence, for anything wrong in it."""
    current = OmegaConf.structured(Config)
    if path is not None:
        current = _with_file(current, Path(path))
    for override in overrides:
        current = _with_override(current, override)
    config = OmegaConf.to_object(current)
    assert isinstance(config, Config)
    return config


def dump_config(config: Config) -> str:
    """`config` as YAML, in the schema's order and without secrets: load_config reads it back."""
    return OmegaConf.to_yaml(OmegaConf.create(typing.cast(dict, redact(config.as_dict()))))


def _with_file(current: DictConfig, path: Path) -> DictConfig:
    where = f"in {path}"
    layer = _Layer(where, entries=None).section(_read(path), Config, "")
    for key in _ENTRY_SETS:
        section_key, _, name = key.rpartition(".")
        if _lookup(layer, key):
            section = OmegaConf.select(current, section_key)
            with read_write(section):
                section[name] = {}
    _leave_out_engines(current, layer)
    merged = _merged(current, layer)
    _require_engines(merged, layer, where)
    return merged


def _leave_out_engines(current: DictConfig, layer: Mapping[str, object]) -> None:
    """Default engines that nobody asks would only take memory."""
    pools = _lookup(layer, "judges.pools")
    if isinstance(pools, Mapping) and pools and not _lookup(layer, "judges.engines"):
        asked = {pool.get("engine", JudgePoolConfig.engine) for pool in pools.values()}
        with read_write(current.judges):
            engines = current.judges.engines
            current.judges.engines = {name: engines[name] for name in engines if name in asked}


def _require_engines(merged: DictConfig, layer: Mapping[str, object], where: str) -> None:
    """The replacing rule surprises someone who only wants to change a rubric: say what to do."""
    pools = _lookup(layer, "judges.pools")
    for name, pool in pools.items() if isinstance(pools, Mapping) else ():
        known = (*merged.judges.engines, *merged.judges.endpoints)
        if "engine" not in pool and JudgePoolConfig.engine not in known:
            raise ConfigError(
                f"judges.pools.{name} {where} needs an engine: a file that names a pool replaces all four "
                f"default pools. To change one value, use an override such as judges.pools.{name}.retries=2."
            )


def _with_override(current: DictConfig, override: str) -> DictConfig:
    key, is_given, _ = override.partition("=")
    secret = is_given and is_secret_key(key.rpartition(".")[2])
    shown = f"{key}={REDACTED}" if secret else redact_text(override)
    if not _OVERRIDE.fullmatch(override):
        raise ConfigError(f"Override {shown!r} cannot be read: expected a.b=c, for example run.steps=10.")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except YAMLError as error:
        problem = _problem(error).partition(": ")[2]
        raise ConfigError(f"The value of override {shown!r} is not valid YAML: {problem}.") from error
    except GrammarParseError as error:
        raise ConfigError(f"Override {shown!r}: {_NO_INTERPOLATION}") from error
    entries = {key: tuple(OmegaConf.select(current, key)) for key in _ENTRY_SETS}
    layer = _Layer(f"in the override {shown!r}", entries).section(tree, Config, "")
    return _merged(current, layer)


def _merged(current: DictConfig, layer: Mapping[str, object]) -> DictConfig:
    merged = OmegaConf.merge(current, layer)
    assert isinstance(merged, DictConfig)
    return merged


def _read(path: Path) -> object:
    if not path.is_file():
        raise ConfigError(f"There is no configuration file at {path}: check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_problem(error)}.") from error
    except GrammarParseError as error:
        raise ConfigError(f"In {path}: {_NO_INTERPOLATION}") from error
    except OSError as error:  # OmegaConf's answer to a lone value; also a file without read permission
        raise ConfigError(f"{path} cannot be read as sections of keys and values: {error}.") from error


def _problem(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return str(error).splitlines()[0]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One source of values, checked against the schema. `where` goes into messages; `entries` has the
    names that exist in each entry set, or None when the layer may name new ones."""

    where: str
    entries: Mapping[str, Collection[str]] | None

    def section(self, tree: object, schema: type, key: str) -> dict[str, object]:
        """The values that `tree` gives for a section; a section left empty gives none."""
        hints = typing.get_type_hints(schema)
        checked: dict[str, object] = {}
        for name, value in self._items(tree, key, ", ".join(hints)):
            full = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str) or name not in hints:
                raise ConfigError(f"Unknown key {full} {self.where}: {_nearest(full, list(hints))}.")
            hint = hints[name]
            if dataclasses.is_dataclass(hint):
                checked[name] = self.section(value, typing.cast(type, hint), full)
            elif typing.get_origin(hint) is dict:
                checked[name] = self._entries(value, typing.get_args(hint)[1], full)
            else:
                checked[name] = self._value(value, hint, full)
        return checked

    def _entries(self, tree: object, hint: type, key: str) -> dict[str, object]:
        checked: dict[str, object] = {}
        for name, value in self._items(tree, key, "names of your choice"):
            full = f"{key}.{name}"
            if not isinstance(name, str):
                raise ConfigError(f"{full} {self.where} must be a name: put {name!r} in quotes.")
            known = None if self.entries is None else self.entries.get(key)
            if known is not None and name not in known:
                raise ConfigError(f"Unknown key {full} {self.where}: {_nearest(full, list(known))}.")
            is_section = dataclasses.is_dataclass(hint)
            checked[name] = self.section(value, hint, full) if is_section else self._value(value, hint, full)
        return checked

    def _items(self, tree: object, key: str, names: str) -> list[tuple[object, object]]:
        if tree is None:
            return []
        if not isinstance(tree, Mapping):
            what = f"{key} {self.where}" if key else f"The configuration {self.where}"
            found = redact_text(repr(tree))
            raise ConfigError(f"{what} must be a section with keys ({names}), found {found}.")
        return list(tree.items())

    def _value(self, value: object, hint: object, key: str) -> object:
        for text in _texts(value):
            if "${" in text:
                raise ConfigError(f"{key} {self.where} holds {text!r}: {_NO_INTERPOLATION}")
        found = redact_text(repr(value))
        wrong = f"{key} must be {_expected(hint)}, found {found} {self.where}."
        if value == "???":  # OmegaConf's mark of a missing value would pass any type
            raise ConfigError(wrong)
        try:
            merged = OmegaConf.merge(_typed(hint), {"value": value})
        except (OmegaConfBaseException, TypeError) as error:  # TypeError: a mapping given for a tuple
            raise ConfigError(wrong) from error
        return OmegaConf.to_container(merged)["value"]  # type: ignore[index, call-overload]


@functools.cache
def _typed(hint: object) -> DictConfig:
    """A section with the one field `value` of a type: OmegaConf's conversion rules, one key at a time."""
    probe = dataclasses.make_dataclass("Probe", [("value", typing.cast(type, hint))])
    return OmegaConf.structured(probe)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def _expected(hint: object) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [_WORDS[arg] for arg in args if arg is not type(None)]
        return " or ".join([*kinds, "null"])
    if typing.get_origin(hint) is tuple:
        return "a list of names" if args[-1] is Ellipsis else f"a list of {len(args)} numbers"
    return _WORDS[typing.cast(type, hint)]


def _nearest(key: str, siblings: list[str]) -> str:
    """The advice for an unknown key: the nearest one beside it, else the nearest anywhere."""
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    beside = difflib.get_close_matches(name, siblings, n=1)
    if beside:
        return f"did you mean {prefix}{beside[0]}"
    everywhere = _leaf_keys(Config, "")
    named = [path for path in everywhere if path.rpartition(".")[2] == name]
    anywhere = named or difflib.get_close_matches(key, everywhere, n=1, cutoff=0.75)
    if anywhere:
        return f"did you mean {anywhere[0]}"
    return f"the keys of {parent or 'a configuration'} are {', '.join(siblings)}"


def _leaf_keys(schema: type, prefix: str) -> list[str]:
    keys: list[str] = []
    for name, hint in typing.get_type_hints(schema).items():
        nested = dataclasses.is_dataclass(hint)
        keys += _leaf_keys(typing.cast(type, hint), f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def _lookup(tree: Mapping[str, object], key: str) -> object:
    value: object = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
