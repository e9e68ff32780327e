"""Training of a tiny frame tokenizer: resume, codebook rules against slow oracles, closed-form reports."""

import math

import pytest
import torch

from cogvideo.errors import CogVideoError
from cogvideo.theatre import frame_tokenizer as training
from cogvideo.theatre.frame_tokenizer import EMACodebook, FramePool, codebook_report, train_frame_tokenizer
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.training.loop import OptimizerConfig


def squares(seed: int, n: int, size: int) -> torch.Tensor:
    """Grey and coloured 12 x 12 squares on black, standing anywhere."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.zeros(n, 3, size, size)
    for frame in frames:
        y, x = torch.randint(size - 12, (2,), generator=generator).tolist()
        frame[:, y : y + 12, x : x + 12] = torch.randint(2, (3, 1, 1), generator=generator) * 0.5 + 0.25
    return frames


def train(run_dir, steps=30, render=squares, lr=2e-3, **changes) -> FrameTokenizer:
    decoder = OptimizerConfig(steps=steps, batch_size=8, lr=lr, warmup=5)
    settings = {
        "codes": 64,
        "codebook_steps": 20,
        "seed": 0,
        "widths": (16, 12, 8, 4),
        "pool_frames": (96, 32),
    } | changes
    return train_frame_tokenizer(render, decoder=decoder, run_dir=run_dir, **settings)


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    crops, calls = FramePool.crops, []

    def cut_off(self, seed, n):
        calls.append(seed)
        if len(calls) == 20:
            raise RuntimeError("cut off")
        return crops(self, seed, n)

    monkeypatch.setattr(FramePool, "crops", cut_off)
    with pytest.raises(RuntimeError, match="cut off"):
        train(tmp_path / "parts", checkpoint_seconds=0)
    monkeypatch.setattr(training, "train_codebook", None)  # the finished codebook is not trained again
    parts = train(tmp_path / "parts")
    assert len(calls) == 20 + 11  # steps done before the stop are not done again
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key


def test_the_decoder_mends_what_the_codebook_cannot_say(tmp_path):
    """Twelve codes cannot show all offsets of a square; the neighbours tell more."""
    rough = train(tmp_path / "a", steps=1, codes=12, widths=(32, 16, 8, 8))
    mended = train(tmp_path / "b", steps=200, codes=12, lr=3e-3, widths=(32, 16, 8, 8))
    frames = squares(10**6, 64, 64)
    assert torch.equal(rough.encode(frames), mended.encode(frames))  # codes stay as they are
    before, after = codebook_report(rough, frames), codebook_report(mended, frames)
    assert after["psnr_objects"] > before["psnr_objects"] + 0.3
    assert before["codes_used"] > 6


def test_other_settings_and_damaged_files_are_refused(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(CogVideoError, match="other settings"):
        train(tmp_path, steps=3)
    (tmp_path / "codebook.pt").write_bytes(b"cut")
    with pytest.raises(CogVideoError, match="damaged"):
        train(tmp_path, steps=2)


@pytest.mark.parametrize("decay", training.DECAYS)
def test_update_equals_averages_kept_apart(decay):
    """The in-place rule against the usual one: code = moving sum of its vectors / moving count of them."""
    generator = torch.Generator().manual_seed(0)
    ema = EMACodebook(torch.randn(5, 3, generator=generator))
    counts, sums = torch.ones(5), ema.codebook.clone()
    for _ in range(30):
        vectors = torch.randn(12, 3, generator=generator)
        ids = torch.randint(4, (12,), generator=generator)  # code 4 stays unused
        ema.update(vectors, ids, decay)
        for code in range(5):
            chose = vectors[ids == code]
            counts[code] = decay * counts[code] + (1 - decay) * len(chose)
            sums[code] = decay * sums[code] + (1 - decay) * chose.sum(0)
    assert torch.allclose(ema.counts, counts, atol=1e-5)
    assert torch.allclose(ema.codebook, sums / counts[:, None], atol=1e-4)


def test_revival_moves_dead_codes_alone_onto_badly_matched_vectors():
    ema = EMACodebook(torch.tensor([[0.0], [50.0], [60.0], [70.0]]))
    ema.counts.copy_(torch.tensor([9.0, 0.29, 0.31, 0.0]))
    vectors = torch.tensor([[0.0]] * 50 + [[4.0]] * 3)  # the last three are far from their code 0
    revived = ema.revive(vectors, torch.zeros(53, dtype=torch.long), torch.Generator().manual_seed(0))
    assert revived == 2
    assert ema.codebook[:, 0].tolist() == [0.0, 4.0, 60.0, 4.0]
    assert torch.allclose(ema.counts, torch.tensor([9.0, 1.0, 0.31, 1.0]))


def test_revival_lets_every_cluster_get_a_code():
    """All codes begin on one of eight clusters on a circle; without revival they never reach most others."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    centres = 10 * torch.stack([angle.cos(), angle.sin()], -1)

    def clusters_with_a_code(revive: bool) -> int:
        ema = EMACodebook(centres[:1].repeat(24, 1))
        for _ in range(300):
            vectors = centres.repeat(8, 1) + 0.1 * torch.randn(64, 2, generator=generator)
            ids = nearest_codes(vectors, ema.codebook)
            ema.update(vectors, ids, decay=0.95)
            if revive:
                ema.revive(vectors, ids, generator)
        return int((torch.cdist(centres, ema.codebook).amin(1) < 1).sum())

    assert clusters_with_a_code(revive=True) == 8
    assert clusters_with_a_code(revive=False) <= 2


