"""What a score feels: clips that are wrong in one known way each, to be scored against clips that are right."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from cogvideo.errors import CogVideoError

DAMAGES = ("shuffled", "frozen", "reversed", "blurred", "noisy", "recoded")


def damage(clip: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """A clip uint8 [T,H,W,3] made wrong in one way, of the same shape.

    shuffled: frames in a random order. frozen: the first frame all the time. reversed: backwards. blurred: by a Gaussian
    with a standard deviation of 1/32 of the height. noisy: Gaussian noise of 32 grey levels. recoded: through MPEG-4 at its
    coarsest quantiser. Raises CogVideoError for another kind.
    """
    rng = np.random.default_rng(seed)
    if kind == "shuffled":
        return clip[rng.permutation(len(clip))]
    if kind == "frozen":
        return np.repeat(clip[:1], len(clip), 0)
    if kind == "reversed":
        return clip[::-1].copy()
    if kind == "blurred":
        return _blurred(clip, clip.shape[1] / 32)
    if kind == "noisy":
        return (clip + rng.normal(0, 32, clip.shape)).round().clip(0, 255).astype(np.uint8)
    if kind == "recoded":
        return _recoded(clip)
    raise CogVideoError(f"There is no damage {kind!r}: choose one of {', '.join(DAMAGES)}.")


def _blurred(clip: np.ndarray, sigma: float) -> np.ndarray:
    reach = min(round(3 * sigma), min(clip.shape[1:3]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    pixels = rearrange(torch.from_numpy(clip).float(), "t h w c -> (t c) 1 h w")
    pixels = F.pad(pixels, [reach] * 4, mode="reflect")
    pixels = F.conv2d(F.conv2d(pixels, weights[None, None, :, None]), weights[None, None, None])
    return rearrange(pixels.round().byte(), "(t c) 1 h w -> t h w c", c=3).numpy()


def _recoded(clip: np.ndarray) -> np.ndarray:
    import av

    t, h, w, _ = clip.shape
    even = np.pad(clip, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8, options={"qmin": "31", "qmax": "31"})
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        for pixels in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[:t, :h, :w]
