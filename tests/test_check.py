"""`scaffold check` on folders that are fine, and on copies of an example damaged in one place."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaffold.answers import Answers
from scaffold.catalog import Catalog, templates_folder
from scaffold.check import KINDS, Report, check
from scaffold.errors import RequestError
from scaffold.examine import Thin, offered_thinned
from scaffold.report import report_lines
from scaffold.rules import complete
from tests.conftest import Run

EXAMPLE = Path(__file__).parent.parent / "docs" / "example" / "lab_templates"
TASK, LOGGER = "tasks/line/task.toml", "loggers/csv-file/logger.toml"
TRAIN, DATA, MODEL = (f"tasks/line/{name}.py.jinja" for name in ("train", "data", "model"))
LOG = "loggers/csv-file/logger.py.jinja"


def few(catalog: Catalog) -> Iterator[Answers]:
    """Some combinations for a test of one thing."""
    for task in catalog.tasks:
        features = [*((name,) for name in catalog.tasks[task].features), (), tuple(catalog.additive)]
        axes = [catalog.values("data", task), ("none", "ddp")]
        for data, distributed, chosen in itertools.product(*axes, features):
            given = {"task": task, "name": "demo", "data": data, "distributed": distributed}
            given |= {"logger": tuple(catalog.loggers), "with": chosen}
            try:
                yield complete(given, catalog)
            except RequestError:
                continue


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "lab"))


def lines(folder: Path, thin: Thin = few) -> list[str]:
    return [line for report in check(folder, thin) for line in report_lines(report)]


def change(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


def test_the_example_is_fine(copy: Path) -> None:
    assert [line.partition(", ")[0] for line in lines(copy) if line.endswith(" files each: fine")] == [
        "tasks/line: 12 combinations",
        "loggers/csv-file: 6 combinations",
    ]


@pytest.mark.parametrize("name", ["tasks/tabular", "loggers/wandb", "features/slurm"])
def test_one_folder_of_ours(name: str) -> None:
    (report,) = check(templates_folder() / name, few)
    assert (report.folder, report.state, report.problems) == (name, "fine", ())


def test_all_of_ours() -> None:
    assert [line for line in lines(templates_folder()) if not line.endswith(": fine")] == []


def test_a_feature_folder(tmp_path: Path) -> None:
    """A feature that adds files: fine, and damaged in one place at a time."""
    folder = tmp_path / "features" / "cluster"
    folder.mkdir(parents=True)
    manifest = (
        'help = "x"\nwords = "cluster"\n[files]\n"train.job" = "the job"\n'
        '[[excludes]]\nwhen = { hardware = ["tpu"] }\nbecause = "x"\nchoose = "without cluster"\n'
    )
    (folder / "feature.toml").write_text(manifest)
    (folder / "train.job.jinja").write_text("#: if distributed\ncluster {{ name }}\n#: endif\n")
    (folder / "readme.md.jinja").write_text("\nOn the cluster: `{{ launch }}`.\n")
    (line,) = lines(tmp_path)
    assert re.fullmatch(r"features/cluster: \d+ combinations, \d+ files each: fine", line)
    damages = {
        (
            "feature.toml",
            '"x"\nwords',
            '"x"\nwordz',
        ): "unknown key 'wordz'; known are help, files, words, excludes",
        ("feature.toml", '"train.job"', '"../train.job"'): "'../train.job', which is outside of a project",
        ("feature.toml", '"train.job"', '"train.py"'): "'train.py', which every project has",
        ("feature.toml", '"train.job"', '"more.job"'): "features/cluster/more.job.jinja: it is missing",
        ("feature.toml", '"without cluster"', '"hardware=tpu"'): "after which it still applies",
        ("feature.toml", '"tpu"', '"tpus"'): "excludes 1.when.hardware names 'tpus'",
        ("train.job.jinja", "distributed", "distribute"): "train.job.jinja:1: 'distribute' is undefined",
        ("readme.md.jinja", "On", "{% On"): "no template",
    }
    for (name, old, new), said in damages.items():
        text = (folder / name).read_text()
        change(folder, name, old, new)
        assert any(said in line for line in lines(tmp_path)), said
        (folder / name).write_text(text)
    folder.rename(tmp_path / "features" / "ema")
    assert "features/ema: 'ema' is a feature of" in lines(tmp_path)[0]


@pytest.mark.complete
@pytest.mark.parametrize(
    "folder",
    [EXAMPLE, *(path for kind in KINDS for path in sorted(templates_folder().glob(f"{kind}/*")))],
    ids=lambda folder: folder.name,
)
def test_the_matrix_of_ours(folder: Path) -> None:
    assert [problem for report in check(folder) for problem in report.problems] == []


def test_a_folder_that_lies_anywhere(copy: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(copy / "tasks" / "line", tmp_path / "elsewhere" / "line"))
    assert lines(alone)[-1].endswith(": fine")


def excludes(when: str, choose: str) -> str:
    return f'[[excludes]]\nwhen = {{ {when} }}\nbecause = "x"\nchoose = "{choose}"\n[features]'


# What is put where, and the line that says what is wrong.
DAMAGES = {
    "toml": (TASK, 'help = "find', "help = find", "it is not TOML: Invalid value (at line 1, column 8); "),
    "unknown-key": (
        TASK,
        "[facts]",
        "hepl = 1\n[facts]",
        "unknown key 'hepl'; known are help, requires, modules, facts",
    ),
    "unknown-key-inside": (
        TASK,
        "default = ",
        "defualt = ",
        "unknown key 'defualt' in [data.files]; known are help",
    ),
    "missing-key": (
        TASK,
        'help = "find the line',
        'hlp = "find the line',
        "'help' is missing; it must be a string",
    ),
    "missing-fact": (
        TASK,
        'title = "A line through points"',
        "",
        "'title' is missing in [facts]; it must be",
    ),
    "wrong-type": (TASK, 'model_args = ""', "model_args = 3", "facts.model_args is 3; it must be a string"),
    "wrong-table": (
        TASK,
        "[build]\nseed = 0\n\n[features]",
        "[[build]]\nseed = 0\n\n[features]",
        "build is [{'seed': 0}]; it must be a table",
    ),
    "wrong-list": (
        LOGGER,
        "requires = []",
        'requires = "x"',
        "requires is 'x'; it must be a list of strings",
    ),
    "logger-key": (
        LOGGER,
        "imports",
        "import",
        "unknown key 'import'; known are help, requires, imports, words, modules, artifacts, files, test_env",
    ),
    "artifacts": (
        LOGGER,
        "requires = []",
        "requires = []\nartifacts = true",
        "the macro 'artifact' and `artifacts` of the manifest do not agree; write both, or neither",
    ),
    "no-sample": (TASK, "[data.sample]", "[data.some]", "'sample' is missing in [data]; it must be a table"),
    "only-with": (
        TASK,
        "default = ",
        'only_with = ["robst"]\ndefault = ',
        "data.files.only_with names 'robst', which",
    ),
    "not-with": (
        TASK,
        "default = ",
        'not_with = ["emma"]\ndefault = ',
        "data.files.not_with names 'emma', which there",
    ),
    "with": (
        TASK,
        "[with.robust]",
        "[with.robst]",
        "with names 'robst', which there is not; choose from robust",
    ),
    "defaults": (
        TASK,
        "[features]",
        '[defaults]\nprecision = "fp8"\n[features]',
        "defaults.precision names 'fp8', which there is not; choose from fp32, tf32, bf16, fp16",
    ),
    "excludes": (
        TASK,
        "[features]",
        excludes('with = ["emma"]', "without ema"),
        "excludes 1.when.with names 'emma', which there is not; choose from grad-accum",
    ),
    "advice": (
        TASK,
        "[features]",
        excludes('distributed = ["fsdp"]', "distributed=fsdp"),
        "excludes 1.choose is 'distributed=fsdp', after which it still applies; name a choice",
    ),
    "advice-words": (
        TASK,
        "[features]",
        excludes('distributed = ["fsdp"]', "another"),
        "excludes 1.choose is 'another', which cannot be followed; write key=value",
    ),
    "default-not-offered": (
        TASK,
        "[features]",
        '[defaults]\nprecision = "tf32"\n[features]',
        "what is chosen by default is not offered: precision tf32 with hardware cpu is not possible",
    ),
    "nothing-offered": (
        TASK,
        "[features]",
        excludes('hardware = ["cpu", "gpu"]', "hardware=tpu").replace(
            "[features]", excludes('hardware = ["tpu"]', "hardware=cpu")
        ),
        "no combination of choices is offered; see [[excludes]]",
    ),
    "requirement": (
        TASK,
        "[facts]",
        'requires = ["numpy >>1"]\n[facts]',
        "requires holds 'numpy >>1', which names no",
    ),
    "pattern": (
        TASK,
        'words = "robust|huber"',
        'words = "("',
        "with.robust.words is '('; it must be a regular expression",
    ),
    "a-feature-of-ours": (TASK, "robust = ", "ema = ", "features holds 'ema', a feature of every task"),
    "fact-nobody-reads": (
        TASK,
        "[build]",
        "wieghted = true\n[build]",
        "no template reads the fact 'wieghted'; the shared",
    ),
    "fact-of-ours": (
        TASK,
        "[build]",
        "gpu = true\n[build]",
        "fact 'gpu' is one that follows from the choices",
    ),
    "file-without-template": (
        TASK,
        "[build]",
        '[files]\n"a.py" = "x"\n[build]',
        "tasks/line/a.py.jinja: it is missing; ",
    ),
    "file-outside": (
        TASK,
        "[build]",
        '[files]\n"../a.py" = "x"\n[build]',
        "files holds '../a.py', which is outside",
    ),
    "small": (
        TASK,
        "[build]",
        "[small]\ndepth = 1\n[build]",
        "small names the option --depth, which train.py does",
    ),
    "import-line": (LOGGER, '"import csv"', '"csv"', "imports holds 'csv', which is no import; write"),
    "jinja": (TRAIN, "    #: if robust\n", "    #: if\n", f"{TRAIN}:31: no template: Expected an expression"),
    "no-end": (TRAIN, "    #: endif\n", "", f"{TRAIN}:84: no template: Unexpected end of template"),
    "undefined": (TRAIN, "#: if robust", "#: if robst", f"{TRAIN}:31: 'robst' is undefined; name a fact"),
    "macro-name": (TRAIN, "start.steps()", "start.stpes()", f"{TRAIN}:72: there is no macro 'stpes' in what"),
    "macro-argument": (
        TRAIN,
        "epochs=20",
        "epoch=20",
        f"{TRAIN}:22: TypeError: macro 'common' takes no keyword",
    ),
    "another-folder": (
        DATA,
        '"tasks/line/',
        '"tasks/tabular/',
        f"{DATA}:2: it names a template of tasks/tabular; write",
    ),
    "include": (DATA, '"_lib/order', '"_lib/ordr', "_lib/ordr.py.jinja: it is missing; "),
    "small-data-macro": (
        "tasks/line/small_data.py.jinja",
        "write()",
        "wrote()",
        "the macro 'write' is missing; write `#:",
    ),
    "logger-macro": (
        LOG,
        "finish()",
        "finnish()",
        f"{LOG}: the macro 'finish' is missing; write `#: macro finish()`",
    ),
    "no-python": (
        TRAIN,
        "y = (tensor",
        "y = tensor)",
        f"{TRAIN}:30: train.py is no Python: unmatched ')'; see",
    ),
    "undefined-name": (
        MODEL,
        "nn.Linear(1, 1)",
        "nn.Linear(n, 1)",
        f"{MODEL}:10: model.py reads 'n', which nothing",
    ),
    "missing-import": (
        MODEL,
        "import torch\n",
        "",
        "model.py reads 'torch', which nothing defines; define it or",
    ),
    "unused-import": (
        MODEL,
        "        super()",
        "        import os\n\n        super()",
        f"{MODEL}:9: model.py imports 'os' and does not use it; leave it out",
    ),
    "not-in-module": (
        MODEL,
        "class Line",
        "class Lines",
        f"{MODEL}: model.py has no 'Line', which train.py imports;",
    ),
    "no-requirement": (
        MODEL,
        "import torch\n",
        "import sklearn.x\nimport torch\n\nsklearn.x\n",
        "sklearn is imported, and no",
    ),
    "unused-requirement": (
        TASK,
        "[facts]",
        'requires = ["pyarrow>=14"]\n[facts]',
        f"{TASK}: pyarrow is required, and nothing imports it; leave it out, or name the module",
    ),
    "width": (
        MODEL,
        "one weight",
        "one weight" + " more" * 20,
        f"{MODEL}:1: model.py has a line of 138 characters; 110",
    ),
    "word": (
        MODEL,
        "one weight",
        "one weight for torchrun",
        "a word of distributed=ddp|fsdp|deepspeed|spmd, where it is not chosen",
    ),
    "own-word": (
        MODEL,
        "one weight",
        "one robust weight",
        "a word of with=robust, where it is not chosen; put it",
    ),
    "word-of-a-source": (
        TASK,
        "default = ",
        'words = "one weight"\ndefault = ',
        f"{MODEL}:1: model.py says 'one weight', a word of data=files, where it is not chosen; put it",
    ),
    "residue": (
        MODEL,
        "class Line",
        "#:if ddp\nclass Line",
        f"{MODEL}:7: model.py holds '#:i'; control lines",
    ),
    "budget": (
        MODEL,
        "class Line",
        "x = 1\n" * 150 + "class Line",
        f"{MODEL}: model.py is longer than 150 lines; put",
    ),
    "option": (
        TRAIN,
        "    return parser",
        '    parser.add_argument("--more")\n    return parser',
        "the option --more is not read",
    ),
    "option-of-several-lines": (
        TRAIN,
        "    return parser",
        '    parser.add_argument(\n        "--more",\n    )\n    return parser',
        "the option --more is not read",
    ),
    "no-option": (
        TASK,
        "seed = 0",
        "deep = 0",
        "args.deep is read, and no option sets it; add the option --deep",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage(copy: Path, name: str) -> None:
    file, old, new, line = DAMAGES[name]
    change(copy, file, old, new)
    found = lines(copy / Path(file).parts[0] / Path(file).parts[1])
    assert any(line in one for one in found), "\n".join(found)
    assert "problem" in found[-1] and "Traceback" not in "".join(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("source", "needed", "said"),
    [
        ("sample", '["robst"]', "data.sample.only_with names 'robst', which there is not; choose from "),
        ("files", '["robst"]', "data.files.only_with names 'robst', which there is not; choose from "),
        ("files", '["robust"]', None),
        ("files", '["slurm"]', None),
        ("files", '["slurm", "robust"]', None),
    ],
)
def test_data_for_some_features(copy: Path, source: str, needed: str, said: str | None) -> None:
    """All combinations that the command makes, of which some are rendered."""
    change(copy, TASK, f"[data.{source}]\n", f"[data.{source}]\nonly_with = {needed}\n")
    offered: list[Answers] = []

    def thin(catalog: Catalog) -> list[Answers]:
        offered.extend(offered_thinned(catalog))
        return offered[::25]

    found = lines(copy / "tasks/line", thin)
    features = [set(answers.features) for answers in offered if answers.data == source]
    assert len(offered) == len(set(offered))
    if said:
        assert said in found[0] and not features
    else:
        assert features and all(chosen >= set(json.loads(needed)) for chosen in features)
        assert found[-1].endswith(": fine")


# What other people write for reasons of their own: Python that a model may hold whatever was chosen.
ORDINARY = [
    'WORD = re.compile("x")',
    "WINDOW = 24",
    "class StandardScaler:\n    scaler = None",
    'rows = gzip.open("rows.gz")',
    'SIZES = {"small": {"width": 1}}',
    'text = f"{0.5:.1%}"',
    "total = list(itertools.accumulate([1, 2]))",
    'for index, window in enumerate(["a"]):\n    print(index, len(window))',
    "schema_of = dict",
    'scaler_ = "MinMaxScaler"  # its data_min, to undo it',
    "half = np.float16(1)",
    "dist = torch.distributions.Normal(0, 1)\nscore = dist.log_prob(torch.zeros(1))",
    "rank = torch.linalg.matrix_rank(torch.eye(2))\nranks = [rank]",
    'engine = "python"  # of pandas; the C engine is faster',
    "xs, xm, xr = [], [], []\nxs.append(xm)\nxr.append(xm)",
    "pool = ThreadPoolExecutor()  # rows that are pending, stale or skipped",
    "patience = 3  # for uploads; a deterministic throughput",
    "shards = sorted([1])  # a shard is one file",
    '"""Rows\nfrom nowhere, args.unread of another program."""',
]


@pytest.mark.parametrize("code", ORDINARY)
def test_ordinary_words(copy: Path, code: str) -> None:
    names = ("gzip", "itertools", "re")
    needed = [name for name in names if f"{name}." in code]
    imports = "".join(f"import {name}\n" for name in needed)
    imports += "from concurrent.futures import ThreadPoolExecutor\n" if "Pool" in code else ""
    imports += "\nimport numpy as np" if "np." in code else ""
    text = (copy / MODEL).read_text()
    text = text.replace("import torch\n", f"{imports}\nimport torch\n", 1)
    (copy / MODEL).write_text(f"{text}\n\n{code}\n")
    assert lines(copy / "tasks" / "line")[-1].endswith(": fine"), lines(copy / "tasks" / "line")


def test_an_option_of_several_lines_that_is_read(copy: Path) -> None:
    added = (
        '    parser.add_argument(\n        "--margin", type=float, default=1.0, help="of the loss"\n    )\n'
    )
    change(copy, TRAIN, "    return parser", f"{added}    return parser")
    change(
        copy, TRAIN, "    model = {{ model_class }}", "    print(args.margin)\n    model = {{ model_class }}"
    )
    assert lines(copy / "tasks" / "line")[-1].endswith(": fine")


def test_a_package_that_another_module_needs(copy: Path) -> None:
    change(
        copy, TASK, "default = ", 'requires = ["pyarrow>=14"]\nmodules = { pyarrow = "numpy" }\ndefault = '
    )
    assert lines(copy / "tasks" / "line")[-1].endswith(": fine")


def test_a_word_that_several_choices_have(copy: Path) -> None:
    """A source may have the words of another one, or of ours: then either will do."""
    manifest = (copy / TASK).read_text()
    (copy / TASK).write_text(manifest.replace("default = ", 'words = "robust|huber"\ndefault = ', 1))
    assert lines(copy / "tasks" / "line")[-1].endswith(": fine")


REMOVED = [TRAIN, MODEL, DATA, "tasks/line/about.md.jinja", "tasks/line/small_data.py.jinja"]


@pytest.mark.parametrize("file", [*REMOVED, "tasks/line/data/files.py.jinja", LOG, TASK, LOGGER])
def test_a_file_that_is_missing(copy: Path, file: str) -> None:
    (copy / file).unlink()
    assert any(line.startswith(f"{file}: it is missing; ") for line in lines(copy))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            rename("tasks/line", "tasks/tabular"),
            "tasks/tabular: 'tabular' is the name of one of scaffold's own",
        ),
        (
            rename("loggers/csv-file", "loggers/wandb"),
            "loggers/wandb: 'wandb' is the name of one of scaffold's",
        ),
        (rename("tasks/line", "tasks/Line"), "tasks/Line: 'Line' is not a name to choose; use small letters"),
        (
            lambda folder: (folder / TASK).write_bytes(b"\xff"),
            f"{TASK}: it is not UTF-8 text; save it as UTF-8",
        ),
        (lambda folder: (folder / TRAIN).write_bytes(b"\xff"), f"{TRAIN}: it is not UTF-8 text; save it as"),
        (
            lambda folder: (folder / "tasks/line/more.py.jinja").touch(),
            "more.py.jinja: no project needs it; rename",
        ),
        (lambda folder: (folder / "tasks/line/reach.py").write_text("("), "reach.py:1: it is no Python: "),
        (
            lambda folder: shutil.copytree(templates_folder() / "_lib", folder / "_lib"),
            "_lib/step.py.jinja: it has the name of a shared template, for all tasks; rename it",
        ),
    ],
)
def test_damage_to_files(copy: Path, damage: Callable[[Path], object], line: str) -> None:
    damage(copy)
    found = lines(copy)
    assert any(line in one for one in found), "\n".join(found)


def test_all_problems_at_once_and_equal_ones_once(copy: Path) -> None:
    change(copy, TASK, "default = ", 'only_with = ["robst"]\nnot_with = ["emma"]\ndefault = ')
    change(copy, TRAIN, "#: if robust", "#: if robst")
    change(copy, MODEL, "one weight", "one weight for torchrun")
    change(copy, MODEL, "nn.Linear(1, 1)", "nn.Linear(n, 1)")
    (report,) = check(copy / "tasks/line", few)
    found = {problem.problem.split(",")[0]: problem for problem in report.problems}
    assert len(found) == len(report.problems) == 5
    assert found["'robst' is undefined"].combinations == report.combinations
    example = "task=line data=sample hardware=cpu precision=fp32 distributed=none logger="
    assert found["'robst' is undefined"].example.startswith(example)


def test_all_wrong_macros_of_a_template(copy: Path) -> None:
    change(copy, TRAIN, "start.steps()", "start.stpes()")
    change(copy, TRAIN, "epochs=20", "epoch=20")
    change(copy, TRAIN, "loop_.record()", "loop_.record(1)")
    (report,) = check(copy / "tasks/line", few)
    assert sorted((problem.where, problem.problem) for problem in report.problems) == [
        (f"{TRAIN}:22", "TypeError: macro 'common' takes no keyword argument 'epoch'"),
        (f"{TRAIN}:72", "there is no macro 'stpes' in what is imported there"),
        (f"{TRAIN}:79", "TypeError: macro 'record' takes not more than 0 argument(s)"),
    ]


def state(report: Report) -> str:
    return report.state


def test_a_sound_folder_beside_a_broken_one(copy: Path) -> None:
    (copy / TASK).write_text("help = ")
    assert [state(report) for report in check(copy, few)] == ["broken", "fine"]


def test_the_command(run: Run, copy: Path) -> None:
    change(copy, "tasks/line/task.toml", "title", "titel")
    done = run("check", copy / "tasks" / "line")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "tasks/line/task.toml: 'title' is missing in [facts]; it must be a string that is not empty",
        "tasks/line: nothing rendered: 1 problem",
    ]
    done = run("check", copy / "tasks" / "line", "--json")
    (report,) = json.loads(done.stdout)
    assert (done.returncode, report["state"], report["folder"]) == (1, "broken", "tasks/line")
    assert report["problems"] == [
        {
            "where": "tasks/line/task.toml",
            "problem": "'title' is missing in [facts]",
            "instead": "it must be a string that is not empty",
            "combinations": 0,
            "example": "",
        }
    ]


def test_the_command_on_a_folder_that_is_fine(run: Run, copy: Path) -> None:
    done = run("check", copy / "loggers")
    assert done.returncode == 2
    done = run("check", copy / "loggers" / "csv-file", "--json")
    (report,) = json.loads(done.stdout)
    assert (done.returncode, report["state"], report["problems"]) == (0, "fine", [])
    assert report["combinations"] > 100


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("nowhere", "nowhere is not a folder: name one that holds tasks/, loggers/ or features/"),
        ("file", "file is not a folder: name one that holds tasks/, loggers/ or features/"),
        (
            ".",
            ". holds no task, logger or feature: name one that holds tasks/NAME or the like",
        ),
    ],
)
def test_folders_that_are_none(run: Run, place: Path, folder: str, line: str) -> None:
    (place / "file").touch()
    done = run("check", folder)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"scaffold: {line}\n")


def test_a_broken_plugin_is_one_line_everywhere(
    run: Run, copy: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """The loader and the check say the same."""
    change(copy, TASK, "title", "titel")
    (tmp_path / "lab-1.0.dist-info").mkdir()
    (tmp_path / "lab-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n"
    )
    (tmp_path / "lab-1.0.dist-info" / "entry_points.txt").write_text("[scaffold.plugins]\nlab = lab\n")
    path = f"{env.get('PYTHONPATH', '')}:{tmp_path}".lstrip(":")
    done = run("list", env=env | {"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"scaffold: {copy / TASK}: {lines(copy / 'tasks/line')[0].removeprefix(TASK + ': ')}\n"
    )
