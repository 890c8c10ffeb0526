"""What was chosen: a frozen record, to and from TOML, JSON and `key=value` words."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scaffold.axes import AXES, BY_KEY
from scaffold.errors import RequestError

KEYS = {"with": "features", "logger": "loggers"}  # axis key -> field, where they differ


@dataclass(frozen=True)
class Answers:
    """One value per question; `loggers` and `features` hold any number, in the order of the catalog."""

    name: str
    task: str
    data: str
    hardware: str
    precision: str
    distributed: str
    loggers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def get(self, key: str) -> str | tuple[str, ...]:
        """The answer on an axis, by the axis' own key."""
        value: str | tuple[str, ...] = getattr(self, KEYS.get(key, key))
        return value

    def chosen(self, key: str) -> tuple[str, ...]:
        """As `get`, always as a tuple."""
        value = self.get(key)
        return (value,) if isinstance(value, str) else value

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the axis keys, as answer files and .scaffold.toml hold them."""
        rest = {axis.key: self.get(axis.key) for axis in AXES}
        return {"name": self.name} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in rest.items()
        }

    def changed(self, changes: Mapping[str, Any]) -> Answers:
        fields = {KEYS.get(key, key): value for key, value in changes.items()}
        return replace(self, **fields)


def from_dict(values: Any, origin: str) -> dict[str, Any]:
    """Check the shape of answers from outside; lists become tuples, a lone string for a list is welcome."""
    if not isinstance(values, Mapping):
        raise RequestError(f"{origin}: the answers must be key = value, not {values!r}")
    known = ["name", *BY_KEY]
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise RequestError(f"{origin}: unknown key {key!r}; known are {', '.join(known)}")
        if key in BY_KEY and BY_KEY[key].many:
            items = [value] if isinstance(value, str) else value
            if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
                raise RequestError(f"{origin}: {key} must be a list of strings, not {value!r}")
            checked[key] = several(key, items)
        elif not isinstance(value, str):
            raise RequestError(f"{origin}: {key} must be a string, not {value!r}")
        else:
            checked[key] = value
    return checked


def several(key: str, items: Iterable[str]) -> tuple[str, ...]:
    """The answer to a question that takes any number, commas between or not; `none` alone means no choice."""
    found = tuple(part for item in items for part in item.split(",") if part)
    for item in found:
        if found.count(item) > 1:
            raise RequestError(f"{key} {item!r} was given twice: give it once")
    if "none" in found and len(found) > 1:
        raise RequestError(f"{key} 'none' cannot stand beside others: leave it out")
    return () if found == ("none",) else found


def parse_text(text: str, origin: str) -> dict[str, Any]:
    """Answers in JSON or TOML, whichever the text is."""
    text = text.removeprefix("\ufeff")  # some editors mark UTF-8 so
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except RecursionError:
        raise RequestError(f"{origin} is nested too deep: answers are key = value") from None
    except ValueError as error:  # also of a number with too many digits
        raise RequestError(f"{origin} is neither JSON nor TOML: {error}") from None
    return from_dict(values, origin)


def parse_words(words: Iterable[str], base: Mapping[str, Any]) -> dict[str, Any]:
    """`key=value`; for loggers and features also `key=a,b`, `key+=a` and `key-=a` on top of `base`."""
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        sign = key[-1:] if key[-1:] in ("+", "-") else ""
        key = key.removesuffix(sign) if sign else key
        if not equals or key not in BY_KEY:
            raise RequestError(f"{word!r} is not key=value with a key from {', '.join(BY_KEY)}")
        if not BY_KEY[key].many:
            if sign:
                raise RequestError(f"{word!r}: {key} takes one value, write {key}={value}")
            changes[key] = value
            continue
        items = [item for item in value.split(",") if item]
        now = list(changes.get(key, base.get(key, ())))
        if sign == "+":
            if again := [item for item in items if item in now]:
                raise RequestError(f"{word!r}: {again[0]} is chosen already")
            items = now + items
        elif sign == "-":
            missing = [item for item in items if item not in now]
            if missing:
                raise RequestError(f"{word!r}: {missing[0]} is not chosen there")
            items = [item for item in now if item not in items]
        changes[key] = several(key, items)
    return changes


def to_toml(values: Mapping[str, Any]) -> str:
    """Flat strings and lists of strings as TOML; JSON's quoting of both is valid TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
