"""The combinations of a catalog's choices, and a renderer that is fast enough for thousands of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from jinja2.runtime import Context

from scaffold.answers import Answers
from scaffold.catalog import Catalog, Task
from scaffold.render import Renderer

Result = TypeVar("Result")


def subsets(items: list[str]) -> list[tuple[str, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


def everything(catalog: Catalog) -> Iterator[Answers]:
    """The whole product, valid or not, of what the catalog offers for each task."""
    for task in catalog.tasks:
        axes = [list(catalog.values(key, task)) for key in ("data", "hardware", "precision", "distributed")]
        loggers = subsets(list(catalog.loggers))
        features = subsets(list(catalog.values("with", task)))
        for data, hardware, precision, distributed in itertools.product(*axes):
            for chosen in itertools.product(loggers, features):
                yield Answers("demo", task, data, hardware, precision, distributed, *chosen)


def thinned(catalog: Catalog, offered: Callable[[Answers], bool]) -> Iterator[Answers]:
    """Of those that are offered, on the sample data all with at most two features or with all of them, or all
    but one; on other data with one.

    Loggers are all of them or none, and none beside two features; any one or two where there is no feature
    and, on the sample data, where there is one.
    """
    many = {task.name: most_features(task, catalog) for task in catalog.tasks.values()}
    for answers in everything(catalog):
        size, number = len(answers.features), len(answers.loggers)
        few, sample = size < many[answers.task] - 1, answers.data == "sample"
        if few and size > 1 and (number or size > 2 or not sample):
            continue
        if 0 < number < len(catalog.loggers) and (number > 2 or size > sample):
            continue
        if offered(answers):
            yield answers


def most_features(task: Task, catalog: Catalog) -> int:
    """How many features a project of the task can have, those left out that the task excludes."""
    never = [item.when["with"] for item in task.excludes if list(item.when) == ["with"]]
    return len(catalog.values("with", task.name)) - sum(map(len, never))


class NotingContext(Context):
    """Notes the facts that a template reads, also those that it imports."""

    read: ClassVar[set[str]] = set()

    def resolve_or_missing(self, key: str) -> Any:
        self.read.add(key)
        return super().resolve_or_missing(key)


class RememberingRenderer(Renderer):
    """Renders a file once for all projects that agree in the facts it reads."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.env.context_class = NotingContext
        self.reads: dict[str, set[tuple[str, ...]]] = {}  # template -> the sets of facts it was seen to read
        self.results: dict[tuple[Any, ...], Any] = {}
        self.facts: Mapping[str, Any] = {}  # of the project that is being rendered
        self.words: dict[str, str] = {}  # and those that were compared, as text

    def file(self, template: str, facts: Mapping[str, Any], own: frozenset[str]) -> str:
        return self.remember(
            template, facts, lambda: super(RememberingRenderer, self).file(template, facts, own)
        )

    def remember(self, template: str, facts: Mapping[str, Any], make: Callable[[], Result]) -> Result:
        """What `make` returned for a project that agrees in the facts that `make` read in templates."""
        for names in self.reads.setdefault(template, set()):
            if (known := self.results.get(self.key(template, names, facts))) is not None:
                result: Result = known
                return result
        NotingContext.read.clear()
        result = make()
        names = tuple(sorted(NotingContext.read))
        self.reads[template].add(names)
        self.results[self.key(template, names, facts)] = result
        return result

    def key(self, template: str, names: tuple[str, ...], facts: Mapping[str, Any]) -> tuple[Any, ...]:
        if facts is not self.facts:
            self.facts, self.words = facts, {}
        for name in names:
            if name not in self.words:
                self.words[name] = str(facts.get(name))
        return (template, names, *(self.words[name] for name in names))
