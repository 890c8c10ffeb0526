"""`scaffold new` on a real pseudo-terminal: what a person sees, the keys they press, what is written."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from scaffold.catalog import load_catalog
from scaffold.machine import quick_hardware
from tests.conftest import COMMAND, Run, files_under

ENTER, SPACE, ESCAPE, CTRL_C, CTRL_D, CTRL_O, CTRL_U = "\r", " ", "\x1b", "\x03", "\x04", "\x0f", "\x15"
UP, DOWN, LEFT = "\x1b[A", "\x1b[B", "\x1b[D"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
DRAWN = "\x1b[?7h"  # the last thing that prompt_toolkit writes of a screen
PATIENCE = 15  # seconds that any one thing may take to appear

TASK = "What do you want to train?"
DATA = "On which data?"
HARDWARE = "On which hardware?"
NOT_ON_TPUS = (
    "each step of an environment waits for a small network, to which a TPU is a long way; "
    "choose hardware=cpu or hardware=gpu"
)
PRECISION = "In which precision?"
DISTRIBUTED = "On how many processes?"
LOGGER = "Where should metrics go, beside metrics.jsonl?"
WITH = "Anything else?"
NAME = "What is the project called?"
QUESTIONS = (TASK, DATA, HARDWARE, PRECISION, DISTRIBUTED, LOGGER, WITH, NAME)
DONE = "the same again:"


class Terminal:
    """A scaffold process on a terminal of its own; reads what it shows, without colours and movements."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], cwd: Path, columns: int) -> None:
        self.process = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], "new", *args],
            env=env,
            cwd=str(cwd),
            dimensions=(50, columns),
            encoding="utf-8",
            timeout=PATIENCE,
            # what a shell starts in the background ignores it, and so would this
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.raw = ""
        self.read = 0  # how much of `raw` earlier waits have passed

    @property
    def shown(self) -> str:
        return CONTROL.sub("", self.raw)

    def pull(self) -> bool:
        """Take what the process has written; False when it has ended."""
        try:
            self.raw += self.process.read_nonblocking(size=100_000, timeout=0.1)
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            return False
        return True

    def wait(self, pattern: str, wanted: str) -> str:
        """Wait for a pattern after all that was waited for before; what was shown up to it."""
        deadline = time.monotonic() + PATIENCE
        alive = True
        while not (found := re.compile(pattern).search(self.raw, self.read)):
            rest = CONTROL.sub("", self.raw[self.read :])
            assert alive and time.monotonic() < deadline, f"never saw {wanted!r} after:\n{rest}"
            alive = self.pull()
        start, self.read = self.read, found.end()
        return CONTROL.sub("", self.raw[start : self.read])

    def see(self, text: str) -> str:
        """Wait for a text, whatever colours and movements it is written with."""
        return self.wait(f"(?:{CONTROL.pattern})*".join(map(re.escape, text)), text)

    def see_open(self, question: str) -> str:
        """Wait for a question with all its choices; what was shown of them."""
        self.see(f"? {question} ")
        return self.wait(re.escape(DRAWN), "the end of the list")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.process.send(key)

    def answer(self, question: str, *keys: str) -> str:
        """Wait for a question, press keys and Enter; what was shown with it."""
        shown = self.see_open(question)
        self.press(*keys, ENTER)
        return shown

    def go_back(self, question: str, key: str) -> None:
        self.see_open(question)
        self.press(key)

    def end(self) -> int:
        """The exit status, once all is read."""
        deadline = time.monotonic() + PATIENCE
        while self.pull():
            assert time.monotonic() < deadline, f"still running:\n{self.shown}"
        self.process.wait()
        assert self.process.signalstatus is None
        return self.process.exitstatus


Start = Callable[..., Terminal]


