"""The command line: parse, ask, print; nothing else."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from scaffold import __version__
from scaffold.axes import AXES, BY_KEY
from scaffold.errors import RequestError


class Group(typer.core.TyperGroup):
    """Says a wrong option in one line, like every other mistake."""

    def main(self, *args: Any, **options: Any) -> Any:
        if not options.pop("standalone_mode", True):
            return super().main(*args, **options | {"standalone_mode": False})
        try:
            code = super().main(*args, **options | {"standalone_mode": False})
        except OSError as error:  # a disk that is full, below what standard output goes to
            typer.echo(f"scaffold: {error.strerror or error}", err=True)
            sys.exit(1)
        except Exception as error:
            if not hasattr(error, "format_message"):  # what click raises for its user has it
                raise
            text = error.format_message()
            typer.echo(text if "\n" in text else f"scaffold: {text}", err=True)
            sys.exit(2)
        sys.exit(code or 0)


app = typer.Typer(
    cls=Group,
    help="Write the plain-PyTorch project an expert would have written for exactly your choice.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@contextmanager
def one_line() -> Iterator[None]:
    """A user's mistake becomes one line and exit code 2."""
    try:
        yield
    except RequestError as error:
        typer.echo(f"scaffold: {error}", err=True)
        raise typer.Exit(2) from None


def completer(key: str) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """Shell completion of an axis' values, given the task typed so far."""

    def complete_values(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from scaffold.catalog import load_catalog

        try:
            known, task = load_catalog(), ctx.params.get("task")
        except RequestError:  # every other command says it
            return []
        values = known.values(key, task if task in known.tasks else None)
        return [(name, text) for name, text in values.items() if name.startswith(incomplete)]

    return complete_values


def axis_option(key: str, *flags: str) -> Any:
    values = BY_KEY[key].values
    text = ", ".join(values) if values else f"see `scaffold list {BY_KEY[key].plural}`"
    many = " (repeatable)" if BY_KEY[key].many else ""
    metavar = "FEATURE" if key == "with" else key.upper()
    return typer.Option(
        f"--{key}",
        *flags,
        help=text + many,
        metavar=metavar,
        autocompletion=completer(key),
        show_default=False,
    )


TaskOption = Annotated[str | None, axis_option("task", "-t")]
DataOption = Annotated[str | None, axis_option("data")]
HardwareOption = Annotated[str | None, axis_option("hardware")]
PrecisionOption = Annotated[str | None, axis_option("precision")]
DistributedOption = Annotated[str | None, axis_option("distributed")]
LoggerOption = Annotated[list[str] | None, axis_option("logger", "-l")]
FeatureOption = Annotated[list[str] | None, axis_option("with", "-w")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def show_version(value: bool) -> None:
    if value:
        typer.echo(f"scaffold {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def standard_input() -> str:
    if sys.stdin is None:  # it was closed
        raise RequestError("there is no standard input to read answers from: name a file")
    return sys.stdin.read()


def given_answers(flags: dict[str, Any], file: str | None) -> dict[str, Any]:
    """Answers from a file or standard input, then from flags, which win."""
    from scaffold.answers import from_dict, parse_text

    given: dict[str, Any] = {}
    if file is not None:
        try:
            text = standard_input() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise RequestError(f"the answers file {file} cannot be read: {reason}") from None
        given = parse_text(text, "standard input" if file == "-" else file)
    chosen = {key: value for key, value in flags.items() if value not in (None, [])}
    return given | from_dict(chosen, "the command line")


@app.command()
def new(
    name: Annotated[
        str | None, typer.Argument(help="the project's name and folder", show_default=False)
    ] = None,
    task: TaskOption = None,
    data: DataOption = None,
    hardware: HardwareOption = None,
    precision: PrecisionOption = None,
    distributed: DistributedOption = None,
    logger: LoggerOption = None,
    with_: FeatureOption = None,
    answers_file: Annotated[
        str | None, typer.Option("--answers", metavar="FILE", help="TOML or JSON; - reads standard input")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="where the project's folder goes")
    ] = Path("."),
    cookiecutter: Annotated[
        str | None, typer.Option(metavar="TEMPLATE", help="a house template to lay the project inside")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="run the house template's hooks")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing, take defaults")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be written")] = False,
    as_json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="write over files that are there")] = False,
) -> None:
    """Ask what was not given, then write a project."""
    flags = {
        "name": name,
        "task": task,
        "data": data,
        "hardware": hardware,
        "precision": precision,
        "distributed": distributed,
        "logger": logger,
        "with": with_,
    }
    with one_line():
        from scaffold.catalog import load_catalog
        from scaffold.lint import required_names
        from scaffold.machine import quick_hardware
        from scaffold.plan import make_plan
        from scaffold.project import check_target, with_manifest, write
        from scaffold.render import Renderer
        from scaffold.report import assumed, recreate, tree_lines
        from scaffold.rules import check_name, complete

        catalog = load_catalog()
        given = given_answers(flags, answers_file)
        if "name" in given:
            check_name(given["name"])
            check_target(output_dir / given["name"], {}, force)  # before any question
        terminals = [stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)]
        interactive = all(terminals) and not (yes or as_json)
        machine = quick_hardware()
        if interactive:
            from scaffold.prompts import ask

            given = ask(given, catalog, machine)
        answers = complete(given, catalog, machine)
        plan = make_plan(answers, catalog)
        check_name(answers.name, required_names(plan.facts["requires"]))
        tree = with_manifest(Renderer(catalog).tree(plan), answers)
        target = output_dir / answers.name
        scripts: set[str] = set()
        if cookiecutter is not None:
            from scaffold.house import furnish

            tree, scripts = furnish(tree, cookiecutter, answers.name, trust, ask=interactive)
        if dry_run:
            check_target(target, tree, force)
        else:
            write(tree, target, force, scripts)
    values = answers.to_dict()
    if as_json:
        report = {"path": str(target), "written": not dry_run, "answers": values, "files": sorted(tree)}
        typer.echo(json.dumps(report, indent=2))
        return
    if not interactive and (defaults := assumed(values, given)):
        typer.echo(f"not given, so by default: {defaults}")
    typer.echo(("would write " if dry_run else "wrote ") + f"{target}/")
    typer.echo("\n".join(tree_lines(sorted(tree))))
    first, launch = plan.facts["source"].first, plan.facts["launch"]
    steps = [f"cd {shlex.quote(str(target))}", "pip install -e '.[dev]'", *([first] if first else []), launch]
    typer.echo("\n  ".join(["\nnext:", *steps]))
    more = [] if output_dir == Path(".") else ["--output-dir", str(output_dir)]
    more += ["--cookiecutter", cookiecutter] if cookiecutter is not None else []
    more += ["--trust"] if cookiecutter is not None and trust else []
    more += [] if cookiecutter is not None and interactive else ["--yes"]  # the house asks for its own
    typer.echo(f"\nthe same again:\n  {recreate(answers, catalog, *more)}")


