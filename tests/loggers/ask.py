"""`python ask.py READ_BACK FUNCTION,… ARGUMENT …`: what functions of a read_back.py return, as JSON."""

import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    script, names, folder, *more = sys.argv[1:]
    functions = runpy.run_path(script)
    found = {name: functions[name](Path(folder), *map(int, more)) for name in names.split(",")}
    print("\n" + json.dumps(found))
