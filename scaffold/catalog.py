"""Finds task, logger and feature folders, built in and from plug-ins, and reads their manifests.

A task is a folder with `task.toml`, a logger one with `logger.toml`, a feature that only adds files one with
`feature.toml`. A package offers more through the entry point group `scaffold.plugins`: each entry names a
module whose folder holds `tasks/`, `loggers/` or `features/`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any

from scaffold.axes import AXES, BY_KEY
from scaffold.errors import RequestError
from scaffold.manifest import read_manifest

PLUGINS = "scaffold.plugins"
EVERY_TASKS_DATA = {"sample": "small and real, there without a network", "files": "your own files"}


def templates_folder() -> Path:
    """Inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class Source:
    """A data source of a task."""

    help: str
    requires: tuple[str, ...] = ()
    option: str = ""  # help of --data where the user names a path, else empty
    default: str = ""  # and its default
    target: bool = False  # the user also names the column to predict
    first: str = ""  # a command that makes the data ready, once
    only_with: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)  # that come with it alone, and what each is
    words: str = ""  # a pattern of what no project without it may say
    modules: dict[str, str] = field(default_factory=dict)  # package -> the module that needs it


@dataclass(frozen=True)
class Exclusion:
    """What a task or feature is not offered with: an answer from each axis in `when`."""

    when: dict[str, tuple[str, ...]]
    because: str
    choose: str


@dataclass(frozen=True)
class Task:
    name: str
    folder: Path
    help: str
    facts: dict[str, Any]
    sources: dict[str, Source]
    features: dict[str, str]
    requires: tuple[str, ...] = ()
    modules: dict[str, str] = field(default_factory=dict)  # package -> the module that needs it
    files: dict[str, str] = field(default_factory=dict)  # beside train.py, model.py and data.py: what each is
    build: dict[str, Any] = field(default_factory=dict)  # options that build_datasets takes; a test's values
    small: dict[str, Any] = field(default_factory=dict)  # options that make a run short enough for a test
    one: dict[str, Any] = field(default_factory=dict)  # and that leave one example, where no set is cut short
    excludes: tuple[Exclusion, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)  # axis key -> its default beside this task
    # feature -> its words, which a test looks for, and what is other in facts and build
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def small_options(self) -> list[str]:
        return as_options(self.small)

    @property
    def one_example(self) -> list[str]:
        return as_options(self.small | self.one)


def as_options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Logger:
    name: str
    folder: Path
    help: str
    requires: tuple[str, ...]
    imports: tuple[str, ...]
    words: str = ""  # a pattern of what no project without it may say
    modules: dict[str, str] = field(default_factory=dict)  # package -> the module that needs it
    artifacts: bool = False  # does it take the best checkpoint?
    files: bool = True  # does it write into the output directory?
    test_env: dict[str, str] = field(default_factory=dict)

    @property
    def function(self) -> str:
        """What a project calls the function that feeds it."""
        return "log_to_" + self.name.replace("-", "_")


@dataclass(frozen=True)
class Additive:
    """A feature that adds files to any project and changes none of its programs."""

    name: str
    folder: Path
    help: str
    files: dict[str, str]
    words: str = ""  # a pattern of words that no project without it may hold
    excludes: tuple[Exclusion, ...] = ()

    def template(self, path: str) -> str:
        return f"features/{self.name}/{path.removeprefix('.')}.jinja"


@dataclass(frozen=True, eq=False)
class Catalog:
    """Everything that can be chosen on the open axes, and where its templates are."""

    tasks: dict[str, Task]
    loggers: dict[str, Logger]
    features: dict[str, str]
    roots: tuple[Path, ...]  # template folders, the first one that holds a template wins
    additive: dict[str, Additive] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            raise unknown("task", name, list(self.tasks))
        return self.tasks[name]

    def values(self, key: str, task: str | None = None) -> dict[str, str]:
        """What an axis can be, with a line of help each; data and features depend on the task."""
        axis = BY_KEY[key]
        if axis.values is not None:
            return axis.values
        if key == "task":
            return {name: item.help for name, item in self.tasks.items()}
        if key == "logger":
            return {name: item.help for name, item in self.loggers.items()}
        tasks = [self.task(task)] if task else list(self.tasks.values())
        if key == "with":
            own = {name: text for item in tasks for name, text in item.features.items()}
            return self.features | own | {name: item.help for name, item in self.additive.items()}
        found: dict[str, str] = {}
        for item in tasks:  # what the first of them says of a set stands for all
            found |= {name: source.help for name, source in item.sources.items() if name not in found}
        return found if task else found | EVERY_TASKS_DATA

    @cached_property
    def modules(self) -> dict[str, str]:
        """Packages that projects require and do not import, and the module that needs each."""
        sources = [source for task in self.tasks.values() for source in task.sources.values()]
        found = [task.modules for task in self.tasks.values()]
        found += [source.modules for source in sources]
        found += [logger.modules for logger in self.loggers.values()]
        return {package: module for modules in found for package, module in modules.items()}

    @cached_property
    def lists(self) -> dict[str, str]:
        """`scaffold list` names -> axis keys."""
        return {axis.plural: axis.key for axis in AXES}