@pytest.fixture
def start(env: dict[str, str], place: Path) -> Iterator[Start]:
    terminals = []

    def start_scaffold(*args: str, columns: int = 120) -> Terminal:
        terminals.append(Terminal(args, env, place, columns))
        return terminals[-1]

    yield start_scaffold
    for terminal in terminals:
        terminal.process.close(force=True)


def written(folder: Path) -> dict[str, Any]:
    """The answers that a project was written with."""
    return tomllib.loads((folder / ".scaffold.toml").read_text())["answers"]


def assert_whole(shown: str, place: Path, name: str, run: Run, tmp_path: Path) -> None:
    """The tree, the next commands and a line that recreates the project: all true."""
    files = files_under(place / name)
    assert {"train.py", "model.py", "data.py", "tests/test_train.py", ".scaffold.toml"} <= set(files)
    end = shown[shown.index(f"wrote {name}/") :]
    tree, _, rest = end.partition("\nnext:\n")
    assert {line.strip() for line in tree.splitlines()[1:] if line.strip() and not line.endswith("/")} == {
        path.rpartition("/")[2] for path in files
    }
    following, _, line = rest.partition(f"\n{DONE}\n")
    assert [word.strip() for word in following.strip().splitlines()][:2] == [
        f"cd {name}",
        "pip install -e '.[dev]'",
    ]
    assert re.search(r"^  (python|torchrun .*) ?train\.py$", following, re.MULTILINE)
    words = shlex.split(line)
    assert words[:3] == ["scaffold", "new", name]
    again = tmp_path / "again"
    again.mkdir()
    assert run(*words[1:], cwd=again).returncode == 0
    assert files_under(again / name) == files


def test_enter_everywhere_takes_the_defaults(start: Start, place: Path, run: Run, tmp_path: Path) -> None:
    terminal = start()
    for question in QUESTIONS:
        terminal.answer(question)
    assert terminal.end() == 0
    unasked = run("new", "--yes", "--dry-run", "--json", "-o", "elsewhere")
    assert written(place / "image-classification") == json.loads(unasked.stdout)["answers"]
    assert_whole(terminal.shown, place, "image-classification", run, tmp_path)
    assert [p.name for p in place.iterdir()] == ["image-classification"]


def test_arrows_choose(start: Start, place: Path, run: Run, tmp_path: Path) -> None:
    terminal = start()
    tasks = list(load_catalog().tasks)
    down = [DOWN] * (tasks.index("tabular") - tasks.index("image-classification"))
    assert "» image-classification" in terminal.answer(TASK, *down)
    assert "» sample" in terminal.answer(DATA, DOWN)
    terminal.answer(HARDWARE, *([DOWN] if quick_hardware() != "gpu" else []))
    assert "» bf16" in terminal.answer(PRECISION, DOWN)
    assert "» none" in terminal.answer(DISTRIBUTED, DOWN)
    loggers = list(load_catalog().loggers)
    terminal.answer(LOGGER, SPACE, *[DOWN] * (len(loggers) - 1), SPACE)
    terminal.answer(WITH, DOWN, SPACE, DOWN, SPACE)
    terminal.see_open(NAME)
    terminal.press("my-run", ENTER)
    assert terminal.end() == 0
    features = list(load_catalog().values("with", "tabular"))
    assert written(place / "my-run") == {
        "name": "my-run",
        "task": "tabular",
        "data": "files",
        "hardware": "gpu",
        "precision": "fp16",
        "distributed": "ddp",
        "logger": list(dict.fromkeys([loggers[0], loggers[-1]])),
        "with": features[1:3],
    }
    for settled in (
        f"? {TASK} tabular\n",
        f"? {PRECISION} fp16\n",
        f"? {LOGGER} {loggers[0]}, {loggers[-1]}\n",
        f"? {NAME} my-run\n",
    ):
        assert settled in terminal.shown
    assert_whole(terminal.shown, place, "my-run", run, tmp_path)


