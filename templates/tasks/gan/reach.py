"""What the sample run must reach, run in its project with the run's folder.

A classifier of the real digits finds nine of the ten among what the best generator makes, and is sure;
and at its end the run is nearer to the held-out digits than a normal distribution of the pixels is.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from data import build_datasets
from frechet import frechet_distance, moments
from sample import load_generator
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

NUMBER = 500

train_set, val_set = build_datasets(latent=1, seed=0)
pixels = train_set.images.flatten(1).numpy()
drawn = np.random.default_rng(0).multivariate_normal(pixels.mean(axis=0), np.cov(pixels.T), NUMBER)
normal = torch.tensor(drawn.clip(-1, 1), dtype=torch.float32).view(-1, *train_set.images.shape[1:])
bar = frechet_distance(moments(val_set.images), moments(normal))
print(json.dumps({"metric": "val/frechet_distance", "last_at_most": bar}))

digits = load_digits()
classifier = MLPClassifier(128, max_iter=300, random_state=0).fit(digits.data / 8 - 1, digits.target)
generator, latent = load_generator(Path(sys.argv[1]))
with torch.inference_mode():
    made = generator(torch.randn(NUMBER, latent, generator=torch.Generator().manual_seed(0)))
shares = classifier.predict_proba(made.flatten(1).numpy())
counts = np.bincount(shares.argmax(axis=1), minlength=10)
found = int((counts >= NUMBER / 100).sum())
print(json.dumps({"metric": "samples/classes", "reached": found, "at_least": 9}))
sure = float(shares.max(axis=1).mean())
print(json.dumps({"metric": "samples/confidence", "reached": sure, "at_least": 0.8}))
