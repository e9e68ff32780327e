"""The process that runs the notebook of one point: `python -m cogvideo.sweeps.execute`, started by sweeps.guard.

The first line of its standard input is the job. The end of that input means that the guard is dead: then this process dies,
too, and its kernel, which watches it, follows.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from cogvideo.io import write_json


def main() -> int:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_the_guard, daemon=True).start()
    folder = Path(job["folder"])
    outcome = _run(job, folder)
    write_json(folder / "outcome.json", outcome | {"attempt": job["attempt"]}, parents=True)
    return 0


def _die_with_the_guard() -> None:
    sys.stdin.read()
    os._exit(1)


def _run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # jsonschema's, for IRIs: two seconds to load
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    try:
        execute_notebook(
            job["notebook"].replace("{", "{{").replace("}", "}}"),  # papermill formats paths
            str(folder / "executed.ipynb").replace("{", "{{").replace("}", "}}"),
            job["passed"],
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            cwd=str(Path(job["notebook"]).parent),  # as if opened by hand
        )
    except PapermillExecutionError as error:
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        memory = (
            re.search(r"MemoryError|OutOfMemoryError", error.ename) or "can't allocate memory" in error.evalue
        )
        return {"status": "failed", "reason": "out of memory" if memory else "error", "error": said[:500]}
    except DeadKernelError:
        return {"status": "failed", "reason": "kernel died", "error": "killed from outside, or crashed"}
    return {"status": "done"}


if __name__ == "__main__":
    sys.exit(main())
