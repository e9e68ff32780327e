"""Training of the frame tokenizer on tiny sizes: resume, codebook rules against slow oracles, closed-form reports."""

import json
import math

import pytest
import torch

from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.training import frame_tokenizer as training
from cogvideo.training.frame_tokenizer import CropPool, EMACodebook, codebook_report, train_frame_tokenizer

TINY = {"codes": 32, "dim": 4, "encoder": [8, 8, 16], "decoder": [16, 8, 8, 8]}


def squares(seed: int, n: int, size: int = 32) -> torch.Tensor:
    """Coloured 8 x 8 squares on black, standing on the token grid."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.zeros(n, 3, size, size)
    for frame in frames:
        y, x = (8 * torch.randint(size // 8, (2,), generator=generator)).tolist()
        frame[:, y : y + 8, x : x + 8] = torch.randint(2, (3, 1, 1), generator=generator) * 0.5 + 0.25
    return frames


def train(run_dir, sample=squares, steps=60, **changes) -> FrameTokenizer:
    settings = {"batch_size": 8, "lr": 3e-3, "seed": 0, "network": TINY} | changes
    return train_frame_tokenizer(sample, steps=steps, run_dir=run_dir, **settings)


def test_resume_is_exact(tmp_path):
    whole = train(tmp_path / "whole")

    class Stop(Exception):
        pass

    calls = []

    def stops_at_forty(seed, n):
        calls.append(seed)
        if len(calls) == 41:
            raise Stop
        return squares(seed, n)

    with pytest.raises(Stop):
        train(tmp_path / "parts", stops_at_forty, checkpoint_seconds=0)
    resumed_calls = []
    parts = train(tmp_path / "parts", lambda seed, n: (resumed_calls.append(seed), squares(seed, n))[1])
    assert len(resumed_calls) == 20, "steps done before the stop are not done again"
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()
    assert not list((tmp_path / "parts").glob("*.part"))


def test_lines_logged_after_the_checkpoint_are_dropped(tmp_path):
    train(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines + json.dumps({"step": 100}) + "\n")
    train(tmp_path)  # has ended: nothing is left to do
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_the_returned_tokenizer_is_what_the_file_holds(tmp_path):
    tokenizer = train(tmp_path)
    loaded = FrameTokenizer.load(tmp_path / "frames.safetensors")
    frames = squares(5, 4)
    assert torch.equal(loaded.decode(loaded.encode(frames)), tokenizer.decode(tokenizer.encode(frames)))


def test_learns_squares(tmp_path):
    """Nine appearances (ground and eight colours): rebuilt from their own codes, far above the mean picture."""
    tokenizer = train(tmp_path, steps=300)
    frames = squares(10**6, 64)
    report = codebook_report(tokenizer, frames)
    mean_picture = -10 * math.log10(float((frames - frames.mean(0)).square().mean()))
    assert report["psnr"] > mean_picture + 6
    assert report["codes_used"] >= 5


def test_other_settings_and_damaged_checkpoints_are_refused(tmp_path):
    train(tmp_path, steps=3)
    with pytest.raises(CogVideoError, match=r"other settings \(steps, lr\)"):
        train(tmp_path, steps=4, lr=1e-3)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(CogVideoError, match="cannot be read"):
        train(tmp_path, steps=3)


def test_start_prefers_vectors_far_from_the_median():
    """99 % of the vectors are ground; an even draw of 20 would see hardly any of the rest."""
    vectors = torch.zeros(2000, 2)
    vectors[:20] = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)) + 5
    ema = EMACodebook(torch.empty(20, 2))
    ema.start(vectors, torch.Generator().manual_seed(0))
    assert (ema.codebook.norm(dim=-1) > 0).sum() >= 18


def test_update_equals_averages_kept_apart():
    """The in-place rule against the usual one: code = moving sum of its vectors / moving count of them."""
    generator = torch.Generator().manual_seed(0)
    ema = EMACodebook(torch.randn(5, 3, generator=generator))
    counts, sums = torch.ones(5), ema.codebook.clone()
    for _ in range(30):
        vectors = torch.randn(12, 3, generator=generator)
        ids = torch.randint(4, (12,), generator=generator)  # code 4 stays unused
        ema.update(vectors, ids)
        for code in range(5):
            chose = vectors[ids == code]
            counts[code] = training.DECAY * counts[code] + (1 - training.DECAY) * len(chose)
            sums[code] = training.DECAY * sums[code] + (1 - training.DECAY) * chose.sum(0)
    assert torch.allclose(ema.counts, counts, atol=1e-5)
    assert torch.allclose(ema.codebook, sums / counts[:, None], atol=1e-5)


def test_revival_moves_dead_codes_alone_onto_badly_matched_vectors():
    ema = EMACodebook(torch.tensor([[0.0], [50.0], [60.0], [70.0]]))
    ema.counts.copy_(torch.tensor([9.0, 0.29, 0.31, 0.0]))
    vectors = torch.tensor([[0.0]] * 50 + [[4.0]] * 3)  # the last three are far from their code 0
    revived = ema.revive(vectors, torch.zeros(53, dtype=torch.long), torch.Generator().manual_seed(0))
    assert revived == 2
    assert ema.codebook[:, 0].tolist() == [0.0, 4.0, 60.0, 4.0]
    assert torch.allclose(ema.counts, torch.tensor([9.0, 1.0, 0.31, 1.0]))


def test_revival_lets_every_cluster_get_a_code():
    """All codes begin on one of eight clusters on a circle; without revival they never reach most of the others."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    centres = 10 * torch.stack([angle.cos(), angle.sin()], -1)

    def clusters_with_a_code(revive: bool) -> int:
        ema = EMACodebook(centres[:1].repeat(24, 1))
        for _ in range(400):
            vectors = centres.repeat(8, 1) + 0.1 * torch.randn(64, 2, generator=generator)
            ids = training.nearest_codes(vectors, ema.codebook)
            ema.update(vectors, ids)
            if revive:
                ema.revive(vectors, ids, generator)
        return int((torch.cdist(centres, ema.codebook).amin(1) < 1).sum())

    assert clusters_with_a_code(revive=True) == 8
    assert clusters_with_a_code(revive=False) <= 2