def test_excluded_choices_are_shown_with_the_reason_and_passed_over(start: Start, place: Path) -> None:
    terminal = start("demo", "--task", "image-classification", "--data", "sample", "--hardware", "cpu")
    shown = terminal.answer(PRECISION, DOWN)
    assert "- tf32 (TF32 is a mode of GPU matrix units; choose precision=fp32)" in shown
    assert "» fp32" in shown
    terminal.see(f"? {PRECISION} bf16\n")  # the line below tf32
    shown = terminal.answer(DISTRIBUTED, UP, UP)  # over the way back, then over all that is excluded
    assert "- spmd (spmd is how XLA spreads a program over TPU devices; choose distributed=ddp)" in shown
    terminal.see(f"? {DISTRIBUTED} deepspeed\n")
    terminal.answer(LOGGER)
    terminal.answer(WITH)
    assert terminal.end() == 0
    assert written(place / "demo")["precision"] == "bf16"


def test_a_value_that_the_task_excludes_is_not_offered(start: Start) -> None:
    terminal = start("demo", "--task", "reinforcement-learning", "--data", "sample")
    shown = " ".join(terminal.see_open(HARDWARE).split())
    assert f"- tpu ({NOT_ON_TPUS})" in shown
    terminal.press(DOWN, DOWN, DOWN, DOWN, ENTER)
    terminal.see(f"? {HARDWARE} ")
    assert "tpu" not in terminal.see("\n")


def test_a_reason_is_whole_on_a_narrow_terminal(start: Start) -> None:
    terminal = start("demo", "--task", "reinforcement-learning", "--data", "sample", columns=50)
    shown = " ".join(terminal.see_open(HARDWARE).split())
    assert f"tpu ({NOT_ON_TPUS})" in shown


def test_flags_exclude_choices_of_questions_before_them(start: Start) -> None:
    terminal = start("demo", "--with", "regression", "--precision", "tf32")
    shown = terminal.answer(TASK)
    assert "- image-classification (it has no feature regression)" in shown
    terminal.see(f"? {TASK} tabular\n")
    shown = terminal.answer(DATA, UP, UP)  # over the way back
    assert "- adult (adult is not for regression; choose without regression)" in shown
    terminal.see(f"? {DATA} wine-quality\n")
    assert "- cpu (TF32 is a mode of GPU matrix units; choose precision=fp32)" in terminal.see_open(HARDWARE)


def test_data_for_other_features_excludes_and_requires_them(start: Start, place: Path) -> None:
    cpu = ("--hardware", "cpu", "--precision", "fp32", "--distributed", "none", "--logger", "none")
    terminal = start("demo", "--task", "tabular", *cpu)
    terminal.answer(DATA, DOWN, DOWN)
    terminal.see(f"? {DATA} adult\n")
    shown = terminal.see_open(WITH)
    assert "- regression (adult is not for regression; choose without regression)" in shown
    terminal.press(LEFT)
    assert "» adult" in terminal.answer(DATA, DOWN)
    terminal.see(f"? {DATA} wine-quality\n")
    shown = terminal.see_open(WITH)
    assert "● regression" in shown and "○ ema" in shown
    regression = re.findall(r"[○●] (\S+)", shown).index("regression")
    terminal.press(*[DOWN] * regression, SPACE, ENTER)  # without it
    terminal.see("  wine-quality is for regression; choose with=regression\n")
    assert "● regression" in terminal.answer(WITH)
    assert terminal.end() == 0
    assert written(place / "demo")["with"] == ["regression"]


def test_a_data_set_that_needs_a_feature_is_excluded_without_it(start: Start) -> None:
    terminal = start("demo", "--task", "tabular", "--with", "ema")
    shown = terminal.answer(DATA, UP)
    assert "- wine-quality (wine-quality is for regression; choose with=regression)" in shown
    terminal.see(f"? {DATA} adult\n")


