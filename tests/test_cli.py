"""The command line from outside: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from scaffold import __version__, project, render
from scaffold.axes import AXES
from scaffold.catalog import load_catalog, templates_folder
from scaffold.cli import app
from scaffold.errors import RequestError
from scaffold.rules import RULES, all_rules
from scaffold.trial import trial
from tests.conftest import COMMAND, Run, files_under

SCRIPT = [str(Path(sys.executable).with_name("scaffold"))]
PLAIN = {
    "task": "image-classification",
    "data": "sample",
    "hardware": "cpu",
    "precision": "fp32",
    "distributed": "none",
    "logger": [],
    "with": [],
}
RICH = {
    "task": "tabular",
    "data": "files",
    "hardware": "gpu",
    "precision": "fp16",
    "distributed": "ddp",
    "logger": ["tensorboard", "wandb"],
    "with": ["grad-accum", "ema", "regression"],
}

Invoke = Callable[..., Result]
Refused = Callable[..., str]


# nothing of what its task has by default
BARE = {"task": "diffusion", "with": "none"}


def as_flags(answers: dict[str, Any]) -> list[str]:
    pairs = [(key, value) for key, value in answers.items() if key != "name"]
    return [
        word
        for key, value in pairs
        for item in (value if isinstance(value, list) else [value])
        for word in (f"--{key}", item)
    ]


def written(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / ".scaffold.toml").read_text())["answers"]


def snapshot(folder: Path) -> dict[str, str | bytes]:
    """Everything below a folder: contents of files, targets of links, kinds of the rest."""
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            text = path.read_bytes if os.access(path, os.R_OK) else lambda: "closed"
            found[name] = text() if path.is_file() else "folder"
    return found


@pytest.fixture
def invoke(place: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command inside this process."""
    monkeypatch.chdir(place)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)

    def invoke_scaffold(*args: object, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)

    return invoke_scaffold


