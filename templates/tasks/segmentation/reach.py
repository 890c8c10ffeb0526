"""What the sample run must reach."""

import json

print(json.dumps({"metric": "val/mean_iou", "best_at_least": 0.85, "last_at_least": 0.85}))
