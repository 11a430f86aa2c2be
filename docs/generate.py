"""Write the reference pages and `configs/base.yaml` from what they document: `python -m docs.generate`.

`configs/base.yaml` holds every key with its default and a comment, `docs/reference/configuration.md` a table
for each section, `command-line.md` every verb with its options, `python-api.md` every public name. A test
holds all of them fresh.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

import perm_ray
from perm_ray.cli.options import VERBS, parser_of
from perm_ray.config import CONFIGS
from perm_ray.config.engines import EndpointModel
from perm_ray.config.schema import Config
from perm_ray.config.section import bounds, children, entry_type, expected, plain_types, sections

REFERENCE = Path(__file__).parent / "reference"
_WIDTH = 110
_BASE_HEAD = """\
# Every key of perm_ray's configuration and its default, written by `python -m docs.generate`.
# Copy the keys that you change into a file of your own (`perm-ray train --config mine.yaml`), or change one
# on the command line (`run.steps=20`). A file merges with what is here; `null` removes a model or a pool.
# Secrets do not belong here. MLflow reads its own from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,
# or from MLFLOW_TRACKING_TOKEN; the model hub reads HF_TOKEN.
"""
_CLI_HEAD = """\
# Command line

<!-- Written by `python -m docs.generate` from `perm_ray/cli/options.py`. -->

Exit codes: 0 done, 1 the run failed, 2 something given was wrong, 130 interrupted. `a.b=c` is any key of the
[configuration](configuration.md).
"""
_API_HEAD = """\
# Python API

<!-- Written by `python -m docs.generate` from the docstrings. -->

`import perm_ray` gives the names below and loads nothing heavy; everything else is internal and may change.
"""
_PAGE_HEAD = """\
# Configuration

<!-- Written by `python -m docs.generate` from the schema. -->

A configuration is a YAML file of the keys that differ from the defaults below; `perm-ray train run.steps=20`
changes one for a run. `--config local` finds a shipped file by its name.
"""


def base_yaml() -> str:
    """Return every key with its default and a comment, as YAML that loads as the defaults."""
    lines = [_BASE_HEAD]
    for name, field in children(Config).items():
        lines += [f"{name}:  # {field.description}", *_yaml_lines(getattr(Config(), name), "  ")]
        if name == "models":
            far = EndpointModel(base_url="http://127.0.0.1:8000/v1", model="org/name")
            lines.append("  # far:  # an OpenAI-compatible endpoint is a model, too; its keys:")
            lines += [f"  # {line}" for line in _field_lines(far, "  ")]
        lines.append("")
    return "\n".join(lines)


def reference_page() -> str:
    """Return a table of keys for each section, as Markdown."""
    return "\n".join([_PAGE_HEAD, *(line for key, cls in _tables(Config, "") for line in _table(key, cls))])


def command_line_page() -> str:
    """Return every verb with its usage and its options, as Markdown."""
    lines = [_CLI_HEAD]
    for name in VERBS:
        parser = parser_of(name)
        lines += [f"## `perm-ray {name}`", "", str(parser.description), ""]
        lines += ["| argument | description |", "|---|---|"]
        for action in parser._actions[1:]:  # without --help; argparse has no public list of them
            shown = str(action.metavar or "").replace("|", "or")
            names = " ".join(filter(None, [", ".join(action.option_strings), shown])) or action.dest
            says = action.help or ", ".join(map(str, action.choices or ()))
            lines.append(f"| `{names}` | {says} |")
        lines.append("")
    return "\n".join(lines)


def python_api_page() -> str:
    """Return every public name with its signature and its docstring, as Markdown."""
    lines = [_API_HEAD]
    for name in sorted(perm_ray.__all__, key=str.lower):
        each = getattr(perm_ray, name)
        lines += [f"## `{name}`", "", *_signature(f"perm_ray.{name}", each), *_described(each)]
        members = inspect.getmembers(each, inspect.isfunction) if inspect.isclass(each) else []
        for method, function in members:
            if not method.startswith("_"):
                lines += [f"### `{name}.{method}`", "", *_signature(method, function), *_described(function)]
    return "\n".join(lines)


def generated() -> dict[Path, str]:
    """Return the text of every generated file."""
    return {
        CONFIGS / "base.yaml": base_yaml(),
        REFERENCE / "configuration.md": reference_page(),
        REFERENCE / "command-line.md": command_line_page(),
        REFERENCE / "python-api.md": python_api_page(),
    }


def main() -> int:
    """Write the files of this checkout."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path.resolve()}")
    return 0


