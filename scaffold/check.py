"""`scaffold check DIR`: what is wrong with folders of tasks, loggers and features, whatever they become."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta, nodes

from scaffold.answers import Answers
from scaffold.axes import BY_KEY
from scaffold.catalog import (
    Additive,
    Catalog,
    Exclusion,
    Logger,
    Task,
    read_additive,
    read_catalog,
    read_logger,
    read_task,
    templates_folder,
)
from scaffold.errors import RequestError, readable
from scaffold.examine import (
    Place,
    Thin,
    examine,
    missing,
    no_macro,
    offered_thinned,
    projects_of_additive,
    projects_of_logger,
    projects_of_task,
    syntax_problem,
    undefined_problem,
    wrong_call,
)
from scaffold.manifest import FACTS, Problem, read_manifest
from scaffold.plan import FILES, SHARED, make_plan
from scaffold.render import environment
from scaffold.rules import Rule, complete, followed

KINDS = {"tasks": "task.toml", "loggers": "logger.toml", "features": "feature.toml"}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MACROS = {"tasks": ("write",), "loggers": ("init", "log", "finish")}

Item = Task | Logger | Additive


@dataclass(frozen=True)
class Fault:
    """A problem, in how many of the combinations it is (0: in the folder itself), and one of them."""

    where: str
    problem: str
    instead: str
    combinations: int = 0
    example: str = ""


@dataclass(frozen=True)
class Report:
    """What was looked at in a folder, and what is wrong there."""

    folder: str
    state: str  # fine or broken
    combinations: int
    files: tuple[int, int]  # of a project, at least and at most
    problems: tuple[Fault, ...]


def places(folder: Path) -> list[Place]:
    """The task, logger and feature folders in `folder`, or itself."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder: name one that holds tasks/, loggers/ or features/")
    whole = folder.resolve()
    for kind, file in KINDS.items():
        if (whole / file).exists() or whole.parent.name == kind:
            return [Place(whole, f"{kind}/{whole.name}")]
    found = [
        Place(inside, f"{kind}/{inside.name}")
        for kind in KINDS
        for inside in sorted((whole / kind).glob("*"))
        if inside.is_dir() and not inside.name.startswith((".", "__"))
    ]
    if not found:
        raise RequestError(
            f"{folder} holds no task, logger or feature: name one that holds tasks/NAME or the like"
        )
    return found


def check(folder: Path, thin: Thin = offered_thinned) -> Iterator[Report]:
    """Look at each task, logger and feature; those whose manifests are sound are also rendered."""
    with readable(folder):
        yield from reports(places(folder), thin)


def reports(found: list[Place], thin: Thin) -> Iterator[Report]:
    readers: dict[str, Callable[[Path], Item]] = {
        "tasks": read_task,
        "loggers": read_logger,
        "features": read_additive,
    }
    sound: dict[Place, Item] = {}
    problems: dict[Place, list[Problem]] = {}
    for place in found:
        kind = place.name.split("/")[0]
        manifest = place.folder / KINDS[kind]
        where = f"{place.name}/{KINDS[kind]}"
        problems[place] = read_manifest(manifest, where)[1] if manifest.is_file() else [missing(where)]
        if not problems[place]:
            sound[place] = readers[kind](place.folder)
    ours = read_catalog((templates_folder(),))
    roots = dict.fromkeys(p.folder.parent.parent for p in found if p.folder.parent.name in KINDS)
    catalog = replace(
        ours,
        tasks=ours.tasks | {item.name: item for item in sound.values() if isinstance(item, Task)},
        loggers=ours.loggers | {item.name: item for item in sound.values() if isinstance(item, Logger)},
        additive=ours.additive | {item.name: item for item in sound.values() if isinstance(item, Additive)},
        roots=(*roots, *ours.roots),
    )
    for place in found:
        of_folder = [*problems[place], *folder_problems(place, sound.get(place), catalog, ours)]
        yield report(place, sound.get(place), of_folder, catalog, thin)


