"""Every valid combination, rendered in memory on one core."""

import itertools
import time

from scaffold.answers import Answers
from scaffold.axes import AXES, BY_KEY
from scaffold.catalog import Catalog, load_catalog
from scaffold.plan import make_plan
from scaffold.render import Renderer
from scaffold.rules import broken


def subsets(items: list[str]) -> list[tuple[str, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


def whole_matrix(catalog: Catalog) -> list[Answers]:
    """Tasks x data x hardware x precision x distributed x subsets of loggers x subsets of features."""
    found = []
    for task in catalog.tasks:
        values = {axis.key: list(catalog.values(axis.key, task)) for axis in AXES} | {"task": [task]}
        choices = [subsets(values[key]) if BY_KEY[key].many else values[key] for key in values]
        for row in itertools.product(*choices):
            answers = Answers("project", *row)
            if not broken({axis.key: answers.chosen(axis.key) for axis in AXES}, catalog):
                found.append(answers)
    return found


def measure(count: int | None = None) -> dict[str, float]:
    """Projects a second of processor time; `count` takes about so many, evenly from the whole matrix."""
    catalog = load_catalog()
    matrix = whole_matrix(catalog)
    chosen = matrix[:: max(1, len(matrix) // count)] if count else matrix
    start = time.process_time()
    renderer = Renderer(catalog)
    for answers in chosen:
        renderer.tree(make_plan(answers, catalog))
    seconds = time.process_time() - start
    return {
        "combinations": len(matrix),
        "rendered": len(chosen),
        "per second": len(chosen) / seconds,
    }
