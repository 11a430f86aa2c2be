"""Load a configuration: schema defaults, then a YAML file or a mapping, then `a.b=c` overrides.

Quick to import: every verb of the command line validates here before anything heavy is loaded.
OmegaConf reads and merges; the schema validates once, at the end. Layers simply merge, dicts too; an
entry that is `null` is removed (`judges.pools.bystander: null`).

`${...}` is refused. It would let a file read the environment, and secrets with it; YAML anchors
(`&judge`, `*judge`) repeat a value as well.
"""

from __future__ import annotations

import difflib
import io
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError
from pydantic import TypeAdapter, ValidationError

from perm_ray.config import CONFIGS
from perm_ray.config.redact import REDACTED, is_secret_key, redact, redact_text
from perm_ray.config.schema import Config
from perm_ray.config.section import (
    children,
    config_error,
    entry_type,
    expected,
    hint_at,
    plain_types,
    sections,
    unknown_key,
)
from perm_ray.errors import ConfigError

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=.*", re.DOTALL)
_NO_INTERPOLATION = (
    "${...} is not read, since it could read the environment; secrets are given as names of environment "
    "variables, and values are repeated with YAML anchors."
)


def load_config(
    source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Build the configuration of a run.

    Args:
        source: A YAML file, the bare name of a shipped one ("local"), or a mapping of sections.
        overrides: Texts such as "run.steps=20", the last one first in rank.

    Raises:
        ConfigError: In one sentence, for anything wrong in it.
    """
    layers = []
    merged = _default_entries()
    if source is not None:
        layers.append(_file_layer(source))
        merged = _merge(merged, layers[0].tree)
    for override in overrides:
        layers.append(_override_layer(override, merged))
        merged = _merge(merged, layers[-1].tree)
    try:
        return TypeAdapter(Config).validate_python(_without_removed(merged, Config))
    except ValidationError as error:
        raise config_error(error, Config, where=lambda key: _where(layers, key)) from None


def dump_config(config: Config) -> str:
    """Return `config` as YAML, in the schema's order and without secrets: load_config reads it back.

    Default models and pools that were removed are written as null, or they would come back.
    """
    tree, defaults = typing.cast(dict[str, Any], redact(config.as_dict())), _default_entries()
    tree["models"] |= {name: None for name in defaults["models"] if name not in tree["models"]}
    pools = tree["judges"]["pools"]
    pools |= {name: None for name in defaults["judges"]["pools"] if name not in pools}
    return OmegaConf.to_yaml(OmegaConf.create(tree))


@dataclass(frozen=True)
class _Layer:
    """One source of values; `where` goes into messages."""

    where: str
    tree: dict[str, Any]


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return typing.cast(dict, OmegaConf.to_container(OmegaConf.merge(one, other)))


def _default_entries() -> dict[str, Any]:
    """Return the names of the default entries; the schema has their values."""
    config = Config()
    return {
        "models": {name: {} for name in config.models},
        "judges": {"pools": {name: {} for name in config.judges.pools}},
    }


def _file_layer(source: str | Path | Mapping[str, Any]) -> _Layer:
    if isinstance(source, Mapping):
        return _Layer("in the mapping", _checked(source, Config, "", "in the mapping"))
    path, shipped = Path(source), CONFIGS / f"{source}.yaml"
    if not path.is_file():
        if not shipped.is_file():
            names = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.yaml")))
            raise ConfigError(
                f"There is no configuration file at {path}, nor a shipped one of that name ({names}): check "
                "the path."
            )
        path = shipped
    return _Layer(f"in {path}", _checked(_read(path), Config, "", f"in {path}"))


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_problem(error)}.") from error
    except GrammarParseError as error:
        raise ConfigError(f"In {path}: {_NO_INTERPOLATION}") from error
    except OSError as error:  # OmegaConf's answer to a lone value; also a file without read permission
        raise ConfigError(f"{path} cannot be read as sections of keys and values: {error}.") from error


def _override_layer(override: str, current: dict[str, Any]) -> _Layer:
    key, is_given, text = override.partition("=")
    parts = key.split(".")
    secret = is_given and (is_secret_key(parts[-1]) or parts[-1].endswith("_env"))
    shown = f"{key}={REDACTED}" if secret else redact_text(override)
    if not _OVERRIDE.fullmatch(override):
        raise ConfigError(f"Override {shown!r} cannot be read: expected a.b=c, for example run.steps=10.")
    where = f"in the override {shown!r}"
    _require_known(parts, current, where)
    try:
        value = _parsed(text, hint_at(Config, parts)[0])
    except yaml.YAMLError as error:
        problem = _problem(error).partition(": ")[2]
        raise ConfigError(f"The value of override {shown!r} is not valid YAML: {problem}.") from error
    for part in reversed(parts):
        value = {part: value}
    return _Layer(where, _checked(value, Config, "", where))


def _require_known(parts: list[str], current: dict[str, Any], where: str) -> None:
    """Refuse an override of a key that does not exist, or of one value of an entry that does not."""
    tree: Any = current
    for depth, part in enumerate(parts):
        hint = hint_at(Config, parts[:depth])[0]
        fields, entry = children(hint), entry_type(hint)
        if fields and part not in fields:
            raise unknown_key(".".join(parts), where, Config)
        if sections(entry) and depth < len(parts) - 1 and part not in tree:
            section, nearest = ".".join(parts[:depth]), difflib.get_close_matches(part, tree, n=1)
            advice = f"did you mean {section}.{nearest[0]}" if nearest else f"there are {', '.join(tree)}"
            raise ConfigError(f"Unknown key {section}.{part} {where}: {advice}.")
        tree = tree.get(part) or {} if isinstance(tree, Mapping) else {}


def _parsed(text: str, hint: Any) -> Any:
    """Take text literally where the key is text, and as YAML 1.2 elsewhere."""
    kinds = plain_types(hint)
    if text == "null" and type(None) in kinds:
        return None
    is_text = any(kind is str or isinstance(next(iter(typing.get_args(kind)), None), str) for kind in kinds)
    return text if is_text else yaml.load(text, Loader=_Yaml12Loader)


class _Yaml12Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: `no` is text, and `0123` is 123."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    def construct_yaml_float(self, node: Any) -> float:
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+.0123456789"),
):  # fmt: skip
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), [*_first]
    )
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_yaml_int)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _Yaml12Loader.construct_yaml_float)


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    return str(error).splitlines()[0]


def _checked(tree: Any, hint: Any, key: str, where: str) -> Any:
    """Return a layer as plain values; sections left empty are dropped. Refuses what OmegaConf would read."""
    if isinstance(tree, Mapping):
        result = {}
        for name, value in tree.items():
            full = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                raise ConfigError(f"{full} {where} must be a name: put {name!r} in quotes.")
            inner = hint_at(hint, [name])[0]
            if value is not None or entry_type(hint) or not (sections(inner) or entry_type(inner)):
                result[name] = _checked(value, inner, full, where)
        return result
    if not key:
        if tree is None:
            return {}
        shown = redact_text(repr(tree))
        raise ConfigError(f"The configuration {where} must be {expected(Config)}, found {shown}.")
    if isinstance(tree, list | tuple):
        return [_checked(each, None, key, where) for each in tree]
    if isinstance(tree, str) and "${" in tree:
        raise ConfigError(f"{key} {where} holds {redact_text(tree)!r}: {_NO_INTERPOLATION}")
    if tree == "???":  # OmegaConf's mark of a missing value
        raise ConfigError(f"{key} must be {expected(hint)}, found '???' {where}: change it and start again.")
    return str(tree) if isinstance(tree, Path) else tree


def _without_removed(tree: Any, hint: Any) -> Any:
    """Return the merged layers without the entries of dict sections that are null."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        name: _without_removed(value, hint_at(hint, [name])[0])
        for name, value in tree.items()
        if value is not None or not entry_type(hint)
    }


def _where(layers: Sequence[_Layer], key: str) -> str:
    """Return the last layer that sets a dotted key, or what holds it."""
    for layer in reversed(layers):
        tree: Any = layer.tree
        for part in key.split("."):
            if not isinstance(tree, Mapping) or part not in tree:
                break
            tree = tree[part]
        else:
            return layer.where
    return ""
