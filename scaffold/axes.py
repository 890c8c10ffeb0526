"""The questions: one row each. Prompts, flags, answer files, `list` and the docs all read this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One question. `values` is None where the catalog of folders supplies them."""

    key: str
    question: str
    many: bool = False
    values: dict[str, str] | None = None

    @property
    def noun(self) -> str:
        """What one value is called in a sentence."""
        return {"with": "feature"}.get(self.key, self.key)

    @property
    def plural(self) -> str:
        """The name `scaffold list` takes."""
        return {"task": "tasks", "logger": "loggers", "with": "features"}.get(self.key, self.key)


AXES = (
    Axis("task", "What do you want to train?"),
    Axis("data", "On which data?"),
    Axis(
        "hardware",
        "On which hardware?",
        values={
            "cpu": "processors only",
            "gpu": "whatever accelerator PyTorch finds: NVIDIA, AMD, Intel, Apple",
            "tpu": "TPUs through torch_xla",
        },
    ),
    Axis(
        "precision",
        "In which precision?",
        values={
            "fp32": "32-bit floats throughout",
            "tf32": "32-bit floats, matrix products on TF32 units",
            "bf16": "16-bit brain floats: autocast, under FSDP the policy of its parameters",
            "fp16": "16-bit floats in the same places, with loss scaling",
        },
    ),
    Axis(
        "distributed",
        "On how many processes?",
        values={
            "none": "one process",
            "ddp": "a copy of the model per process, gradients averaged",
            "fsdp": "the model sharded over the processes (FSDP2)",
            "deepspeed": "DeepSpeed ZeRO",
            "spmd": "one program over all TPU devices (XLA SPMD)",
        },
    ),
    Axis("logger", "Where should metrics go, beside metrics.jsonl?", many=True),
    Axis("with", "Anything else?", many=True),
)

BY_KEY = {axis.key: axis for axis in AXES}
