"""How a token is drawn from logits. A strategy is any callable (logits [B,V] fp32, step) -> tokens [B] int64.

The strategies here also give their exact distribution, `probabilities(logits) -> [B,V]`, and are frozen
settings: the random stream belongs to `draw`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cogvideo.errors import CogVideoError

Strategy = Callable[[Tensor, int], Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(strategy: Strategy, logits: Tensor, step: int, generator: Generators = None) -> Tensor:
    """Tokens [B] by `strategy` from logits [B,V].

    A list of generators, one a row, makes every row independent of the others in the batch. Callables other
    than this module's strategies are called as they are and keep their own randomness.
    """
    if not keeps_no_order(strategy):
        return strategy(logits, step)
    return _sample(strategy.probabilities(logits), generator)  # type: ignore[attr-defined]  # checked above


def keeps_no_order(strategy: Strategy) -> bool:
    """Whether it may see its steps in another order: so this module's, whose streams `fork` can split."""
    return type(strategy) in (TopKStrategy, TopPStrategy, ClusterStrategy)


def fork(generator: Generators, parts: int, draws: int, rows: int, device: torch.device) -> list[Generators]:
    """Split the random streams of `draw` into parts of `draws` tokens each, for `rows` rows of logits.

    Part i begins where the stream stands after i * draws draws, so that parts drawn in any order give the
    same tokens as one after the other. The generators given are left behind the last part.
    """
    if generator is None:
        generator = (
            torch.cuda.default_generators[device.index or 0]
            if device.type == "cuda"
            else torch.default_generator
        )
    streams = [generator] if isinstance(generator, torch.Generator) else list(generator)
    each = rows if isinstance(generator, torch.Generator) else 1
    made: list[Generators] = []
    for _ in range(parts):
        copies = [torch.Generator(stream.device).set_state(stream.get_state()) for stream in streams]
        made.append(copies[0] if isinstance(generator, torch.Generator) else copies)
        for stream in streams:
            for _ in range(draws):
                torch.rand(each, dtype=torch.double, device=stream.device, generator=stream)
    return made


def _sample(p: Tensor, generator: Generators = None) -> Tensor:
    """One draw [B] from every row of probabilities [B,V]."""
    if generator is None or isinstance(generator, torch.Generator):
        points = torch.rand(len(p), dtype=torch.double, device=p.device, generator=generator)
    elif len(generator) != len(p):
        raise CogVideoError(f"{len(p)} rows need one generator each, or one for all, not {len(generator)}.")
    else:
        points = torch.cat(
            [torch.rand(1, dtype=torch.double, device=p.device, generator=g) for g in generator]
        )
    # The token under a uniform point of the line on which all tokens lie side by side, p long each; needs no
    # host sync. In single precision CUDA's sums may fall a little from token to token, and one with p = 0
    # would be found there. A row that is not finite finds none: it gets the last.
    ends = running_sums(p.double())
    found = torch.searchsorted(ends, points[:, None] * ends[:, -1:], right=True)[:, 0]
    return found.clamp_(max=p.shape[-1] - 1)


def running_sums(p: Tensor) -> Tensor:
    """[B,V] -> sums up to each column, the same in every run.

    CUDA adds a single row in whatever order its parts are done, several rows each in one order.
    """
    return p.expand(2, -1).cumsum(-1)[:1] if p.is_cuda and len(p) == 1 else p.cumsum(-1)


