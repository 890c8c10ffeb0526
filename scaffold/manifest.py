"""What a manifest may hold: tables that the catalog's loader and `scaffold check` read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaffold.axes import AXES


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: where, what, and what would work instead."""

    where: str
    what: str
    instead: str

    @property
    def line(self) -> str:
        return f"{self.where}: {self.what}; {self.instead}"


@dataclass(frozen=True)
class Kind:
    """A plain value."""

    noun: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Table:
    """Keys with a shape each; `others` is the shape of keys that are not named, None where there are none."""

    keys: Mapping[str, Shape] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    others: Shape | None = None
    noun: str = "a table"


@dataclass(frozen=True)
class Rows:
    """An array of tables."""

    row: Table
    noun: str = "an array of tables"


Shape = Kind | Table | Rows


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


TEXT = Kind("a string", lambda value: isinstance(value, str))
FILLED = Kind("a string that is not empty", lambda value: isinstance(value, str) and value.strip() != "")
PATTERN = Kind("a regular expression", is_pattern)
TEXTS = Kind("a list of strings", is_texts)
TEXT_OR_TEXTS = Kind(
    "a string or a list of strings", lambda value: isinstance(value, str) or (is_texts(value) and value != [])
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
PLAIN = Kind("a number or a string", lambda value: isinstance(value, int | float | str))
ANY = Kind("anything", lambda value: True)
ALL_TEXTS = Table(others=TEXT, noun="a table of strings")
OPTIONS = Table(others=PLAIN, noun="a table of numbers and strings")

FACTS: dict[str, Shape] = {
    "title": FILLED,
    "model_class": FILLED,
    "model_args": TEXT,
    "test_model_args": TEXT,
    "blocks": TEXT,
    "blocks_differ": FLAG,
    "weighted": FLAG,
    "pictures": FLAG,
    "falls": NUMBER,
    "learns_one_batch": FLAG,
    "timed": FLAG,
    "networks": TEXTS,
    "saved": TEXTS,
    "data_file": TEXT,
}
SOURCE = Table(
    {
        "help": FILLED,
        "requires": TEXTS,
        "option": TEXT,
        "default": TEXT,
        "target": FLAG,
        "first": TEXT,
        "only_with": TEXTS,
        "not_with": TEXTS,
        "files": ALL_TEXTS,
        "words": PATTERN,
        "modules": ALL_TEXTS,
    },
    required=("help",),
)


def excludes(*keys: str) -> Rows:
    """What is not offered beside answers to the questions `keys`."""
    row: dict[str, Shape] = {
        "when": Table({key: TEXT_OR_TEXTS for key in keys}),
        "because": FILLED,
        "choose": FILLED,
    }
    return Rows(Table(row, required=("when", "because", "choose")))


TASK = Table(
    {
        "help": FILLED,
        "requires": TEXTS,
        "modules": ALL_TEXTS,
        "facts": Table(FACTS, required=("title", "model_class", "model_args"), others=ANY),
        "build": OPTIONS,
        "small": OPTIONS,
        "one": OPTIONS,
        "files": ALL_TEXTS,
        "features": ALL_TEXTS,
        "with": Table(others=Table({"words": PATTERN, "facts": Table(FACTS, others=ANY), "build": OPTIONS})),
        "data": Table({"sample": SOURCE}, required=("sample",), others=SOURCE),
        "excludes": excludes(*(axis.key for axis in AXES if axis.key != "task")),
        "defaults": Table({axis.key: TEXTS if axis.many else TEXT for axis in AXES if axis.key != "task"}),
    },
    required=("help", "facts", "data"),
)
LOGGER = Table(
    {
        "help": FILLED,
        "requires": TEXTS,
        "imports": TEXTS,
        "words": PATTERN,
        "modules": ALL_TEXTS,
        "artifacts": FLAG,
        "files": FLAG,
        "test_env": ALL_TEXTS,
    },
    required=("help", "requires", "imports"),
)
FEATURE = Table(
    {
        "help": FILLED,
        "files": ALL_TEXTS,
        "words": PATTERN,
        "excludes": excludes("data", "hardware", "precision", "distributed"),
    },
    required=("help", "files"),
)
KINDS = {"task.toml": TASK, "logger.toml": LOGGER, "feature.toml": FEATURE}


def misfits(value: Any, shape: Shape, key: str = "") -> Iterator[tuple[str, str]]:
    """All that is wrong with a value, and what would work; `key` is its place in the manifest."""
    if isinstance(shape, Kind):
        if not shape.fits(value):
            yield f"{key} is {value!r}", f"it must be {shape.noun}"
    elif isinstance(shape, Rows):
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            yield f"{key} is {value!r}", f"it must be {shape.noun}: [[{key}]]"
            return
        for number, row in enumerate(value, 1):
            yield from misfits(row, shape.row, f"{key} {number}")
    elif not isinstance(value, dict):
        yield f"{key} is {value!r}", f"it must be {shape.noun}: [{key}]"
    else:
        place = f" in [{key}]" if key else ""
        for name in shape.required:
            if name not in value:
                kind = shape.keys[name]
                yield f"{name!r} is missing{place}", f"it must be {kind.noun}"
        for name, item in value.items():
            if found := shape.keys.get(name, shape.others):
                yield from misfits(item, found, f"{key}.{name}" if key else name)
            else:
                yield f"unknown key {name!r}{place}", f"known are {', '.join(shape.keys)}"


def read_manifest(file: Path, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """What a manifest holds, and all that is wrong with its form."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [Problem(where, f"it cannot be read: {error.strerror}", "it must be a file of TOML")]
    except UnicodeDecodeError:
        return {}, [Problem(where, "it is not UTF-8 text", "save it as UTF-8")]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, [
            Problem(where, f"it is not TOML: {error}", "strings stand in quotes, tables in [brackets]")
        ]
    return values, [Problem(where, *found) for found in misfits(values, KINDS[file.name])]
