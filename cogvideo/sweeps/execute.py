"""The process that runs the notebook of one point: `python -m cogvideo.sweeps.execute`, started by its guard.

The first line of its standard input is the job. The end of that input means that the guard is dead: then this
process exits, and its kernel, which watches it, follows.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from cogvideo.io import write_json


def main() -> None:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_the_guard, daemon=True).start()
    folder = Path(job["folder"])
    write_json(folder / "outcome.json", _run(job, folder) | {"attempt": job["attempt"]}, parents=True)


def _exit_with_the_guard() -> None:
    sys.stdin.read()
    os._exit(1)


def _run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    # jsonschema's, for IRIs: two seconds to load
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: import fails at once
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    def path(file: str | Path) -> str:  # papermill formats paths
        return str(file).replace("{", "{{").replace("}", "}}")

    try:
        execute_notebook(
            path(job["notebook"]), path(folder / "executed.ipynb"), job["passed"], kernel_name="python3",
            progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
            cwd=str(Path(job["notebook"]).parent),  # as if opened by hand
        )  # fmt: skip
    except PapermillExecutionError as error:
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        memory = re.search("MemoryError|OutOfMemoryError", error.ename) or "can't allocate memory" in said
        return {"status": "failed", "reason": "out of memory" if memory else "error", "error": said[:500]}
    except DeadKernelError:
        return {"status": "failed", "reason": "kernel died", "error": "killed from outside, or crashed"}
    return {"status": "done"}


if __name__ == "__main__":
    main()