@pytest.fixture
def refused(invoke: Invoke, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command that has to fail with one line and exit code 2, and to change nothing; the line."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def refuse(*args: object, stdin: str | bytes = "") -> str:
        before = snapshot(place)
        result = invoke(*args, stdin=stdin)
        assert isinstance(result.exception, SystemExit), result.exception
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert result.stderr.startswith("scaffold: ") and result.stderr.endswith("\n")
        assert result.stderr.count("\n") == 1
        assert snapshot(place) == before
        assert list(scratch.iterdir()) == []
        return result.stderr.removeprefix("scaffold: ").rstrip("\n")

    return refuse


# --- new


def test_what_was_not_given_is_a_default_and_said_so(run: Run, place: Path) -> None:
    done = run("new", "demo", "--task", "tabular", "--logger", "wandb", "--hardware", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[:2]
    assert first == "not given, so by default: data=sample, precision=fp32, distributed=none, with=none"
    assert second == "wrote demo/"
    assert written(place / "demo") == PLAIN | {"name": "demo", "task": "tabular", "logger": ["wandb"]}


def test_the_name_defaults_to_the_task(invoke: Invoke, place: Path) -> None:
    assert "name=tabular" in invoke("new", "--task", "tabular", "--yes").stdout
    assert [path.name for path in place.iterdir()] == ["tabular"]


def test_the_end_shows_the_tree_the_next_commands_and_the_same_again(run: Run, place: Path) -> None:
    done = run("new", "demo", *as_flags(RICH), "-o", "my work")
    files = files_under(place / "my work" / "demo")
    lines = done.stdout.splitlines()
    assert lines[0] == "wrote my work/demo/"
    tree = lines[1 : lines.index("")]
    top, inner = ([line[n:] for line in tree if line[:n] == " " * n and line[n] != " "] for n in (2, 4))
    assert top == sorted({path.split("/")[0] + ("/" if "/" in path else "") for path in files})
    assert inner == sorted(path.split("/")[1] for path in files if "/" in path)
    rest = lines[lines.index("") + 1 :]
    assert rest[:4] == [
        "next:",
        "  cd 'my work/demo'",
        "  pip install -e '.[dev]'",
        "  torchrun --standalone --nproc-per-node gpu train.py",
    ]
    assert rest[4:6] == ["", "the same again:"]
    place_of_it = ["--output-dir", "my work"]
    assert shlex.split(rest[6]) == ["scaffold", "new", "demo", *as_flags(RICH), *place_of_it, "--yes"]
    assert len(rest) == 7


@pytest.mark.parametrize("answers", [PLAIN, RICH, BARE], ids=["plain", "rich", "bare"])
def test_the_recreate_line_writes_the_same_project(run: Run, place: Path, answers: dict[str, Any]) -> None:
    line = run("new", "demo", *as_flags(answers)).stdout.splitlines()[-1]
    assert run(*shlex.split(line)[1:], "-o", "again").returncode == 0
    assert files_under(place / "again" / "demo") == files_under(place / "demo")
    # and it would notice: another choice is another project
    assert run(*shlex.split(line)[1:], "-o", "other", "--precision", "bf16").returncode == 0
    assert files_under(place / "other" / "demo") != files_under(place / "demo")


def as_toml(answers: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in answers.items())


@pytest.mark.parametrize("form", [as_toml, json.dumps], ids=["toml", "json"])
@pytest.mark.parametrize("origin", ["file", "standard input"])
@pytest.mark.parametrize("answers", [PLAIN, RICH], ids=["plain", "rich"])
def test_answers_files_say_what_flags_say(
    invoke: Invoke, place: Path, form: Callable[[dict[str, Any]], str], origin: str, answers: dict[str, Any]
) -> None:
    text = form(answers | {"name": "demo"})
    (place / "given").write_text(text)
    result = invoke("new", "--answers", "given" if origin == "file" else "-", stdin=text)
    assert result.exit_code == 0, result.output
    assert "by default" not in result.stdout
    assert invoke("new", "demo", *as_flags(answers), "-o", "flags").exit_code == 0
    assert files_under(place / "demo") == files_under(place / "flags" / "demo")


def test_standard_input_of_a_real_process(run: Run, place: Path) -> None:
    done = run("new", "--answers", "-", input=as_toml(RICH | {"name": "demo"}))
    assert (done.returncode, done.stderr) == (0, "")
    assert written(place / "demo") == RICH | {"name": "demo"}


def test_flags_win_over_an_answers_file(invoke: Invoke, place: Path) -> None:
    (place / "a.json").write_text(json.dumps(RICH | {"name": "filed"}))
    invoke(
        "new", "flagged", "--answers", "a.json", "--precision", "fp32", "--logger", "none", "--with", "ema"
    )
    changed = {"name": "flagged", "precision": "fp32", "logger": [], "with": ["ema"]}
    assert written(place / "flagged") == RICH | changed | {"with": ["ema"]}


def test_one_string_is_a_list_of_one(invoke: Invoke, place: Path) -> None:
    assert (
        invoke("new", "--answers", "-", stdin='name = "demo"\nlogger = "wandb"\nwith = "none"').exit_code == 0
    )
    assert (written(place / "demo")["logger"], written(place / "demo")["with"]) == (["wandb"], [])


def test_an_answers_file_from_an_editor_that_marks_utf8(invoke: Invoke, place: Path) -> None:
    (place / "a.toml").write_bytes(b"\xef\xbb\xbf" + b'name = "demo"\r\ntask = "tabular"\r\n')
    result = invoke("new", "--answers", "a.toml")
    assert result.exit_code == 0, result.stderr
    assert written(place / "demo")["task"] == "tabular"


def test_lists_are_kept_in_one_order(invoke: Invoke, place: Path) -> None:
    invoke("new", "demo", "-l", "wandb", "-l", "tensorboard", "-w", "ema", "-w", "grad-accum")
    assert written(place / "demo")["logger"] == ["tensorboard", "wandb"]
    assert written(place / "demo")["with"] == ["grad-accum", "ema"]


def test_json_is_all_that_json_prints(run: Run, place: Path) -> None:
    done = run("new", "demo", "--json", *as_flags(RICH))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "path": "demo",
        "written": True,
        "answers": RICH | {"name": "demo"},
        "files": sorted(files_under(place / "demo")),
    }


def test_a_dry_run_writes_nothing(invoke: Invoke, place: Path) -> None:
    result = invoke("new", "demo", "-o", "deep/down", "--dry-run", *as_flags(RICH))
    assert result.exit_code == 0
    assert result.stdout.startswith("would write deep/down/demo/\n")
    report = json.loads(invoke("new", "demo", "--dry-run", "--json", *as_flags(RICH)).stdout)
    assert not report["written"]
    assert snapshot(place) == {}
    invoke("new", "demo", *as_flags(RICH))
    assert report["files"] == sorted(files_under(place / "demo"))


def test_an_empty_folder_is_as_good_as_none(invoke: Invoke, place: Path) -> None:
    (place / "demo").mkdir()
    assert invoke("new", "demo", "--yes").exit_code == 0
    assert (place / "demo" / "train.py").is_file()


def test_force_writes_over_its_own_files_and_no_others(invoke: Invoke, place: Path) -> None:
    (place / "demo" / "tests").mkdir(parents=True)
    own = {"notes.txt": b"mine", "tests/test_mine.py": b"mine too"}
    for name, text in own.items():
        (place / "demo" / name).write_bytes(text)
    (place / "demo" / "train.py").write_text("old")
    assert invoke("new", "demo", "--force", *as_flags(PLAIN)).exit_code == 0
    assert invoke("new", "demo", "-o", "fresh", *as_flags(PLAIN)).exit_code == 0
    assert files_under(place / "demo") == files_under(place / "fresh" / "demo") | own
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


def test_the_project_has_the_modes_that_the_user_wants(run: Run, place: Path) -> None:
    for mask, folder, file in ((0o022, 0o755, 0o644), (0o077, 0o700, 0o600)):
        name = f"mask{mask}"
        run("new", name, "--yes", umask=mask)
        for path in (place / name, *(place / name).rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"scaffold {__version__}\n"
    shown = run("new", "--help").stdout
    for axis in AXES:
        assert f"--{axis.key}" in shown


# --- what is refused


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ("--task", "image-clasification"),
            "unknown task 'image-clasification': did you mean 'image-classification'?",
        ),
        (("--task", ""), "unknown task ''"),
        (("--task", "zzz"), "unknown task 'zzz': choose from "),
        (("--task", "Tabular"), "unknown task 'Tabular': did you mean 'tabular'?"),
        (("--task", "../tabular"), "unknown task '../tabular'"),
        (("--data", "adult", "--task", "image-classification"), "choose task=tabular"),
        (("--data", "minst"), "unknown data 'minst': did you mean 'mnist'?"),
        (("--hardware", "cuda"), "unknown hardware 'cuda'"),
        (("--precision", "float16"), "unknown precision 'float16'"),
        (("--distributed", "dp"), "unknown distributed 'dp': did you mean 'ddp'?"),
        (("--logger", "wandbb"), "unknown logger 'wandbb': did you mean 'wandb'?"),
        (("--with", "emma"), "'emma': did you mean 'ema'?"),
        (("--with", "regression", "--task", "image-classification"), "'regression'"),
        (("--logger", "wandb", "--logger", "wandb"), "logger 'wandb' was given twice: give it once"),
        (("--with", "ema", "--with", "ema"), "with 'ema' was given twice: give it once"),
        (("--logger", "none", "--logger", "wandb"), "logger 'none' cannot stand beside others: leave it out"),
        (("--with", "ema", "--with", "none"), "with 'none' cannot stand beside others: leave it out"),
        (("--task", "tabular\n"), "unknown task 'tabular\\n'"),
    ],
)
def test_values_that_are_none(refused: Refused, args: tuple[str, ...], line: str) -> None:
    assert line in refused("new", "demo", "--yes", *args)
    assert line in refused("new", "demo", "--json", *args)


EXCLUDED = [
    (rule, dict(zip(rule.when, values, strict=True)))
    for rule in RULES
    for values in itertools.product(*rule.when.values())
]


