"""What the sample run must reach, run in its project, whose run's folder is the argument.

In `val/loss`, less than the best model of normal pixels, which knows their mean and covariance. Of 500
samples of the best checkpoint, a classifier of the real digits (scikit-learn's, on the same split) finds all
ten classes, and is sure of what it sees.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from data import Images, build_datasets
from diffusion import alpha_bar, ddim_sample, q_sample
from sample import load_model
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

train_set, val_set = build_datasets(seed=0)


def loss_of_normal_pixels():
    """The mean of x_0 given x_t, if x_0 were normal; what is left is the noise."""
    real = train_set.pixels.reshape(len(train_set), -1) / 127.5 - 1
    mean, covariance = real.mean(axis=0), np.cov(real.T)
    x_0, t, epsilon = val_set[np.arange(len(val_set))]
    x_t = q_sample(x_0, t, epsilon).flatten(1).double().numpy()
    errors = []
    for x, a, noise in zip(x_t, alpha_bar(t).double().numpy(), epsilon.flatten(1).numpy(), strict=True):
        deviation = x - a**0.5 * mean
        of_x_t = a * covariance + (1 - a) * np.eye(len(x))
        errors.append(np.mean(((1 - a) ** 0.5 * np.linalg.solve(of_x_t, deviation) - noise) ** 2))
    return np.mean(errors)


def classifier():
    """Right on 98 of 100 held-out digits, and no surer of them than that: its confidence can be believed."""
    labels = load_digits().target
    held_out = np.arange(len(labels)) % 5 == 0
    train, val = (part.pixels.reshape(len(part), -1) / 127.5 - 1 for part in (train_set, val_set))
    model = MLPClassifier((64,), alpha=0.1, max_iter=1000, random_state=0).fit(train, labels[~held_out])
    accuracy = model.score(val, labels[held_out])
    assert accuracy > 0.97 and model.predict_proba(val).max(axis=1).mean() < accuracy
    return model


bar = loss_of_normal_pixels()
print(json.dumps({"metric": "val/loss", "best_at_most": bar, "last_at_most": bar}))

generator = torch.Generator().manual_seed(0)
x_t = torch.randn(500, *Images.shape, generator=generator)
samples = ddim_sample(load_model(Path(sys.argv[1])), x_t, steps=25, eta=0.0, generator=generator)
chances = classifier().predict_proba(samples.flatten(1).numpy())
found = len(set(chances.argmax(axis=1).tolist()))
print(json.dumps({"metric": "samples/classes", "reached": found, "at_least": 10}))
print(json.dumps({"metric": "samples/confidence", "reached": chances.max(axis=1).mean(), "at_least": 0.85}))
