"""From YAML files and the command line to a `Config`, or to one sentence that says what is wrong.

Precedence: command line > YAML file (`--config`) > engine/settings/config.py. An unknown key is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from continual import remedies
from engine.settings.config import Config
from engine.storage.errors import UserError

AT_LEAST_ONE = (
    "data.size",
    *(f"model.{name}" for name in ("dim", "heads", "hidden", "points", "queries")),
    "optim.batch",
    *(f"optim.epochs.{name}" for name in ("seg", "det", "cls", "joint")),
    *(f"pretrain.{name}" for name in ("side", "views", "batch")),
    "track.evals",
)
"""Settings that count something which has to exist."""
LIMITS = {
    **dict.fromkeys(AT_LEAST_ONE, (1, math.inf)),
    "data.augment.scale": (0.01, 100),
    "data.augment.aspect": (1, 100),
    "data.augment.crop": (0.01, 1),
    "pretrain.view.area": (0.01, 1),
    "pretrain.view.aspect": (1, 100),
    **dict.fromkeys((f"data.augment.{name}" for name in ("flip", "grey", "mosaic", "paste")), (0, 1)),
    **dict.fromkeys(("data.plain_end", "optim.warmup", "optim.ema", "pretrain.ema", "loss.smoothing"), (0, 1)),
}
"""Smallest and largest value of a setting; any other number is at least 0."""
MAX_BYTES = 1_000_000
"""Largest file that is read as configuration."""
MAX_DEPTH = 50
"""Most brackets in one another there."""
ATTEMPTS = 5
"""At reading the settings from their source. jsonargparse leaves out, silently, those of a class that it fails to
parse, as happens where another thread (W&B's) parses too: ast's depth is one for all threads of Python 3.11."""


class Parser(ArgumentParser):
    """An argument parser whose errors are `UserError`s: one sentence with the key, the value and what is allowed."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None, **options: Any
    ) -> Any:
        """Parse the command line and its YAML files. Raises UserError for whatever is wrong with either."""
        given = list(sys.argv[1:] if args is None else args)
        self.sources = self.check(given)
        return super().parse_args(files_first(given), namespace, **options)

    def check(self, given: list[str]) -> dict[str, str]:
        """Refuse unknown keys before jsonargparse does; returns where the files set each of their keys."""
        options = {o.removeprefix("--") for o in self._option_string_actions if o.startswith("--")}
        sections = {k.rsplit(".", n)[0] for k in options for n in range(1, k.count(".") + 1)}
        sources: dict[str, str] = {}
        for word, following in zip(given, [*given[1:], ""]):
            if not word.startswith("--") or word == "--":
                continue
            name, _, value = word.removeprefix("--").partition("=")
            if name in sections or name not in options:
                raise UserError(f"--{name}: {unknown(name, options - sections)}")
            if name == "config" and (value or following):
                keys = options - sections - {"help", "config", "print_config"}
                sources |= read_keys(value or following, keys, sections)
        return sources

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise UserError instead of printing the usage and exiting."""
        text = " ".join(str(ex or message).split())
        typed = re.search(r'key "([\w.]+)".*?(?:Got|Given) value: (.*)$', text)
        kinds = key_types(Config)
        if typed:
            key, value = typed.groups()
            source = f" ({self.sources[key]})" if key in self.sources else ""
            allowed = f"it must be {kind(kinds[key])}" if key in kinds else "see --help for what it takes"
            raise UserError(f"{key} is {value}{source}: {allowed}") from None
        if text.startswith("unrecognized arguments: "):
            text = f"{text.split(': ', 1)[1]}: belongs to no option; settings are given as --section.key value"
        raise UserError(text.removeprefix("argument ")) from None


def files_first(given: list[str]) -> list[str]:
    """Put `--config FILE` first: options beat files wherever they stand, but jsonargparse lets the last one win."""

    def is_option(i: int) -> bool:
        return "--config" not in given[max(0, i - 1) : i + 1] and not given[i].startswith("--config=")

    return [given[i] for i in sorted(range(len(given)), key=is_option)]


def read_keys(path: str, keys: set[str], sections: set[str]) -> dict[str, str]:
    """The keys that a YAML file sets, and where: "FILE, line N".

    Raises UserError for a file that cannot be read, is no mapping, or holds unknown keys or one twice.
    """
    try:
        tree = yaml.compose(harmless_text(path))
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; write lines such as `seed: 1`") from None
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        source = f"{path}, line {mark.line + 1}" if mark else path
        raise UserError(f"{source}: not valid YAML ({getattr(error, 'problem', error)}); correct the file") from None
    if not isinstance(tree, yaml.MappingNode):
        raise UserError(f"{path}: holds no settings; write lines such as `seed: 1`")
    found: dict[str, str] = {}

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name, source = f"{prefix}{key.value}", f"{path}, line {key.start_mark.line + 1}"
            if name in found:
                raise UserError(f"{source}: {name} is there twice, first in line {found[name].split()[-1]}; keep one")
            if name not in keys | sections:
                raise UserError(f"{source}: {unknown(name, keys | sections)}")
            found[name] = source
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")
            elif name in sections:
                raise UserError(f"{source}: {name} is a section; write `key: value` lines below it")

    walk(tree, "")
    return found


def harmless_text(path: str) -> str:
    """The text of a YAML file. Raises UserError for what would take hours or all memory to read."""
    if Path(path).stat().st_size > MAX_BYTES:
        raise UserError(f"--config {path}: larger than {MAX_BYTES} bytes; give the path of a YAML file of settings")
    text = Path(path).read_text(encoding="utf-8")
    # The parser's time grows with the square of the depth, and nested aliases stand for more text than there is memory.
    depth = accumulate((bracket in "[{") - (bracket in "]}") for bracket in re.findall(r"[][{}]", text))
    if max(depth, default=0) > MAX_DEPTH:
        raise UserError(f"{path}: nested too deeply; write lines such as `seed: 1`")
    alias = next((event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)), None)
    if alias:
        raise UserError(f"{path}: *{alias.anchor} is an alias; write out what it stands for")
    return text


def unknown(name: str, keys: set[str]) -> str:
    """Say that `name` is no key, and which one is meant if one is near."""
    inside = sorted(k for k in keys if k.startswith(f"{name}."))
    if inside:
        return f"a section, not a setting; it holds {', '.join(inside)}"
    last = {k.rsplit(".", 1)[-1]: k for k in sorted(keys, reverse=True)}
    near = difflib.get_close_matches(name, keys, 1, 0.75)
    near = near or [last[k] for k in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 1, 0.65)]
    section = name.rpartition(".")[0]
    depth = name.count(".") + 1
    beside = sorted({".".join(k.split(".")[:depth]) for k in keys if section and k.startswith(f"{section}.")})
    other = f"{section} has {', '.join(beside)}" if beside else "see --help for all keys"
    return f"unknown key {name!r}; " + (f"did you mean {near[0]}?" if near else other)


def key_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """All dotted keys of a nested configuration dataclass with their type hints."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= key_types(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found


