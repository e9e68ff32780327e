"""Direct super-resolution against the release's outputs, and in its own invariants."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from einops import rearrange
from safetensors.torch import load_file
from superres.released import most_likely, write_released

from cogvideo.errors import CogVideoError
from cogvideo.model.strategies import TopKStrategy
from cogvideo.superres import DirectSuperResolution, SuperResolutionConfig

TINY = SuperResolutionConfig(
    num_layers=2, hidden_size=16, num_heads=2, vocab_size=20, image_tokens=10, begin_of_image=19,
    low_height=2, low_width=3,
    text_slots=6, low_position=7, base_positions=13,
)  # fmt: skip


def inputs(batch=2, length=4):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(10, 19, (batch, length), generator=generator)
    low, high = (torch.randint(0, 10, (batch, n), generator=generator) for n in (6, 54))
    return text, low, high


@pytest.mark.parametrize(("case", "length"), [("a", 17), ("b", 95)])
@torch.no_grad()
def test_equals_the_release(case, length, tmp_path):
    folder = write_released(tmp_path / "dsr", load_file(DATA / "dsr" / "checkpoint.safetensors"))
    model = DirectSuperResolution.from_sat(folder, num_heads=2, image_tokens=256, begin_of_image=290)
    io = load_file(DATA / "dsr" / "io.safetensors")
    _, text, low, high = io[f"{case}.tokens"].split((96 - length, length, 400, 3600), 1)
    logits = model.logits(text, low, high)
    assert logits.dtype == torch.float32 and logits.shape == (len(text), 3600, 256)
    drawn = io[f"{case}.sample_kind"] == 3
    positions = io[f"{case}.sample_positions"].long()[drawn] - 496
    torch.testing.assert_close(logits[:, positions], io[f"{case}.logits"][:, drawn], atol=1e-4, rtol=0)
    text, low = io[f"{case}.seq0"].split((length, 400), 1)
    assert torch.equal(model(text, low, strategy=most_likely), io[f"{case}.fill_tokens"])


@torch.no_grad()
def test_padded_texts_give_the_logits_of_the_bare_ones():
    model = DirectSuperResolution.from_config(TINY).double()
    text, low, high = inputs()
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    together = model.logits(text, low, high, text_mask=mask)
    torch.testing.assert_close(together[:1], model.logits(text[:1, 2:], low[:1], high[:1]))
    torch.testing.assert_close(together[1:], model.logits(text[1:], low[1:], high[1:]))
    nothing = model.logits(text, low, high, text_mask=torch.zeros_like(mask))
    torch.testing.assert_close(nothing, model.logits(text[:, :0], low, high))


@torch.no_grad()
def test_who_sees_whom():
    model = DirectSuperResolution.from_config(
        replace(TINY, num_layers=1, low_height=6, low_width=6, base_positions=43)
    )
    model.word_embedding.weight.mul_(10)
    text, low = inputs()[0], torch.randint(0, 10, (2, 36))
    before = model.hidden_states(text, low)
    other_text = model.hidden_states(text.flip(1), low)
    assert torch.equal(before, other_text)  # in one layer no enlarged position sees the text
    changed = (model.hidden_states(text, (low + F.one_hot(torch.tensor(14), 36)) % 10) - before).abs().amax(
        (0, 2)
    ) > 0
    rows, columns = rearrange(changed, "(y x) -> y x", x=18).nonzero().unbind(1)
    # low position (2, 2) lies in the 5x5 windows around low positions 0..4 = enlarged positions 0..14
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == list(range(15))


def test_loss_is_the_mean_cross_entropy_and_reaches_every_used_weight():
    model = DirectSuperResolution.from_config(TINY)
    text, low, high = inputs()
    loss = model.loss(text, low, high)
    logits = model.logits(text, low, torch.full_like(high, 19))
    expected = -logits.log_softmax(-1).gather(-1, high[..., None]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    # The last layer's low-resolution positions reach nobody beyond their keys and values. A bias of the keys
    # moves all scores of a query alike, so that the gradient of qkv.bias is partly zero.
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == ["blocks.1.given.dense.weight", "blocks.1.given.dense.bias"]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_draws_depend_on_the_generator_of_each_sample_alone():
    model = DirectSuperResolution.from_config(TINY)
    text, low, _ = inputs()
    strategy = TopKStrategy(top_k=5)
    both = model(
        text, low, strategy=strategy, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)]
    )
    alone = model(text[1:], low[1:], strategy=strategy, generator=torch.Generator().manual_seed(4))
    assert both.shape == (2, 54) and both.dtype == torch.int64
    assert torch.equal(both[1:], alone)


def test_save_and_load(tmp_path):
    model = DirectSuperResolution.from_config(TINY, seed=5)
    text, low, _ = inputs()
    model.save_pretrained(tmp_path / "whole")
    again = DirectSuperResolution.from_pretrained(tmp_path / "whole")
    assert again.config == TINY
    assert torch.equal(again.logits(text, low), model.logits(text, low))
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = DirectSuperResolution.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(half.logits(text, low), model.logits(text, low), atol=1e-2, rtol=0)


def spoil_json(folder):
    (folder / "config.json").write_text("{")


def spoil_config(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"hidden_size": 32}))


def spoil_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_json, "damaged"),
        (spoil_config, "do not belong together"),
        (spoil_weights, "damaged"),
        (drop_weights, "missing"),
    ],
)
def test_spoiled_folders(spoil, message, tmp_path):
    DirectSuperResolution.from_config(TINY).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CogVideoError, match=message):
        DirectSuperResolution.from_pretrained(tmp_path)


def test_released_weights_that_do_not_fit(tmp_path):
    weights = load_file(DATA / "dsr" / "checkpoint.safetensors")
    load = partial(DirectSuperResolution.from_sat, image_tokens=256, begin_of_image=290)
    lacking = {name: w for name, w in weights.items() if not name.startswith("mixins.attention_plus.dense.1")}
    with pytest.raises(CogVideoError, match="2 weights are missing"):
        load(lacking, num_heads=2)
    image_model = {name: w for name, w in weights.items() if not name.startswith("mixins.")}
    with pytest.raises(CogVideoError, match="no super-resolution checkpoint"):
        load(image_model, num_heads=2)
    with pytest.raises(CogVideoError, match="not a released checkpoint"):
        load(tmp_path, num_heads=2)
    with pytest.raises(CogVideoError, match="multiple of num_heads 3"):
        load(weights, num_heads=3)


def test_wrong_shapes():
    model = DirectSuperResolution.from_config(TINY)
    text, low, high = inputs(length=6)
    with pytest.raises(CogVideoError, match="at most 5 tokens"):
        model.logits(text, low)
    with pytest.raises(CogVideoError, match="low_res should be"):
        model.logits(text[:, :5], low[:, :5])
    with pytest.raises(CogVideoError, match="high_res should be"):
        model.loss(text[:, :5], low, high[:1])
    with pytest.raises(CogVideoError, match="text_mask"):
        model.logits(text[:, :5], low, text_mask=torch.ones(2, 4))
    with pytest.raises(CogVideoError, match="base_positions"):
        replace(TINY, base_positions=12)