def report(place: Place, item: Item | None, problems: list[Problem], catalog: Catalog, thin: Thin) -> Report:
    faults = {problem: Fault(problem.where, problem.what, problem.instead) for problem in problems}
    if item is None:
        return Report(place.name, "broken", 0, (0, 0), tuple(faults.values()))
    if isinstance(item, Task):
        few, projects = projects_of_task(item, catalog, thin)
    elif isinstance(item, Additive):
        few, projects = projects_of_additive(item, catalog, thin)
    else:
        few, projects = projects_of_logger(item, catalog, thin)
    seen = examine(place, few, projects)
    for problem, (count, example) in seen.problems.items():
        faults[problem] = Fault(problem.where, problem.what, problem.instead, count, example)
    if not seen.combinations:
        problem = Problem(place.name, "no combination of choices is offered", "see [[excludes]]")
        faults[problem] = Fault(problem.where, problem.what, problem.instead)
    for name in seen.unused if not problems else ():
        faults[missing(name)] = Fault(name, "no project needs it", "rename it, or delete it")
    state = "broken" if faults else "fine"
    return Report(place.name, state, seen.combinations, (seen.fewest, seen.most), tuple(faults.values()))


def folder_problems(place: Place, item: Item | None, catalog: Catalog, ours: Catalog) -> Iterator[Problem]:
    """What is wrong with a folder before anything is rendered."""
    kind, name = place.name.split("/")
    of_kind: dict[str, Mapping[str, Item]] = {
        "tasks": ours.tasks,
        "loggers": ours.loggers,
        "features": ours.additive,
    }
    known = of_kind[kind]
    if name in known and known[name].folder.resolve() != place.folder:
        advice = "give the folder another name"
        yield Problem(place.name, f"{name!r} is the name of one of scaffold's own {kind}", advice)
    if not NAME.fullmatch(name) or name == "none":
        yield Problem(place.name, f"{name!r} is not a name to choose", "use small letters, digits and '-'")
    yield from own_templates(place)
    if isinstance(item, Task):
        yield from task_problems(place, item, catalog, ours)
    elif isinstance(item, Logger):
        yield from logger_problems(place, item)
    elif item:
        yield from additive_problems(place, item, catalog)
    facts = None if item is None else known_facts(item, catalog)
    yield from template_problems(place, item, catalog, facts)


def own_templates(place: Place) -> Iterator[Problem]:
    """Templates beside the folder that would stand in the place of shared ones."""
    root = place.folder.parent.parent
    if place.folder.parent.name not in KINDS or root == templates_folder().resolve():
        return
    for folder in ("_lib", "project"):
        for path in sorted((templates_folder() / folder).rglob("*.jinja")):
            name = path.relative_to(templates_folder()).as_posix()
            if (root / name).exists():
                yield Problem(name, "it has the name of a shared template, for all tasks", "rename it")


def known_facts(item: Item, catalog: Catalog) -> set[str]:
    """The names that templates can read in some project."""
    tasks = [item] if isinstance(item, Task) else list(catalog.tasks.values())
    names: set[str] = set()
    for task in tasks:
        for source in task.sources:
            answers = complete_enough(task, source)
            names |= set(make_plan(answers, catalog).facts)
        names |= {name for change in task.changes.values() for name in change.get("facts", {})}
    return names


def complete_enough(task: Task, source: str) -> Answers:
    return Answers("demo", task.name, source, "cpu", "fp32", "none")


def requirement_problems(where: str, key: str, requires: Iterable[str]) -> Iterator[Problem]:
    from packaging.requirements import InvalidRequirement, Requirement

    for item in requires:
        try:
            Requirement(item)
        except InvalidRequirement:
            yield Problem(where, f"{key} holds {item!r}, which names no package", 'write "package>=1.0"')


def logger_problems(place: Place, logger: Logger) -> Iterator[Problem]:
    where = f"{place.name}/logger.toml"
    yield from requirement_problems(where, "requires", logger.requires)
    for line in logger.imports:
        try:
            body = ast.parse(line).body
        except (SyntaxError, ValueError):
            body = []
        if len(body) != 1 or not isinstance(body[0], ast.Import | ast.ImportFrom):
            yield Problem(where, f"imports holds {line!r}, which is no import", 'write "import package"')