@dataclass(frozen=True)
class TopKStrategy:
    """Softmax of logits / temperature over the top_k largest (ties stay), as in CogView2's itersr."""

    temperature: float = 1.0
    top_k: int = 20

    def __post_init__(self):
        _check_positive(temperature=self.temperature, top_k=self.top_k)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B,V] logits -> [B,V] probabilities."""
        x = logits / self.temperature
        smallest = x.topk(min(self.top_k, x.shape[-1])).values[..., -1:]
        return x.masked_fill(x < smallest, float("-inf")).softmax(-1)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        return _sample(self.probabilities(logits))


@dataclass(frozen=True)
class TopPStrategy:
    """Softmax of logits / temperature over the fewest tokens whose mass reaches top_p."""

    temperature: float = 1.0
    top_p: float = 0.95

    def __post_init__(self):
        _check_positive(temperature=self.temperature, top_p=self.top_p)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B,V] logits -> [B,V] probabilities."""
        p, order = (logits / self.temperature).softmax(-1).sort(descending=True)
        p = p.masked_fill(running_sums(p) - p >= self.top_p, 0.0)
        return torch.zeros_like(p).scatter_(-1, order, p / p.sum(-1, keepdim=True))

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        return _sample(self.probabilities(logits))


class ClusterStrategy:
    """CogLM's two-stage rule: draw one of the top_k clusters by mass, then a token of it.

    cluster_labels: [V] cluster of every image token (the released cluster_label2.npy, or `cluster_codebook`).
    temperature acts on both stages, temperature2 on the second as well. The release: first frame 1.0 / 16,
    video 1.05 / 12, temperature2 0.89; direct super-resolution 1.0 / 6 / 0.6.
    """

    def __init__(
        self, cluster_labels: Tensor | np.ndarray, *, temperature: float, top_k: int, temperature2: float
    ):
        self.labels = torch.as_tensor(cluster_labels, dtype=torch.long)
        if self.labels.ndim != 1 or len(self.labels) == 0 or self.labels.min() < 0:
            raise CogVideoError("Cluster labels should be one non-negative integer for every image token.")
        _check_positive(temperature=temperature, top_k=top_k, temperature2=temperature2)
        counts = torch.bincount(self.labels)
        self.num_clusters = len(counts)
        # [C,M] the tokens of every cluster, padded with V. Sums over it have one order on any device, so that
        # the same seed draws the same tokens; CUDA's scattered sums do not.
        order = self.labels.argsort(stable=True)
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.labels[order]]
        self.members = torch.full((self.num_clusters, int(counts.max())), len(order))
        self.members[self.labels[order], rank] = order
        self.temperature, self.top_k, self.temperature2 = temperature, top_k, temperature2

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B,V] logits -> [B,V] probabilities."""
        if (given := logits.shape[-1]) != (known := len(self.labels)):
            raise CogVideoError(f"There are cluster labels for {known} image tokens, but {given} logits.")
        labels = self.labels = self.labels.to(logits.device)
        self.members = self.members.to(logits.device)
        # Excluded tokens (-inf) become the release's -65504: probability 0, but sums stay finite.
        x = (logits / self.temperature).clamp(min=-65504.0)
        mass = self._by_cluster(x.softmax(-1), 0.0).sum(-1)
        kept = mass.topk(min(self.top_k, self.num_clusters))
        shares = kept.values / kept.values.sum(-1, keepdim=True)
        chance = torch.zeros_like(mass).scatter(-1, kept.indices, shares)
        largest = self._by_cluster(x, float("-inf")).amax(-1)
        inside = ((x - largest[..., labels]) / self.temperature2).exp()
        return chance[..., labels] * inside / self._by_cluster(inside, 0.0).sum(-1)[..., labels]

    def _by_cluster(self, x: Tensor, empty: float) -> Tensor:
        """[..,V] -> [..,C,M], with `empty` where a cluster has fewer tokens."""
        return torch.nn.functional.pad(x, (0, 1), value=empty)[..., self.members]

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        return _sample(self.probabilities(logits))


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise CogVideoError(f"A strategy's {name} must be positive, not {value}.")


def cluster_codebook(codebook: Tensor, num_clusters: int = 500, seed: int = 0) -> Tensor:
    """K-means labels [K] of the codebook [K,C]: the stand-in for the released cluster file."""
    from sklearn.cluster import KMeans

    means = KMeans(num_clusters, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]  # typed str
    return torch.from_numpy(means.fit(codebook.cpu().numpy()).labels_).long()