def test_no_revival_while_codes_settle(tmp_path, monkeypatch):
    updates, revivals = [], []
    update, revive = EMACodebook.update, EMACodebook.revive
    monkeypatch.setattr(EMACodebook, "update", lambda *a: (updates.append(a[-1]), update(*a))[1])
    monkeypatch.setattr(EMACodebook, "revive", lambda *a: (revivals.append(1), revive(*a))[1])
    train(tmp_path, steps=1)
    assert len(updates) == 20 and len(revivals) == 16
    assert updates == [0.9] * 12 + [0.99] * 8


def numbered(seed: int, n: int, size: int) -> torch.Tensor:
    """The pixels of block (i, j) tell i and j: a crop or a patch shows where it was cut."""
    block = torch.arange(size) // 8
    rows, columns = torch.meshgrid(block, block, indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)]).expand(n, 3, size, size) / 255


def test_crops_and_patches_are_cut_on_the_token_grid():
    pool = FramePool(numbered, seed=0, small=3, large=2, crop=40)
    crops = (pool.crops(0, 8) * 255).round()
    assert crops.shape == (8, 3, 40, 40) and torch.equal(crops, (pool.crops(0, 8) * 255).round())
    for crop in crops:
        for axis in (0, 1):
            along = crop[axis, :, 0] if axis == 0 else crop[axis, 0]
            assert torch.equal(along - along[0], torch.arange(40) // 8), "a crop begins on the grid of 8 px"
    assert crops[:4, :2].max() <= 7 < crops[4:, :2].max(), "half come from either size"
    patches = pool.patches(0, 100).view(100, 3, 64)
    assert torch.equal(patches.amin(2), patches.amax(2)), "a patch is one block"
    assert patches[:75, :2].max() * 255 < 8 < patches[75:, :2].max() * 255, (
        "three quarters are of small frames"
    )


def test_crops_and_patches_look_for_objects():
    pool = FramePool(squares, seed=0, small=64, large=8, crop=16)
    assert pool.patches(1, 64).amax(1).min() > 0
    with_object = (pool.crops(1, 64)[:32].amax((1, 2, 3)) > 0).float().mean()
    assert with_object > 0.5  # an even draw would meet the square in 1 of 8 windows or so


def test_report_in_closed_form(tmp_path):
    tokenizer = train(tmp_path, steps=1)
    frames = torch.zeros(1, 3, 16, 16)
    frames[..., :8, :8] = 0.5
    tokenizer.encode = lambda chunk: torch.tensor([[[3, 0], [0, 0]]])  # type: ignore[method-assign]  # a stand-in
    tokenizer.decode = lambda ids: frames + 0.1  # type: ignore[method-assign]  # a stand-in
    report = codebook_report(tokenizer, frames)
    assert report["codes_used"] == 2 and report["commonest_share"] == 0.75
    assert report["perplexity"] == pytest.approx(4 / 3**0.75, rel=1e-5)
    assert report["psnr"] == pytest.approx(20, abs=1e-3) and report["psnr_objects"] == pytest.approx(
        20, abs=1e-3
    )
