"""`cogvideo doctor` as a user meets it."""

import torch

from cogvideo.checkpoints.registry import DEMO


def test_doctor_tells_what_is_there(run):
    code, out, _ = run("doctor")
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    assert code == 0 and {"python", "torch", "cpu", "memory", "demo weights", "video"} <= facts.keys()
    assert torch.__version__ in facts["torch"] and "GiB" in facts["memory"]
    assert f"MB in {DEMO}; Score:" in facts["demo weights"] and "libx264" in facts["video"]
    score = facts["demo weights"].partition("Score: ")[2]
    assert score.endswith(".") and "whole clip" in score  # all of it
    columns = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in out.splitlines()}
    assert len(columns) == 1  # aligned
