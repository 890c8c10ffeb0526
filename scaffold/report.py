"""What the commands say: choices, trees and the line that recreates a project, as text."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scaffold.answers import Answers
from scaffold.axes import AXES, BY_KEY
from scaffold.catalog import Catalog
from scaffold.rules import Rule, all_rules, default

if TYPE_CHECKING:
    from scaffold.check import Fault, Report
    from scaffold.verify import Finding


@dataclass(frozen=True)
class Conflict:
    """The other half of a rule, seen from one value."""

    when: dict[str, list[str]]
    because: str
    choose: str


@dataclass(frozen=True)
class Choice:
    """A value of an axis; `tasks` are those that offer it, empty for all."""

    help: str
    tasks: list[str]
    excludes: list[Conflict]


Choices = dict[str, dict[str, Choice]]


def choices(catalog: Catalog, keys: list[str]) -> Choices:
    """list name -> value -> what there is to say about it."""
    rules = all_rules(catalog)
    return {
        BY_KEY[key].plural: {
            value: Choice(text, tasks := tasks_with(catalog, key, value), conflicts(rules, key, value, tasks))
            for value, text in catalog.values(key).items()
        }
        for key in keys
    }


def conflicts(rules: tuple[Rule, ...], key: str, value: str, tasks: list[str]) -> list[Conflict]:
    """`tasks` are those that alone offer the value: they need not be named."""
    if key == "task":  # said where it is looked for: at what a task is not offered with
        return []
    found = [rule for rule in rules if value in rule.when.get(key, ())]
    return [
        Conflict(
            {
                other: list(values)
                for other, values in rule.when.items()
                if other != key and (other != "task" or list(values) != tasks)
            }
            | ({"with": list(rule.beside)} if rule.beside else {}),
            rule.because,
            rule.choose,
        )
        for rule in found
    ]


def tasks_with(catalog: Catalog, key: str, value: str) -> list[str]:
    if key not in ("data", "with"):
        return []
    offering = [name for name in catalog.tasks if value in catalog.values(key, name)]
    return [] if len(offering) == len(catalog.tasks) else offering


def as_plain(found: Choices) -> dict[str, Any]:
    return {name: {value: asdict(choice) for value, choice in rows.items()} for name, rows in found.items()}


def choice_lines(found: Choices) -> Iterator[str]:
    for number, (title, rows) in enumerate(found.items()):
        if number:
            yield ""
        yield title
        for value, choice in rows.items():
            only = f" ({', '.join(choice.tasks)})" if choice.tasks else ""
            yield f"  {value:<24} {choice.help}{only}"
            for conflict in choice.excludes:
                yield f"  {'':<26} {conflict_text(conflict)}"


def conflict_text(conflict: Conflict) -> str:
    others = ", ".join(f"{key}={'|'.join(values)}" for key, values in conflict.when.items())
    where = f"excludes {others}: " if others else ""
    return f"{where}{conflict.because}; choose {conflict.choose}"


def show(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ",".join(value) or "none"


def assumed(values: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The answers that were not given, on one line."""
    return ", ".join(f"{key}={show(value)}" for key, value in values.items() if key not in given)


def recreate(answers: Answers, catalog: Catalog, *more: str) -> str:
    """One line that writes the same project; `more` are the options that are no answers."""
    words = ["scaffold", "new", answers.name]
    values = {axis.key: answers.get(axis.key) for axis in AXES}
    for axis in AXES:
        chosen = answers.chosen(axis.key)
        if not chosen and default(axis.key, values, catalog):
            chosen = ("none",)
        words += [word for item in chosen for word in (f"--{axis.key}", item)]
    return shlex.join([*words, *more])


def tree_lines(paths: list[str]) -> Iterator[str]:
    """The files as people list them, folders where their files are."""
    seen: set[str] = set()
    for path in paths:
        folder, _, file = path.rpartition("/")
        if folder and folder not in seen:
            seen.add(folder)
            yield f"  {folder}/"
        yield ("    " if folder else "  ") + file


def finding_lines(finding: Finding) -> Iterator[str]:
    """A line for each property, a second where something is wrong or does not apply."""
    yield f"{finding.state:<15}{finding.number:>3}  {finding.title}"
    if finding.detail:
        yield f"{'':<20}{finding.detail}"


def summary(findings: list[Finding]) -> str:
    states = Counter(finding.state for finding in findings)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def report_lines(report: Report) -> Iterator[str]:
    """A line for each problem of a folder, and one that says what was looked at."""
    for fault in report.problems:
        yield fault_line(fault, report.combinations)
    number = len(report.problems)
    result = f"{number} problem{'s' if number > 1 else ''}" if number else report.state
    if report.combinations:
        fewest, most = report.files
        files = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        yield f"{report.folder}: {report.combinations} combinations, {files} files each: {result}"
    else:
        yield f"{report.folder}: nothing rendered: {result}"


def fault_line(fault: Fault, combinations: int) -> str:
    line = f"{fault.where}: {fault.problem}; {fault.instead}"
    if not fault.combinations:
        return line
    return f"{line} ({fault.combinations} of {combinations} combinations, as {fault.example})"
