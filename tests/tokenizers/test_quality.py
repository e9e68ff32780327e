"""PSNR and SSIM against closed forms and a slow loop."""

import numpy as np
import pytest
import torch

from cogvideo.tokenizers.quality import psnr, ssim


def test_psnr_of_a_known_error():
    assert psnr(torch.tensor(0.01)).item() == pytest.approx(20.0)


def test_ssim_of_even_pictures_is_that_of_their_light():
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    wanted = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(wanted, abs=1e-4)
    assert ssim(b, b).item() == pytest.approx(1.0)


def test_ssim_against_a_loop():
    rng = np.random.default_rng(0)
    a = rng.random((14, 13))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for row in range(4):
        for column in range(3):
            x, y = (p[row : row + 11, column : column + 11] for p in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            both = (window * (x - mx) * (y - my)).sum()
            c1, c2 = 0.01**2, 0.03**2
            found.append((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    pictures = (torch.from_numpy(p).float()[None, None] for p in (a, b))
    assert ssim(*pictures).item() == pytest.approx(np.mean(found), abs=1e-4)
