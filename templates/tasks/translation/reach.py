"""What the sample run must reach: nearly all dates, not one character wrong."""

import json

print(json.dumps({"metric": "val/exact_match", "best_at_least": 0.95, "last_at_least": 0.95}))