@pytest.mark.parametrize("way", [LEFT, ESCAPE, "line"])
def test_going_back_keeps_the_answers(start: Start, place: Path, way: str) -> None:
    terminal = start("demo", "--task", "image-classification")
    back = [UP, ENTER] if way == "line" else [way]
    terminal.answer(DATA, DOWN)
    terminal.answer(HARDWARE, DOWN if quick_hardware() != "gpu" else UP)
    chosen = "cpu" if quick_hardware() == "gpu" else "gpu"
    terminal.see_open(PRECISION)
    if way == "line":
        back = [*[UP] * {"cpu": 1, "gpu": 3}[chosen], ENTER]  # from the default over the first line
    terminal.press(*back)
    assert f"» {chosen}" in terminal.see_open(HARDWARE)
    terminal.press(*([UP] * {"cpu": 1, "gpu": 2}[chosen] + [ENTER] if way == "line" else [way]))
    shown = terminal.see_open(DATA)
    assert "» files" in shown and "← back" not in shown
    terminal.press(ENTER)
    assert f"» {chosen}" in terminal.answer(HARDWARE)
    for question in (PRECISION, DISTRIBUTED, LOGGER, WITH):
        terminal.answer(question)
    assert terminal.end() == 0
    assert written(place / "demo")["hardware"] == chosen and written(place / "demo")["data"] == "files"


def test_an_answer_that_became_impossible_is_asked_again(start: Start, place: Path) -> None:
    terminal = start("demo", "--task", "tabular", "--data", "sample", "--logger", "none", "--with", "ema")
    terminal.answer(HARDWARE, *([DOWN] if quick_hardware() != "gpu" else []))
    terminal.answer(PRECISION, UP)
    terminal.see(f"? {PRECISION} tf32\n")
    terminal.go_back(DISTRIBUTED, LEFT)
    assert "» tf32" in terminal.see_open(PRECISION)
    terminal.press(LEFT)
    assert "» gpu" in terminal.answer(HARDWARE, UP)
    shown = terminal.see_open(PRECISION)
    assert "» fp32" in shown and "- tf32 (" in shown
    terminal.press(ENTER)
    terminal.answer(DISTRIBUTED)
    assert terminal.end() == 0
    assert written(place / "demo") == {
        "name": "demo",
        "task": "tabular",
        "data": "sample",
        "hardware": "cpu",
        "precision": "fp32",
        "distributed": "none",
        "logger": [],
        "with": ["ema"],
    }


def test_another_task_asks_for_its_own_data(start: Start, place: Path) -> None:
    rest = ("--hardware", "cpu", "--precision", "fp32", "--distributed", "none", "--logger", "none")
    terminal = start("demo", *rest)
    tasks = list(load_catalog().tasks)
    tabular = tasks.index("tabular") - tasks.index("image-classification")
    terminal.answer(TASK)
    terminal.answer(DATA, DOWN, DOWN)
    terminal.see(f"? {DATA} cifar10\n")
    terminal.go_back(WITH, LEFT)
    terminal.go_back(DATA, LEFT)
    assert "» image-classification" in terminal.answer(TASK, *[DOWN] * tabular)
    shown = terminal.answer(DATA)
    assert "» sample" in shown and "cifar10" not in shown
    terminal.answer(WITH)
    assert terminal.end() == 0
    assert (written(place / "demo")["task"], written(place / "demo")["data"]) == ("tabular", "sample")


def test_ticks_and_typing_outlive_a_way_back(start: Start, place: Path) -> None:
    terminal = start("--task", "tabular", "--data", "sample", "--hardware", "cpu", "--precision", "fp32")
    terminal.answer(DISTRIBUTED)
    terminal.see_open(LOGGER)
    terminal.press(SPACE)
    terminal.see("●")
    terminal.press(LEFT)  # not yet answered
    terminal.answer(DISTRIBUTED)
    first = next(iter(load_catalog().loggers))
    assert f"● {first}" in terminal.answer(LOGGER)
    terminal.see_open(WITH)
    terminal.press(UP, SPACE)  # the way back is a line, not a tick
    assert f"● {first}" in terminal.answer(LOGGER)
    terminal.answer(WITH)
    terminal.see_open(NAME)
    terminal.press("half")
    terminal.see("half")
    terminal.press(ESCAPE)
    terminal.answer(WITH)
    assert "half" in terminal.see_open(NAME)
    terminal.press("-way", ENTER)
    assert terminal.end() == 0
    assert written(place / "half-way")["logger"] == [first]


