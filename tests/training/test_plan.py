"""What a training will need: against the model itself, files on disk, and what torch keeps for gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.tiny_tokens import IMAGE, write_config, write_tokens, write_weights

from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB
from cogvideo.training.lora import ATTENTION, LoraConfig
from cogvideo.training.optimizer import OptimizerConfig
from cogvideo.training.plan import KEPT, RECOMPUTED, Plan, memory, numbers, plan, report, sample_bytes

ROOT = Path(__file__).parents[2]
ONE = OptimizerConfig(steps=10, batch_size=1)


def test_numbers_are_the_model_s():
    model = CogVideoTransformer(IMAGE.video())
    matrices, others, trained = numbers(Plan(ONE, model=IMAGE.video()))
    assert trained == sum(p.numel() for p in model.temporal_parameters().values())
    assert matrices + others + trained == sum(p.numel() for p in model.parameters())
    peft = pytest.importorskip("peft", reason="the extra cogvideo[small] is not installed")
    config = peft.LoraConfig(r=3, target_modules=ATTENTION)
    peft.inject_adapter_in_model(config, model)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert numbers(Plan(ONE, model=IMAGE.video(), lora=LoraConfig(rank=3)))[2] == adapters


def test_a_released_stage_trains_with_adapters_within_24_gb():
    card = Plan(ONE, lora=LoraConfig(), optimizer_bits=8)
    assert 16 * GB < sum(memory(card).values()) < 22 * GB
    assert sum(memory(replace(card, lora=None)).values()) > 30 * GB  # the temporal channel itself
    eight = replace(card, optimizer=replace(ONE, batch_size=8), gpus=8)
    assert memory(eight)["frozen weights"] * 8 == memory(card)["frozen weights"]


@pytest.mark.parametrize(("recompute", "factor"), [(True, RECOMPUTED), (False, KEPT)])
def test_blocks_keep_as_many_bytes_as_is_said(recompute, factor):
    def kept(layers: int) -> int:
        model = CogVideoTransformer(replace(IMAGE.video(), num_layers=layers, hidden_size=128)).initialize(0)
        own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.requires_grad_(False)
            for weight in model.temporal_parameters().values():
                weight.requires_grad_(True)
            model.frame_losses(
                torch.full((8, 6), 11), torch.zeros(8, 5, 6, dtype=torch.int64), recompute=recompute
            )
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    positions = 8 * (6 + 5 * 6)
    assert (kept(3) - kept(1)) / 2 / positions / 128 == pytest.approx(factor, rel=0.15)


def test_disk_and_settings(tmp_path):
    tokens, _ = write_tokens(tmp_path / "tokens", clips=500), write_weights(tmp_path / "weights")
    shard = (tokens / "shard-00000.safetensors").stat().st_size
    assert 0.5 < shard / 500 / sample_bytes(IMAGE.video()) < 1.2
    text = plan(write_config(tmp_path), [], None, 1)
    assert "epochs of 1,000" in text and "stage1: 2 layers, width 16" in text
    paper = plan(ROOT / "configs/stage1.yaml", [], None, 8)
    assert "48 layers, width 3072, 7.72 G weights" in paper and "1.19 epochs of 5,400,000" in paper
    with pytest.raises(CogVideoError, match="super-resolution"):
        plan(write_config(tmp_path, stage="superres"), [], None, 1)
    assert "\n" in report(Plan(ONE))
    with pytest.raises(CogVideoError, match="mfu"):
        Plan(ONE, mfu=0)
