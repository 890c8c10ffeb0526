"""What the sample run must reach, run in its project: half the error of learning from the labels alone.

The same network sees the same labelled pictures, weakly augmented, with the same optimizer and schedule.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from data import build_datasets
from model import ResNet
from train import learning_rate, parse_args
from views import augment_weakly, to_batch

STEPS = 200
SEEDS = 3

args = parse_args([])
train_set, val_set = build_datasets(args.mu, seed=0)
pictures, labels, load = train_set.labelled.pictures, train_set.labelled.labels, train_set.labelled.load
val_images, val_labels = val_set[np.arange(len(val_set))]


def error_of_labels_alone(seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ResNet(train_set.channels, train_set.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.lr, args.warmup_steps, STEPS)
        images = to_batch([augment_weakly(load(picture), rng) for picture in pictures])
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(val_images).argmax(dim=1) != val_labels).double().mean().item()


error = np.mean([error_of_labels_alone(seed) for seed in range(SEEDS)])
print(json.dumps({"metric": "val/accuracy", "last_at_least": 1 - error / 2}))
