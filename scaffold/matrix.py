"""The combinations of a catalog's choices, and a renderer that is fast enough for thousands of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from jinja2.runtime import Context

from scaffold.answers import Answers
from scaffold.catalog import Catalog
from scaffold.render import Renderer

Result = TypeVar("Result")


@dataclass(frozen=True)
class Extent:
    """How many features meet at most, on the sample data and on other data; beside how many is each logger.

    All features that can meet, and all but one of them, always do. Of `turns` combinations of hardware,
    precision and distribution that a set of features or loggers could meet, it meets one.
    """

    sample: int
    other: int
    each_logger: int
    turns: int


WIDE = Extent(sample=3, other=2, each_logger=1, turns=1)
THIN = Extent(sample=2, other=1, each_logger=0, turns=7)
Offered = Callable[[Answers], bool]


def subsets(items: Sequence[str], *sizes: int) -> list[tuple[str, ...]]:
    """Those of some sizes, each once."""
    return [chosen for size in sorted({*sizes}) for chosen in itertools.combinations(items, size)]


def combinations(catalog: Catalog, offered: Offered, extent: Extent) -> Iterator[Answers]:
    """Of what the catalog offers and `offered` lets pass, enough that every few choices meet."""
    for task in catalog.tasks:
        axes = [catalog.values(key, task) for key in ("data", "hardware", "precision", "distributed")]
        for turn, (data, hardware, precision, distributed) in enumerate(itertools.product(*axes)):
            plain = Answers("demo", task, data, hardware, precision, distributed)
            for number, added in enumerate(additions(plain, catalog, offered, extent)):
                answers = replace(plain, loggers=added[0], features=added[1])
                its_turn = (turn + number) % extent.turns == 0 or answers == plain
                if its_turn and offered(answers):
                    yield answers


def additions(
    plain: Answers, catalog: Catalog, offered: Offered, extent: Extent
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Sets of loggers, and of features beside them; loggers meet one another where there is no feature.

    Features that only add files meet one another and, on the sample data, the rest of the axes: no others,
    but where the data needs one of them.
    """
    needed = catalog.task(plain.task).sources[plain.data].only_with
    known = catalog.values("with", plain.task)
    names = [name for name in known if name in needed or name not in catalog.additive]
    loggers, additive = tuple(catalog.loggers), tuple(catalog.additive)
    beside = {name: tuple(other for other in known if other in (*needed, name)) for name in names}
    possible = [n for n in names if offered(replace(plain, loggers=loggers, features=beside[n]))]
    most = extent.sample if plain.data == "sample" else extent.other
    few = subsets(names, *range(most + 1))
    many = {*subsets(possible, max(0, len(possible) - 1), len(possible))} - {*few}
    for features in few:
        sizes = [0, len(loggers)] if len(features) < 2 else [0]
        sizes += [1] if len(features) <= extent.each_logger else []
        sizes += [2] if not features else []
        yield from ((chosen, features) for chosen in subsets(loggers, *sizes))
    for features in sorted(many):
        yield from (((), features), (loggers, features))
    if additive and plain.data == "sample":
        yield from (((), chosen) for chosen in subsets(additive, 1, 2, len(additive)) if chosen not in few)
        yield loggers, additive


def everything(catalog: Catalog) -> Iterator[Answers]:
    """What tests call the whole matrix, valid or not."""
    return combinations(catalog, lambda answers: True, WIDE)


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
