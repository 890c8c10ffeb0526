"""What the sample run must reach, run in its project: half the error of learning from the labels alone.

The same network takes as many steps with the same optimizer and schedule, and sees of each batch what is
labelled: the same pictures in the same weak views.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from data import build_datasets, shuffled_batches
from model import ResNet
from train import learning_rate, parse_args
from views import augment_weakly, to_batch

SEEDS = 3

args = parse_args([])


def error_of_labels_alone(seed):
    torch.manual_seed(seed)
    train_set, val_set = build_datasets(args.mu, seed)
    pictures, labels, load = train_set.labelled.pictures, train_set.labelled.labels, train_set.labelled.load
    model = ResNet(train_set.channels, train_set.num_classes, args.depth, args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    total_steps = math.ceil(args.epochs * len(train_set) / args.batch_size)
    order = shuffled_batches(len(train_set), args.batch_size, seed, 0)
    for step in range(total_steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.lr, args.warmup_steps, total_steps)
        draws = next(order)
        opened = [load(pictures[draw % len(pictures)]) for draw in draws]
        rngs = [np.random.default_rng([seed, draw]) for draw in draws]
        views = to_batch(list(map(augment_weakly, opened, rngs)))
        F.cross_entropy(model(views), labels[draws % len(labels)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    val_images, val_labels = val_set[np.arange(len(val_set))]
    with torch.no_grad():
        return (model(val_images).argmax(dim=1) != val_labels).double().mean().item()


errors = [error_of_labels_alone(seed) for seed in range(SEEDS)]
print(json.dumps({"metric": "val/accuracy", "last_at_least": 1 - np.mean(errors) / 2}))
