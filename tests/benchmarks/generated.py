"""The generated project as a contestant: rendered, then given a workload the way its README says."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn
from workloads import LEARNING_RATE, LOG_EVERY, WEIGHT_DECAY, Tensors, Workload

from scaffold.catalog import load_catalog
from scaffold.plan import make_plan
from scaffold.render import Renderer
from scaffold.rules import complete

ROWS = """
class Rows(Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, draws):
        index = torch.from_numpy(draws % len(self))
        return self.inputs[index], self.targets[index]{flat}
"""
BUILD = """

def build_datasets(*_):
    return [{set_class}(*tensors) for tensors in TENSORS]
"""

Edits = list[tuple[str, str, int]]  # pattern, replacement, how often it must be there
TASKS = {"mlp": "tabular", "cnn": "image-classification", "gpt": "image-classification"}
DATA = {
    "mlp": ROWS.format(flat="") + BUILD.format(set_class="Rows"),
    "cnn": BUILD.format(set_class="Images"),
    "gpt": ROWS.format(flat=".flatten()") + BUILD.format(set_class="Rows"),
}
EDITS: dict[str, Edits] = {
    "mlp": [
        (r"\bTableNet\(.*?\)", "TableNet()", 1),
        (r"numeric, categorical, target =", "numeric, target =", 2),
        (r"model\(numeric, categorical\)", "model(numeric)", 2),
    ],
    "cnn": [(r"\bResNet\(.*?\)", "ResNet()", 1)],
    "gpt": [
        (r"\bResNet\(.*?\)", "ResNet()", 1),
        (r"model\(images\)", "model(images).flatten(0, 1)", 2),
    ],
}


def edited(text: str, edits: Edits) -> str:
    for pattern, replacement, count in edits:
        text, found = re.subn(pattern, replacement, text)
        assert found == count, f"{pattern} stands {found} times in the rendered file, not {count}"
    return text


def load(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def render(task: Workload, folder: Path) -> None:
    catalog = load_catalog()
    answers = complete({"name": task.name, "task": TASKS[task.name], "hardware": "cpu"}, catalog)
    tree = Renderer(catalog).tree(make_plan(answers, catalog))
    tree["train.py"] = edited(tree["train.py"], EDITS[task.name])
    tree["data.py"] += DATA[task.name]
    for name in ("train.py", "data.py", "checkpoint.py", "record.py"):
        (folder / name).write_text(tree[name], encoding="utf-8")


def contestant(task: Workload, folder: Path) -> Callable[[Workload, Tensors, Tensors], nn.Module]:
    """Its real `main`, with progress bar, record, and a checkpoint after every epoch."""
    render(task, folder)
    sys.path.insert(0, str(folder))
    trained: list[nn.Module] = []

    def build_model() -> nn.Module:
        trained[:] = [task.model()]
        return trained[0]

    model = sys.modules["model"] = ModuleType("model")
    model.TableNet = model.ResNet = build_model  # type: ignore[attr-defined]
    data, train = load(folder, "data"), load(folder, "train")
    options = {
        "--batch-size": task.batch_size,
        "--epochs": task.epochs,
        "--lr": LEARNING_RATE,
        "--weight-decay": WEIGHT_DECAY,
        "--warmup-steps": 0,
        "--log-every": LOG_EVERY,
        "--checkpoint-every": task.steps,
    }

    def run(task: Workload, train_tensors: Tensors, held_out: Tensors) -> nn.Module:
        data.TENSORS = [train_tensors, held_out]  # type: ignore[attr-defined]
        words = [str(word) for option in options.items() for word in option]
        train.main(train.parse_args([*words, "--output-dir", "run"]))
        return trained[0]

    return run
