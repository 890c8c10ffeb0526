"""What excludes what, and what follows from what: one row each, read by prompts, flags, docs and tests."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from scaffold.answers import Answers, parse_words
from scaffold.axes import AXES, BY_KEY, Axis
from scaffold.catalog import Catalog, Exclusion, Task, unknown
from scaffold.errors import RequestError


@dataclass(frozen=True)
class Rule:
    """A combination that is not offered: every axis in `when` has one of the values named there.

    `choose` is a change (`key=value`, or `without FEATURE`) that would work. `beside` are features that have
    to be there as well, for rules about two of them.
    """

    id: str
    when: Mapping[str, tuple[str, ...]]
    because: str
    choose: str
    unless: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    def combinations(self) -> Iterator[dict[str, tuple[str, ...]]]:
        """The fewest answers to which the rule applies."""
        for values in itertools.product(*self.when.values()):
            chosen = {key: (value,) for key, value in zip(self.when, values, strict=True)}
            yield {**chosen, "with": (*chosen.get("with", ()), *self.beside)}

    def applies(self, answers: Mapping[str, tuple[str, ...]]) -> bool:
        """`answers` may be partial: a question not yet answered excludes nothing."""
        return (
            all(set(answers.get(key, ())) & set(values) for key, values in self.when.items())
            and set(answers.get("with", ())) >= set(self.beside)
            and not any(
                key not in answers or set(answers[key]) & set(values) for key, values in self.unless.items()
            )
        )

    def message(self, answers: Mapping[str, tuple[str, ...]]) -> str:
        named = " with ".join(
            f"{key} {next(v for v in answers[key] if v in values)}" for key, values in self.when.items()
        )
        return f"{named} is not possible: {self.because}; choose {self.choose}"


RULES = (
    Rule(
        "fp16-tpu",
        {"precision": ("fp16",), "hardware": ("tpu",)},
        "TPUs compute in bfloat16 and have no float16 units",
        "precision=bf16",
    ),
    Rule(
        "tf32-gpu-only",
        {"precision": ("tf32",), "hardware": ("cpu", "tpu")},
        "TF32 is a mode of GPU matrix units",
        "precision=fp32",
    ),
    Rule(
        "spmd-tpu-only",
        {"distributed": ("spmd",), "hardware": ("cpu", "gpu")},
        "spmd is how XLA spreads a program over TPU devices",
        "distributed=ddp",
    ),
    Rule(
        "tpu-distributed",
        {"distributed": ("ddp", "fsdp", "deepspeed"), "hardware": ("tpu",)},
        "on TPUs XLA partitions the program itself",
        "distributed=spmd",
    ),
    Rule(
        "compile-tpu",
        {"with": ("compile",), "hardware": ("tpu",)},
        "XLA compiles the program already",
        "without compile",
    ),
    Rule(
        "async-checkpoint-fsdp",
        {"with": ("async-checkpoint",)},
        "it is for sharded checkpoints",
        "without async-checkpoint or distributed=fsdp",
        unless={"distributed": ("fsdp",)},
    ),
    Rule(
        "offload-deepspeed",
        {"with": ("offload",)},
        "it is DeepSpeed's",
        "without offload or distributed=deepspeed",
        unless={"distributed": ("deepspeed",)},
    ),
    Rule(
        "hybrid-shard-fsdp",
        {"with": ("hybrid-shard",)},
        "it is a way to shard",
        "without hybrid-shard or distributed=fsdp",
        unless={"distributed": ("fsdp",)},
    ),
    Rule(
        "activation-checkpointing-tpu",
        {"with": ("activation-checkpointing",), "hardware": ("tpu",)},
        "XLA decides itself what to compute twice, and would undo it",
        "without activation-checkpointing",
    ),
    Rule(
        "deterministic-tpu",
        {"with": ("deterministic",), "hardware": ("tpu",)},
        "it chooses among PyTorch's kernels, and XLA compiles its own",
        "without deterministic",
    ),
    Rule(
        "fp16-deepspeed",
        {"precision": ("fp16",), "distributed": ("deepspeed",)},
        "DeepSpeed refuses float16 on most processors, where the project's tests run",
        "precision=bf16",
    ),
    Rule(
        "ema-deepspeed",
        {"with": ("ema",), "distributed": ("deepspeed",)},
        "stage 3 of ZeRO leaves no whole parameters of which there could be an average",
        "without ema",
    ),
    Rule(
        "compile-deepspeed",
        {"with": ("compile",), "distributed": ("deepspeed",)},
        "graphs would break where ZeRO gathers and reduces",
        "without compile",
    ),
)

# What a question that was not answered becomes: the first row whose conditions hold.
DEFAULTS: tuple[tuple[str, Mapping[str, str], Any], ...] = (
    ("task", {}, "image-classification"),
    ("data", {}, "sample"),
    ("hardware", {}, "cpu"),
    ("precision", {"hardware": "gpu"}, "bf16"),
    ("precision", {"hardware": "tpu"}, "bf16"),
    ("precision", {}, "fp32"),
    ("distributed", {"hardware": "tpu"}, "spmd"),
    ("distributed", {}, "none"),
    ("logger", {}, ()),
    ("with", {}, ()),
)


def task_rules(catalog: Catalog) -> Iterator[Rule]:
    """The rows that follow from the manifests: what tasks, their data sources and features exclude."""
    for task in catalog.tasks.values():
        yield from exclusion_rules("task", task.name, task.excludes)
        yield from block_rules(task)
        for name, source in task.sources.items():
            for feature in source.not_with:
                yield Rule(
                    f"{task.name}-{name}-not-{feature}",
                    {"task": (task.name,), "data": (name,), "with": (feature,)},
                    f"{name} is not for {feature}",
                    f"without {feature}",
                )
            for feature in source.only_with:
                yield Rule(
                    f"{task.name}-{name}-needs-{feature}",
                    {"task": (task.name,), "data": (name,)},
                    f"{name} is for {feature}",
                    f"with={feature}",
                    unless={"with": (feature,)},
                )


def exclusion_rules(key: str, name: str, excludes: Iterable[Exclusion]) -> Iterator[Rule]:
    """The rows of a folder's own exclusions; `name` is its value on the axis `key`."""
    for item in excludes:
        values = "-".join(value for found in item.when.values() for value in found)
        yield Rule(f"{name}-not-{values}", {key: (name,), **item.when}, item.because, item.choose)


