"""docs/guarantees.md is what its results and the lines of the projects of today make."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.benchmarks.frameworks.report import DOCS, lines, page, verdict
from tests.benchmarks.frameworks.rows import PROPERTIES, Where

RESULTS = json.loads((DOCS / "guarantees.json").read_text(encoding="utf-8"))


def test_page(accept: bool) -> None:
    text = page(RESULTS)
    if accept:
        (DOCS / "guarantees.md").write_text(text, encoding="utf-8")
    assert (DOCS / "guarantees.md").read_text(encoding="utf-8") == text


def test_all_are_there() -> None:
    assert [prop.number for prop in PROPERTIES] == list(range(1, 26))


@pytest.mark.parametrize("snippet", ["no such line", "import torch"])
def test_lines_that_are_gone_are_noticed(snippet: str) -> None:
    where = replace(PROPERTIES[0].where[0], snippet=snippet)
    with pytest.raises(LookupError):
        lines(where)


def test_lines_are_counted() -> None:
    assert lines(Where("tabular/base", "train.py", '"""Classify the rows')).startswith("[train.py:1](")


def test_nothing_is_claimed_that_was_not_measured() -> None:
    assert verdict(7, "Lightning", None) == "not measured"


def test_an_option_that_helps_is_named() -> None:
    tried = [
        {"with": "", "held": 0, "cases": 2, "seen": ""},
        {"with": "split_batches", "held": 2, "cases": 2, "seen": ""},
    ]
    assert verdict(17, "Accelerate", {"tried": tried}) == "yes, with `split_batches`"
    assert verdict(17, "Accelerate", {"tried": tried[:1]}) == "no"
    assert verdict(8, "Accelerate", {"tried": tried[:1]}) == "left to the user"
