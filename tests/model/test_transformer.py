"""The model against the release's outputs, against a dense computation, and in its own invariants."""

from dataclasses import replace

import pytest
import torch
from conftest import DATA
from einops import rearrange
from safetensors.torch import load_file

from cogvideo.checkpoints.native import inherit_image_model, load_model, save_model
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer


def load(name: str) -> CogVideoTransformer:
    return load_sat_checkpoint(DATA / "cogvideo" / name, image_tokens=256, begin_of_image=310)


TINY = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=3, frame_width=4, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=18,
    temporal=False,
)  # fmt: skip


@pytest.mark.parametrize("name", ["sequential_full", "sequential_window", "interpolation"])
@torch.no_grad()
def test_training_forward_equals_the_release(name):
    model, io = load(name), load_file(DATA / "cogvideo" / f"{name}.io.safetensors")
    inputs = io["text_ids"], io["frames"], io["text_mask"]
    logits = model(*inputs)
    assert logits.dtype == torch.float32 and logits.shape == (2, 2000, 256)
    torch.testing.assert_close(logits[:, io["logit_positions"].long()], io["logits"], atol=1e-4, rtol=0)
    losses = rearrange(model.token_losses(*inputs), "b t n -> b (t n)")
    torch.testing.assert_close(losses, io["token_losses"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.loss(*inputs), io["loss"][0], atol=1e-4, rtol=0)


def dense_forward(model: CogVideoTransformer, text_ids, frames):
    """One sequence, full score matrices, masks as -10000, straight from the reference page; no padding."""
    c = model.config
    length, n, t = text_ids.shape[1], c.frame_tokens, frames.shape[1]
    begin = torch.full_like(frames[..., :1], c.begin_of_image)
    ids = torch.cat([text_ids, rearrange(torch.cat([begin, frames[..., :-1]], -1), "b t n -> b (t n)")], 1)
    first = c.first_frame_position
    positions = [
        model.base_position_embedding.weight[:length],
        model.base_position_embedding.weight[first : first + n],
    ]
    if t > 1:
        positions.append(model.extra_position_embedding.weight[: (t - 1) * n])
    x = model.word_embedding(ids) + torch.cat(positions)
    total = length + t * n
    spatial = torch.zeros(total, total, dtype=torch.bool)
    spatial[:, :length] = True
    for time in range(t):
        place = slice(length + time * n, length + (time + 1) * n)
        spatial[place, place] = masks.spatial_visible(c)[time]

    def attention(channel, h, visible):
        q, k, v = channel.qkv(h).chunk(3, -1)
        q, k, v = (rearrange(part, "b p (h d) -> b h p d", h=c.num_heads) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        out = torch.where(visible, scores, torch.tensor(-10000.0)).softmax(-1) @ v
        return channel.dense(rearrange(out, "b h p d -> b p (h d)"))

    for index, block in enumerate(model.blocks):
        h = block.attention_norm(x)
        out = attention(block.spatial, h, spatial)
        if c.temporal:
            visible = torch.ones(total, total, dtype=torch.bool)
            visible[length:, length:] = masks.temporal_visible(c, index)[: t * n, : t * n]
            later = attention(block.temporal, h, visible)
            share = block.gate.sigmoid()
            out = torch.cat([out[:, :length], (share * out + (1 - share) * later)[:, length:]], 1)
        x = x + block.attention_out_norm(out)
        x = x + block.mlp_out_norm(block.mlp(block.mlp_norm(x)))
    return model.head(x[:, length:])


@pytest.mark.parametrize("order", ["sequential", "interpolation"])
@pytest.mark.parametrize("window", [None, 2, 3])
@pytest.mark.parametrize("frames", [2, 4, 5])
@torch.no_grad()
def test_forward_equals_a_dense_computation_at_other_geometries(order, window, frames):
    model = CogVideoTransformer(TINY.video(num_frames=frames, order=order, window=window)).initialize(1)
    for block in model.blocks:
        block.gate.normal_(generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(10, 19, (2, 4), generator=generator)
    tokens = torch.randint(10, (2, frames, 12), generator=generator)
    torch.testing.assert_close(model(text, tokens), dense_forward(model, text, tokens), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing():
    model = CogVideoTransformer(TINY.video()).initialize(4)
    text, tokens = (
        torch.tensor([[12, 13, 14]]),
        torch.randint(10, (1, 5, 12), generator=torch.Generator().manual_seed(0)),
    )
    padded, mask = torch.tensor([[11, 11, 12, 13, 14]]), torch.tensor([[0, 0, 1, 1, 1]])
    torch.testing.assert_close(model(text, tokens), model(padded, tokens, mask), atol=1e-5, rtol=0)


@torch.no_grad()
def test_later_frames_do_not_change_earlier_logits():
    model = CogVideoTransformer(TINY.video(window=2)).initialize(5)
    text, tokens = (
        torch.tensor([[12, 13]]),
        torch.randint(10, (1, 5, 12), generator=torch.Generator().manual_seed(0)),
    )
    changed = tokens.clone()
    changed[:, 3, 4:] = (changed[:, 3, 4:] + 1) % 10
    before, after = model(text, tokens), model(text, changed)
    upto = 3 * 12 + 5  # place j sees tokens up to j-1
    assert torch.equal(before[:, :upto], after[:, :upto]) and not torch.equal(
        before[:, upto:], after[:, upto:]
    )


@torch.no_grad()
def test_inheriting_keeps_the_image_model_and_copies_it_into_the_new_channel():
    image = CogVideoTransformer(TINY).initialize(6)
    video = inherit_image_model(image, config=TINY.video(num_frames=5))
    inherited = image.state_dict()
    assert all(torch.equal(video.state_dict()[name], weight) for name, weight in inherited.items())
    assert set(video.state_dict()) - set(inherited) == set(video.temporal_parameters())
    for block in video.blocks:
        assert torch.equal(block.temporal.qkv.weight, block.spatial.qkv.weight) and not block.gate.any()
    frame = image.base_position_embedding.weight[6:18]
    assert torch.equal(video.extra_position_embedding.weight[12:24], frame)
    # With the temporal channel muted (a = 1), frame 0 is the image model's frame.
    for block in video.blocks:
        block.gate.fill_(1e4)
    text, tokens = (
        torch.tensor([[12, 13]]),
        torch.randint(10, (1, 5, 12), generator=torch.Generator().manual_seed(0)),
    )
    assert torch.equal(video(text, tokens)[:, :12], image(text, tokens[:, :1]))


def test_only_the_temporal_channel_is_trained():
    video = inherit_image_model(CogVideoTransformer(TINY).initialize(7), config=TINY.video())
    trained = video.temporal_parameters()
    for name, parameter in video.named_parameters():
        parameter.requires_grad_(name in trained)
    video.loss(torch.tensor([[12, 13]]), torch.zeros(1, 5, 12, dtype=torch.long)).backward()
    assert {name for name, p in video.named_parameters() if p.grad is not None} == set(trained)


def test_inheriting_from_another_width_is_refused():
    with pytest.raises(CogVideoError, match="hidden_size"):
        inherit_image_model(
            CogVideoTransformer(TINY).initialize(), config=replace(TINY.video(), hidden_size=32)
        )


def test_native_folder_round_trip(tmp_path):
    model = CogVideoTransformer(TINY.video()).initialize(8)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def spoil(folder, how):
    path = folder / "model.safetensors"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "not weights":
        path.write_bytes(b"hello")
    elif how == "missing":
        path.unlink()
    elif how == "bad config":
        (folder / "config.json").write_text("{")
    elif how == "too few layers":
        config = (folder / "config.json").read_text().replace('"num_layers": 2', '"num_layers": 1')
        (folder / "config.json").write_text(config)
    else:
        other = replace(TINY.video(), hidden_size=32)
        save_model(CogVideoTransformer(other).initialize(), folder)
        config = (folder / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 16')
        (folder / "config.json").write_text(config)


@pytest.mark.parametrize(
    "how", ["truncated", "not weights", "missing", "bad config", "wrong shape", "too few layers"]
)
def test_spoilt_folders_are_refused_in_one_sentence(tmp_path, how):
    save_model(CogVideoTransformer(TINY.video()).initialize(), tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(CogVideoError) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_wrong_inputs_are_refused():
    model = CogVideoTransformer(TINY.video()).initialize()
    with pytest.raises(CogVideoError, match="5 frames of 12"):
        model(torch.tensor([[12]]), torch.zeros(1, 6, 12, dtype=torch.long))
    with pytest.raises(CogVideoError, match="text_ids"):
        model(torch.tensor([12]), torch.zeros(1, 5, 12, dtype=torch.long))
