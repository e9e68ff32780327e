"""Super-resolution models from the files of the release."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from typing_extensions import Unpack

from cogvideo.checkpoints.sat import Ids, Load, fill_model, our_name, read_sat_folder
from cogvideo.errors import CogVideoError
from cogvideo.runtime.tensors import meta_of
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.layers import SuperResolution

S = TypeVar("S", bound=SuperResolution)
TABLES = [f"{kind}_embedding.weight" for kind in ("word", "base_position", "extra_position")]


def our_superres_name(released: str) -> str | None:
    """The name in a SuperResolution of a released weight, or None; only the channels differ from our_name."""
    name = our_name(released)
    return name and name.replace(".spatial.", ".given.").replace(".temporal.", ".drawn.")


def load_sat_superres(
    model: type[S], source: str | Path | dict[str, Tensor], *, num_heads: int, ids: Ids, **load: Unpack[Load]
) -> S:
    """A model of the class `model` from the release's folder or its state dict, in eval mode.

    load: see sat.fill_model.
    """
    weights: Mapping[str, Tensor]
    if isinstance(source, dict):
        table: Any = source.get("module", source)
        weights = {ours: tensor for name, tensor in table.items() if (ours := our_superres_name(name))}
        where = "the state dict"
    else:
        weights, where = read_sat_folder(source)[0].renamed(our_superres_name), str(source)
    if missing := [name for name in TABLES if name not in weights]:
        raise CogVideoError(f"{where} is no super-resolution checkpoint: no {missing[0]}; choose another.")
    config = released_config(model, weights, num_heads=num_heads, **ids)
    return fill_model(lambda: model(config), weights, where=where, **load)


def released_config(
    model: type[SuperResolution], weights: Mapping[str, Tensor], *, num_heads: int, **ids: Unpack[Ids]
) -> Any:
    """The configuration that the release's weights (our names) belong to, from their shapes."""
    meta = meta_of(weights)
    vocab_size, hidden_size = meta["word_embedding.weight"].shape
    layers = {int(name.split(".")[1]) for name in meta if name.startswith("blocks.")}
    if layers != set(range(len(layers))):  # before so many are made
        raise ValueError(f"layers between, up to number {max(layers)}")
    side, low = isqrt(len(meta["extra_position_embedding.weight"])), ""
    if model is DirectSuperResolution:
        side, low = side // SuperResolutionConfig.scale, "low_"
    return model.config_class(
        num_layers=len(layers),
        hidden_size=hidden_size,
        num_heads=num_heads,
        vocab_size=vocab_size,
        base_positions=len(meta["base_position_embedding.weight"]),
        **{f"{low}height": side, f"{low}width": side},
        **ids,
    )