def test_keys_that_would_tick_everything_do_nothing(start: Start, place: Path) -> None:
    choices = ("--hardware", "cpu", "--precision", "fp32", "--distributed", "none")
    terminal = start("demo", "--task", "tabular", "--data", "sample", *choices)
    terminal.answer(LOGGER, "a", "i")
    terminal.answer(WITH, "i", "a")
    assert terminal.end() == 0
    assert (written(place / "demo")["logger"], written(place / "demo")["with"]) == ([], [])


@pytest.mark.parametrize("keys", [(LEFT,), (ESCAPE,), (CTRL_O,)])
def test_there_is_no_way_back_from_the_first_question(start: Start, keys: tuple[str, ...]) -> None:
    terminal = start("demo", "--task", "tabular")
    assert "← back" not in terminal.see_open(DATA)
    terminal.press(*keys, ENTER)
    terminal.see(f"? {DATA} sample\n")
    terminal.see_open(HARDWARE)


def test_flags_skip_questions_both_ways(start: Start, place: Path) -> None:
    terminal = start("--task", "tabular", "--hardware", "cpu", "--distributed", "none", "--with", "none")
    terminal.answer(DATA, DOWN)
    terminal.answer(PRECISION)
    terminal.go_back(LOGGER, LEFT)
    terminal.go_back(PRECISION, LEFT)
    assert "» files" in terminal.answer(DATA)
    terminal.answer(PRECISION)
    terminal.answer(LOGGER)
    terminal.answer(NAME)
    assert terminal.end() == 0
    for skipped in (TASK, HARDWARE, DISTRIBUTED, WITH):
        assert skipped not in terminal.shown
    assert written(place / "tabular")["data"] == "files"


def test_answers_files_skip_questions_too(start: Start, place: Path) -> None:
    (place / "a.toml").write_text(
        'name = "demo"\ntask = "tabular"\nhardware = "cpu"\nprecision = "bf16"\n'
        'logger = ["wandb"]\nwith = []\n'
    )
    terminal = start("--answers", "a.toml", "--precision", "fp32")
    terminal.answer(DATA)
    terminal.answer(DISTRIBUTED)
    assert terminal.end() == 0
    answers = written(place / "demo")
    assert (answers["precision"], answers["logger"]) == ("fp32", ["wandb"])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--task", "tabula"), "unknown task 'tabula': did you mean 'tabular'?"),
        (("--hardware", "cpu", "--precision", "tf32"), "precision tf32 with hardware cpu is not possible: "),
        (("--distributed", "spmd", "--hardware", "cpu"), "choose distributed=ddp"),
        (("--data", "adult", "--with", "regression"), "adult is not for regression"),
        (("--task", "image-classification", "--data", "adult"), "choose task=tabular"),
        (("--logger", "wandbb"), "unknown logger 'wandbb': did you mean 'wandb'?"),
        (("my project",), "'my project' is not a project name: "),
    ],
)
def test_a_wrong_flag_fails_before_the_first_question(
    start: Start, place: Path, args: tuple[str, ...], line: str
) -> None:
    terminal = start(*args)
    assert terminal.end() == 2
    assert line in terminal.shown
    assert terminal.shown.startswith("scaffold: ") and terminal.shown.count("\n") == 1
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("bad", ["my project", "class", "../x", "dem\u043e", "torch", "1st"])
def test_a_bad_name_is_asked_again_with_the_reason(start: Start, place: Path, bad: str) -> None:
    rest = ("--distributed", "none", "--logger", "none", "--with", "none")
    terminal = start(
        "--task", "tabular", "--data", "sample", "--hardware", "cpu", "--precision", "fp32", *rest
    )
    terminal.see_open(NAME)
    terminal.press(bad, ENTER)
    terminal.see(f"  '{bad}' is ")
    assert "for example my-project" in terminal.see("\n")
    assert bad in terminal.see_open(NAME)  # there to be mended
    terminal.press(CTRL_U, "good", ENTER)
    assert terminal.end() == 0
    assert [path.name for path in place.iterdir()] == ["good"]


