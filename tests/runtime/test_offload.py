"""Weights in host memory: the same numbers as without offloading, and what is on the device when.

The device here is the CPU, with the same code as a GPU's save for streams and page-locked memory.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from torch import nn

from cogvideo.checkpoints.pipeline_folder import Loader
from cogvideo.checkpoints.sat import load_sat_checkpoint, our_name, read_sat_folder
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.offload import HostWeights, Offload, StreamedBlocks
from cogvideo.runtime.quantize import quantize_int8
from cogvideo.sampling import TopKStrategy, generate_first_frame

CPU = torch.device("cpu")
STAGES = partial(load_sat_checkpoint, image_tokens=256, begin_of_image=310)


def stage(name="sequential_full", dtype=torch.float32) -> CogVideoTransformer:
    return STAGES(DATA / "cogvideo" / name, dtype=dtype)


@pytest.fixture(scope="module")
def io():
    io = load_file(DATA / "cogvideo" / "sequential_full.io.safetensors")
    return io["text_ids"][:1].long(), io["frames"][:1, :2].long(), io["text_mask"][:1]


@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("prepare", [lambda m: m, quantize_int8, lambda m: m.bfloat16()])
@torch.inference_mode()
def test_outputs_are_equal_bit_for_bit(io, layers, prepare):
    with torch.inference_mode(False):
        model, other = prepare(stage()), prepare(stage("interpolation"))
        expected = model(*io), other(*io)
        offload = Offload([model, other], CPU, layers=layers)
    for _ in range(2):
        for part, logits in zip((model, other), expected, strict=True):
            offload.use(part)
            assert torch.equal(part(*io), logits)


def test_decoding_too():
    config = replace(stage().config, frame_height=4, frame_width=4)
    model, text = CogVideoTransformer(config).initialize(), torch.tensor([[258, 260, 261]])
    draw = partial(generate_first_frame, model, text, strategy=TopKStrategy(top_k=5))
    expected = draw(generator=torch.Generator().manual_seed(1))
    offload = Offload([model], CPU, layers=True)
    offload.use(model)
    assert torch.equal(draw(generator=torch.Generator().manual_seed(1)), expected)


def addresses(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}


def test_only_the_part_in_use_is_on_the_device():
    one, two = stage(), stage("interpolation")
    offload = Offload([one, two], CPU)
    home = {part: addresses(part) for part in (one, two)}
    assert not home[one] & home[two]
    offload.use(one)
    assert not addresses(one) & home[one] and addresses(two) == home[two]
    there = addresses(one)
    offload.use(one)
    assert addresses(one) == there, "nothing is copied again"
    offload.use(two)
    assert addresses(one) == home[one] and not addresses(two) & home[two]


def test_streamed_blocks_share_two_rooms(io):
    """A working block's weights lie in one room, the next block's in the other; in the end all are at home."""
    model = stage()
    offload = Offload([model], CPU, layers=True)
    offload.use(model)
    blocks = model.blocks
    assert (
        isinstance(blocks, StreamedBlocks)
        and len(blocks) == 3
        and len(list(model.parameters())) == 3 * 21 + 5
    )
    rooms = [room.data_ptr() for room in blocks.rooms]
    home, seen = [addresses(block) for block in nn.ModuleList.__iter__(blocks)], []
    for _ in range(2):
        for index, block in enumerate(blocks):
            (room,) = addresses(block)
            seen.append(rooms.index(room))
            following = blocks.host[(index + 1) % 3]
            other = blocks.rooms[1 - seen[-1]]
            assert torch.equal(other[: len(following.bytes)], following.bytes)
    assert seen == [0, 1, 0, 1, 0, 1]
    assert [addresses(block) for block in nn.ModuleList.__iter__(blocks)] == home


def test_a_pass_that_was_broken_off_spoils_nothing(io):
    model = stage()
    expected = model(*io)
    offload = Offload([model], CPU, layers=True)
    offload.use(model)
    for index, _ in enumerate(model.blocks):
        if index == 1:
            break
    assert torch.equal(model(*io), expected)


def test_tensors_side_by_side_keep_types_and_values():
    module = nn.ParameterDict({"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16()})
    module.register_buffer("c", torch.arange(-5, 5, dtype=torch.int8))
    module.register_buffer("empty", torch.zeros(0, 4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = HostWeights([*module.parameters(), *module.buffers()])
    room = torch.zeros(len(weights.bytes) + 100, dtype=torch.uint8)
    weights.load(room)
    for memory in (weights.bytes, room):
        weights.bind(memory)
        assert len(addresses(module)) == 1 or memory is weights.bytes
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
            assert tensor.data_ptr() % 2 == 0


@pytest.mark.parametrize("layers", [False, True])
def test_the_largest_part_is_compared_with_the_memory_of_the_device(monkeypatch, layers):
    def models():
        return [stage(), CogVideoTransformer(replace(stage().config, num_layers=6)).initialize()]

    first, second = models(), models()
    large = models()[1]
    blocks = [sum(p.nbytes for p in block.parameters()) for block in large.blocks]
    rest = sum(p.nbytes for p in large.parameters()) - sum(blocks)
    need = rest + (2 * max(blocks) if layers else sum(blocks))
    monkeypatch.setattr("cogvideo.runtime.memory.free_memory", lambda device: int(1.1 * need))
    Offload(first, CPU, layers=layers)
    monkeypatch.setattr("cogvideo.runtime.memory.free_memory", lambda device: int(0.95 * need))
    with pytest.raises(CogVideoError, match="largest part.*needs"):
        Offload(second, CPU, layers=layers)


@pytest.mark.parametrize("offload", ["stages", "layers"])
def test_and_so_it_is_before_anything_is_read(monkeypatch, offload):
    """What the files tell of the need is what Offload takes in the end, but for the alignment of tensors."""
    names = "sequential_full", "interpolation"
    files = [read_sat_folder(DATA / "cogvideo" / name)[0] for name in names]
    models = [stage(name) for name in names]
    need = max(map(Offload(models, CPU, layers=offload == "layers")._device_bytes, models))
    free = {"cpu": 10**9, "cuda": 0}
    monkeypatch.setattr("cogvideo.runtime.memory.free_memory", lambda device: free[torch.device(device).type])
    load = Loader("fp32", "cuda", "cpu", None, offload)
    assert 0.99 * need < max(map(load.room_of, (weights.meta for weights in files))) <= need
    for name, weights in zip(names, files, strict=True):
        ours = dict(stage(name).named_parameters())
        assert load.room_of(ours) == load.room_of({n: t for n, t in weights.meta.items() if our_name(n)})
    for weights in files:
        monkeypatch.setattr(weights, "_fill", lambda *_: pytest.fail("read before it was compared"))
    with pytest.raises(CogVideoError, match="The largest part of x needs .* GB on cuda and 0.00 GB are free"):
        load.check(files, Path("x"))
    free["cuda"] = need
    load.check(files, Path("x"))
    free["cpu"] = need // 2
    with pytest.raises(CogVideoError, match="x needs .* GB on cpu"):
        load.check(files, Path("x"))


def test_a_part_that_found_no_room_leaves_nothing_there(monkeypatch, io):
    model = stage()
    expected = model(*io)
    offload, load, calls = Offload([model], CPU), HostWeights.load, []

    def out_of_memory(self, room):
        calls.append(room)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("none left")
        load(self, room)

    monkeypatch.setattr(HostWeights, "load", out_of_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        offload.use(model)
    rooms = {room.untyped_storage().data_ptr() for room in calls}
    assert offload.present is None and not addresses(model) & rooms
    offload.use(model)
    assert offload.present is model and torch.equal(model(*io), expected)
