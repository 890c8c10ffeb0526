"""What the sample run must reach."""

import json

bar = {"best_at_least": 0.98, "last_at_least": 0.97, "seconds_at_most": 120}
print(json.dumps({"metric": "val/accuracy", **bar}))
