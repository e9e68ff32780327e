"""The one-token step with static shapes: what changes from token to token lies in tensors of the device.

On CUDA such a step is captured once for every 256 places of the temporal cache and replayed, which spares the host about a
thousand kernel launches a token. The same step runs as it is on any device, which is how it is tested.
"""

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from cogvideo.model.attention import hidden_bias
from cogvideo.model.transformer import CogVideoTransformer, EncodedText, Wave
from cogvideo.sampling.fast import in_the_way

BUCKET = 256  # places: attention reads the live part of the temporal cache rounded up to these
WARM_UPS = 2  # runs before a capture, so that libraries have made their workspaces and Triton its kernels


def static_step_pays(model: CogVideoTransformer) -> bool:
    """Whether launches are what a step waits for: on CUDA, with all weights there and nothing hooked in."""
    return model.word_embedding.weight.is_cuda and not any(map(in_the_way, model.modules()))


class StaticStep:
    """Steps through frames one token after another; the caches of `text` are those of one frame and of all frames.

    times: the frames in the order in which they are computed. temporal: biases [T*N,T*N] (query and key places in that
    order) for even and odd layers, or None for the image model alone. bonus: added to scores towards text, both channels.
    """

    def __init__(
        self,
        model: CogVideoTransformer,
        text: EncodedText,
        times: Sequence[int],
        temporal: list[Tensor] | None,
        bonus: tuple[float, float],
    ):
        self.model, self.text, self.temporal, self.bonus = model, text, temporal, bonus
        self.length, n, device = text.bias.shape[-1], model.config.frame_tokens, text.bias.device
        self.positions = torch.cat([model.position_vectors(time) for time in times])
        self.causal = hidden_bias(torch.ones(n, n, dtype=torch.bool, device=device).tril(), text.bias.dtype)
        self.token = torch.zeros(len(text.bias), dtype=torch.long, device=device)
        self.number = torch.zeros(1, dtype=torch.long, device=device)  # the place, counted through the frames
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.capture = device.type == "cuda"

    def begin(self, number: int) -> None:
        """Start a frame whose first place is `number`."""
        self.number.fill_(number)
        self.token.fill_(self.model.config.begin_of_image)

    def logits(self, number: int) -> Tensor:
        """Logits [B,V] of place `number`, where the step stands; valid until the next call."""
        n = self.model.config.frame_tokens
        upto = (
            min(-(-(number + 1) // BUCKET) * BUCKET, len(self.positions)) if self.temporal is not None else n
        )
        out = self._replay(upto) if self.capture else self._run(upto)
        self.number.add_(1)
        return out

    def _run(self, upto: int) -> Tensor:
        n, length = self.model.config.frame_tokens, self.length
        place = self.number % n
        wave = Wave(slice(1), length + place, length + self.number, length + n, length + upto)
        for memory in self.text.layers:
            memory.wave = wave
        x = self.model.word_embedding(self.token)[:, None] + self.positions[self.number]  # [B,1,D]
        rows = len(self.token)
        own = self.causal[place].expand(rows, 1, -1, -1)
        spatial = torch.cat([self.text.bias + self.bonus[0], own], -1)[:, None]
        biases = None
        if self.temporal is not None:
            text = self.text.bias + self.bonus[1]
            biases = [
                torch.cat([text, bias[self.number, :upto].expand(rows, 1, -1, -1)], -1)
                for bias in self.temporal
            ]
            biases *= 2 if len(biases) == 1 else 1
        x = self.model.run(rearrange(x, "b q d -> b 1 q d"), self.text, spatial, biases)
        for memory in self.text.layers:
            memory.wave = None
        return self.model.head(x[:, 0, 0])

    def _replay(self, upto: int) -> Tensor:
        if upto not in self.graphs:
            try:
                self.graphs[upto] = self._captured(upto)
            except RuntimeError as error:
                warnings.warn(
                    f"The decode step could not be captured ({error}); it runs uncaptured, slower.",
                    stacklevel=2,
                )
                self.capture = False
                return self._run(upto)
        graph, out = self.graphs[upto]
        graph.replay()
        return out

    def _captured(self, upto: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a step. Running it before writes the same keys and values that the replay will write again."""
        side = torch.cuda.Stream(self.token.device)
        side.wait_stream(torch.cuda.current_stream(self.token.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run(upto)
        torch.cuda.current_stream(self.token.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # All graphs share the memory of the first: they never run at the same time, and only the last output is read.
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            out = self._run(upto)
        return graph, out
