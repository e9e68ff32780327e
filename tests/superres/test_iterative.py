"""Iterative super-resolution against the release's outputs, and in its own invariants."""

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from superres.released import most_likely, write_released

from cogvideo.errors import CogVideoError
from cogvideo.superres import IterativeConfig, IterativeSuperResolution

TINY = IterativeConfig(
    num_layers=2, hidden_size=16, num_heads=2, vocab_size=20, image_tokens=10, begin_of_image=19, height=7,
    width=8,
    text_slots=3, base_positions=3,
)  # fmt: skip


@pytest.mark.parametrize(("case", "length"), [("a", 11), ("b", 16)])
@torch.no_grad()
def test_equals_the_release(case, length, tmp_path):
    folder = write_released(tmp_path / "itersr", load_file(DATA / "itersr" / "checkpoint.safetensors"))
    model = IterativeSuperResolution.from_sat(folder, num_heads=2, image_tokens=256, begin_of_image=290)
    io = load_file(DATA / "itersr" / "io.safetensors")
    _, text, tokens = io[f"{case}.tokens"].split((16 - length, length, 3600), 1)
    logits = model.logits(text, tokens)
    assert logits.dtype == torch.float32 and logits.shape == (len(text), 3600, 256)
    drawn = io[f"{case}.sample_kind"] == 3
    positions = io[f"{case}.sample_positions"].long()[drawn] - 16
    torch.testing.assert_close(logits[:, positions], io[f"{case}.logits"][:, drawn], atol=1e-4, rtol=0)
    assert torch.equal(model.fill(text, tokens, strategy=most_likely), io[f"{case}.fill_tokens"])


@pytest.mark.parametrize("case", ["a", "b"])
def test_schedule_equals_the_release(case):
    """All six steps by arg-max; a strategy also sees how many positions each step draws."""
    weights = load_file(DATA / "itersr" / "checkpoint.safetensors")
    model = IterativeSuperResolution.from_sat(weights, num_heads=2, image_tokens=256, begin_of_image=290)
    io = load_file(DATA / "itersr" / "io.safetensors")
    counts = []

    def strategy(logits, step):
        counts.append((step, len(logits)))
        return logits.argmax(-1)

    text, image = io[f"{case}.text"][:1], io[f"{case}.image"][:1]
    before = image.clone()
    assert torch.equal(model(text, image, strategy=strategy)[0], io[f"{case}.sched_outputs"][-1].long())
    assert counts == list(enumerate((2300, 1900, 1500, 1000, 600, 200)))
    assert torch.equal(image, before)
    if case == "b":
        completed = model(text, image, strategy=most_likely, redraw=io["b.input_mask"])
        assert torch.equal(completed[0], io["b.masked_sched_final"].long())


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, 19, (2, 5), generator=generator), torch.randint(
        0, 10, (2, 56), generator=generator
    )


@torch.no_grad()
def test_the_first_real_tokens_of_a_text_count():
    model = IterativeSuperResolution.from_config(TINY).double()
    text, tokens = inputs()
    torch.testing.assert_close(model.logits(text, tokens), model.logits(text[:, :3], tokens))
    mask = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    together = model.logits(text, tokens, text_mask=mask)
    torch.testing.assert_close(together[:1], model.logits(text[:1, 3:], tokens[:1]))
    torch.testing.assert_close(together[1:], model.logits(text[1:, 1:4], tokens[1:]))
    nothing = model.logits(text, tokens, text_mask=torch.zeros_like(mask))
    torch.testing.assert_close(nothing, model.logits(text[:, :0], tokens))


def test_default_strategy_is_the_releases_top_k():
    model = IterativeSuperResolution.from_config(TINY)
    text, tokens = inputs()
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    drawn = model(text, tokens, generator=generators)
    alone = model(text[1:], tokens[1:], generator=torch.Generator().manual_seed(4))
    assert torch.equal(drawn[1:], alone)
    assert drawn.max() < 10 and torch.equal(drawn[:, 0], tokens[:, 0])  # the corner is never drawn again


def test_save_load_and_gradients(tmp_path):
    model = IterativeSuperResolution.from_config(TINY, seed=5)
    text, tokens = inputs()
    model.save_pretrained(tmp_path)
    again = IterativeSuperResolution.from_pretrained(tmp_path)
    assert again.config == TINY and torch.equal(again.logits(text, tokens), model.logits(text, tokens))
    model.logits(text, tokens).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mistakes(tmp_path):
    model = IterativeSuperResolution.from_config(TINY)
    text, tokens = inputs()
    with pytest.raises(CogVideoError, match="tokens should be"):
        model.logits(text, tokens[:, 1:])
    with pytest.raises(CogVideoError, match="text_ids should be"):
        model.logits(text[0], tokens)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CogVideoError, match="damaged"):
        IterativeSuperResolution.from_pretrained(tmp_path)
