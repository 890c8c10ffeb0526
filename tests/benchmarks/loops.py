"""The contestants: each trains a workload in the current folder and returns its model.

All evaluate one held-out batch after every epoch, so that they do the same work.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import LEARNING_RATE, LOG_EVERY, WEIGHT_DECAY, Tensors, Workload, loss_fn


def adamw(model: nn.Module, **options: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **options)


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Tensors) -> float:
    model.eval()
    x, y = held_out
    loss = loss_fn(model(x), y).item()
    model.train()
    return loss


def naive(task: Workload, train: Tensors, held_out: Tensors) -> nn.Module:
    """The loop of the tutorials: a shuffling DataLoader, AdamW as it comes, the loss read at every step."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = adamw(model)
    loader = DataLoader(TensorDataset(*train), batch_size=task.batch_size, shuffle=True)
    for _ in range(task.epochs):
        running = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
        evaluate(model, held_out)
    return model


def tuned(task: Workload, train: Tensors, held_out: Tensors) -> nn.Module:
    """The shortest: rows indexed by a permutation, fused AdamW, channels last for images, a line every
    LOG_EVERY steps and a checkpoint every epoch, the loss read only for the line."""
    torch.manual_seed(0)
    model = task.model()
    if task.images:
        model = model.to(memory_format=torch.channels_last)
    optimizer = adamw(model, fused=True)
    for epoch in range(task.epochs):
        running = torch.zeros(())
        for step, index in enumerate(torch.randperm(len(train[0])).split(task.batch_size), 1):
            x, y = train[0][index], train[1][index]
            if task.images:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.detach()
            if step % LOG_EVERY == 0:
                print(f"epoch {epoch} step {step} loss {running.item() / step:.4f}")
        print(f"epoch {epoch} held out {evaluate(model, held_out):.4f}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, "last.pt")
    return model