def unknown(noun: str, value: str, known: list[str]) -> RequestError:
    import difflib

    close = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    return RequestError(f"unknown {noun} {value!r}: {hint}")


def read_source(row: dict[str, Any]) -> Source:
    lists = {key: tuple(row.get(key, ())) for key in ("requires", "only_with", "not_with")}
    return Source(
        help=row["help"],
        option=row.get("option", ""),
        default=row.get("default", ""),
        target=row.get("target", False),
        first=row.get("first", ""),
        files=row.get("files", {}),
        words=row.get("words", ""),
        modules=row.get("modules", {}),
        **lists,
    )


def read_exclusion(row: dict[str, Any]) -> Exclusion:
    when = {
        key: (values,) if isinstance(values, str) else tuple(values) for key, values in row["when"].items()
    }
    return Exclusion(when, row["because"], row["choose"])


def sound_manifest(file: Path) -> dict[str, Any]:
    """What a manifest holds; `scaffold check` says all that is wrong with one that is not sound."""
    manifest, problems = read_manifest(file, str(file))
    if problems:
        raise RequestError(problems[0].line)
    return manifest


def read_task(folder: Path) -> Task:
    manifest = sound_manifest(folder / "task.toml")
    return Task(
        name=folder.name,
        folder=folder,
        help=manifest["help"],
        facts=manifest.get("facts", {}),
        sources={name: read_source(row) for name, row in manifest["data"].items()},
        features=manifest.get("features", {}),
        requires=tuple(manifest.get("requires", ())),
        modules=manifest.get("modules", {}),
        files=manifest.get("files", {}),
        build=manifest.get("build", {}),
        small=manifest.get("small", {}),
        one=manifest.get("one", {}),
        excludes=tuple(map(read_exclusion, manifest.get("excludes", ()))),
        defaults={
            key: tuple(value) if BY_KEY[key].many else value
            for key, value in manifest.get("defaults", {}).items()
        },
        changes=manifest.get("with", {}),
    )


def read_logger(folder: Path) -> Logger:
    manifest = sound_manifest(folder / "logger.toml")
    return Logger(
        name=folder.name,
        folder=folder,
        help=manifest["help"],
        requires=tuple(manifest["requires"]),
        imports=tuple(manifest["imports"]),
        words=manifest.get("words", ""),
        modules=manifest.get("modules", {}),
        artifacts=manifest.get("artifacts", False),
        files=manifest.get("files", True),
        test_env=manifest.get("test_env", {}),
    )


def read_additive(folder: Path) -> Additive:
    manifest = sound_manifest(folder / "feature.toml")
    return Additive(
        name=folder.name,
        folder=folder,
        help=manifest["help"],
        files=manifest["files"],
        words=manifest.get("words", ""),
        excludes=tuple(map(read_exclusion, manifest.get("excludes", ()))),
    )


def plugin_folders() -> list[Path]:
    folders: list[Path] = []
    for entry in metadata.entry_points(group=PLUGINS):
        try:
            spec = util.find_spec(entry.value)
        except Exception:  # to find what is inside a package imports that, and it raises what it likes
            spec = None
        if spec is None or not spec.submodule_search_locations:
            package = f" of the package {entry.dist.name}" if entry.dist else ""
            raise RequestError(
                f"the plug-in {entry.name} = {entry.value!r}{package} cannot be found: reinstall or remove it"
            )
        folders += map(Path, spec.submodule_search_locations)
    return folders


def load_catalog(*extra: Path) -> Catalog:
    """The built-in folders, then plug-ins, then `extra`; a later folder of the same name wins."""
    return read_catalog((templates_folder(), *plugin_folders(), *extra))


def read_catalog(roots: tuple[Path, ...]) -> Catalog:
    """The folders below some roots, of which the first has the features of every task."""
    tasks, loggers, additive = {}, {}, {}
    for root in roots:
        for manifest in sorted(root.glob("tasks/*/task.toml")):
            tasks[manifest.parent.name] = read_task(manifest.parent)
        for manifest in sorted(root.glob("loggers/*/logger.toml")):
            loggers[manifest.parent.name] = read_logger(manifest.parent)
        for manifest in sorted(root.glob("features/*/feature.toml")):
            additive[manifest.parent.name] = read_additive(manifest.parent)
    features = tomllib.loads((roots[0] / "_lib" / "features.toml").read_text(encoding="utf-8"))
    return Catalog(tasks, loggers, features, roots[::-1], additive)
