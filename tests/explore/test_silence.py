"""A silenced model is the model whose head's output, or channel's weight, is set to nothing by hand."""

import pytest
import torch
from explore.small import CONFIGS, MASK, TEXT, clip, small_model

from cogvideo.errors import CogVideoError
from cogvideo.explore import record
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.silence import Silent, silenced
from cogvideo.runtime.quantize import Int8Linear

PARTS = {
    "a spatial head": [Silent("spatial", 1, 0)],
    "two heads of a channel, one elsewhere": [
        Silent("temporal", 0, 0), Silent("temporal", 0, 1), Silent("spatial", 1, 1),
    ],
    "channels": [Silent("temporal", 0), Silent("spatial", 1)],
}  # fmt: skip


def by_hand(model, parts, hooks):
    """Hooks that set what a head hands on to zero, and weigh a channel's output with nothing."""
    for channel, layer, head in parts:
        block = model.blocks[layer]
        size = model.config.hidden_size // model.config.num_heads

        def cut(_module, inputs, head=head, size=size):
            x = inputs[0].clone()
            x[..., head * size : (head + 1) * size] = 0
            return (x,)

        if head is not None:
            hooks.append(getattr(block, channel).dense.register_forward_pre_hook(cut))
        else:
            block.gate.data.fill_(100.0 if channel == "temporal" else -100.0)


@pytest.mark.parametrize("name", ["windowed stage 1", "stage 2"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@torch.no_grad()
def test_losses_are_those_of_a_model_changed_by_hand(name, parts):
    config = CONFIGS[name]
    model, frames = small_model(config), clip(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recording = record(model, TEXT, frames, text_mask=MASK)
    found = token_losses(recording, parts=parts)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    other, hooks = small_model(config), []
    by_hand(other, parts, hooks)
    # The words are as the whole model left them: what is silent is silent to frames.
    text = record(model, TEXT, frames, text_mask=MASK).text
    x, _, spatial, temporal = model.prepare(TEXT[None], frames[None], MASK[None].bool())
    for index, block in enumerate(other.blocks):
        assert temporal is not None
        x = block(x, text[index], spatial, temporal[index % len(temporal)])
    losses = torch.nn.functional.cross_entropy(
        other.head(x)[0].flatten(0, 1), frames.flatten(), reduction="none"
    )
    torch.testing.assert_close(found, losses.view_as(frames), atol=2e-5, rtol=1e-4)
    assert (found - token_losses(recording)).abs().max() > 0.01


def test_what_cannot_be_silenced_is_one_sentence():
    model, image = small_model(CONFIGS["stage 1"]), small_model(CONFIGS["image model"])
    for wrong, part, words in (
        (model, Silent("temporal", 2), "There is no layer 2"),
        (model, Silent("spatial", 0, 2), "There is no head 2"),
        (image, Silent("temporal", 0), "no channel 'temporal'"),
        (image, Silent("spatial", 0), "one channel, which cannot be silenced"),
    ):
        with pytest.raises(CogVideoError, match=words):
            silenced(wrong, [part])
    channel = model.blocks[0].spatial
    channel._modules["dense"] = Int8Linear(channel.dense)
    with pytest.raises(CogVideoError, match="int8"):
        silenced(model, [Silent("spatial", 0, 0)])
    assert silenced(image, []) is image
