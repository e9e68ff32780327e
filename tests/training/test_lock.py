"""One process group a run folder: the second is refused in a sentence, a killed one is no obstacle."""

import signal
import subprocess
import sys

import pytest

from cogvideo.errors import CogVideoError
from cogvideo.training.lock import held

HOLD = """
import pathlib, sys, time
from cogvideo.training.lock import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_until_the_first_is_dead(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdout.readline() == b"held\n"
    message = f"is being trained by process {first.pid} on "
    with pytest.raises(CogVideoError, match=message) as error, held(tmp_path):
        pass
    assert "\n" not in str(error.value)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with held(tmp_path):
        with held(tmp_path):  # as a training that calls fit()
            pass
        assert (tmp_path / "holder.json").exists()
    assert not (tmp_path / "holder.json").exists()
