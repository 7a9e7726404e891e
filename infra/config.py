"""Command lines and configurations: a run is a function that returns a whole, frozen dataclass; flags replace fields of it."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from infra.dataset import hash_config as _hash
from infra.storage import StorageError

Config = TypeVar("Config")
USER_ERROR = 2  # exit code of a run that refused to start
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended


class ConfigError(ValueError):
    """The command line or a configuration value cannot be used; the message says what to pass instead."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What belongs to this invocation and not to the result."""

    recipe: str
    dry_run: bool = False
    tracking: str | None = None


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as a JSON-able dictionary."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(asdict(config))))


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises ConfigError for values of another version of the configuration."""
    from pydantic import TypeAdapter, ValidationError  # late: `--help` does not need it

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"these values are no {kind.__name__} of this version: {str(error)[:300]}") from error


def hash_config(config: Any) -> str:
    """16 hex digits that name a configuration."""
    return _hash(to_dict(config) if is_dataclass(config) else config)


def override(config: Config, path: str, text: str) -> Config:
    """Return `config` with the field at a dotted path replaced by `text`, converted to the field's type.

    Raises ConfigError for an unknown field, naming the nearest one, and for a value that is not of its type.
    """
    return _override(config, path, text, path)


def _override(config: Config, path: str, text: str, whole: str) -> Config:
    name, _, rest = path.partition(".")
    known = {f.name: f for f in fields(config)}  # type: ignore[arg-type]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown key {whole!r}: {type(config).__name__} has no {name!r}: {hint}")
    value = getattr(config, name)
    if rest:
        if not is_dataclass(value):
            raise ConfigError(f"{name!r} has no parts, so {whole!r} cannot be set: set {name!r} itself")
        return replace(config, **{name: _override(value, rest, text, whole)})  # type: ignore[type-var]
    hint_type = typing.get_type_hints(type(config))[name]
    return replace(config, **{name: _convert(whole, text, hint_type)})  # type: ignore[type-var]


def _convert(path: str, text: str, wanted: Any) -> Any:
    if is_dataclass(wanted):
        raise ConfigError(f"{path!r} is a group: set one of its fields, e.g. {path}.{fields(wanted)[0].name}=…")
    if isinstance(wanted, types.UnionType) and text.lower() in ("none", "null") and type(None) in typing.get_args(wanted):
        return None
    from pydantic import TypeAdapter, ValidationError  # late: `--help` does not need it

    adapter: Any = TypeAdapter(wanted)
    try:
        plain = typing.get_origin(wanted) in (tuple, list, dict) or any(map(is_dataclass, typing.get_args(wanted)))
        return adapter.validate_json(text) if plain else adapter.validate_python(text)
    except ValidationError as error:
        raise ConfigError(f"{path}={text}: {error.errors()[0]['msg']}; expected {_said(wanted)}") from error


def _said(wanted: Any) -> str:
    """A type as a person says it."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    arguments = typing.get_args(wanted)
    if typing.get_origin(wanted) is typing.Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(_said, arguments))
    if typing.get_origin(wanted) in (tuple, list, dict):
        return f'JSON, e.g. ["…"] for {wanted}'
    return names.get(wanted, str(wanted))


def build_parser(
    prog: str, summary: str, recipes: Sequence[str], default: str, flags: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """The flags that every job has, and a job's own: `flags` has the field that each sets, and its help."""
    parser = argparse.ArgumentParser(prog=prog, description=summary, allow_abbrev=False)
    parser.add_argument("--recipe", default=default, metavar="NAME", help=f"one of: {', '.join(recipes)} (default: {default})")
    parser.add_argument("--input", metavar="URL", help="what is read: a local path or s3://bucket/prefix")
    parser.add_argument("--output", metavar="URL", help="what is written (default: see the recipe)")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="TEXT", help=text)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="replace one field of the recipe, e.g. --set captioner.batch_size=32; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="resolve, check, print the plan and stop")
    parser.add_argument("--tracking", metavar="URI", default=None,
                        help="MLflow tracking address (default: $MLFLOW_TRACKING_URI, else no tracking)")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration as JSON and stop")
    return parser


def resolve(config: Config, args: argparse.Namespace, flags: Iterable[str] = ()) -> Config:
    """Apply --input, --output, a job's own flags and --set to a recipe's configuration."""
    names = {f.name for f in fields(config)}  # type: ignore[arg-type]
    given = {name: getattr(args, name) for name in ("input", "output", *flags) if getattr(args, name) is not None}
    for name, value in given.items():
        if name not in names:
            raise ConfigError(f"this job has no --{name}")
        text = typing.get_type_hints(type(config))[name] in (str, str | None)  # as it is: a prompt may be "none"
        config = replace(config, **{name: value}) if text else override(config, name, value)  # type: ignore[type-var]
    for item in args.overrides:
        path, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected KEY=VALUE")
        config = override(config, path, text)
    return config


def run_entry(argv: Sequence[str], *, prog: str, summary: str, recipes: dict[str, Callable[[], Config]],
              main: Callable[[Config, RunOptions], int], default: str = "tiny", flags: Mapping[str, str] | None = None) -> int:
    """Parse, resolve, print the configuration and run. Errors that a user can mend end in one message and exit code 2."""
    args = build_parser(prog, summary, list(recipes), default, flags).parse_args(list(argv))
    try:
        if args.recipe not in recipes:
            near = difflib.get_close_matches(args.recipe, recipes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(recipes)}"
            raise ConfigError(f"unknown recipe {args.recipe!r}: {hint}")
        config = resolve(recipes[args.recipe](), args, flags or ())
        shown = json.dumps(to_dict(config), indent=2)
        if args.show_config:
            print(shown)
            return 0
        print(f"{prog} --recipe {args.recipe}  configuration {hash_config(config)}\n{shown}", flush=True)
        tracking = args.tracking or os.environ.get("MLFLOW_TRACKING_URI") or None
        return main(config, RunOptions(recipe=args.recipe, dry_run=args.dry_run, tracking=tracking))
    except (ValueError, StorageError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; the same command again continues", file=sys.stderr)
        return INTERRUPTED
