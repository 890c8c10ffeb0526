"""What the sample run must reach."""

import json

print(json.dumps({"metric": "val/accuracy", "best_at_least": 0.98, "last_at_least": 0.97}))