def _signature(name: str, function: Any) -> list[str]:
    """Return a call's parameters, one a line where they are many, and what it returns."""
    found = inspect.signature(function)
    given = [each for key, each in found.parameters.items() if key != "self"]
    parameters = [str(each) for each in given]
    named = [index for index, each in enumerate(given) if each.kind == inspect.Parameter.KEYWORD_ONLY]
    if named:
        parameters.insert(named[0], "*")
    returned = "" if found.return_annotation in ("None", None) else f" -> {found.return_annotation}"
    text = f"{name}({', '.join(parameters)}){returned}"
    if len(text) > 80:
        text = "\n".join([f"{name}(", *(f"    {each}," for each in parameters), f"){returned}"])
    return ["```py", re.sub(r"'([^']+)'", r"\1", text), "```", ""]


def _described(function: Any) -> list[str]:
    """Return a docstring as Markdown: its sections (Args, Returns, Raises) as lists, its example as code."""
    lines: list[str] = []
    section = ""
    for line in (inspect.getdoc(function) or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Example):", line):
            section = line.removesuffix(":")
            lines += [f"**{section}**", ""]
            continue
        entry = re.match(r" {4}(\w+): (.*)", line) if section in ("Args", "Raises") else None
        code = section == "Example" and line.startswith("    ")
        more = "  " if section in ("Args", "Raises") and line.startswith("     ") else ""
        lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else line if code else more + line.strip())
    return [*lines, ""]


def _yaml_lines(value: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a section or of a dict of sections."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield f"{indent}{name}:"
            yield from _yaml_lines(entry, f"{indent}  ")
    else:
        yield from _field_lines(value, indent)


def _field_lines(section: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a section; comments of neighbouring values are aligned."""
    fields = children(type(section))
    leaves = [name for name in fields if _is_leaf(fields[name].annotation)]
    # `auto` stands for something on each machine, which the value has and the page must not.
    auto = {name for name in leaves if fields[name].default == "auto"}
    shown = {name: _shown("auto" if name in auto else getattr(section, name)) for name in leaves}
    width = max(len(f"{name}: {text}") for name, text in shown.items() if len(text) < 40)
    for name, field in fields.items():
        if name not in shown:
            yield f"{indent}{name}:  # {field.description}"
            yield from _yaml_lines(getattr(section, name), f"{indent}  ")
            continue
        pair, comment = f"{indent}{name}: {shown[name]}", f"  # {_comment(field)}"
        aligned = f"{pair.ljust(len(indent) + width)}{comment}"
        if len(aligned) <= _WIDTH:
            yield aligned
        elif len(pair + comment) <= _WIDTH:
            yield f"{pair}{comment}"
        else:
            yield from (f"{indent}{comment.strip()}", pair)


def _is_leaf(hint: Any) -> bool:
    return not sections(hint) and not sections(entry_type(hint))


def _shown(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


def _comment(field: Any) -> str:
    """Return a field's description, with the choices where there are some."""
    choices = [str(c) for kind in plain_types(field.annotation) for c in _choices(kind)]
    return (
        f"{field.description}: {', '.join(choices[:-1])} or {choices[-1]}" if choices else field.description
    )


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _tables(cls: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every section with its dotted key, in the schema's order."""
    if key:
        yield key, cls
    for name, field in children(cls).items():
        entry, inner = entry_type(field.annotation), f"{key}.{name}" if key else name
        for each in sections(field.annotation):
            yield from _tables(each, inner)
        for each in sections(entry):
            yield from _tables(each, f"{inner}.<name>")


def _table(key: str, cls: Any) -> list[str]:
    lines = [f"## `{key}`", "", " ".join((cls.__doc__ or "").split()), ""]
    lines += ["| key | type | default | bounds | description |", "|---|---|---|---|---|"]
    for name, field in children(cls).items():
        kind = expected(field.annotation) if _is_leaf(field.annotation) else "section"
        default = "required" if field.is_required() else ""
        if _is_leaf(field.annotation) and not default:
            default = f"`{_shown(field.get_default(call_default_factory=True))}`"
        limits = bounds(field.annotation, list(field.metadata))
        lines.append(f"| `{name}` | {kind} | {default} | {limits} | {field.description.replace('|', '/')} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