def test_no_revival_at_the_end_of_a_run(tmp_path, monkeypatch):
    updates, revivals = [], []
    update, revive = EMACodebook.update, EMACodebook.revive
    monkeypatch.setattr(EMACodebook, "update", lambda *a: (updates.append(1), update(*a))[1])
    monkeypatch.setattr(EMACodebook, "revive", lambda *a: (revivals.append(1), revive(*a))[1])
    train(tmp_path, steps=50)
    assert len(updates) == 48 and len(revivals) == 38  # the first 4 % are not quantised, the last 20 % settle


def test_crops_are_cut_from_the_rendered_frames_on_the_token_grid():
    def numbered(seed, n, size):
        """The pixel (y, x) of block (i, j) tells i and j: a crop shows where it was cut."""
        block = torch.arange(size) // 8
        rows, columns = torch.meshgrid(block, block, indexing="ij")
        return torch.stack([rows, columns, torch.full_like(rows, 255)]).expand(n, 3, size, size) / 255

    pool = CropPool(numbered, seed=0, small=3, large=2, crop=40)
    crops = (pool(0, 8) * 255).round()
    assert crops.shape == (8, 3, 40, 40)
    assert torch.equal(pool(0, 8) * 255, pool(0, 8) * 255)
    for crop in crops:
        for axis in (0, 1):
            along = crop[axis, :, 0] if axis == 0 else crop[axis, 0]
            assert torch.equal(along - along[0], torch.arange(40) // 8), "a crop begins on the grid of 8 px"
    assert crops[:4, :2].max() <= 7 and crops[4:, :2].max() > 7, "half come from either size"


def test_crops_look_for_objects():
    pool = CropPool(squares, seed=0, small=64, large=1, crop=16)
    with_object = (pool(1, 64)[:32].amax((1, 2, 3)) > 0).float().mean()
    assert with_object > 0.5  # an even draw would meet the square in 1 of 12 windows or so


def test_report_in_closed_form(tmp_path):
    tokenizer = train(tmp_path, steps=3)
    frames = torch.zeros(1, 3, 16, 16)
    frames[..., :8, :8] = 0.5
    tokenizer.encode = lambda chunk: torch.tensor([[[3, 0], [0, 0]]])  # type: ignore[method-assign]
    tokenizer.decode = lambda ids: frames + 0.1  # type: ignore[method-assign]
    report = codebook_report(tokenizer, frames)
    assert report["codes_used"] == 2 and report["commonest_share"] == 0.75
    assert report["perplexity"] == pytest.approx(4 / 3**0.75, rel=1e-5)
    assert report["psnr"] == pytest.approx(20, abs=1e-3) and report["psnr_objects"] == pytest.approx(20, abs=1e-3)