def additive_problems(place: Place, feature: Additive, catalog: Catalog) -> Iterator[Problem]:
    where = f"{place.name}/feature.toml"
    for task in catalog.tasks.values():
        if feature.name in {**catalog.features, **task.features}:
            advice = "give the folder another name"
            yield Problem(place.name, f"{feature.name!r} is a feature of {task.name} already", advice)
            break
    task = next(iter(catalog.tasks.values()))
    when = {"with": (feature.name,)}
    yield from exclusion_problems(where, task, feature.excludes, catalog, when)
    if not feature.files:
        yield Problem(where, "files is empty", "name the files that it adds")
    for path in feature.files:
        yield from path_problems(
            where, "files", path, place.folder / Path(feature.template(path)).relative_to(place.name)
        )


def task_problems(place: Place, task: Task, catalog: Catalog, ours: Catalog) -> Iterator[Problem]:
    where = f"{place.name}/task.toml"
    yield from requirement_problems(where, "requires", task.requires)
    yield from feature_problems(where, task, ours)
    yield from source_problems(where, task, catalog)
    yield from exclusion_problems(where, task, task.excludes, catalog, {})
    yield from default_problems(where, task, catalog)
    yield from file_problems(place, where, task)


def names_problem(where: str, key: str, name: str, known: Iterable[str]) -> Problem:
    return Problem(where, f"{key} names {name!r}, which there is not", f"choose from {', '.join(known)}")


def feature_problems(where: str, task: Task, ours: Catalog) -> Iterator[Problem]:
    plain = next(iter(ours.tasks.values()))
    taken = set(make_plan(complete_enough(plain, "sample"), ours).facts) | set(FACTS)
    for name in task.features:
        if name in {**ours.features, **ours.additive}:
            yield Problem(where, f"features holds {name!r}, a feature of every task", "use another name")
        elif not NAME.fullmatch(name) or name == "none":
            yield Problem(where, f"feature {name!r} is not a name to choose", "use small letters and '-'")
        elif name.replace("-", "_") in taken:
            yield Problem(where, f"feature {name!r} has the name of a fact", "use another name")
    for name in task.changes:
        if name not in task.features:
            yield names_problem(where, "with", name, task.features)
    for facts in (task.facts, *(change.get("facts", {}) for change in task.changes.values())):
        for name in sorted(set(facts) & taken - set(FACTS)):
            yield Problem(where, f"fact {name!r} is one that follows from the choices", "use another name")


def source_problems(where: str, task: Task, catalog: Catalog) -> Iterator[Problem]:
    features = catalog.values("with", task.name)
    for name, source in task.sources.items():
        key = f"data.{name}"
        yield from requirement_problems(where, f"{key}.requires", source.requires)
        if not NAME.fullmatch(name):
            yield Problem(where, f"{key} is not a name to choose", "use small letters, digits and '-'")
        for table in ("only_with", "not_with"):
            for feature in getattr(source, table):
                if feature not in features:
                    yield names_problem(where, f"{key}.{table}", feature, features)
        if name == "sample" and source.option:
            yield Problem(where, "data.sample has an option", "the sample is there without the user's files")
        if bool(source.option) != bool(source.default):
            has, lacks = ("option", "default") if source.option else ("default", "option")
            yield Problem(where, f"{key} has {has!r} and no {lacks!r}", "give both, or neither")
        if source.target and not source.option:
            yield Problem(where, f"{key} has a target and no option", "a target is a column of what is named")


def exclusion_problems(
    where: str,
    task: Task,
    excludes: tuple[Exclusion, ...],
    catalog: Catalog,
    own: Mapping[str, tuple[str, ...]],
) -> Iterator[Problem]:
    """What is wrong with exclusions; `own` is what each of them holds without saying so."""
    for number, item in enumerate(excludes, 1):
        key = f"excludes {number}"
        wrong = [
            names_problem(where, f"{key}.when.{axis}", value, catalog.values(axis, task.name))
            for axis, values in item.when.items()
            for value in values
            if value not in catalog.values(axis, task.name)
        ]
        yield from wrong
        if not item.when:
            yield Problem(where, f"{key}.when is empty: it excludes everything", "name a choice")
        elif not wrong:
            rule = Rule("", {**own, **item.when}, item.because, item.choose)
            yield from advice_problems(where, key, rule, task, catalog)


