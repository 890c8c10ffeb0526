"""What the sample run must reach, run in its project: TF-IDF and logistic regression, less two points.

That sees the same words of the same split.
"""

import json

from data import PAD, build_datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

train, val = build_datasets()
tf_idf = TfidfVectorizer(analyzer=lambda tokens: tokens[tokens != PAD].tolist(), sublinear_tf=True)
model = make_pipeline(tf_idf, LogisticRegression(C=10, max_iter=1000)).fit(train.tokens, train.labels)
bar = model.score(val.tokens, val.labels) - 0.02
print(json.dumps({"metric": "val/accuracy", "best_at_least": bar, "last_at_least": bar}))
