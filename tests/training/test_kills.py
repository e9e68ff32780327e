"""Twenty real kills (SIGKILL) at random moments in every part of the recipe: the same weights at the end.

In test_recipe.py every part is stopped once, between steps; here also while frames are read, clips tokenized,
checkpoints, tokenizers, scores and models written.
"""

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training.test_recipe import write_recipe
from training.tiny_clips import write_clips

from cogvideo.training.recipe import train
from cogvideo.training.recipe_settings import PARTS

KILLS = 20  # in every part
STEPS = [f"{part}.steps=12" for part in ("frames.optimizer", *PARTS[2:6])]
LEFT = {"text": ["text.model"], "assemble": ["pipeline"]}  # by parts without a folder of their name


def child(recipe: Path, part: str, ready) -> None:
    """`cogvideo train`, in a process that has imported torch already."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    ready.send_bytes(b"ready")
    train(recipe, [f"parts=[{part}]", *STEPS])


def run(recipe: Path, part: str, seconds: float | None = None) -> tuple[int | None, float]:
    """(exit code, or None where it was killed after so many seconds; seconds that it ran)."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["cogvideo.training.recipe"])
    here, there = server.Pipe(duplex=False)
    process = server.Process(target=child, args=(recipe, part, there))
    process.start()
    here.recv_bytes()
    began = time.monotonic()
    process.join(seconds)
    killed = process.exitcode is None
    if killed:
        process.kill()
        process.join()
    return None if killed else process.exitcode, time.monotonic() - began


@pytest.mark.slow
def test_twenty_kills_in_every_part_give_the_same_weights(tmp_path):
    rng, kills = random.Random(0), dict.fromkeys(PARTS, 0)
    write_clips(tmp_path / "clips")
    whole, killed = (write_recipe(tmp_path, name) for name in ("whole", "killed"))
    for part in PARTS:
        code, seconds = run(whole, part)
        assert code == 0
        while kills[part] < KILLS:
            code, _ = run(killed, part, rng.uniform(0, 0.6 * seconds))
            assert code in (0, None), f"{part} was not resumed after kill {kills[part]}"
            kills[part] += code is None
            if code == 0 and kills[part] < KILLS:  # finished too early: begun anew
                for left in LEFT.get(part, [part, f"tokens/{part}"]):
                    path = tmp_path / "killed" / left
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        assert run(killed, part)[0] == 0
        print(part, f"{kills[part]} kills, {seconds:.1f} s if left alone", flush=True)
    files = sorted((tmp_path / "whole/pipeline").rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        one, two = load_file(file), load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole"))
        assert one.keys() == two.keys()
        assert all(weight.equal(two[name]) for name, weight in one.items()), file