def block_rules(task: Task) -> Iterator[Rule]:
    """Activations are computed again a block at a time, and not every model names blocks."""
    when = {"task": (task.name,), "with": ("activation-checkpointing",)}
    advice = "without activation-checkpointing"
    if not task.facts.get("blocks"):
        why = f"it computes blocks again, and the model of {task.name} names none"
        yield Rule(f"{task.name}-no-blocks", when, why, advice)
        return
    for name, change in task.changes.items():
        if change.get("facts", {}).get("blocks") == "":
            why = f"it computes blocks again, and with {name} the model names none"
            yield Rule(f"{task.name}-{name}-no-blocks", when, why, advice, beside=(name,))


def additive_rules(catalog: Catalog) -> Iterator[Rule]:
    """What features that only add files exclude."""
    for feature in catalog.additive.values():
        yield from exclusion_rules("with", feature.name, feature.excludes)


def logger_rules(catalog: Catalog) -> Iterator[Rule]:
    """The row that follows from what the loggers take."""
    takers = tuple(logger.name for logger in catalog.loggers.values() if logger.artifacts)
    yield Rule(
        "log-best-needs-a-taker",
        {"with": ("log-best",)},
        f"it is for loggers that take artifacts ({', '.join(takers)})",
        " or ".join(["without log-best", *(f"logger={name}" for name in takers[-1:])]),
        unless={"logger": takers},
    )


@cache
def all_rules(catalog: Catalog) -> tuple[Rule, ...]:
    found = (task_rules(catalog), logger_rules(catalog), additive_rules(catalog))
    return (*RULES, *itertools.chain.from_iterable(found))


def broken(answers: Mapping[str, tuple[str, ...]], catalog: Catalog) -> Rule | None:
    """The first rule that (possibly partial) answers break."""
    return next((rule for rule in all_rules(catalog) if rule.applies(answers)), None)


def followed(choose: str, answers: Mapping[str, tuple[str, ...]]) -> list[dict[str, tuple[str, ...]]]:
    """The answers after following a rule's advice, one for each alternative."""
    found = []
    for advice in choose.split(" or "):
        if advice.startswith("without "):
            left = tuple(item for item in answers["with"] if item != advice.removeprefix("without "))
            found.append({**answers, "with": left})
        else:
            change = parse_words([advice], {})
            found.append({**answers, **{k: v if isinstance(v, tuple) else (v,) for k, v in change.items()}})
    return found


