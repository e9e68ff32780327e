"""Training of a tiny frame tokenizer: resume, codebook rules, what crops and patches are taken from."""

import math
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange

from cogvideo.errors import CogVideoError
from cogvideo.theatre import frame_tokenizer as training
from cogvideo.theatre.frame_tokenizer import codebook_report, train_codebook, train_frame_tokenizer
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.training.loop import OptimizerConfig


def squares(seed: int, n: int, size: int, **_) -> torch.Tensor:
    """Grey and coloured 12 x 12 squares on black, standing anywhere."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.zeros(n, 3, size, size)
    for frame in frames:
        y, x = torch.randint(size - 12, (2,), generator=generator).tolist()
        frame[:, y : y + 12, x : x + 12] = torch.randint(2, (3, 1, 1), generator=generator) * 0.5 + 0.25
    return frames


def square_patches() -> tuple[torch.Tensor, torch.Tensor]:
    flat = rearrange(squares(0, 60, 64), "n c (h a) (w b) -> (n h w) (c a b)", a=8, b=8)
    patches, counts = flat.unique(dim=0, return_counts=True)
    return patches, counts.float().sqrt()


@pytest.fixture(autouse=True)
def world_of_squares(monkeypatch):
    monkeypatch.setattr(training, "random_frames", squares)
    monkeypatch.setattr(training, "_weighted_patches", square_patches)


def train(run_dir, steps=30, lr=2e-3, **changes) -> FrameTokenizer:
    decoder = OptimizerConfig(steps=steps, batch_size=8, lr=lr, warmup=5)
    settings = {"codes": 64, "seed": 0, "widths": (16, 12, 8, 4), "pool_frames": (96, 32)} | changes
    return train_frame_tokenizer(decoder=decoder, run_dir=run_dir, **settings)


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    crops, calls = training._crops, []

    def cut_off(pool, seed, n):
        calls.append(seed)
        if len(calls) == 20:
            raise RuntimeError("cut off")
        return crops(pool, seed, n)

    monkeypatch.setattr(training, "_crops", cut_off)
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
    assert after["psnr"] > before["psnr"] + 0.3
    assert before["psnr_patches"] == after["psnr_patches"]
    assert before["codes_used"] > 6


def test_other_settings_and_damaged_files_are_refused(tmp_path):
    train(tmp_path, steps=2)
    for change in ({"steps": 3}, {"codes": 65}, {"seed": 1}):
        with pytest.raises(CogVideoError, match="other settings"):
            train(tmp_path, **{"steps": 2} | change)
    (tmp_path / "codebook.pt").write_bytes(b"cut")
    with pytest.raises(CogVideoError, match="damaged"):
        train(tmp_path, steps=2)


def error_of(patches: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (patches - codebook[nearest_codes(patches, codebook)]).square().sum(-1)


def test_the_codebook_is_a_fixed_point_of_weighted_k_means():
    """Against the rule done slowly: every code is the weighted mean of the patches that it is nearest to."""
    generator = torch.Generator().manual_seed(0)
    patches, weights = torch.rand(300, 6, generator=generator), torch.rand(300, generator=generator)
    first = train_codebook(patches, weights, codes=20, seed=0)
    assert torch.equal(first, train_codebook(patches, weights, codes=20, seed=0)) and first.shape == (20, 6)
    ids = nearest_codes(patches, first)
    means = torch.stack([
        (patches * weights[:, None])[ids == code].sum(0) / weights[ids == code].sum() for code in range(20)
    ])  # fmt: skip
    assert (means - first).abs().max() < 0.1  # the last rounds hardly move a code
    assert error_of(patches, means).mul(weights).sum() <= error_of(patches, first).mul(weights).sum() * 1.02


def test_codes_go_where_the_weight_is():
    """Two clouds of equal spread: nearly all codes stand in the heavy one."""
    cloud = torch.rand(200, 4, generator=torch.Generator().manual_seed(1)) * 0.2
    patches, weights = torch.cat([cloud, cloud + 0.7]), torch.tensor([100.0, 1.0]).repeat_interleave(200)
    codebook = train_codebook(patches, weights, codes=40, seed=0)
    heavy = (codebook.mean(1) < 0.5).sum()
    assert 30 < heavy < 40


def test_every_cluster_gets_a_code_though_it_is_rare(monkeypatch):
    """All codes begin among the frequent patches; the codebook grows where its error is largest."""
    monkeypatch.setattr(training, "BEGIN", 4)
    angle = torch.arange(8) * math.pi / 4
    centres = 0.5 + 0.4 * torch.stack([angle.cos(), angle.sin()], -1)
    weights = torch.tensor([1000.0] + [1.0] * 7).repeat_interleave(50)
    noise = 0.01 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    codebook = train_codebook(centres.repeat_interleave(50, 0) + noise, weights, codes=24, seed=0)
    assert (torch.cdist(centres, codebook).amin(1) < 0.05).all()


def test_patches_of_small_frames_weigh_more_and_counts_by_their_root(monkeypatch):
    monkeypatch.undo()
    scenes = {
        size: SimpleNamespace(
            patches=torch.full((2, 3, 8, 8), value, dtype=torch.uint8), counts=torch.tensor([1, 9])
        )
        for size, value in ((64, 0), (192, 255))
    }
    monkeypatch.setattr(training, "scene_patches", scenes.get)
    patches, weights = training._weighted_patches()
    assert patches.shape == (4, 192) and patches[:2].max() == 0 and patches[2:].min() == 1
    assert weights.tolist() == [training.SMALL_WEIGHT, 3 * training.SMALL_WEIGHT, 1, 3]


def numbered(n: int, size: int) -> torch.Tensor:
    """The pixels of block (i, j) tell i and j: a crop shows where it was cut."""
    block = torch.arange(size) // 8
    rows, columns = torch.meshgrid(block, block, indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)]).expand(n, 3, size, size) / 255


def test_crops_are_cut_on_the_token_grid():
    pool = [numbered(3, 64), numbered(2, 192)]
    crops = (training._crops(pool, 0, 8) * 255).round()
    assert crops.shape == (8, 3, 40, 40) and torch.equal(crops, (training._crops(pool, 0, 8) * 255).round())
    for crop in crops:
        for axis in (0, 1):
            along = crop[axis, :, 0] if axis == 0 else crop[axis, 0]
            assert torch.equal(along - along[0], torch.arange(40) // 8), "a crop begins on the grid of 8 px"
    assert crops[:4, :2].max() <= 7 < crops[4:, :2].max(), "half come from either size"


def test_report_in_closed_form(tmp_path):
    tokenizer = train(tmp_path, steps=1)
    frames = torch.zeros(1, 3, 16, 16)
    frames[..., :8, :8] = 0.5
    tokenizer.encode = lambda chunk: torch.tensor([[[3, 0], [0, 0]]])  # type: ignore[method-assign]
    tokenizer.decode = lambda ids: frames + 0.1  # type: ignore[method-assign]
    report = codebook_report(tokenizer, frames)
    assert report["codes_used"] == 2
    assert report["perplexity"] == pytest.approx(4 / 3**0.75, rel=1e-5)
    assert report["psnr"] == pytest.approx(20, abs=1e-3)
