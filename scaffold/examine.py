"""The combinations that a task, logger or feature is offered with, rendered, and what is wrong with them."""

from __future__ import annotations

import re
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PrefixLoader,
    Template,
    TemplateNotFound,
    TemplatesNotFound,
    TemplateSyntaxError,
    UndefinedError,
)

from scaffold.answers import Answers
from scaffold.axes import AXES
from scaffold.catalog import Additive, Catalog, Logger, Task, templates_folder
from scaffold.lint import (
    BUDGETS,
    IMPORTED_AS,
    MOST_OPTIONS,
    Vocabulary,
    absent_from_modules,
    required_names,
    residue,
    said,
    undefined_names,
    unused_imports,
)
from scaffold.manifest import Problem
from scaffold.matrix import THIN, RememberingRenderer, combinations
from scaffold.names import names_of
from scaffold.plan import Plan, make_plan
from scaffold.render import GONE_LINE, WIDTH, Tree, finish, settled
from scaffold.rules import broken

Thin = Callable[[Catalog], Iterable[Answers]]


@dataclass(frozen=True)
class Place:
    """A folder that is checked, and what it is called, as `tasks/NAME`."""

    folder: Path
    name: str

    def templates(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*.jinja") if path.is_file())

    def called(self, path: Path) -> str:
        """What templates and messages call a file of the folder."""
        return f"{self.name}/{path.relative_to(self.folder).as_posix()}"


@dataclass(frozen=True)
class Rendered:
    """A file of a project: its text, None where there is none, and what is wrong with it."""

    text: str | None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Project:
    """A project: the files that could be rendered, of how many, and all that is wrong, each once."""

    tree: Tree
    files: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Examined:
    """How many combinations were rendered, of how many files, and each problem's number and first example."""

    combinations: int
    fewest: int
    most: int
    problems: Mapping[Problem, tuple[int, str]]
    unused: tuple[str, ...]  # templates of the folder that no project needed


def offered_thinned(catalog: Catalog) -> Iterator[Answers]:
    """Of what the rules let pass, as much as `matrix.THIN` says."""
    return combinations(catalog, lambda answers: broken(by_axis(answers), catalog) is None, THIN)


def by_axis(answers: Answers) -> dict[str, tuple[str, ...]]:
    return {axis.key: answers.chosen(axis.key) for axis in AXES}


def as_words(answers: Answers) -> str:
    """A combination as one writes it behind `scaffold diff`, without what is none."""
    chosen = {key: ",".join(values) for key, values in by_axis(answers).items()}
    return " ".join(f"{key}={value}" for key, value in chosen.items() if value)


class NotingLoader(ChoiceLoader):
    """Notes the names of the templates that are needed."""

    def __init__(self, loaders: list[BaseLoader]) -> None:
        super().__init__(loaders)
        self.needed: set[str] = set()

    def load(self, environment: Environment, name: str, globals: Any = None) -> Template:
        self.needed.add(name)
        return super().load(environment, name, globals)


class Examiner(RememberingRenderer):
    """Renders the projects of a folder and looks at what it rendered."""

    def __init__(self, catalog: Catalog, place: Place) -> None:
        super().__init__(catalog)
        self.catalog = catalog
        self.place = place
        self.vocabulary = Vocabulary(catalog)
        self.of_packages = cache(self.find_of_packages)
        kind, name = place.name.split("/")
        mounted = PrefixLoader({kind: PrefixLoader({name: FileSystemLoader(place.folder)})})
        self.loader = NotingLoader([mounted, FileSystemLoader(catalog.roots)])
        self.env.loader = self.loader
        self.origins = origins(place)

    def project(self, answers: Answers) -> Project:
        plan = make_plan(answers, self.catalog)
        own = frozenset(Path(path).stem for path in plan.files)
        files = {path: self.rendered(path, plan, own) for path in plan.files}
        tree = {path: file.text for path, file in files.items() if file.text is not None}
        problems = [problem for file in files.values() for problem in file.problems]
        if "train.py" in tree:
            problems += self.of_options(self.catalog.tasks[answers.task], tree["train.py"])
        problems += self.of_project(answers, plan, tree)
        return Project(tree, len(files), tuple(dict.fromkeys(problems)))

    def rendered(self, path: str, plan: Plan, own: frozenset[str]) -> Rendered:
        template = plan.files[path]
        return self.remember(template, plan.facts, lambda: self.attempt(path, template, plan.facts, own))

    def attempt(self, path: str, template: str, facts: Mapping[str, Any], own: frozenset[str]) -> Rendered:
        try:
            text = self.env.get_template(template).render(facts)
        except Exception as error:  # templates are code: they raise what they like
            return Rendered(None, (self.failure(error, template),))
        if not path.endswith(".py"):
            text = settled(text)
            return Rendered(text, tuple(self.of_text(path, template, text)))
        text = GONE_LINE.sub("", text)
        try:
            text = finish(text, own)
            names_of(text)
        except (SyntaxError, AssertionError, ValueError) as error:
            number = getattr(error, "lineno", None) or 1
            what = f"{path} is no Python: {getattr(error, 'msg', error)}"
            return Rendered(None, (self.at_line(template, text, number, what, "see what is rendered there"),))
        found = [*self.of_text(path, template, text), *self.of_python(path, template, text)]
        return Rendered(text, tuple(found))

    def failure(self, error: Exception, template: str) -> Problem:
        """Why a template could not be rendered."""
        if isinstance(error, TemplateSyntaxError):
            file = Path(error.filename or "")
            inside = file.is_relative_to(self.place.folder)
            return syntax_problem(error, self.place.called(file) if inside else error.name or template)
        if isinstance(error, TemplatesNotFound):
            return missing(" or ".join(map(str, error.templates)))
        if isinstance(error, TemplateNotFound):
            return missing(str(error.name or error))
        where = self.location(error) or template
        if isinstance(error, UndefinedError):
            return undefined_problem(where, str(error.message))
        return wrong_call(where, f"{type(error).__name__}: {error}")

    def location(self, error: Exception) -> str:
        """The last line of the folder that an error came through, else of any template."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".jinja")]
        inside = [f for f in frames if Path(f.filename).is_relative_to(self.place.folder)]
        if inside:
            return f"{self.place.called(Path(inside[-1].filename))}:{inside[-1].lineno}"
        if frames and Path(frames[-1].filename).is_relative_to(templates_folder()):
            name = Path(frames[-1].filename).relative_to(templates_folder()).as_posix()
            return f"{self.place.name} (in {name}:{frames[-1].lineno})"
        return ""

    def at_line(self, template: str, text: str, number: int, what: str, instead: str) -> Problem:
        """A problem of one rendered line, at its place in the folder where a template has that line."""
        lines = text.split("\n")
        line = lines[min(number, len(lines)) - 1].strip()
        if where := self.origins.get(line):
            return Problem(where, what, instead)
        where = template if template.startswith(self.place.name) else f"{self.place.name} (in {template})"
        return Problem(where, f"{what}, in `{line[:60] + ('…' if len(line) > 60 else '')}`", instead)

    def of_text(self, path: str, template: str, text: str) -> Iterator[Problem]:
        if left := residue(text):
            number = next(n for n, line in enumerate(text.split("\n"), 1) if left in line)
            yield self.at_line(
                template, text, number, f"{path} holds {left!r}", "control lines begin with `#: `"
            )
        if path == "pyproject.toml":
            try:
                tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                yield Problem(self.place.name, f"pyproject.toml is not TOML: {error}", "see `requires`")

    def of_python(self, path: str, template: str, text: str) -> Iterator[Problem]:
        lines = text.split("\n")
        for number, line in enumerate(lines, 1) if max(map(len, lines)) > WIDTH else ():
            if len(line) > WIDTH:
                what = f"{path} has a line of {len(line)} characters"
                yield self.at_line(template, text, number, what, f"{WIDTH} are the most")
        for name, number in undefined_names(text):
            advice = "define it or import it"
            yield self.at_line(
                template, text, number, f"{path} reads {name!r}, which nothing defines", advice
            )
        for name, number in unused_imports(text):
            advice = "leave it out, or put it among the first imports, which are dropped when unused"
            yield self.at_line(template, text, number, f"{path} imports {name!r} and does not use it", advice)
        if (most := BUDGETS.get(path)) and text.count("\n") > most:
            what = f"{path} is longer than {most} lines"
            yield Problem(template, what, "put what is not the loop into a file of its own, see [files]")

    def of_options(self, task: Task, text: str) -> Iterator[Problem]:
        """What train.py defines against what it reads, and against the manifest."""
        where = f"tasks/{task.name}/train.py.jinja"
        defined, used = said(text).defined, said(text).used
        sizes = {name.replace("-", "_") for name in task.small}
        for name in sorted(defined - used):
            flag = name.replace("_", "-")
            yield Problem(
                where, f"the option --{flag} is not read", f"read args.{name}, or leave the option out"
            )
        for name in sorted(used - defined):
            flag = name.replace("_", "-")
            yield Problem(
                where, f"args.{name} is read, and no option sets it", f"add the option --{flag} to parse_args"
            )
        for table in ("small", "one"):
            for flag in getattr(task, table):
                if flag.replace("-", "_") not in defined:
                    what = f"{table} names the option --{flag}, which train.py does not have"
                    yield Problem(
                        f"tasks/{task.name}/task.toml", what, "add the option, or leave it out here"
                    )
        if len(defined - sizes) > MOST_OPTIONS:
            what = f"train.py has more than {MOST_OPTIONS} options"
            yield Problem(where, what, "those that are in [small] are counted apart")

    def of_project(self, answers: Answers, plan: Plan, tree: Mapping[str, str]) -> Iterator[Problem]:
        """What is wrong between the files of a project, or with them beside what was chosen."""
        for path, module, name in absent_from_modules(tree):
            where = plan.files[f"{module}.py"]
            yield Problem(
                where, f"{module}.py has no {name!r}, which {path} imports", f"define it in {module}.py"
            )
        for word in sorted(self.vocabulary.absent(tree.values(), answers)):
            yield self.absent_word(word, plan, tree)
        own = {Path(path).stem for path in plan.files} | {"pytest"}
        sources = (text for path, text in tree.items() if path.endswith(".py"))
        imported = frozenset[str]().union(*(said(source).imported for source in sources)) - own
        if len(tree) == len(plan.files):  # else what could not be rendered may import more
            yield from self.of_packages(tuple(plan.facts["requires"]), imported)

    def find_of_packages(self, requires: tuple[str, ...], imported: frozenset[str]) -> tuple[Problem, ...]:
        """What is imported and not required, or required and neither imported nor needed by what is."""
        where = f"{self.place.name}/{self.place.name.split('s/')[0]}.toml"
        brought = {name: brought_by(name) for name in sorted(required_names(requires))}
        missing = sorted(imported.difference(*brought.values()))
        unused = [
            name
            for name, modules in brought.items()
            if imported.isdisjoint({*modules, self.catalog.modules.get(name, name)})
        ]
        return (
            *(
                Problem(
                    where,
                    f"{name} is imported, and no package of `requires` has it",
                    "add the package to `requires`",
                )
                for name in missing
            ),
            *(
                Problem(
                    where,
                    f"{name} is required, and nothing imports it",
                    "leave it out, or name the module that needs it in `modules`",
                )
                for name in unused
            ),
        )

    def absent_word(self, word: str, plan: Plan, tree: Mapping[str, str]) -> Problem:
        """Where a project speaks of what was not chosen."""
        words = self.vocabulary
        path = next(path for path, text in tree.items() if word in words.in_text(text))
        lines = tree[path].split("\n")
        number = next(n for n, line in enumerate(lines, 1) if word in words.on_line(line))
        match = words.patterns[word].search(lines[number - 1])
        choices = " or ".join(words.words[word])
        what = f"{path} says {match[0] if match else word!r}, a word of {choices}"
        return self.at_line(
            plan.files[path], tree[path], number, f"{what}, where it is not chosen", "put it under `#: if`"
        )


def origins(place: Place) -> dict[str, str]:
    """Lines of a folder's templates, and where the first of each is."""
    found: dict[str, str] = {}
    for path in place.templates():
        with_errors = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(with_errors.split("\n"), 1):
            if len(line.strip()) > 3:
                found.setdefault(line.strip(), f"{place.called(path)}:{number}")
    return found


def missing(name: str) -> Problem:
    return Problem(name, "it is missing", "add this template, or what names it is wrong")


def syntax_problem(error: TemplateSyntaxError, name: str) -> Problem:
    return Problem(f"{name}:{error.lineno}", f"no template: {error.message}", "see Jinja's documentation")


def no_macro(where: str, name: str) -> Problem:
    return Problem(where, f"there is no macro {name!r} in what is imported there", "see its file")


def wrong_call(where: str, message: str) -> Problem:
    return Problem(where, message, "see docs/extending.md for what macros take")


def undefined_problem(where: str, message: str) -> Problem:
    macro = re.search(r"TemplateModule object' has no attribute '(\w+)'", message)
    if macro:
        return no_macro(where, macro[1])
    return Problem(where, message, "name a fact of the plan or of the manifest")


@cache
def modules_by_package() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            found.setdefault(normal(package), set()).add(module)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def brought_by(package: str) -> frozenset[str]:
    """The modules that a package brings along, as far as this environment and its name tell."""
    known = modules_by_package().get(normal(package), set())
    return frozenset({*known, normal(package).replace("-", "_"), IMPORTED_AS.get(package, package)})


def examine(place: Place, catalog: Catalog, projects: Iterable[Answers]) -> Examined:
    """Look at each project; equal problems are counted."""
    examiner = Examiner(catalog, place)
    found: dict[Problem, tuple[int, str]] = {}
    sizes: set[int] = set()
    number = 0
    for answers in projects:
        number += 1
        project = examiner.project(answers)
        sizes.add(project.files + 1)  # .scaffold.toml comes with them
        for problem in project.problems:
            count, example = found.get(problem, (0, as_words(answers)))
            found[problem] = count + 1, example
    names = {place.called(path) for path in place.templates()}
    unused = tuple(sorted(names - examiner.loader.needed)) if number and not found else ()
    return Examined(number, min(sizes, default=0), max(sizes, default=0), found, unused)


def projects_of_task(task: Task, catalog: Catalog, thin: Thin) -> tuple[Catalog, Iterable[Answers]]:
    """The catalog with this task alone, and what it offers."""
    alone = replace(catalog, tasks={task.name: task})
    return alone, thin(alone)


def projects_of_logger(logger: Logger, catalog: Catalog, thin: Thin) -> tuple[Catalog, Iterable[Answers]]:
    """Two tasks, of which one draws pictures, and of their projects those of one feature and this logger."""
    kinds = {bool(task.facts.get("pictures")): task for task in catalog.tasks.values()}
    few = replace(catalog, tasks={task.name: task for task in kinds.values()})
    return few, (
        answers
        for answers in thin(few)
        if logger.name in answers.loggers and len(answers.features) < 2 and answers.data == "sample"
    )


def projects_of_additive(
    feature: Additive, catalog: Catalog, thin: Thin
) -> tuple[Catalog, Iterable[Answers]]:
    """One task, and of its projects those with this feature."""
    task = next(iter(catalog.tasks.values()))
    few = replace(catalog, tasks={task.name: task})
    return few, (answers for answers in thin(few) if feature.name in answers.features)