def advice_problems(where: str, key: str, rule: Rule, task: Task, catalog: Catalog) -> Iterator[Problem]:
    """Whether what an exclusion says to choose instead is there, and helps."""
    for answers in rule.combinations():
        try:
            afters = followed(rule.choose, answers)
        except RequestError:
            advice = "write key=value, or `without FEATURE`"
            yield Problem(where, f"{key}.choose is {rule.choose!r}, which cannot be followed", advice)
            return
        for after in afters:
            for axis, chosen in after.items():
                for value in chosen:
                    if axis != "task" and value not in catalog.values(axis, task.name):
                        yield names_problem(where, f"{key}.choose", value, catalog.values(axis, task.name))
                        return
            if rule.applies(after):
                what = f"{key}.choose is {rule.choose!r}, after which it still applies"
                yield Problem(where, what, "name a choice that `when` does not hold")
                return


def default_problems(where: str, task: Task, catalog: Catalog) -> Iterator[Problem]:
    wrong = [
        names_problem(where, f"defaults.{axis}", value, catalog.values(axis, task.name))
        for axis, values in task.defaults.items()
        for value in (values if BY_KEY[axis].many else [values])
        if value not in catalog.values(axis, task.name)
    ]
    yield from wrong
    if wrong:
        return
    for hardware in ("cpu", "gpu"):
        try:
            complete({"task": task.name, "name": "demo"}, catalog, hardware)
        except RequestError as error:
            yield Problem(where, f"what is chosen by default is not offered: {error}", "see [defaults]")
            return


def file_problems(place: Place, where: str, task: Task) -> Iterator[Problem]:
    own = [(f"data.{name}.files", path) for name, s in task.sources.items() for path in s.files]
    for key, path in [*(("files", path) for path in task.files), *own]:
        yield from path_problems(where, key, path, place.folder / f"{path}.jinja")


