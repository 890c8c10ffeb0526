"""`python ask.py READ_BACK FUNCTION ARGUMENT …`: what a function of a read_back.py returns, as JSON."""

import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    script, name, folder, *more = sys.argv[1:]
    function = runpy.run_path(script)[name]
    print("\n" + json.dumps(function(Path(folder), *map(int, more))))