@pytest.mark.parametrize("at", [TASK, PRECISION, LOGGER, NAME])
def test_control_c_leaves_with_one_line_and_nothing_written(start: Start, place: Path, at: str) -> None:
    terminal = start()
    for question in QUESTIONS[: QUESTIONS.index(at)]:
        terminal.answer(question)
    terminal.see_open(at)
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    assert terminal.see("scaffold: stopped, nothing was written\n").count("scaffold:") == 1
    assert CONTROL.sub("", terminal.raw[terminal.read :]).strip() == ""
    assert "Traceback" not in terminal.shown
    assert list(place.iterdir()) == []


def test_the_end_of_input_is_no_answer(start: Start, place: Path) -> None:
    rest = ("--distributed", "none", "--logger", "none", "--with", "none")
    terminal = start(
        "--task", "tabular", "--data", "sample", "--hardware", "cpu", "--precision", "fp32", *rest
    )
    terminal.see_open(NAME)
    terminal.press(CTRL_D)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown and list(place.iterdir()) == []


@pytest.mark.parametrize("flag", ["--yes", "--json"])
def test_a_terminal_is_not_asked_when_told_so(start: Start, place: Path, flag: str) -> None:
    terminal = start("demo", flag)
    assert terminal.end() == 0
    assert not any(question in terminal.shown for question in QUESTIONS)
    assert ("not given, so by default: task=" in terminal.shown) == (flag == "--yes")
    assert (place / "demo" / "train.py").is_file()


ALL_GIVEN = (
    *("demo", "--task", "tabular", "--data", "sample", "--hardware", "cpu", "--precision", "fp32"),
    *("--distributed", "none", "--logger", "none", "--with", "none"),
)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A house template with a question of its own."""
    folder = tmp_path / "house"
    (folder / "{{ cookiecutter.project_slug }}").mkdir(parents=True)
    (folder / "cookiecutter.json").write_text('{"project_slug": "nameless", "lab": "Curie"}')
    (folder / "{{ cookiecutter.project_slug }}" / "LAB").write_text("{{ cookiecutter.lab }}")
    return folder


def test_a_house_template_asks_its_own_questions(start: Start, place: Path, house: Path) -> None:
    terminal = start(*ALL_GIVEN, "--cookiecutter", str(house))
    terminal.see("project_slug (demo): ")
    terminal.press(ENTER)
    terminal.see("lab (Curie): ")
    terminal.press("Meitner", ENTER)
    assert terminal.end() == 0
    assert (place / "demo" / "LAB").read_text() == "Meitner"
    assert (place / "demo" / "train.py").is_file()


def test_control_c_among_the_questions_of_a_house_template(start: Start, place: Path, house: Path) -> None:
    terminal = start(*ALL_GIVEN, "--cookiecutter", str(house))
    terminal.see("project_slug (demo): ")
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown and list(place.iterdir()) == []


def test_nothing_is_asked_when_all_is_given(start: Start, place: Path) -> None:
    terminal = start(*ALL_GIVEN)
    assert terminal.end() == 0
    assert not any(question in terminal.shown for question in QUESTIONS)
    assert (place / "demo" / "train.py").is_file()


def test_the_questions_need_no_training_library() -> None:
    code = "import sys, scaffold.prompts; print({'torch', 'cookiecutter', 'black'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
