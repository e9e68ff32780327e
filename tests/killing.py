"""Command lines that wait for their kill, so that no test has to be quicker than what it kills."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# After the last of so many files it goes no further. Files get their names by os.replace.
SCRIPT = """
import os, sys, time
from fnmatch import fnmatch
from pathlib import Path

pattern, left, replace = sys.argv.pop(1), int(sys.argv.pop(1)), os.replace

def replace_and_wait(part, path):
    global left
    replace(part, path)
    left -= fnmatch(Path(path).name, pattern)
    while left <= 0:
        time.sleep(1)

os.replace = replace_and_wait
from cogvideo.cli.app import main
main()
"""


def start_held(pattern: str, files: int, *arguments: object) -> subprocess.Popen:
    """`cogvideo ARGUMENTS`, which waits to be killed when it has written so many files like `pattern`."""
    command = [sys.executable, "-c", SCRIPT, pattern, str(files), *map(str, arguments)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=quiet, stderr=quiet
    )