@app.command("list")
def list_choices(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[" + "|".join(axis.plural for axis in AXES) + "]", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What can be chosen, and what excludes what."""
    with one_line():
        from scaffold.catalog import load_catalog, unknown
        from scaffold.report import as_plain, choice_lines, choices

        catalog = load_catalog()
        if what and what not in catalog.lists:
            raise unknown("list", what, list(catalog.lists))
        keys = [catalog.lists[what]] if what else [axis.key for axis in AXES]
        found = choices(catalog, keys)
    typer.echo(json.dumps(as_plain(found), indent=2) if as_json else "\n".join(choice_lines(found)))


@app.command()
def diff(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH] KEY=VALUE...",
            help="a project, or that of this folder, and the choices to change",
            show_default=False,
        ),
    ] = None,
    task: TaskOption = None,
    data: DataOption = None,
    hardware: HardwareOption = None,
    precision: PrecisionOption = None,
    distributed: DistributedOption = None,
    logger: LoggerOption = None,
    with_: FeatureOption = None,
    as_json: JsonOption = False,
) -> None:
    """The exact lines that a choice adds to a project, or takes from it."""
    base = {
        "task": task,
        "data": data,
        "hardware": hardware,
        "precision": precision,
        "distributed": distributed,
        "logger": logger,
        "with": with_,
    }
    with one_line():
        from scaffold.answers import parse_words
        from scaffold.catalog import load_catalog
        from scaffold.compare import changed_lines, difference
        from scaffold.plan import make_plan
        from scaffold.project import MANIFEST, read_answers
        from scaffold.render import Renderer
        from scaffold.rules import complete

        catalog = load_catalog()
        given = list(words or ())
        is_path = bool(given) and ("=" not in given[0] or Path(given[0]).is_dir())
        path = given.pop(0) if is_path else None
        if not given:
            raise RequestError("diff needs at least one key=value, for example distributed=ddp")
        flags = {key: value for key, value in base.items() if value not in (None, [])}
        if path and flags:
            raise RequestError("diff takes a project or --task and the like to start from, not both")
        if not path and not flags and Path(MANIFEST).exists():
            path = "."
        start = read_answers(Path(path), catalog) if path else complete(given_answers(flags, None), catalog)
        changes = parse_words(given, start.to_dict())
        end = complete(start.to_dict() | changes, catalog)
        renderer = Renderer(catalog)
        before, after = (renderer.tree(make_plan(answers, catalog)) for answers in (start, end))
        text = difference(before, after)
    if as_json:
        report = {
            "from": start.to_dict(),
            "to": end.to_dict(),
            "changed_lines": changed_lines(text),
            "diff": text,
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(text or "no difference", nl=not text)


@app.command()
def verify(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH] [-- OPTION...]",
            help="a project, and options for its train.py",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="the Python of the project's environment")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a project, kill it, stop it, damage its checkpoints: which of its guarantees does it keep?"""
    with one_line():
        from dataclasses import asdict

        from scaffold.catalog import load_catalog
        from scaffold.plan import make_plan
        from scaffold.project import read_answers
        from scaffold.report import finding_lines, summary
        from scaffold.trial import trial
        from scaffold.verify import check_options
        from scaffold.verify import verify as findings_of

        options = list(words or ())
        path = Path(options.pop(0) if options and not options[0].startswith("-") else ".")
        check_options(options)
        catalog = load_catalog()
        answers = read_answers(path, catalog)
        facts = make_plan(answers, catalog).facts
        ranks = 2 if facts["reduced"] else 0
        findings = []
        with trial(path.resolve(), python, ranks, options, facts["test_env"]) as runs:
            for finding in findings_of(runs, answers, facts["source"]):
                findings.append(finding)
                if not as_json:
                    typer.echo("\n".join(finding_lines(finding)))
    report = [asdict(finding) for finding in findings]
    typer.echo(json.dumps(report, indent=2) if as_json else summary(findings))
    raise typer.Exit(any(finding.state == "broken" for finding in findings))


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="tasks/, loggers/ and features/, or one folder in them")
    ],
    as_json: JsonOption = False,
) -> None:
    """Look at task, logger and feature folders of your own, over many of the projects they can become."""
    with one_line():
        from dataclasses import asdict

        from scaffold.check import check as reports_of
        from scaffold.report import report_lines

        reports = []
        for report in reports_of(folder):
            reports.append(report)
            if not as_json:
                typer.echo("\n".join(report_lines(report)))
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], indent=2))
    raise typer.Exit(any(report.state == "broken" for report in reports))


@app.command()
def plan(
    parameters: Annotated[str, typer.Option(help="of the model: 7e9 or 7B", metavar="N")],
    device_memory: Annotated[str, typer.Option(help="GiB of each device", metavar="GIB")],
    precision: Annotated[str, typer.Option(help=", ".join(BY_KEY["precision"].values or ()))] = "bf16",
    optimizer: Annotated[str, typer.Option(help="adamw, momentum or sgd")] = "adamw",
    devices: Annotated[str, typer.Option(help="in all", metavar="N")] = "8",
    per_node: Annotated[str, typer.Option(help="devices of a machine", metavar="N")] = "8",
    blocks: Annotated[str, typer.Option(help="of equal size that the model has", metavar="N")] = "32",
    grad_accum: Annotated[str, typer.Option(help="passes of an optimizer step", metavar="N")] = "1",
    as_json: JsonOption = False,
) -> None:
    """Does a model fit, and which way to distribute it does it need?"""
    with one_line():
        from scaffold.scaling import lines, read_run, report

        run, memory = read_run(
            {
                "parameters": parameters,
                "device-memory": device_memory,
                "precision": precision,
                "optimizer": optimizer,
                "devices": devices,
                "per-node": per_node,
                "blocks": blocks,
                "grad-accum": grad_accum,
            }
        )
    typer.echo(json.dumps(report(run, memory), indent=2) if as_json else "\n".join(lines(run, memory)))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has, and the defaults that follow."""
    from scaffold.catalog import load_catalog
    from scaffold.machine import inspect, quick_hardware
    from scaffold.rules import default

    found = inspect()
    with one_line():
        catalog = load_catalog()
    chosen = {"hardware": quick_hardware()}  # as `new` does, which does not ask PyTorch
    found["defaults"] = chosen | {key: default(key, chosen, catalog) for key in ("precision", "distributed")}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        typer.echo(f"{key:<12} {'none' if value in (None, '') else value}")
