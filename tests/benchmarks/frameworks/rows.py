"""The 25 properties: what each is good for, and the lines of generated projects that keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TABULAR: dict[str, Any] = {"task": "tabular"}
LANGUAGE: dict[str, Any] = {"task": "language-modeling"}
VARIANTS: dict[str, dict[str, Any]] = {
    "tabular/base": TABULAR,
    "image-classification/base": {"task": "image-classification"},
    "language-modeling/base": LANGUAGE,
    "language-modeling/distributed=ddp": LANGUAGE | {"distributed": "ddp"},
    "tabular/distributed=ddp": TABULAR | {"distributed": "ddp"},
    "tabular/distributed=fsdp": TABULAR | {"distributed": "fsdp"},
    "tabular/precision=fp16": TABULAR | {"hardware": "gpu", "precision": "fp16"},
    "tabular/with=grad-accum": TABULAR | {"features": ("grad-accum",)},
    "tabular/with=grad-clip": TABULAR | {"features": ("grad-clip",)},
    "tabular/with=ema": TABULAR | {"features": ("ema",)},
    "tabular/with=early-stopping": TABULAR | {"features": ("early-stopping",)},
    "tabular/with=compile": TABULAR | {"features": ("compile",)},
    "tabular/logger=tensorboard": TABULAR | {"logger": ("tensorboard",)},
    "tabular/hardware=tpu": TABULAR | {"hardware": "tpu", "precision": "fp32", "distributed": "none"},
}


@dataclass(frozen=True)
class Where:
    """Lines of a file of a rendered project; `snippet` must stand there exactly once."""

    variant: str
    file: str
    snippet: str


@dataclass(frozen=True)
class Property:
    number: int
    title: str
    meaning: str
    how: str
    where: tuple[Where, ...]
    state: str = "yes (tests)"  # of ours, where it is not among what is measured


BASE, IMAGES = "tabular/base", "image-classification/base"
DDP, FSDP = "tabular/distributed=ddp", "tabular/distributed=fsdp"
FP16, EMA = "tabular/precision=fp16", "tabular/with=ema"
LOGGER, TPU = "tabular/logger=tensorboard", "tabular/hardware=tpu"
LM, LM_DDP = "language-modeling/base", "language-modeling/distributed=ddp"

SEEDED_STEP = Where(
    BASE,
    "train.py",
    "        # makes dropout, and all else that is random in the model, a function of the step\n"
    "        torch.default_generator.manual_seed(hash((args.seed, step)))",
)
PUBLISH = Where(BASE, "checkpoint.py", "    sync(partial)\n    partial.replace(path)\n    sync(path.parent)")
ORDER = Where(
    BASE,
    "data.py",
    "    return epoch * num_examples + np.random.default_rng([seed, epoch]).permutation(num_examples)",
)
TURNS = Where(DDP, "data.py", "        yield draws[rank:width:world_size]")
LEARNING_RATE = Where(
    BASE,
    "train.py",
    "    if step < warmup:\n"
    "        return peak * (step + 1) / warmup\n"
    "    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2",
)

PROPERTIES = (
    Property(
        1,
        "A killed run ends where the whole run would have",
        "A run that is killed costs the time since the last checkpoint and nothing else: "
        "parameters and record of the resumed run are those of a run that was never killed, to the bit.",
        "Order, learning rate and randomness are functions of the step, so the step is all there is to "
        "restore beside the parts.",
        (SEEDED_STEP, Where(BASE, "train.py", '    parts = {"model": model, "optimizer": optimizer}'), ORDER),
    ),
    Property(
        2,
        "There is always a checkpoint that loads",
        "A run that is killed while it saves still resumes, without anybody looking for the right file.",
        "A checkpoint gets its name when it is whole and on the disk; older ones go after that.",
        (
            PUBLISH,
            Where(
                BASE,
                "checkpoint.py",
                "    for old in sorted(older, reverse=True)[KEEP - 1 :]:\n        old.unlink()",
            ),
        ),
    ),
    Property(
        3,
        "A damaged checkpoint is noticed and passed over",
        "A file that was cut off, or a flipped bit, neither ends the work nor changes it silently: the run "
        "goes on from the checkpoint before, with a warning.",
        "The checksums that `torch.save` writes and `torch.load` ignores are read.",
        (
            Where(
                BASE,
                "checkpoint.py",
                "        if is_intact(path):\n            return path\n"
                '        warnings.warn(f"{path} is damaged, trying the one before it", stacklevel=2)',
            ),
            Where(BASE, "checkpoint.py", "            return archive.testzip() is None and not marked"),
        ),
    ),
    Property(
        4,
        "Accumulation equals one large batch",
        "Gradients of the last batches of an epoch count as much as any other, so accumulation changes "
        "memory and nothing else.",
        "Batches and windows are always full: the last of an epoch goes on into the next, and no row is "
        "left out.",
        (
            Where(
                BASE,
                "data.py",
                "        while len(draws) < width:\n            epoch += 1\n"
                "            draws = np.concatenate([draws, shuffled(num_examples, seed, epoch)])",
            ),
            Where("tabular/with=grad-accum", "train.py", "            loss = loss / args.grad_accum"),
        ),
    ),
    Property(
        5,
        "Evaluation counts every example once",
        "The number in the paper is the number on the set, whatever the number of processes.",
        "Ranks take every n-th example, without padding; sums and counts are reduced.",
        (
            Where(
                DDP,
                "data.py",
                "    return np.array_split(np.arange(rank, num_examples, world_size), num_batches)",
            ),
            Where(DDP, "train.py", "    dist.all_reduce(totals)"),
        ),
    ),
    Property(
        6,
        "Two processes do what one does",
        "At equal global batch a run on more processes is the same run, so what was tuned on one holds.",
        "Ranks take turns in one stream of examples, and DDP broadcasts the first rank's parameters.",
        (TURNS, Where(DDP, "train.py", "    ddp_model = DDP(model)")),
    ),
    Property(
        7,
        "The loss of sequences is weighed by tokens",
        "Accumulation and ranks do not make the tokens of short sequences count more.",
        "The loss is a sum; it is divided by the targets of the whole step, of all passes and ranks.",
        (
            Where(LM, "train.py", "        num_targets = count_targets(batch).clamp(min=1)"),
            Where(LM_DDP, "train.py", "        num_targets = mean_over_ranks(count_targets(batch)) or 1"),
        ),
    ),
    Property(
        8,
        "SIGTERM saves, on all ranks at the same step",
        "A preempted job loses nothing, and its scheduler sees 143.",
        "Every step all ranks agree whether one of them was told to stop; then all save and leave.",
        (
            Where(BASE, "train.py", "    signal.signal(signal.SIGTERM, lambda *_: stop.set())"),
            Where(
                DDP,
                "train.py",
                "        stopping = mean_over_ranks(torch.tensor(float(stop.is_set()))) > 0"
                "  # agreed by all processes",
            ),
            Where(BASE, "train.py", "    return 128 + signal.SIGTERM if stopping else 0"),
        ),
    ),
    Property(
        9,
        "Ranks never wait for each other in vain",
        "No job burns a night's allocation because one rank saw another file or ended sooner.",
        "What ranks could see differently is decided by the first, or from reduced numbers; all have as "
        "many batches; loader processes are started once. Python 3.11 before 3.11.10 has an error of its own "
        "(python/cpython#112275): a loader forked in the microseconds in which a gloo thread asks for the "
        "interpreter never starts. Later ones do not have it.",
        (
            Where(
                DDP,
                "train.py",
                "    dist.broadcast_object_list(newest)  # all go on from what the first process sees",
            ),
            Where(
                DDP,
                "data.py",
                "    num_batches = -(-num_examples // (batch_size * world_size))  # rounded up",
            ),
        ),
        "yes (tests), with Python 3.11.10 or later",
    ),
    Property(
        10,
        "A step that fp16 skips did not happen",
        "When gradients overflow, schedule, average and step count wait with the optimizer.",
        "The scale before and after the update tells, fused optimizers too.",
        (
            Where(
                FP16,
                "train.py",
                "        if scaler.get_scale() < scale:"
                "  # overflow: the optimizer did not step, so nothing else advances\n"
                "            skipped += 1",
            ),
        ),
    ),
    Property(
        11,
        "Unscale, then clip, then step",
        "`--clip-grad` means the norm of the true gradient.",
        "Clipping stands between the last backward pass and the step; with fp16 the scaler unscales first.",
        (
            Where(
                "tabular/with=grad-clip",
                "train.py",
                "nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)",
            ),
        ),
    ),
    Property(
        12,
        "A logger cannot end or change a run",
        "Training does not depend on somebody else's server.",
        "Each logger is a function that runs in a thread of its own and is fed from a queue: what it raises "
        "is a warning, and one that hangs is left behind at the end. Resuming relies on a local file.",
        (
            Where(
                LOGGER,
                "loggers.py",
                "        try:\n            logger(iter(rows.get, None), args, config)\n"
                "        except BaseException as error:  # each tracker has its own, some exit",
            ),
            Where(LOGGER, "loggers.py", "            thread.join(max(0, end - time.monotonic()))"),
        ),
    ),
    Property(
        13,
        "Metrics are weighed by count",
        "A last batch of three examples does not move the mean like one of three hundred.",
        "Losses are summed and divided by the count, once, after the sums over ranks.",
        (
            Where(
                BASE,
                "train.py",
                '        loss += F.cross_entropy(output, target, reduction="sum").item()',
            ),
            Where(DDP, "train.py", "    loss, correct, count = totals.tolist()"),
        ),
    ),
    Property(
        14,
        "A NaN ends the run and not the checkpoints",
        "A diverged run stops at once, on all ranks, with one line, and what was learnt before is intact.",
        "Logged values and, before each save, all parameters are checked.",
        (
            Where(BASE, "train.py", "            check_parameters(model, step)"),
            Where(
                BASE,
                "checkpoint.py",
                "    if not nn.utils.get_total_norm(model.parameters()).isfinite():",
            ),
            Where(BASE, "record.py", "        if not math.isfinite(value):"),
        ),
    ),
    Property(
        15,
        "The examples of a step are known beforehand",
        "Ranks, workers and restarts do not change what is trained on when, and each epoch is the whole set.",
        "One stream of draws, a permutation an epoch, cut into steps, then among ranks.",
        (Where(BASE, "data.py", "    epoch, done = divmod(start, num_examples)"), ORDER, TURNS),
    ),
    Property(
        16,
        "Augmentation is a function of the draw",
        "The same run sees the same pictures with any number of workers, and other ones in each epoch.",
        "The generator is made of the seed and the number of the draw.",
        (
            Where(
                IMAGES,
                "data.py",
                "            generators = [np.random.default_rng([self.seed, draw]) for draw in draws]",
            ),
        ),
    ),
    Property(
        17,
        "The learning rate is its formula",
        "Ranks, accumulation and restarts leave the schedule alone; the figure in the log is the one used.",
        "A function of the step alone, without state.",
        (LEARNING_RATE,),
    ),
    Property(
        18,
        "The average of parameters is its formula",
        "Once per real step, on resumed runs too.",
        "Updated after the step, saved as a part.",
        (
            Where(
                EMA,
                "train.py",
                "        update_ema(ema, model, min(args.ema_decay, (1 + step) / (10 + step)))"
                "  # a short memory at first",
            ),
        ),
    ),
    Property(
        19,
        "The best and the patience survive a restart",
        "A resumed run does not forget how good it was, nor how long it has been waiting.",
        "Both are counters in each checkpoint; no comparison with NaN is true.",
        (
            Where(BASE, "train.py", '        improved = metrics.get("val/accuracy", best) > best'),
            Where(
                "tabular/with=early-stopping",
                "train.py",
                '        counters = {"step": step, "best": best, "stale": stale}',
            ),
        ),
    ),
    Property(
        20,
        "Shards load on any number of processes",
        "An FSDP run goes on with fewer or more devices, and its best loads into the plain module.",
        "Shards are keyed by parameter name, and a folder gets its name when all of it is on the disk, also "
        "where `async-checkpoint` writes it while training goes on.",
        (
            Where(
                FSDP,
                "checkpoint.py",
                'return state | {"optimizer": get_optimizer_state_dict(parts["model"], parts["optimizer"])}',
            ),
            Where(FSDP, "checkpoint.py", "            publish(partial, path)\n            older"),
        ),
    ),
    Property(
        21,
        "One set of parameter names",
        "`best.pt` loads into every variant of the project, and into the plain module. A run goes on from a "
        "step's checkpoint of its own kind: a file with or without DDP and on TPUs, FSDP's folder with any "
        "number of processes, DeepSpeed's with as many at the same stage of ZeRO.",
        "`model` is always the raw module: compiled in place, wrapped under another name, sharded in place.",
        (
            Where(DDP, "train.py", "    ddp_model = DDP(model)"),
            Where("tabular/with=compile", "train.py", "    model.compile()"),
        ),
    ),
    Property(
        22,
        "Checkpoints hold plain values",
        "A checkpoint of unknown origin cannot run code.",
        "Only tensors and plain values are saved, and loaded with `weights_only=True`. Of a folder of shards "
        "PyTorch itself pickles the table of contents, `.metadata`: such folders only from runs of your own; "
        "`best.pt` is one plain file there too.",
        (
            Where(
                BASE,
                "checkpoint.py",
                '    state = torch.load(path, map_location="cpu", weights_only=True)',
            ),
        ),
    ),
    Property(
        23,
        "Nothing waits between two log lines",
        "The accelerator is never kept waiting for a number that nobody reads, nor for a compiler.",
        "`.item()` is called where something is logged; shapes never change. fp16 and DeepSpeed are the "
        "exceptions: in each step the scale is read, because a step that was skipped must not count, and "
        "DeepSpeed's step() reads whether the gradients are finite.",
        (
            Where(
                BASE,
                "train.py",
                '            metrics |= {"train/loss": loss.item(), "train/lr": lr}',
            ),
        ),
        "yes (tests), but for fp16 and DeepSpeed",
    ),
    Property(
        24,
        "Each step is in the record once",
        "Curves of a run that was killed have no gap and no double line.",
        "The record is cut back to the checkpoint's step, and loggers get the whole of it again.",
        (
            Where(BASE, "record.py", "    file.truncate(end)"),
            Where(
                LOGGER,
                "loggers.py",
                '            row = json.loads(line)\n            self.log(row.pop("step"), row)',
            ),
        ),
    ),
    Property(
        25,
        "TPUs compile once; no line of a project is deprecated",
        "No hidden recompilation, and no project that the next release breaks.",
        "Every batch has one shape, the last of an evaluation is filled up and what fills it is not "
        "counted; the learning rate is data of the device; a step is one program, and one more is the first, "
        "which makes the optimizer's state. Checkpoints are plain tensors of the processor. Projects run "
        "clean with deprecation warnings as errors.",
        (
            Where(TPU, "train.py", "        torch_xla.sync()  # until here the step was only written down"),
            Where(TPU, "train.py", "def filled_batches("),
            Where(TPU, "checkpoint.py", "xm.save("),
        ),
        "yes, on XLA's client for processors",
    ),
)