def default(key: str, chosen: Mapping[str, Any], catalog: Catalog, machine: str | None = None) -> Any:
    """The default of a question, given the answers so far and the hardware this machine has."""
    value = usual(key, chosen, catalog)
    if key == "hardware":
        wished = filter(None, (machine, value, *catalog.values(key)))
        return next((item for item in wished if not why_not(key, item, chosen, catalog)), value)
    if not isinstance(value, tuple):
        return value
    kept: tuple[str, ...] = ()
    for item in value:  # what nobody chose gives way to what somebody did
        if not why_not(key, item, {**chosen, key: kept}, catalog):
            kept += (item,)
    return kept


def usual(key: str, chosen: Mapping[str, Any], catalog: Catalog) -> Any:
    """The task's own default, or that of the first row whose conditions hold."""
    if (task := catalog.tasks.get(chosen.get("task", ""))) and key in task.defaults:
        return task.defaults[key]
    return next(
        value
        for name, when, value in DEFAULTS
        if name == key and all(chosen.get(k) == v for k, v in when.items())
    )


def complete(given: Mapping[str, Any], catalog: Catalog, machine: str | None = None) -> Answers:
    """Fill what was not given, check everything, put lists in catalog order."""
    values = dict(given)
    for axis in AXES:
        if axis.key not in values:
            values[axis.key] = default(axis.key, values, catalog, machine)
    values.setdefault("name", values["task"])
    for axis in AXES:
        known = list(catalog.values(axis.key, values["task"]))
        for item in values[axis.key] if axis.many else [values[axis.key]]:
            if item not in known:
                raise not_offered(axis, item, values["task"], catalog)
        if axis.many:
            values[axis.key] = tuple(item for item in known if item in values[axis.key])
    name = values.pop("name")
    answers = Answers(name, *(values[axis.key] for axis in AXES))
    chosen = {axis.key: answers.chosen(axis.key) for axis in AXES}
    if rule := broken(chosen, catalog):
        raise RequestError(rule.message(chosen))
    check_name(name)
    return answers


def not_offered(axis: Axis, value: str, task: str, catalog: Catalog) -> RequestError:
    """The mistake of choosing a value that the task does not have."""
    own = axis.key in ("data", "with")
    others = [other for other in catalog.tasks if own and value in catalog.values(axis.key, other)]
    if others:
        ways = " or ".join(f"task={other}" for other in others)
        rest = ", ".join(catalog.values(axis.key, task))
        return RequestError(f"{axis.noun} {value!r} is not for {task}: choose {ways}, or one of {rest}")
    return unknown(axis.noun, value, list(catalog.values(axis.key, task)))


def why_not(key: str, value: str, chosen: Mapping[str, Any], catalog: Catalog) -> str | None:
    """Why `value` cannot be chosen now, or None: what a prompt shows beside a disabled line."""
    partial = {k: v if isinstance(v, tuple) else (v,) for k, v in chosen.items() if k in BY_KEY}
    partial[key] = (*partial.get(key, ()), value) if BY_KEY[key].many else (value,)
    rule = broken(partial, catalog)
    return f"{rule.because}; choose {rule.choose}" if rule else None


RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))}
PACKAGES = {"torch", "numpy", "tqdm", "pytest", "scaffold", "tests", "test"}


def check_name(name: str, required: Collection[str] = ()) -> None:
    """A project's name is a folder and a package name on every system, and of none that it requires."""
    advice = "use letters, digits, '-' and '_', starting with a letter, for example my-project"
    if not name or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name, re.ASCII):
        place = "; --output-dir says where it goes" if "/" in name else ""
        raise RequestError(f"{name!r} is not a project name: {advice}{place}")
    if keyword.iskeyword(name) or name.lower() in RESERVED:
        raise RequestError(f"{name!r} is a reserved word: {advice}")
    packages = {package.lower().replace("_", "-") for package in (*PACKAGES, *required)}
    if name.lower().replace("_", "-") in packages:
        raise RequestError(f"{name!r} is the name of a package that the project uses: {advice}")
