"""Answers -> Plan: every derived fact, pure. Templates read the plan and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scaffold.answers import Answers
from scaffold.axes import AXES
from scaffold.catalog import Catalog, Source, Task

FILES = ("train.py", "model.py", "data.py")  # what every task has templates of
SHARED = ("checkpoint.py", "record.py", "tests/test_train.py", "README.md", "pyproject.toml", ".gitignore")
REQUIRES = ("numpy>=1.26", "tqdm>=4.66")
TORCH = ("torch>=2.10",)  # whose attention takes batches of none, which a rank may have in an evaluation
TORCH_XLA = ("torch==2.9.*", "torch_xla[tpu]==2.9.*")  # a pair: each is built for the other
DEEPSPEED = ("deepspeed>=0.19.8",)
CHECKPOINTS = {  # where it is not project/checkpoint.py.jinja
    "fsdp": "project/sharded_checkpoint.py.jinja",
    "deepspeed": "project/deepspeed_checkpoint.py.jinja",
}
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
Facts = dict[str, Any]
TASK_FACTS = {  # what a task need not say of itself
    "blocks": "",  # what FSDP gathers, and is computed again, one at a time: where the task names it
    "blocks_differ": False,  # have they many shapes?
    "pictures": False,  # does each evaluation draw one?
    "data_file": "the data, and the order in which they are drawn",
    "falls": 10,  # by what factor the loss of one batch must fall in the project's own test
    "learns_one_batch": True,  # does training on one batch alone bring compute_loss down?
    "networks": ["model"],  # the first is what is evaluated and averaged
    "saved": [],  # what else of the task a checkpoint holds
    "timed": False,  # are some metrics speeds of the machine?
    "weighted": False,  # is the loss a sum, divided by a count over the whole optimizer step?
}


@dataclass(frozen=True)
class Plan:
    """What to render: `files` maps paths to templates, `facts` is all that a template sees."""

    files: dict[str, str]
    facts: Facts


def as_dict(names: list[str]) -> str:
    """The source of a dict display of variables under their own names."""
    return "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"


def as_list(words: list[str]) -> str:
    """The source of a list of words, in one line."""
    text = json.dumps(words)
    return text if len(text) < 90 else f'"{" ".join(words)}".split()'


def make_plan(answers: Answers, catalog: Catalog) -> Plan:
    task = catalog.task(answers.task)
    source = task.sources[answers.data]
    loggers = [catalog.loggers[name] for name in answers.loggers]
    additions = [item for name, item in catalog.additive.items() if name in answers.features]
    changes = [task.changes[name] for name in answers.features if name in task.changes]
    build = task.build
    facts = TASK_FACTS | task.facts
    for change in changes:
        facts, build = facts | change.get("facts", {}), build | change.get("build", {})
    facts = {"test_model_args": facts["model_args"], **facts}
    facts |= chosen(answers, [*catalog.features, *task.features])
    facts |= derived(facts, answers.precision)
    facts |= variables(facts)
    facts |= launching(facts, answers.name)
    facts |= own_test(task, source, build)
    requires = [*(TORCH_XLA if facts["tpu"] else TORCH), *REQUIRES, *source.requires, *task.requires]
    requires += [package for logger in loggers for package in logger.requires]
    requires += DEEPSPEED if facts["deepspeed"] else ()
    own_files = task.files | source.files
    facts |= {
        "name": answers.name,
        "task": task.name,
        "data": answers.data,
        "precision": answers.precision,
        "source": source,
        "loggers": loggers,
        "additions": additions,
        "log_files": ", ".join(logger.name for logger in loggers if logger.files),
        "many_loggers": len(", ".join(logger.function for logger in loggers)) > 85,  # for one line
        "logger_imports": [line for logger in loggers for line in logger.imports],
        "test_env": {key: value for logger in loggers for key, value in logger.test_env.items()},
        "requires": sorted(set(requires), key=str.lower),
        "extra_files": own_files,
    }
    files = {name: f"tasks/{task.name}/{name}.jinja" for name in (*FILES, *own_files)}
    files |= {name: f"project/{name.removeprefix('.')}.jinja" for name in SHARED}
    if loggers:
        files["loggers.py"] = "project/loggers.py.jinja"
    if answers.distributed in CHECKPOINTS:
        files["checkpoint.py"] = CHECKPOINTS[answers.distributed]
    files |= {path: item.template(path) for item in additions for path in item.files}
    return Plan(files, facts)


def chosen(answers: Answers, features: Iterable[str]) -> Facts:
    """Which values of the closed axes, and which features, were chosen: a flag each, under its own name."""
    closed = [(axis.key, value) for axis in AXES for value in axis.values or ()]
    flags = {value: answers.get(key) == value for key, value in closed}
    return flags | {name.replace("-", "_"): name in answers.features for name in features}


def derived(facts: Facts, precision: str) -> Facts:
    """What follows from several choices together."""
    dtype, tpu = DTYPES.get(precision, ""), facts["tpu"]
    reduced = facts["ddp"] or facts["fsdp"] or facts["deepspeed"]
    distributed = reduced or facts["spmd"]
    return {
        "distributed": distributed,
        "reduced": reduced,  # losses and sums are each process's own, to be reduced over all
        "sharded": facts["fsdp"] or facts["deepspeed"],  # is a forward pass what all processes do together?
        "autocast": "" if facts["fsdp"] else dtype,
        "param_dtype": dtype if facts["fsdp"] else "",
        "compiled_whole": facts["compile"] and not (facts["fsdp"] and facts["blocks"]),  # not by blocks
        "timed": facts["timed"] or facts["throughput"],
        "on_main": "rank == 0" if distributed else "",
        "saves": "rank == 0" if facts["ddp"] or facts["spmd"] else "",  # which processes write a checkpoint
        "read": "" if tpu else ".item()",  # sums stay on a TPU until the evaluation has ended
        "layout": "" if tpu else ", memory_format=torch.channels_last",  # XLA chooses its own
        "channels_last": "" if tpu else ".contiguous(memory_format=torch.channels_last)",
    }


def variables(facts: Facts) -> Facts:
    """What the variables of the training loop are called."""
    networks, fp16 = facts["networks"], facts["fp16"]
    one_network = len(networks) == 1
    optimizers = ["optimizer"] if one_network else [f"{network}_optimizer" for network in networks]
    nets = [f"ddp_{name}" for name in networks] if facts["ddp"] else networks
    nets = ["engine"] if facts["deepspeed"] else nets
    also = [name for name, there in {"scaler": fp16, "ema": facts["ema"]}.items() if there]
    parts = [*networks, *optimizers, *also, *facts["saved"]]
    counters = ["step", "best"]
    counters += [name for name, there in {"stale": facts["early_stopping"], "skipped": fp16}.items() if there]
    factors = {"world_size": facts["distributed"], "args.grad_accum": facts["grad_accum"]}
    examples = ["args.batch_size", *(name for name, there in factors.items() if there)]
    optimizer_of = ", ".join(f'"{ours}": "{net}"' for ours, net in zip(optimizers, networks, strict=True))
    return {
        "one_network": one_network,
        "optimizers": optimizers,  # one of each network, in the same order
        "optimizer_of": f"{{{optimizer_of}}}",
        "nets": nets,  # what forward is called on in training
        "net": nets[0],
        "eval_net": "ema" if facts["ema"] else networks[0],
        "part_names": parts,
        "parts": as_dict(parts),
        "state": "engine" if facts["deepspeed"] else "parts",  # what checkpoints are of
        "counters": as_dict(counters),
        "global_batch": " * ".join(examples),
    }


def launching(facts: Facts, name: str) -> Facts:
    """How the program is started, and what it is called where it runs."""
    processes = "gpu" if facts["gpu"] else "2"
    torchrun = f"torchrun --standalone --nproc-per-node {processes} train.py"
    launch = torchrun if facts["reduced"] else "python train.py"
    return {
        "launch": launch,
        "sample_run": "sample run of one process" if facts["reduced"] else "sample run",
        "entrypoint": ", ".join(f'"{word}"' for word in launch.split()),
        "resource": name.lower().replace("_", "-").rstrip("-")[:40],  # its name in clusters
    }


def own_test(task: Task, source: Source, build: Facts) -> Facts:
    """What build_datasets takes, in main and in the project's own test, and that test's options."""
    arguments = {
        "args.data": "data" if source.option else "",
        "args.target": '"target"' if source.target else "",
        **{f"args.{name}": f"{name}={value}" for name, value in build.items()},
    }
    return {
        "build_args": ", ".join(name for name, value in arguments.items() if value),
        "test_build_args": ", ".join(value for value in arguments.values() if value),
        "test_options": as_list(task.small_options) if task.small else "",
    }
