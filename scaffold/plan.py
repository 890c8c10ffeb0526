"""Answers -> Plan: every derived fact, pure. Templates read the plan and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from scaffold.answers import Answers
from scaffold.catalog import Catalog

FILES = ("train.py", "model.py", "data.py")  # what every task has templates of
SHARED = ("checkpoint.py", "record.py", "tests/test_train.py", "README.md", "pyproject.toml", ".gitignore")
REQUIRES = ("numpy>=1.26", "tqdm>=4.66")
TORCH = ("torch>=2.9",)
TORCH_XLA = ("torch==2.9.*", "torch_xla[tpu]==2.9.*")  # a pair: each is built for the other
DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}


@dataclass(frozen=True)
class Plan:
    """What to render: `files` maps paths to templates, `facts` is all that a template sees."""

    files: dict[str, str]
    facts: dict[str, Any]


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
    task_facts, build = task.facts, task.build
    for change in [task.changes[name] for name in answers.features if name in task.changes]:
        task_facts, build = task_facts | change.get("facts", {}), build | change.get("build", {})
    loggers = [catalog.loggers[name] for name in answers.loggers]
    chosen = set(answers.features)
    additions = [item for name, item in catalog.additive.items() if name in chosen]
    ddp, fsdp, deepspeed = (answers.distributed == name for name in ("ddp", "fsdp", "deepspeed"))
    spmd = answers.distributed == "spmd"  # processes are hosts, each with all its devices
    reduced = ddp or fsdp or deepspeed  # losses and sums are each process's own, to be reduced over all
    distributed = reduced or spmd
    gpu, tpu = (answers.hardware == hardware for hardware in ("gpu", "tpu"))
    fp16 = answers.precision == "fp16"
    ema = "ema" in chosen
    processes = "gpu" if gpu else "2"
    torchrun = f"torchrun --standalone --nproc-per-node {processes} train.py"
    launch = torchrun if reduced else "python train.py"
    networks = task_facts.get("networks", ["model"])  # the first is what is evaluated and averaged
    one_network = len(networks) == 1
    nets = [f"ddp_{network}" for network in networks] if ddp else ["engine"] if deepspeed else networks
    optimizers = ["optimizer"] if one_network else [f"{network}_optimizer" for network in networks]
    parts = [*networks, *optimizers, *(["scaler"] if fp16 else []), *(["ema"] if ema else [])]
    parts += task_facts.get("saved", [])  # what else of the task a checkpoint holds
    counters = [
        "step",
        "best",
        *(["stale"] if "early-stopping" in chosen else []),
        *(["skipped"] if fp16 else []),
    ]
    examples = ["args.batch_size", *(["world_size"] if distributed else [])]
    examples += ["args.grad_accum"] if "grad-accum" in chosen else []
    requires = [*(TORCH_XLA if tpu else TORCH), *REQUIRES, *source.requires, *task.requires]
    requires += [package for logger in loggers for package in logger.requires]
    requires += ["deepspeed>=0.19.8"] if deepspeed else []
    task_files = task.files | source.files
    build_args = {  # of build_datasets, in main and in the project's own test
        "args.data": "data" if source.option else "",
        "args.target": '"target"' if source.target else "",
        **{f"args.{name}": f"{name}={value}" for name, value in build.items()},
    }
    facts = {
        "blocks": "",  # what FSDP gathers, and is computed again, one at a time: where the task names it
        "pictures": False,  # does each evaluation draw one?
        "data_file": "the data, and the order in which they are drawn",
        "falls": 10,  # by what factor the loss of one batch must fall in the project's own test
        "learns_one_batch": True,  # does training on one batch alone bring compute_loss down?
        "timed": "throughput" in chosen,  # are some metrics speeds of the machine?
        "weighted": False,  # is the loss a sum, divided by a count over the whole optimizer step?
        "test_model_args": task_facts["model_args"],
        **task_facts,
        **{feature.replace("-", "_"): feature in chosen for feature in task.features},
        "name": answers.name,
        "task": task.name,
        "data": answers.data,
        "source": source,
        "loggers": loggers,
        "additions": additions,
        "log_files": ", ".join(logger.name for logger in loggers if logger.files),
        "many_loggers": len(", ".join(logger.function for logger in loggers)) > 85,  # for one line
        "logger_imports": [line for logger in loggers for line in logger.imports],
        "cpu": answers.hardware == "cpu",
        "gpu": gpu,
        "tpu": tpu,
        "tf32": answers.precision == "tf32",
        "fp16": fp16,
        "autocast": "" if fsdp else DTYPES.get(answers.precision, ""),
        "param_dtype": DTYPES.get(answers.precision, "") if fsdp else "",
        "precision": answers.precision,
        "distributed": distributed,
        "ddp": ddp,
        "fsdp": fsdp,
        "deepspeed": deepspeed,
        "sharded": fsdp or deepspeed,  # is a forward pass something that all processes do together?
        "spmd": spmd,
        "reduced": reduced,
        "grad_accum": "grad-accum" in chosen,
        "grad_clip": "grad-clip" in chosen,
        "ema": ema,
        "early_stopping": "early-stopping" in chosen,
        "compiled": "compile" in chosen,
        "compiled_whole": "compile" in chosen and not (fsdp and task_facts.get("blocks")),  # not by blocks
        "offload": "offload" in chosen,
        "throughput": "throughput" in chosen,
        "log_best": "log-best" in chosen,
        "deterministic": "deterministic" in chosen,
        "activation_checkpointing": "activation-checkpointing" in chosen,
        "async_checkpoint": "async-checkpoint" in chosen,
        "hybrid_shard": "hybrid-shard" in chosen,
        "networks": networks,
        "one_network": one_network,
        "nets": nets,  # what forward is called on in training
        "optimizer_of": "{"
        + ", ".join(f'"{o}": "{n}"' for o, n in zip(optimizers, networks, strict=True))
        + "}",
        "optimizers": optimizers,  # one of each network, in the same order
        "net": nets[0],
        "read": "" if tpu else ".item()",  # sums stay on a TPU until the evaluation has ended
        "layout": "" if tpu else ", memory_format=torch.channels_last",  # XLA chooses its own
        "channels_last": "" if tpu else ".contiguous(memory_format=torch.channels_last)",
        "eval_net": "ema" if ema else networks[0],
        "on_main": "rank == 0" if distributed else "",
        "saves": "rank == 0" if ddp or spmd else "",  # which processes write a checkpoint
        "launch": launch,
        "entrypoint": ", ".join(f'"{word}"' for word in launch.split()),
        "resource": answers.name.lower().replace("_", "-").rstrip("-")[:40],  # its name in clusters
        "global_batch": " * ".join(examples),
        "part_names": parts,
        "parts": as_dict(parts),
        "state": "engine" if deepspeed else "parts",  # what checkpoints are of
        "counters": as_dict(counters),
        "requires": sorted(set(requires), key=str.lower),
        "build_args": ", ".join(key for key, value in build_args.items() if value),
        "extra_files": task_files,
        "test_options": as_list(task.small_options) if task.small else "",
        "test_build_args": ", ".join(value for value in build_args.values() if value),
        "test_env": {k: v for logger in loggers for k, v in logger.test_env.items()},
    }
    files = {name: f"tasks/{task.name}/{name}.jinja" for name in (*FILES, *task_files)}
    files |= {name: f"project/{name.removeprefix('.')}.jinja" for name in SHARED}
    if loggers:
        files["loggers.py"] = "project/loggers.py.jinja"
    if fsdp:
        files["checkpoint.py"] = "project/sharded_checkpoint.py.jinja"
    if deepspeed:
        files["checkpoint.py"] = "project/deepspeed_checkpoint.py.jinja"
    files |= {path: item.template(path) for item in additions for path in item.files}
    return Plan(files, facts)