def kind(hint: Any) -> str:
    """A type hint in plain words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(hint) is list:
        return f"a list in brackets, each entry {kind(inner[0])}"
    if get_origin(hint) is tuple:
        return f"a list in brackets: {', '.join(map(kind, inner))}"
    return " or ".join(map(kind, inner))


def build_parser(prog: str, description: str) -> Parser:
    """A parser that knows `--config FILE` and every key of `Config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    keys = key_types(Config)
    for _ in range(ATTEMPTS):
        parser = Parser(prog=prog, description=description, exit_on_error=False)
        parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
        parser.add_class_arguments(Config, None)
        for action in parser._actions:
            if any(k.startswith(f"{action.dest}.") for k in keys):
                action.help = argparse.SUPPRESS  # whole sections are for files
        if keys.keys() <= {action.dest for action in parser._actions}:
            return parser
    raise RuntimeError("jsonargparse finds no settings in the source of engine/settings/config.py")


def to_config(parser: Parser, parsed: Namespace) -> Config:
    """The `Config` among parsed arguments. Raises UserError for values that cannot work together."""
    for key, hint in key_types(Config).items():
        if parsed.get(key) is None and type(None) not in get_args(hint):
            raise UserError(f"{key} is null: it must be {kind(hint)}; leave the line out for its default")
    init = parser.instantiate(parsed)
    config = Config(**{f.name: init[f.name] for f in dataclasses.fields(Config)})
    for key in key_types(Config):
        low, high = LIMITS.get(key, (0, math.inf))
        for value in parsed[key] if isinstance(parsed[key], (list, tuple)) else [parsed[key]]:
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise UserError(f"{key} is {parsed[key]}: it must be a finite number")
            if isinstance(value, (int, float)) and not low <= value <= high:
                bound = f"at least {low}" if value < low else f"at most {high}"
                raise UserError(f"{key} is {parsed[key]}: it must be {bound}")
    if config.optim.probe > 0.3:
        raise UserError(f"optim.probe is {config.optim.probe}: it must be at most 0.3, or rates do not fall in time")
    if not config.pretrain.sizes:
        raise UserError("pretrain.sizes is empty: name at least one side of views, such as [128]")
    for side in (config.data.size, *config.pretrain.sizes):
        if side < 32 or side % 32:
            key = "data.size is" if side == config.data.size else "pretrain.sizes names"
            raise UserError(f"{key} {side}: it must be a multiple of 32, such as 320 or 512")
    if len(set(config.order)) != len(config.order) or not config.order:
        raise UserError(f"order is {config.order}: name each stage once")
    try:
        remedies(config.continual)
    except ValueError as error:
        raise UserError(str(error)) from None
    return config
