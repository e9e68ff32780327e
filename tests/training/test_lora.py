"""Adapters of the attention: what they train, that merging keeps the outputs, 8-bit states that resume."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training.tiny_tokens import losses, write_config, write_tokens, write_weights

from cogvideo.checkpoints.native import load_model
from cogvideo.errors import CogVideoError
from cogvideo.training.lora import LoraConfig, add_adapters, merge
from cogvideo.training.optimizer import OptimizerConfig, make_optimizers
from cogvideo.training.run import train

pytest.importorskip("peft", reason="the extra cogvideo[small] is not installed")


def test_merged_weights_give_what_the_adapters_gave(tmp_path):
    write_weights(tmp_path / "weights")
    model, plain = load_model(tmp_path / "weights"), load_model(tmp_path / "weights")
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(11, 28, (2, 4), generator=generator)
    frames = torch.randint(10, (2, 5, 6), generator=generator)
    before = model(text, frames).detach()
    config = LoraConfig(rank=3, alpha=5)
    names = add_adapters(model, config, seed=0)
    assert len(names) == 2 * 2 * 2 * 2  # layers, channels, qkv and dense, two matrices each
    assert torch.equal(model(text, frames), before)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            weights[name].normal_(generator=generator)
    after = model(text, frames).detach()
    assert (after - before).abs().max() > 0.1
    merge(plain, {name: weights[name].detach() for name in names}, config)
    torch.testing.assert_close(plain(text, frames), after, atol=1e-4, rtol=1e-4)


def test_a_stage_trains_with_adapters_and_8_bit_states(tmp_path):
    """Merged and kept beside; a run that ends in parts equals one that does not."""
    write_tokens(tmp_path / "tokens")
    write_weights(tmp_path / "weights")
    steps = {"steps": 6, "batch_size": 4, "warmup": 1, "lr": 0.01}
    path = write_config(tmp_path, lora={"rank": 2, "merge": False}, optimizer=steps)
    train(path)
    assert (
        not (tmp_path / "run/model").exists() and losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    )
    with safe_open(tmp_path / "run/adapter/adapter.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lora"]) == {"rank": 2, "alpha": 32, "merge": False}
        assert all(2 in file.get_tensor(name).shape for name in file.keys())
    train(write_config(tmp_path, lora={"rank": 2}, optimizer=steps))  # the same run, now merged
    before, after = (load_file(tmp_path / f"{name}/model.safetensors") for name in ("weights", "run/model"))
    moved = {name.split(".", 2)[-1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{c}.{m}.weight" for c in ("spatial", "temporal") for m in ("qkv", "dense")}
    with pytest.raises(CogVideoError, match="lora was"):
        train(write_config(tmp_path, lora={"rank": 3}, optimizer=steps))


def test_8_bit_states_take_a_byte_a_weight_and_follow_adamw():
    pytest.importorskip("bitsandbytes", reason="the extra cogvideo[small] is not installed")
    config = OptimizerConfig(steps=30, batch_size=1, lr=1e-2, weight_decay=0.0)
    moved = []
    for bits in (32, 8):
        torch.manual_seed(0)
        model = torch.nn.Linear(128, 64)
        start = model.weight.detach().clone()
        (optimizer,) = make_optimizers(model, config, bits=bits)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 128)).pow(2).sum().backward()
            optimizer.step()
        moved.append((model.weight - start).detach())
    state = optimizer.state[model.weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    assert (moved[0] - moved[1]).norm() < 0.1 * moved[0].norm()
