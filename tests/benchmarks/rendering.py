"""Every valid combination, rendered in memory on one core."""

import time

from scaffold.answers import Answers
from scaffold.catalog import Catalog, load_catalog
from scaffold.examine import by_axis
from scaffold.matrix import everything
from scaffold.plan import make_plan
from scaffold.render import Renderer
from scaffold.rules import broken


def whole_matrix(catalog: Catalog) -> list[Answers]:
    """All that the rules let pass."""
    return [answers for answers in everything(catalog) if broken(by_axis(answers), catalog) is None]


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
