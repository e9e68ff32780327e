"""The report of one set of weights says what the functions it stands for return; nothing leads outside."""

import numpy as np
import pytest
import torch
from reports.page import Page

from cogvideo import CogVideoError, Pipeline
from cogvideo.checkpoints.registry import DEMO, weights_hash
from cogvideo.theatre import model_report
from cogvideo.theatre.alignment import compare, whole_clips
from cogvideo.theatre.drift import drift
from cogvideo.theatre.judge import DAMAGES
from cogvideo.theatre.model_report import report_weights, temporal_shares
from cogvideo.theatre.questions import GROUPS
from cogvideo.theatre.scores import LABELS, TARGETS


def test_the_report_says_what_was_measured(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(model_report, "drift", lambda *given: kept.append(drift(*given)) or kept[-1])
    page = Page(report_weights("demo", tmp_path / "x.html", n=2, fvd_clips=0, seed=3).read_text("utf-8"))
    assert all(source.startswith("data:") for source in page.loaded) and len(page.loaded) == 2 * 6 + 2 * 6 + 1
    assert str(tmp_path) not in page.text and weights_hash(DEMO) in page.text
    pipe = Pipeline.from_pretrained("demo")
    found = compare(pipe.key_frames, pipe.frames, whole=whole_clips(pipe), n=2, seed=3, progress=False)
    rows, sources = page.tables["alignment"][1:], ("model", "ceiling", "real")
    asked = [(group, name) for group in GROUPS for name in LABELS]
    assert [(row[0], row[1]) for row in rows[::3]] == [(group, LABELS[name]) for group, name in asked]
    counts = [found[group][source][name] for group, name in asked for source in sources]
    assert [(int(row[6]), int(row[7])) for row in rows] == [(c["right"], c["n"]) for c in counts]
    assert all(float(row[3]) == pytest.approx(100 * int(row[6]) / int(row[7]), rel=1e-3) for row in rows)
    targets = {(row[0], row[1]): float(row[8]) for row in rows if row[8] not in ("", "–")}
    goals = {(g, LABELS[name]): 100 * goal for g in GROUPS for name, goal in TARGETS[g].items()}
    assert targets == pytest.approx(goals)
    felt = {row[0]: row[1:] for row in page.tables["judge"][1:]}
    assert felt.keys() == {"none", *DAMAGES} and set(felt["none"]) == {"100"}
    (drifted,) = kept
    told = np.array([row[1:] for row in page.tables["drift"][1:]], float)
    curves = np.array([*drifted.right.values(), *drifted.agreement.values()])
    assert told == pytest.approx(100 * curves.T, rel=1e-3)
    clips = page.tables["speed"][1:]
    assert all(int(r[1]) * int(r[2]) / float(r[3]) == pytest.approx(float(r[4]), rel=2e-3) for r in clips)
    weights = [
        w for m in (pipe.stage1, pipe.stage2) for name, w in m.named_parameters() if name.endswith(".gate")
    ]
    gates = [torch.sigmoid(-gate).mean().item() for gate in weights]
    assert [float(row[2]) for row in page.tables["channels"][1:]] == pytest.approx(gates, rel=1e-3)


def test_shares_begin_at_a_half():
    pipe = Pipeline.from_pretrained("demo")
    for name, weight in pipe.stage1.named_parameters():
        if name.endswith(".gate"):
            weight.data.zero_()
    assert all(np.array_equal(share, np.full(128, 0.5, np.float32)) for share in temporal_shares(pipe.stage1))


@pytest.mark.parametrize("n, clips", [(0, 0), (4, 1), (4, -1)])
def test_counts_that_cannot_be(tmp_path, n, clips):
    with pytest.raises(CogVideoError, match="at least"):
        report_weights("demo", tmp_path / "x.html", n=n, fvd_clips=clips)