@pytest.mark.parametrize(
    ("rule", "values"), EXCLUDED, ids=[f"{r.id}-{'-'.join(v.values())}" for r, v in EXCLUDED]
)
def test_every_excluded_combination(refused: Refused, rule: Any, values: dict[str, str]) -> None:
    line = refused("new", "demo", "--yes", *as_flags(values))
    assert all(f"{key} {value}" in line for key, value in values.items())
    assert line.endswith(f" is not possible: {rule.because}; choose {rule.choose}")


def test_every_exclusion_of_a_task(refused: Refused) -> None:
    rules = [rule for rule in all_rules(load_catalog()) if rule not in RULES]
    assert {rule.id for rule in rules} >= {
        "tabular-adult-not-regression",
        "tabular-wine-quality-needs-regression",
    }
    for rule in rules:
        values = {key: list(chosen) for key, chosen in next(rule.combinations()).items()}
        assert f"{rule.because}; choose {rule.choose}" in refused("new", "demo", "--yes", *as_flags(values))


BAD_NAMES = {
    "empty": "",
    "space": "my project",
    "only-space": " ",
    "keyword": "class",
    "parent": "..",
    "here": ".",
    "above": "../demo",
    "nested": "a/b",
    "absolute": "/tmp/demo",
    "backslash": "a\\b",
    "drive": "C:demo",
    "cyrillic": "d\u0430ta",
    "full-width": "\uff44\uff45\uff4d\uff4f",
    "accent": "d\u00e9mo",
    "ligature": "\ufb01nd",
    "digit-of-another-script": "demo\u0661",
    "dash": "-demo",
    "underscore": "_demo",
    "digit": "1demo",
    "newline": "demo\n",
    "tab": "demo\t",
    "zero-width": "demo\u200b",
    "right-to-left": "\u202edemo",
    "device": "NUL",
    "device-with-number": "com1",
    "package": "torch",
    "own-tests": "tests",
    "long": "a" * 65,
    "quote": "a'b",
    "command": "$(touch owned)",
    "dot": "demo.py",
    "nothing": "\x00",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_are_none(refused: Refused, name: str) -> None:
    line = refused("new", "--yes", "--", name)
    assert line.startswith(repr(name)) and "for example my-project" in line
    assert refused("new", "--answers", "-", stdin=json.dumps({"name": name})) == line


@pytest.mark.parametrize("name", ["a", "A-b_3", "a" * 64, "classy", "torch-run"])
def test_names_that_are_some(invoke: Invoke, place: Path, name: str) -> None:
    assert invoke("new", name, "--yes").exit_code == 0
    assert (place / name / "train.py").is_file()


def test_a_folder_that_is_not_empty(refused: Refused, place: Path) -> None:
    (place / "demo").mkdir()
    (place / "demo" / "thesis.tex").write_text("years of work")
    wanted = "demo exists and is not empty: choose another name, or --force to write over its files"
    for extra in ((), ("--dry-run",), ("--json",)):
        assert refused("new", "demo", "--yes", *extra) == wanted


def test_a_project_is_not_written_twice(invoke: Invoke, refused: Refused) -> None:
    assert invoke("new", "demo", "--yes").exit_code == 0
    assert "--force" in refused("new", "demo", "--yes")


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_target_that_is_no_folder(refused: Refused, place: Path, force: tuple[str, ...]) -> None:
    (place / "file").write_text("text")
    (place / "elsewhere").mkdir()
    (place / "link").symlink_to("elsewhere")
    (place / "dangling").symlink_to("nowhere")
    line = "file exists and is not a folder: choose another name"
    assert refused("new", "file", "--yes", *force) == line
    for name in ("link", "dangling"):
        line = f"{name} is a link: choose another name, or where it leads to"
        assert refused("new", name, "--yes", *force) == line


def test_a_folder_where_a_file_should_go(refused: Refused, place: Path) -> None:
    (place / "demo" / "train.py").mkdir(parents=True)
    assert "demo/train.py is a folder" in refused("new", "demo", "--yes", "--force")


def test_a_file_where_a_folder_should_go(refused: Refused, place: Path) -> None:
    (place / "demo").mkdir()
    (place / "demo" / "tests").write_text("not a folder")
    assert "demo/tests" in refused("new", "demo", "--yes", "--force")


def test_an_output_folder_that_is_a_file(refused: Refused, place: Path) -> None:
    (place / "file").write_text("text")
    assert "cannot write to file" in refused("new", "demo", "--yes", "-o", "file")
    assert "cannot write to file/below" in refused("new", "demo", "--yes", "-o", "file/below")


def test_a_name_that_no_system_takes(refused: Refused) -> None:
    long = "x" * 300
    assert refused("new", "demo", "--yes", "-o", long) == f"cannot read {long}/demo: File name too long"
    assert refused("new", "--yes", "-o", long).startswith(f"cannot read {long}/")
    assert refused("check", long) == f"cannot read {long}: File name too long"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_target_that_may_not_be_read(refused: Refused, place: Path) -> None:
    (place / "closed" / "demo").mkdir(parents=True)
    (place / "closed" / "demo").chmod(0o300)
    try:
        assert refused("new", "demo", "--yes", "-o", "closed") == "cannot read closed/demo: Permission denied"
    finally:
        (place / "closed" / "demo").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_template_that_may_not_be_read(refused: Refused, place: Path) -> None:
    folder = place / "tasks" / "tabular"
    shutil.copytree(templates_folder() / "tasks" / "tabular", folder)
    (folder / "model.py.jinja").chmod(0)
    assert refused("check", ".") == f"cannot read {folder / 'model.py.jinja'}: Permission denied"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_is_read_only(refused: Refused, place: Path) -> None:
    (place / "closed").mkdir(mode=0o555)
    assert "cannot write to closed" in refused("new", "demo", "--yes", "-o", "closed")


BAD_ANSWERS = {
    "nested-too-deep-json": ('{"a":' * 100_000, ""),
    "nested-too-deep-toml": ("a = " + "[" * 100_000, ""),
    "prose": ("please make me a project", "neither JSON nor TOML"),
    "half-json": ('{"task": "tabular"', "neither JSON nor TOML"),
    "json-of-two": ('{"task": "tabular"} {}', "neither JSON nor TOML"),
    "same-key-twice": ('task = "tabular"\ntask = "tabular"', "neither JSON nor TOML"),
    "unknown-key": ('colour = "red"', "unknown key 'colour'; known are name, task, data, "),
    "field-name": ("loggers = []", "unknown key 'loggers'"),
    "table": ("[answers]\ntask = 'tabular'", "unknown key 'answers'"),
    "number": ("task = 3", "task must be a string, not 3"),
    "null": ('{"name": null}', "name must be a string, not None"),
    "truth": ("hardware = true", "hardware must be a string, not True"),
    "list": ('precision = ["fp32"]', "precision must be a string, not ['fp32']"),
    "date": ("data = 2024-01-01", "data must be a string"),
    "number-for-list": ("logger = 3", "logger must be a list of strings, not 3"),
    "numbers-in-list": ("with = [1]", "with must be a list of strings, not [1]"),
    "table-for-list": ("with = {ema = 1}", "with must be a list of strings"),
    "list-in-list": ('with = [["ema"]]', "with must be a list of strings"),
    "twice": ('logger = ["wandb", "wandb"]', "logger 'wandb' was given twice"),
    "none-and-some": ('logger = ["none", "wandb"]', "logger 'none' cannot stand beside others"),
    "unknown-value": ('task = "tabula"', "unknown task 'tabula': did you mean 'tabular'?"),
    "excluded": ('precision = "tf32"\nhardware = "cpu"', "precision tf32 with hardware cpu is not possible"),
    "empty-name": ('name = ""', "'' is not a project name"),
    "path": ('name = "../demo"', "'../demo' is not a project name"),
}


@pytest.mark.parametrize(("text", "line"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_answers_that_are_wrong(refused: Refused, place: Path, text: str, line: str) -> None:
    (place / "answers").write_text(text)
    assert line in refused("new", "demo" if "name" not in text else "--yes", "--answers", "answers")
    assert line in refused("new", "demo" if "name" not in text else "--yes", "--answers", "-", stdin=text)


def test_answers_that_cannot_be_read(refused: Refused, place: Path) -> None:
    (place / "binary").write_bytes(bytes(range(256)))
    (place / "folder").mkdir()
    for name, reason in (
        ("missing.toml", "No such file or directory"),
        ("binary", "it is not UTF-8 text"),
        ("folder", "Is a directory"),
    ):
        assert (
            refused("new", "demo", "--answers", name) == f"the answers file {name} cannot be read: {reason}"
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_answers_that_may_not_be_read(refused: Refused, place: Path) -> None:
    (place / "secret").write_text('task = "tabular"')
    (place / "secret").chmod(0)
    assert "Permission denied" in refused("new", "demo", "--answers", "secret")


def test_binary_standard_input(run: Run, place: Path) -> None:
    done = run("new", "demo", "--answers", "-", input=bytes(range(256)), text=False)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.startswith(b"scaffold: ") and done.stderr.count(b"\n") == 1
    assert snapshot(place) == {}


@pytest.mark.parametrize(
    "args",
    [
        ("new", "demo", "--task", "tabula"),
        ("new", "my project"),
        ("new", "demo", "--hardware", "cpu", "--precision", "tf32"),
        ("new", "demo", "--answers", "missing"),
        ("list", "nothing"),
        ("diff",),
        ("diff", ".", "precision=bf16"),
    ],
)
def test_a_real_process_ends_with_one_line_too(run: Run, place: Path, args: tuple[str, ...]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"scaffold: .+\n", done.stderr)
    assert snapshot(place) == {}


@pytest.mark.parametrize("args", [("new", "--nothing"), ("new", "-demo"), ("nothing",), ("new", "--task")])
def test_usage_errors_exit_2(invoke: Invoke, place: Path, args: tuple[str, ...]) -> None:
    result = invoke(*args)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert snapshot(place) == {}


# --- whole or not at all


def failing(real: Callable[..., Any], after: int, error: BaseException) -> Callable[..., Any]:
    """`real`, until it has been called `after` times."""
    calls = itertools.count(1)

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) > after:
            raise error
        return real(*args, **options)

    return call


NO_SPACE = OSError(28, "No space left on device")


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("target", ["demo", "deep/down/demo"])
def test_a_full_disk_leaves_nothing(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, after: int, target: str
) -> None:
    monkeypatch.setattr(Path, "write_text", failing(Path.write_text, after, NO_SPACE))
    folder, _, name = target.rpartition("/")
    line = refused("new", name, "--yes", *(("-o", folder) if folder else ()))
    assert line == f"cannot write {target}: No space left on device"


def test_a_move_that_fails_leaves_nothing(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        project.os, "replace", failing(os.replace, 0, OSError(18, "Invalid cross-device link"))
    )
    assert "Invalid cross-device link" in refused("new", "demo", "--yes")


@pytest.mark.parametrize("after", [0, 1, 4])
def test_force_that_fails_half_way_changes_nothing(
    refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    (place / "demo").mkdir()
    for name in ("train.py", "model.py", "README.md"):
        (place / "demo" / name).write_text("mine")
    real, calls = os.replace, itertools.count(1)

    def replace(source: Any, target: Any) -> None:
        if "demo" in Path(target).parts and next(calls) == after + 1:
            raise NO_SPACE
        real(source, target)

    monkeypatch.setattr(project.os, "replace", replace)
    assert "No space left on device" in refused("new", "demo", "--yes", "--force")


def test_control_c_while_writing_leaves_nothing(
    invoke: Invoke, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", failing(Path.write_text, 3, KeyboardInterrupt()))
    assert invoke("new", "demo", "--yes").exit_code != 0
    assert snapshot(place) == {}


SIGNALLED = """
import itertools, os, shutil, signal
from pathlib import Path
from scaffold.cli import app

write, remove, calls = Path.write_text, shutil.rmtree, itertools.count(1)

def write_text(path, *args, **options):
    if next(calls) == 4:
        os.kill(os.getpid(), {sent})
    return write(path, *args, **options)

def rmtree(*args, **options):
    os.kill(os.getpid(), {sent})
    return remove(*args, **options)

Path.write_text, shutil.rmtree = write_text, rmtree
app(["new", "demo", "--yes", "--force"])
"""


def test_a_killed_process_leaves_no_half_project(run: Run, place: Path) -> None:
    code = SIGNALLED.format(sent=int(signal.SIGKILL))
    assert run("-c", code, command=[sys.executable]).returncode == -9
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == []
    assert run("new", "demo", "--yes").returncode == 0


@pytest.mark.parametrize("there", [False, True])
def test_sigterm_while_writing_leaves_nothing(run: Run, place: Path, there: bool) -> None:
    """Also where a second one comes while the first is answered."""
    if there:
        (place / "demo").mkdir()
        (place / "demo" / "train.py").write_text("mine")
    before = snapshot(place)
    code = SIGNALLED.format(sent=int(signal.SIGTERM))
    done = run("-c", code, command=[sys.executable])
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert snapshot(place) == before


def test_sigterm_in_a_house_template_leaves_nothing(
    run: Run, env: dict[str, str], place: Path, house: Path, tmp_path: Path
) -> None:
    """Its hook signals the program that waits for it."""
    (tmp_path / "scratch").mkdir()
    (house / "hooks").mkdir()
    hook = f"import os\nos.kill(os.getppid(), {int(signal.SIGTERM)})\n"
    (house / "hooks" / "post_gen_project.py").write_text(hook)
    settings = env | {"TMPDIR": str(tmp_path / "scratch")}
    done = run("new", "demo", "--yes", "--cookiecutter", house, "--trust", env=settings)
    assert (done.returncode, done.stdout) == (143, "")
    left = [path for path in (tmp_path / "scratch").iterdir() if path.suffix != ".py"]  # cookiecutter's hook
    assert snapshot(place) == {} and left == []


def test_sigterm_means_afterwards_what_it_meant(invoke: Invoke, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("new", "demo", "--yes").exit_code == 0
    with pytest.raises(RequestError, match="cannot import torch"), trial(tmp_path, "false", 0, [], {}):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_of_two_at_once_does_not_mix_in(
    invoke: Invoke, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "demo":
            Path(target).mkdir()
            (Path(target) / "train.py").write_text("the first one's")
        real(source, target)

    monkeypatch.setattr(project.os, "replace", replace)
    result = invoke("new", "demo", "--yes")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert snapshot(place) == {"demo": "folder", "demo/train.py": b"the first one's"}


# --- house templates


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A lab's cookiecutter template."""
    folder = tmp_path / "house"
    inner = folder / "{{ cookiecutter.project_slug }}"
    (inner / "docs").mkdir(parents=True)
    context = {"project_name": "Nameless", "project_slug": "nameless", "lab": "Curie"}
    (folder / "cookiecutter.json").write_text(json.dumps(context))
    (inner / "docs" / "LAB.md").write_text("{{ cookiecutter.project_name }} of {{ cookiecutter.lab }}\n")
    (inner / "CITATION.cff").write_text("title: {{ cookiecutter.project_slug }}\n")
    return folder


def hook(house: Path, name: str, code: str) -> None:
    (house / "hooks").mkdir(exist_ok=True)
    (house / "hooks" / f"{name}.py").write_text(code)


def house_refused(run: Run, place: Path, house: Path | str, *args: str) -> str:
    before = snapshot(place)
    done = run("new", "demo", "--yes", "--cookiecutter", house, *args)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(r"scaffold: .+\n", done.stderr), done.stderr
    assert snapshot(place) == before
    return done.stderr


def test_a_house_template_holds_the_project(run: Run, place: Path, house: Path) -> None:
    done = run("new", "demo", "--cookiecutter", house, *as_flags(PLAIN))
    assert (done.returncode, done.stderr) == (0, "")
    run("new", "demo", "-o", "bare", *as_flags(PLAIN))
    assert files_under(place / "demo") == files_under(place / "bare" / "demo") | {
        "docs/LAB.md": b"demo of Curie\n",
        "CITATION.cff": b"title: demo\n",
    }
    assert "    LAB.md" in done.stdout


def test_the_recreate_line_names_the_house_template(run: Run, place: Path, house: Path) -> None:
    line = run("new", "demo", "--cookiecutter", house, *as_flags(PLAIN)).stdout.splitlines()[-1]
    assert run(*shlex.split(line)[1:], "-o", "again").returncode == 0
    assert files_under(place / "again" / "demo") == files_under(place / "demo")


@pytest.mark.parametrize(
    "path", ["train.py", "README.md", "tests/test_train.py", ".gitignore", ".scaffold.toml"]
)
def test_a_file_that_both_want_is_refused(run: Run, place: Path, house: Path, path: str) -> None:
    file = house / "{{ cookiecutter.project_slug }}" / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("the lab's")
    assert f"both want {path}: " in house_refused(run, place, house)


@pytest.mark.parametrize("path", ["tests", "train.py/more"])
def test_a_file_where_the_other_wants_a_folder_is_refused(
    run: Run, place: Path, house: Path, path: str
) -> None:
    file = house / "{{ cookiecutter.project_slug }}" / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("the lab's")
    assert "the house template" in house_refused(run, place, house)


def test_hooks_run_only_when_trusted(run: Run, place: Path, house: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\npathlib.Path('HOOKED').write_text('yes')\n"
    for name in ("pre_prompt", "post_gen_project"):
        hook(house, name, code)
    assert run("new", "demo", "--yes", "--cookiecutter", house).returncode == 0
    assert not mark.exists() and not (place / "demo" / "HOOKED").exists()
    assert run("new", "trusted", "--yes", "--cookiecutter", house, "--trust").returncode == 0
    assert mark.exists() and (place / "trusted" / "HOOKED").read_text() == "yes"


def test_a_hook_that_fails_refuses(run: Run, place: Path, house: Path) -> None:
    hook(house, "post_gen_project", "raise SystemExit(3)")
    assert "Hook script failed" in house_refused(run, place, house, "--trust")


def break_json(house: Path) -> None:
    (house / "cookiecutter.json").write_text("{")


def break_questions(house: Path) -> None:
    (house / "cookiecutter.json").write_text("[1]")


def break_syntax(house: Path) -> None:
    (house / "{{ cookiecutter.project_slug }}" / "broken.txt").write_text("{% if %}")


def break_variable(house: Path) -> None:
    (house / "{{ cookiecutter.project_slug }}" / "broken.txt").write_text("{{ cookiecutter.nothing }}")


def break_filter(house: Path) -> None:
    (house / "{{ cookiecutter.project_slug }}" / "broken.txt").write_text("{{ 'a' | nothing }}")


def break_folder(house: Path) -> None:
    (house / "{{ cookiecutter.project_slug }}").rename(house / "plain")


def break_text(house: Path) -> None:
    (house / "{{ cookiecutter.project_slug }}" / "logo.png").write_bytes(b"\x89PNG\xff\x00")


BREAKS = (break_json, break_questions, break_syntax, break_variable, break_filter, break_folder, break_text)


@pytest.mark.parametrize("damage", BREAKS)
def test_a_house_template_that_cannot_be_rendered(
    run: Run, place: Path, house: Path, damage: Callable[[Path], None]
) -> None:
    damage(house)
    assert f"the house template {house} " in house_refused(run, place, house)


@pytest.mark.parametrize("address", ["nowhere", "file:///nowhere/house.git", "nowhere.zip", ""])
def test_a_house_template_that_is_not_there(run: Run, place: Path, address: str) -> None:
    assert f"the house template {address} " in house_refused(run, place, address)


def test_a_script_of_the_house_stays_a_script(run: Run, place: Path, house: Path) -> None:
    script = house / "{{ cookiecutter.project_slug }}" / "submit.sh"
    script.write_bytes(b"#!/bin/sh\r\nsbatch train\r\n")
    script.chmod(0o755)
    assert run("new", "demo", "--yes", "--cookiecutter", house).returncode == 0
    copy = place / "demo" / "submit.sh"
    assert copy.read_bytes() == script.read_bytes()
    assert copy.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(("name", "data"), [("pandas", "files"), ("Scikit_Learn", "sample")])
def test_a_project_has_the_name_of_nothing_it_requires(refused: Refused, name: str, data: str) -> None:
    line = refused("new", name, "--task", "tabular", "--data", data, "--yes")
    assert line.startswith(f"{name!r} is the name of a package that the project uses")


def test_without_standard_input(run: Run, place: Path) -> None:
    closed = [sys.executable, "-c", "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"]
    done = run("new", "demo", command=[*closed, *COMMAND])
    assert (done.returncode, done.stderr) == (0, "") and (place / "demo").is_dir()
    done = run("new", "other", "--answers", "-", command=[*closed, *COMMAND])
    line = "scaffold: there is no standard input to read answers from: name a file\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_with_standard_output_on_a_full_disk(place: Path, env: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert (done.returncode, done.stderr) == (1, "scaffold: No space left on device\n")


def test_a_number_of_too_many_digits(refused: Refused) -> None:
    assert "neither JSON nor TOML" in refused("new", "demo", "--answers", "-", stdin="task=" + "9" * 5000)


# --- list, diff, doctor


def test_list_names_every_value_once(run: Run) -> None:
    known = load_catalog()
    choices = json.loads(run("list", "--json").stdout)
    assert list(choices) == [axis.plural for axis in AXES]
    for axis in AXES:
        assert list(choices[axis.plural]) == list(known.values(axis.key))
        assert all(row["help"] for row in choices[axis.plural].values())
        assert json.loads(run("list", axis.plural, "--json").stdout) == {axis.plural: choices[axis.plural]}
    fp16 = [row for row in choices["precision"]["fp16"]["excludes"] if {*row["when"]} == {"hardware"}]
    assert [row["when"]["hardware"] for row in fp16] == [["tpu"]]
    assert fp16[0]["because"] and fp16[0]["choose"] == "precision=bf16"
    assert choices["features"]["regression"]["tasks"] == ["tabular"]


def test_list_as_text(run: Run) -> None:
    known = load_catalog()
    done = run("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for axis in AXES:
        section = lines[lines.index(axis.plural) :]
        for value, text in known.values(axis.key).items():
            assert any(re.match(rf"  {re.escape(value)} +{re.escape(text)}", line) for line in section)
    for rule in RULES:
        assert rule.because in done.stdout and f"choose {rule.choose}" in done.stdout
    precision = run("list", "precision").stdout.splitlines()
    assert precision[0] == "precision" and not any("tensorboard" in line for line in precision)


@pytest.mark.parametrize(
    ("what", "hint"), [("task", r"did you mean 'tasks'\?$"), ("xyzzy", r"choose from tasks, [\w, ]+$")]
)
def test_list_of_what_is_none(refused: Refused, what: str, hint: str) -> None:
    assert re.search(hint, refused("list", what))


def test_diff_from_defaults(run: Run) -> None:
    done = run("diff", "distributed=ddp")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("--- a/train.py\n+++ b/train.py\n@@ ")
    assert re.search(r"^\+.*DistributedDataParallel", done.stdout, re.MULTILINE)
    assert not re.search(r"^-.*DistributedDataParallel", done.stdout, re.MULTILINE)
    report = json.loads(run("diff", "distributed=ddp", "--json").stdout)
    assert report["diff"] == done.stdout
    changed = [line for line in done.stdout.splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
    assert report["changed_lines"] == len(changed)
    assert report["from"]["distributed"] == "none" and report["to"] == report["from"] | {"distributed": "ddp"}


def test_diff_says_exactly_what_changes(run: Run, place: Path) -> None:
    """The patch turns one project into the other."""
    start = PLAIN | {"task": "tabular", "logger": ["tensorboard"]}
    run("new", "demo", *as_flags(start))
    run(
        "new", "demo", "-o", "after", *as_flags(start | {"logger": ["tensorboard", "wandb"], "with": ["ema"]})
    )
    done = run("diff", "demo", "logger+=wandb", "with=ema")
    (place / "change.patch").write_text(done.stdout)
    subprocess.run(["git", "apply", "-p1", "../change.patch"], cwd=place / "demo", check=True, timeout=30)
    before, after = files_under(place / "demo"), files_under(place / "after" / "demo")
    del before[".scaffold.toml"], after[".scaffold.toml"]
    assert before == after


def test_diff_of_a_project_and_of_its_flags_agree(run: Run) -> None:
    run("new", *as_flags(RICH))
    words = ("precision=fp32", "with-=ema", "logger=", "--json")
    of_project = json.loads(run("diff", "tabular", *words).stdout)
    assert of_project == json.loads(run("diff", *as_flags(RICH), *words).stdout)
    assert of_project["changed_lines"] > 0
    assert (of_project["to"]["with"], of_project["to"]["logger"]) == (["grad-accum", "regression"], [])


def test_diff_changes_no_project(run: Run, place: Path) -> None:
    run("new", "demo", "--yes")
    before = snapshot(place)
    assert run("diff", "demo", "task=tabular").stdout
    assert snapshot(place) == before


def test_diff_of_what_is_there_already(run: Run) -> None:
    done = run("diff", "precision=fp32", "--hardware", "cpu")
    assert (done.returncode, done.stdout) == (0, "no difference\n")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ((), "diff needs at least one key=value"),
        (("demo",), "diff needs at least one key=value"),
        (("--task", "tabular"), "diff needs at least one key=value"),
        (("colour=red",), "'colour=red' is not key=value with a key from task, data, "),
        (("precision=bf16", "ema"), "'ema' is not key=value"),
        (("precision=",), "unknown precision ''"),
        (("precision=fp61",), "unknown precision 'fp61': did you mean 'fp16'?"),
        (("precision+=fp16",), "precision takes one value, write precision=fp16"),
        (("with-=ema",), "ema is not chosen there"),
        (("with=ema,ema",), "with 'ema' was given twice"),
        (("with=ema", "with+=ema"), "'with+=ema': ema is chosen already"),
        (("with=ema", "with+=none"), "with 'none' cannot stand beside others"),
        (("logger=none,wandb",), "logger 'none' cannot stand beside others"),
        (("task=tabular", "data=imagenet"), "choose task=image-classification"),
        (("precision=tf32", "hardware=cpu"), "precision tf32 with hardware cpu is not possible"),
        ((".", "precision=bf16"), ". is not a scaffold project: it has no .scaffold.toml"),
        (("nowhere", "precision=bf16"), "nowhere is not a scaffold project"),
        (("file", "precision=bf16"), "file is not a scaffold project"),
        ((".", "--task", "tabular", "precision=bf16"), "not both"),
    ],
)
def test_diffs_that_are_none(refused: Refused, place: Path, args: tuple[str, ...], line: str) -> None:
    (place / "file").write_text("text")
    assert line in refused("diff", *args)


DAMAGES = {
    "empty": b"",
    "not-text": b"\xff\xfe\x00",
    "not-toml": b"<<<<<<< ours\n",
    "no-answers": b'version = "0.1.0"\n',
    "answers-no-table": b'answers = "none"\n',
    "answers-list": b"answers = [1]\n",
    "answers-empty": b"[answers]\n",
    "answers-partial": b'[answers]\nname = "demo"\ntask = "tabular"\n',
    "wrong-type": b"[answers]\ntask = 3\n",
    "unknown-key": b'[answers]\ncolour = "red"\n',
    "unknown-value": b'[answers]\ntask = "tabula"\n',
    "nested-too-deep": b"answers = " + b"[" * 100_000,
}


@pytest.mark.parametrize("text", DAMAGES.values(), ids=DAMAGES)
def test_diff_of_a_project_whose_record_is_damaged(refused: Refused, place: Path, text: bytes) -> None:
    (place / "demo").mkdir()
    (place / "demo" / ".scaffold.toml").write_bytes(text)
    assert ".scaffold.toml" in refused("diff", "demo", "distributed=ddp")


def test_a_record_that_lacks_an_answer_says_which(refused: Refused, place: Path) -> None:
    (place / "demo").mkdir()
    (place / "demo" / ".scaffold.toml").write_text('[answers]\nname = "demo"\n')
    assert "cannot be read (its answers lack 'task')" in refused("diff", "demo", "distributed=ddp")


def test_a_record_of_a_plug_in_that_is_gone(refused: Refused, run: Run, place: Path) -> None:
    """The file is sound: nothing is to be restored."""
    run("new", "demo", "--yes")
    record = place / "demo" / ".scaffold.toml"
    record.write_text(record.read_text().replace("image-classification", "line"))
    line = refused("diff", "demo", "distributed=ddp")
    assert "unknown task 'line'" in line and "restore" not in line


def test_diff_inside_of_a_project(run: Run, place: Path) -> None:
    """What one stands in is what one means."""
    run("new", "demo", "--task", "tabular", "--yes")
    named = run("diff", "demo", "with=ema").stdout
    assert run("diff", "with=ema", cwd=place / "demo").stdout == named != run("diff", "with=ema").stdout
    (place / "lr=1").mkdir()
    run("new", "demo", "--task", "tabular", "--yes", "-o", "lr=1")
    assert run("diff", "lr=1/demo", "with=ema").stdout == named


def test_diff_of_a_project_whose_record_is_a_folder(refused: Refused, place: Path) -> None:
    (place / "demo" / ".scaffold.toml").mkdir(parents=True)
    assert "demo/.scaffold.toml cannot be read" in refused("diff", "demo", "distributed=ddp")


def test_doctor(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    asked = "import torch; print(torch.__version__, torch.accelerator.device_count())"
    version, devices = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert (found["torch"], found["devices"]) == (version, int(devices))
    assert found["cpus"] == os.cpu_count() and "gloo" in found["distributed"]
    assert (found["accelerator"] is None) == (found["devices"] == 0)
    proposed = json.loads(run("new", "x", "--dry-run", "--json").stdout)["answers"]
    if found["hardware"] == proposed["hardware"]:  # unless there is a device that this PyTorch cannot use
        assert found["defaults"] == {key: proposed[key] for key in ("hardware", "precision", "distributed")}


def test_doctor_without_torch(run: Run, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise ImportError('libcuda is gone')")
    settings = env | {"PYTHONPATH": str(tmp_path / "broken")}
    done = run("doctor", "--json", env=settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["torch"] is None and "libcuda is gone" in found["problem"]
    text = run("doctor", env=settings).stdout
    assert re.search(r"^torch +none$", text, re.MULTILINE) and "libcuda is gone" in text


# --- completion


def complete(run: Run, env: dict[str, str], shell: str, *words: str) -> list[str]:
    """What a shell is told when Tab is pressed after `words`, the last one unfinished."""
    line = " ".join(("scaffold", *words))
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = run(command=SCRIPT, env=env | asked | {"_SCAFFOLD_COMPLETE": f"complete_{shell}"})
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


def test_completion_script(run: Run) -> None:
    done = run("--show-completion", "bash", command=SCRIPT)
    if done.returncode:  # the shell is found by looking at the parent process
        done = run("-c", f"{SCRIPT[0]} --show-completion; true", command=["bash"])
    assert "_SCAFFOLD_COMPLETE=complete_bash" in done.stdout and "scaffold" in done.stdout


def test_bash_itself_completes(run: Run) -> None:
    script = f"""
        eval "$({SCRIPT[0]} --show-completion bash)"
        COMP_WORDS=(scaffold new --task tab) COMP_CWORD=3
        _scaffold_completion {SCRIPT[0]}
        echo "${{COMPREPLY[@]}}"
    """
    done = run("-c", script, command=["bash"])
    assert done.stdout.strip() == "tabular", done.stderr


def test_completion_of_values(run: Run, env: dict[str, str]) -> None:
    tasks = list(load_catalog().tasks)
    assert complete(run, env, "bash", "new", "--task", "") == tasks
    assert complete(run, env, "bash", "new", "--task", "image") == ["image-classification"]
    assert complete(run, env, "bash", "new", "--task", "zzz") == []
    assert complete(run, env, "bash", "new", "--precision", "f") == ["fp32", "fp16"]
    assert complete(run, env, "bash", "diff", "--logger", "w") == ["wandb"]
    assert complete(run, env, "bash", "n") == ["new"]
    assert '"tabular"' in " ".join(complete(run, env, "zsh", "new", "--task", "tab"))
    assert complete(run, env, "fish", "new", "--task", "tab")[0] == "tabular"


def test_completion_knows_the_task(run: Run, env: dict[str, str]) -> None:
    assert complete(run, env, "bash", "new", "--task", "tabular", "--data", "a") == ["adult"]
    assert complete(run, env, "bash", "new", "--task", "image-classification", "--data", "a") == []
    assert complete(run, env, "bash", "new", "--with", "reg") == ["regression"]


def test_completion_survives_a_wrong_task(run: Run, env: dict[str, str]) -> None:
    complete(run, env, "bash", "new", "--task", "tabula", "--data", "")


# --- what is loaded, and what is kept


HEAVY = ("torch", "cookiecutter", "black", "questionary", "prompt_toolkit", "numpy")


@pytest.mark.parametrize(
    "args", [None, ["--help"], ["list"], ["new", "demo", "--yes"], ["diff", "distributed=ddp"]]
)
def test_nothing_heavy_is_imported(run: Run, args: list[str] | None) -> None:
    call = "" if args is None else f"app({args}, standalone_mode=False)"
    code = f"import sys\nfrom scaffold.cli import app\n{call}\nprint(*sys.modules, sep='|', file=sys.stderr)"
    done = run("-c", code, command=[sys.executable])
    modules = set(done.stderr.strip().split("|"))
    assert "typer" in modules and done.returncode == 0
    assert modules.isdisjoint(HEAVY)


def test_the_clock_of_imports_agrees(run: Run) -> None:
    done = run("--help", command=[sys.executable, "-X", "importtime", *COMMAND[1:]])
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported and imported.isdisjoint(HEAVY)


def test_compiled_templates_are_kept_where_caches_go(run: Run, env: dict[str, str], place: Path) -> None:
    home, elsewhere = place.parent / "home", place.parent / "elsewhere"
    run("new", "one", "--yes", env=env | {"HOME": str(home)})
    assert (home / ".cache" / "scaffold").is_dir()
    run("new", "two", "--yes", env=env | {"XDG_CACHE_HOME": str(elsewhere)})
    assert (elsewhere / "scaffold").is_dir()


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_a_home_that_cannot_be_written_to(run: Run, env: dict[str, str], place: Path, home: str) -> None:
    done = run("new", "demo", "--yes", env=env | {"HOME": home})
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "demo" / "train.py").is_file()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(render.Path, "home", nobody)
    assert render.cache_folder() is None


def test_a_damaged_cache_changes_nothing(run: Run, env: dict[str, str], place: Path) -> None:
    cache = place.parent / "cache"
    settings = env | {"XDG_CACHE_HOME": str(cache)}
    run("new", "demo", "--yes", "-o", "before", env=settings)
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:40])
    assert run("new", "demo", "--yes", "-o", "after", env=settings).returncode == 0
    assert files_under(place / "after") == files_under(place / "before")


@pytest.mark.parametrize(
    "args", [("new", "--nothing"), ("new", "-demo"), ("frob",), ("new", "x", "--task"), ("doctor", "x")]
)
def test_a_wrong_word_is_one_line(run: Run, place: Path, args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("scaffold: ")
    assert files_under(place) == {}