def path_problems(where: str, key: str, path: str, template: Path) -> Iterator[Problem]:
    """What is wrong with a file that a manifest names, and its template."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.name or "\\" in path:
        yield Problem(where, f"{key} holds {path!r}, which is outside of a project", "use a path inside")
    elif path in (*FILES, *SHARED, "loggers.py", ".scaffold.toml"):
        yield Problem(where, f"{key} holds {path!r}, which every project has", "use another name")
    elif not template.is_file():
        yield missing(f"{where.rpartition('/')[0]}/{path}.jinja")


def template_problems(
    place: Place, item: Item | None, catalog: Catalog, facts: set[str] | None
) -> Iterator[Problem]:
    """What each template says by itself: its form, the names it reads, the macros that others call."""
    kind = place.name.split("/")[0]
    env = environment(catalog)
    trees: dict[str, nodes.Template] = {}
    for path in place.templates():
        name = place.called(path)
        try:
            source = path.read_text(encoding="utf-8")
            yield from of_another_folder(place, name, source)
            trees[name] = env.parse(source, name, str(path))
            env.compile(source, name, str(path))
        except UnicodeDecodeError:
            yield Problem(name, "it is not UTF-8 text", "save it as UTF-8")
        except TemplateSyntaxError as error:
            trees.pop(name, None)
            yield syntax_problem(error, name)
    needed = {"tasks": [*FILES, "about.md"], "loggers": ["logger.py"], "features": []}[kind]
    has_option = isinstance(item, Task) and any(source.option for source in item.sources.values())
    with_macros = f"{place.name}/{'logger' if kind == 'loggers' else 'small_data'}.py.jinja"
    if has_option:
        needed.append("small_data.py")
    for file in needed:
        if not (place.folder / f"{file}.jinja").is_file():
            yield missing(f"{place.name}/{file}.jinja")
    if with_macros in trees and (kind == "loggers" or has_option):
        macros = {node.name for node in trees[with_macros].find_all(nodes.Macro)}
        for name in MACROS[kind]:
            if name not in macros:
                advice = f"write `#: macro {name}()` and `#: endmacro`"
                yield Problem(with_macros, f"the macro {name!r} is missing", advice)
        if isinstance(item, Logger) and item.artifacts != ("artifact" in macros):
            what = "the macro 'artifact' and `artifacts` of the manifest do not agree"
            yield Problem(with_macros, what, "write both, or neither")
    if facts is not None:
        yield from undefined_facts(trees, facts, env)
    for name, tree in trees.items():
        yield from wrong_macros(name, tree, env)
    if isinstance(item, Task):
        yield from unread_facts(f"{place.name}/task.toml", item, trees)
    for script in sorted(place.folder.glob("*.py")):
        try:
            ast.parse(script.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            yield Problem(f"{place.called(script)}:{line}", f"it is no Python: {error}", "see the line")


def of_another_folder(place: Place, name: str, source: str) -> Iterator[Problem]:
    """Templates of other folders that a template names: it was copied from there, most likely."""
    for number, line in enumerate(source.split("\n"), 1):
        for other in re.findall(r"[\"']((?:tasks|loggers|features)/[\w-]+)/", line):
            if other != place.name:
                yield Problem(f"{name}:{number}", f"it names a template of {other}", f"write {place.name}/")


def undefined_facts(trees: dict[str, nodes.Template], facts: set[str], env: Environment) -> Iterator[Problem]:
    """Names that no plan has and no template sets; those that `is defined` asks for may be missing."""
    found = {node.name for tree in trees.values() for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    known = facts | found | set(env.globals)
    for name, tree in trees.items():
        unknown = meta.find_undeclared_variables(tree) - known
        asked = {
            node.node.name
            for node in tree.find_all((nodes.Test, nodes.Filter))
            if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
        }
        for node in tree.find_all(nodes.Name):
            if node.ctx == "load" and node.name in unknown - asked:
                yield undefined_problem(f"{name}:{node.lineno}", f"'{node.name}' is undefined")


def wrong_macros(name: str, tree: nodes.Template, env: Environment) -> Iterator[Problem]:
    """Calls of macros that the imported template does not have, or with what they do not take."""
    for node in tree.find_all(nodes.Import):
        if not (isinstance(node.template, nodes.Const) and env.loader):
            continue
        try:
            imported = env.parse(env.loader.get_source(env, node.template.value)[0])
        except TemplateError:
            continue  # said elsewhere
        macros = {macro.name: macro for macro in imported.find_all(nodes.Macro)}
        known = {target.name for target in imported.find_all(nodes.Name) if target.ctx == "store"}
        for use in tree.find_all(nodes.Getattr):
            if is_of(use, node.target) and use.attr not in {*macros, *known}:
                yield no_macro(f"{name}:{use.lineno}", use.attr)
        for call in tree.find_all(nodes.Call):
            called = call.node
            if isinstance(called, nodes.Getattr) and is_of(called, node.target) and called.attr in macros:
                takes = [argument.name for argument in macros[called.attr].args]
                for what in unfit_arguments(call, takes):
                    text = f"TypeError: macro {called.attr!r} takes {what}"
                    yield wrong_call(f"{name}:{call.lineno}", text)


def is_of(use: nodes.Getattr, alias: str) -> bool:
    return isinstance(use.node, nodes.Name) and use.node.name == alias


def unfit_arguments(call: nodes.Call, takes: list[str]) -> Iterator[str]:
    """What a macro says of a call that does not fit."""
    for pair in call.kwargs:
        if pair.key not in takes:
            yield f"no keyword argument {pair.key!r}"
    if len(call.args) > len(takes):
        yield f"not more than {len(takes)} argument(s)"


def unread_facts(where: str, task: Task, trees: dict[str, nodes.Template]) -> Iterator[Problem]:
    """Facts that the shared templates do not know and the task's own do not read: mistyped, most likely."""
    read = {node.name for tree in trees.values() for node in tree.find_all(nodes.Name)}
    for name in task.facts:
        if name not in FACTS and name not in read:
            advice = f"the shared ones read {', '.join(FACTS)}"
            yield Problem(where, f"no template reads the fact {name!r}", advice)
