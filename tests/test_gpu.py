"""What runs on a GPU, on a pretended one: the CPU's tokens, and nothing of what makes CUDA slow or wrong.

Checks have a twin that breaks what they guard, and must notice.
"""

import contextlib
import gc
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended import Mixed, PretendedGpu, Refused
from torch import nn

from cogvideo import kernels
from cogvideo.config import ModelConfig
from cogvideo.evaluation.i3d import I3D
from cogvideo.model.strategies import ClusterStrategy, TopKStrategy, TopPStrategy, draw
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.device import wide_type
from cogvideo.runtime.offload import StreamedBlocks
from cogvideo.runtime.quantize import quantize_int8
from cogvideo.sampling import cuda
from cogvideo.sampling.decode import generate_first_frame, generate_key_frames, interpolate_frames
from cogvideo.sampling.halving import SAID, halving
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.superres import IterativeConfig, IterativeSuperResolution
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.hvqvae import HVQVAE

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="pretends on CPU builds of torch"),
    # host memory that outlives the pretended GPU could not be unlocked
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]

SMALL = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=4, frame_width=4, num_frames=5, text_length=8,
    first_frame_position=8, image_tokens=24, vocab_size=40, begin_of_image=39, base_positions=24,
    extra_positions=64, temporal=True,
)  # fmt: skip
PER_LAYER = 16  # kernels of a captured step, all of them torch's
JOINED = 3  # less where our kernel joins norms and sums
OUTSIDE = 12  # kernels of a captured step outside of its layers
DRAWS = 45  # kernels and launches of a step outside of its graph


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch):
    monkeypatch.setattr(cuda, "BUCKET", 32)  # several in a small model
    yield
    cuda.release()


def small(order="sequential", window=None, layers=2, dtype=torch.float32, width=16) -> CogVideoTransformer:
    config = replace(SMALL, order=order, window=window, num_layers=layers, hidden_size=width)
    model = CogVideoTransformer(config).initialize(0)
    with torch.no_grad():
        for block in model.blocks:
            assert block.gate is not None
            block.gate.normal_(generator=torch.Generator().manual_seed(1))
    return model.to(dtype)


def decode(model, device, *, wavefront=False, strategy=None, ticks=None, clips=2, text=5):
    """Tokens of a stage, on the CPU; one random stream a clip."""
    config = model.config
    model = model.to(device)
    known = torch.randint(24, (clips, 3, 16), generator=torch.Generator().manual_seed(1)).to(device)
    ids = torch.arange(24, 24 + text)[None].to(device)
    settings = {
        "strategy": strategy or TopKStrategy(top_k=5), "guidance_ids": ids[:, :3], "wavefront": wavefront,
        "generator": [torch.Generator(device).manual_seed(i) for i in range(clips)], "progress": ticks,
    }  # fmt: skip
    if config.order == "sequential":
        return generate_key_frames(model, ids, known[:, :1], num_frames=3, **settings).cpu()
    return interpolate_frames(model, ids, known, **settings).cpu()


def clusters():
    return ClusterStrategy(np.arange(24) % 6, temperature=1.0, top_k=3, temperature2=0.9)


KINDS = [("sequential", None, False), ("interpolation", 2, False), ("interpolation", 2, True)]


@pytest.mark.parametrize(("order", "window", "wavefront"), KINDS)
@pytest.mark.parametrize("make", [TopKStrategy, TopPStrategy, clusters])
def test_steps_are_replayed_to_the_cpus_tokens_without_a_wait(order, window, wavefront, make):
    waits, launches = [], []
    with PretendedGpu() as gpu:

        def tick(_):
            waits.append(gpu.waits.total())
            launches.append(gpu.launches.total())

        made = decode(small(order, window), "cuda", wavefront=wavefront, strategy=make(), ticks=tick)
    assert torch.equal(made, decode(small(order, window), "cpu", wavefront=wavefront, strategy=make()))
    assert not np.diff(waits).any(), gpu.waits
    assert np.median(np.diff(launches)) <= DRAWS * (1 + wavefront)
    assert not gpu.races and not gpu.unordered and set(gpu.attentions) == {False}
    assert 1 < len(gpu.captured) <= 4  # far fewer than steps


@pytest.mark.parametrize(("order", "window", "wavefront"), KINDS)
def test_where_our_kernel_attends_one_graph_serves_all_steps(order, window, wavefront, monkeypatch):
    """Torch takes the kernel's part, which is interpreted in tests/kernels: it reads what is seen."""
    pytest.importorskip("triton", reason="Triton runs on Linux: pip install triton")
    from cogvideo.kernels import attention

    def attend(q, k, v, bias):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    made, graphs = [], []
    kernel = SimpleNamespace(serves=attention.serves, attend=attend)
    monkeypatch.setattr(kernels, "loaded", lambda name, device: kernel if name == "attention" else None)
    for known in (lambda *_: None, cuda.kernel_for):
        monkeypatch.setattr(cuda, "kernel_for", known)
        with PretendedGpu() as gpu:
            model = small(order, window, dtype=torch.bfloat16, width=32)
            made.append(decode(model, "cuda", wavefront=wavefront))
        graphs.append(len(gpu.captured))
    assert torch.equal(*made) and graphs[0] > graphs[1] == 1


@pytest.mark.parametrize("waits", [lambda logits: logits.max().item(), lambda logits: logits[logits > 0]])
def test_a_wait_would_be_seen(waits):
    ticks = []
    with PretendedGpu() as gpu:

        def strategy(logits, step):
            waits(logits)
            return logits.argmax(-1)

        decode(small(), "cuda", strategy=strategy, ticks=lambda _: ticks.append(gpu.waits.total()))
    assert np.diff(ticks).all()


def test_a_wait_in_a_capture_is_refused(monkeypatch):
    forward = cuda.JoinedBlock.merge
    monkeypatch.setattr(
        cuda.JoinedBlock, "merge", lambda self, a, b: forward(self, a, b) * (a.sum().item() * 0 + 1)
    )
    with PretendedGpu(), pytest.warns(UserWarning, match="could not be captured .*item"):
        decode(small(), "cuda")


def test_tensors_of_both_devices_are_refused():
    with PretendedGpu():
        a, b = torch.ones(2).to("cuda"), torch.ones(2)
        with pytest.raises(Mixed):
            torch.add(a, b)
        with pytest.raises(Mixed):
            torch.rand(2, device="cuda", generator=torch.Generator())
        with pytest.raises(Refused):
            a.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wavefront", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_a_captured_step_of_48_layers_has_few_kernels(joined, wavefront, dtype, monkeypatch):
    model = small("interpolation" if wavefront else "sequential", 2 if wavefront else None, 48, dtype)
    with PretendedGpu() as gpu:
        if joined:
            monkeypatch.setattr(kernels, "loaded", ours(gpu))
        some_steps(model, wavefront=wavefront)
        most = 48 * (PER_LAYER - JOINED * joined) + OUTSIDE
        assert max(gpu.captured) <= most, (max(gpu.captured), gpu.launches.most_common(20))
        assert not any("padded" in name for name, _ in gpu.launches)


def ours(gpu):
    """In place of kernels.loaded: torch computes what our kernels of norms and of int8 do, each as one."""

    def add_norm(x, update, norm, eps, then):
        def function(x, update, weight, bias, *rest):
            out = x + nn.functional.layer_norm(update, x.shape[-1:], weight, bias, eps)
            return (
                [out, nn.functional.layer_norm(out, x.shape[-1:], rest[0], rest[1], eps)] if rest else [out]
            )

        out, *made = gpu.kernel("add_norm", function, x, update, *norm, *(then or ()))
        return out, made[0] if made else None

    def int8_linear(x, weight, scale, bias, gelu=False):
        def function(x, weight, scale, bias):
            out = nn.functional.linear(x.float(), weight.float()) * scale + bias
            return [(nn.functional.gelu(out, approximate="tanh") if gelu else out).to(x.dtype)]

        return gpu.kernel("int8_linear", function, x, weight, scale, bias)[0]

    made = {"norms": SimpleNamespace(add_norm=add_norm), "int8": SimpleNamespace(int8_linear=int8_linear)}
    return lambda name, device: made.get(name)


def test_a_captured_step_in_int8_has_as_few(monkeypatch):
    model = quantize_int8(small(layers=48, dtype=torch.bfloat16))
    with PretendedGpu() as gpu:
        monkeypatch.setattr(kernels, "loaded", ours(gpu))
        some_steps(model)
    assert max(gpu.captured) <= 48 * (PER_LAYER - JOINED) + OUTSIDE, gpu.launches.most_common(20)


@pytest.mark.parametrize("wavefront", [False, True])
def test_norms_joined_by_our_kernel_give_the_same_tokens(wavefront, monkeypatch):
    with PretendedGpu() as gpu:
        monkeypatch.setattr(kernels, "loaded", ours(gpu))
        made = decode(small("interpolation", 2), "cuda", wavefront=wavefront)
    assert any(name == "add_norm" for name, _ in gpu.launches) and not gpu.races
    assert torch.equal(made, decode(small("interpolation", 2), "cpu", wavefront=wavefront))


@pytest.mark.parametrize("careless", [False, True])
def test_the_head_is_read_as_it_lies(careless, monkeypatch):
    """Two kernels: the norm, and a product of 16 bits that gives fp32; of super-resolution as well."""
    if careless:
        monkeypatch.setattr(torch, "is_grad_enabled", lambda: True)  # widened, for gradients
    config = SuperResolutionConfig(
        num_layers=1, hidden_size=16, num_heads=2, vocab_size=20, image_tokens=10, begin_of_image=19,
        low_height=2, low_width=2, text_slots=3, low_position=3, base_positions=7,
    )  # fmt: skip
    models = small(dtype=torch.bfloat16), DirectSuperResolution.from_config(config).bfloat16()
    x = torch.randn(2, 3, 16).bfloat16()
    for model in models:
        want = model.head(x).detach()
        with PretendedGpu() as gpu, torch.inference_mode():
            given, head = x.to("cuda"), model.to("cuda").head
            before = gpu.launches.total()
            made = head(given)
            assert (gpu.launches.total() - before == 2) != careless
            assert made.dtype == torch.float32
            torch.testing.assert_close(made.cpu(), want, atol=1e-6, rtol=0)


class Enough(Exception):
    pass


def some_steps(model, wavefront=False):
    """Until the captured step of all positions at once."""

    def tick(count):
        if count > wavefront:
            raise Enough

    with pytest.raises(Enough):
        decode(model, "cuda", wavefront=wavefront, ticks=tick)


@pytest.mark.parametrize("broken", ["blocks", "text"])
def test_more_kernels_would_be_seen(monkeypatch, broken):
    """Without joined blocks; with biases whose rows are not aligned."""
    if broken == "blocks":
        monkeypatch.setattr(cuda.JoinedBlock, "of", lambda block: None)
    else:
        monkeypatch.setattr("cogvideo.sampling.decode.TEXT_MULTIPLE", 1)
    with PretendedGpu() as gpu:
        some_steps(small(layers=48))
    assert max(gpu.captured) > 48 * PER_LAYER + OUTSIDE


def test_graphs_stay_with_the_model_and_go_with_it():
    model = small()
    with PretendedGpu() as gpu:
        decode(model, "cuda")
        first = len(gpu.captured)
        other = decode(model, "cuda", text=7)
        assert len(gpu.captured) == first, "a text of another length is served by the same graphs"
        assert torch.equal(other, decode(small(), "cpu", text=7))
        kept = weakref.ref(cuda._KEPT[model].view.blocks[0].qkv)
        del model
        gc.collect()
        assert kept() is None and not cuda._KEPT


@pytest.mark.parametrize("careless", [False, True])
def test_weights_that_moved_are_captured_again(careless, monkeypatch):
    """Graphs of the old ones would be replayed, and would hold them."""
    if careless:
        monkeypatch.setattr(cuda, "_addresses", lambda model: [])
    model, other = small(), small()
    with torch.no_grad():
        for weight in other.get_submodule("blocks").parameters():
            weight.mul_(-1.5)
    with PretendedGpu() as gpu:
        decode(model, "cuda")
        first, old = len(gpu.captured), weakref.ref(cuda._KEPT[model].view.blocks[0].qkv)
        model.to("cpu").load_state_dict(other.state_dict())
        made = decode(model, "cuda")
        again = len(gpu.captured) - first
    assert (again, old() is None) == ((0, False) if careless else (first, True))
    assert torch.equal(made, decode(other, "cpu")) != careless


@pytest.mark.parametrize("careless", [False, True])
def test_a_part_that_leaves_the_gpu_takes_its_graphs_along(careless, monkeypatch):
    if careless:
        monkeypatch.setattr("cogvideo.sampling.pipeline.release", lambda: None)
    with PretendedGpu():
        assert graphs_of_a_first_frame() == (1, int(careless))


def graphs_of_a_first_frame():
    """How many models keep some when its tokens are made, and when its pixels are."""
    pipe = Pipeline.from_pretrained("demo", device="cuda", offload="stages")
    first = pipe.first_frame_tokens(PROMPT, 0)
    before = len(cuda._KEPT)
    pipe.pixels(first[:, None])
    return before, len(cuda._KEPT)


class Fails:
    """Ends the captures of steps with more than `most` rows: in their third run, the captured one."""

    def __init__(self, error, most=0):
        self.error, self.most, self.captured = error, most, cuda.StaticSteps._captured

    def __get__(self, steps, _):
        return partial(self.run, steps)

    def run(self, steps, step):
        logits, calls = steps.decoding.logits, []

        def third(*arguments):
            calls.append(1)
            if len(calls) > cuda.WARM_UPS and len(steps.decoding.tokens) > self.most:
                raise self.error
            return logits(*arguments)

        steps.decoding.logits = third
        try:
            return self.captured(steps, step)
        finally:
            del steps.decoding.logits


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("none left"), RuntimeError(SAID[1])])
@pytest.mark.parametrize("careless", [None, "unnoticed", "kept"])
def test_memory_that_runs_out_in_a_capture_halves_the_batch(careless, error, monkeypatch):
    """Whatever the end of the capture says; what the whole batch had is let go of before."""
    if careless == "unnoticed":
        monkeypatch.setattr(cuda, "out_of_memory", lambda error: False)
    monkeypatch.setattr(cuda.StaticSteps, "_captured", Fails(error, most=2))
    ids = torch.arange(24, 28).expand(4, -1)

    def make(model, part):
        device = model.word_embedding.weight.device
        streams = [torch.Generator(device).manual_seed(i) for i in range(4)][part]
        options = {"strategy": TopKStrategy(top_k=5), "generator": streams}
        return list(generate_first_frame(model, ids[part].to(device), **options).cpu())

    want, model = make(small(), slice(0, 4)), small()
    with PretendedGpu(), pytest.warns(UserWarning) as told:
        model.to("cuda")
        let_go = (lambda: None) if careless == "kept" else cuda.release
        made = halving(lambda part: make(model, part), 4, release=let_go)
        kept = [len(steps.decoding.tokens) for steps in cuda._KEPT[model].steps.values()]
    assert torch.equal(torch.stack(made), torch.stack(want))
    assert kept == {None: [2], "unnoticed": [4], "kept": [4, 2]}[careless]
    halved = "for 4 clips at once: going on with 2" in str(told[0].message)
    assert halved == (careless != "unnoticed")


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    monkeypatch.setattr(cuda.StaticSteps, "_captured", Fails(RuntimeError("no capture today")))
    with PretendedGpu() as gpu:
        with pytest.warns(UserWarning, match="no capture today"):
            made = decode(small(), "cuda")
        assert len(gpu.streams) == 1
    assert torch.equal(made, decode(small(), "cpu"))


@pytest.mark.parametrize("make", [TopKStrategy, TopPStrategy, clusters])
def test_draws_add_in_one_order(make):
    """Of one clip, too, whose single row CUDA would add in parts."""
    with PretendedGpu() as gpu:
        draw(make(), torch.randn(1, 24).to("cuda"), 0, torch.Generator("cuda").manual_seed(0))
    assert not gpu.unordered


def test_another_order_would_be_seen(monkeypatch):
    monkeypatch.setattr("cogvideo.model.strategies.running_sums", lambda p: p.cumsum(-1))
    with PretendedGpu() as gpu:
        draw(TopKStrategy(), torch.randn(1, 24).to("cuda"), 0)
        torch.zeros(3).to("cuda").scatter_add_(0, torch.tensor([1, 1]).to("cuda"), torch.ones(2).to("cuda"))
    assert {name for name, _ in gpu.unordered} == {"cumsum", "scatter_add_"}


PROMPT = ["a lion is drinking water"]


def demo(device, whole=True, **load):
    """A first frame, enlarged, to pixels and back to tokens; `whole`: a key frame and those between, too."""
    pipe = Pipeline.from_pretrained("demo", device=device, **load)
    first = pipe.first_frame_tokens(PROMPT, 0)
    large = pipe.upsample(first[:, None], PROMPT, 0)
    made = [first, large, pipe.tokens(pipe.pixels(large))]
    if whole:
        keys = pipe.later_key_frame_tokens(first[:, None].repeat(1, 4, 1), PROMPT, 4.0, 0)
        made += [keys, pipe.interpolate_once(keys, PROMPT, 4.0, 1, 0)]
    return [t.cpu() for t in made]


@pytest.fixture(scope="module")
def of_the_cpu():
    return demo("cpu")


@pytest.mark.parametrize(("offload", "whole"), [("none", True), ("stages", False), ("layers", False)])
def test_the_demo_gives_the_cpus_tokens(of_the_cpu, offload, whole):
    with PretendedGpu() as gpu:
        made = demo("cuda", whole, offload=offload)
    assert all(map(torch.equal, made, of_the_cpu))
    assert not gpu.races and not gpu.unordered and bool(gpu.captured) == (offload != "layers")


@pytest.mark.parametrize(("dtype", "offload"), [("bf16", "none"), ("fp16", "stages"), ("int8", "layers")])
def test_the_demo_in_other_types(of_the_cpu, dtype, offload):
    with PretendedGpu() as gpu:
        first, *_ = demo("cuda", False, dtype=dtype, offload=offload)
    assert not gpu.races and not gpu.unordered
    same = float((first == of_the_cpu[0]).float().mean())
    assert same > 0.5, same  # rounding turns some tokens, and those after them follow


def stream_some_blocks():
    blocks = StreamedBlocks(nn.ModuleList(nn.Linear(8, 8) for _ in range(5)), torch.device("cuda"))
    x = torch.ones(1, 8).to("cuda")
    for stop in (9, 2, 9, 0):
        blocks.load()
        rooms = list(blocks.rooms)
        for index, block in enumerate(blocks):
            block(x)
            if index == stop:
                break
        blocks.unload()
        for room in rooms:
            room.zero_()


@pytest.mark.parametrize("careless", [False, True])
def test_streamed_blocks_have_no_races(careless, monkeypatch):
    """Also where a pass breaks off and the memory is given to others; without a wait there are some."""
    if careless:
        monkeypatch.setattr("pretended.Stream.wait_stream", lambda self, other: None)
    with PretendedGpu() as gpu:
        stream_some_blocks()  # what it locks is unlocked before the pretended GPU is gone
    assert bool(gpu.races) == careless, gpu.races


def test_iterative_super_resolution_waits_for_nothing_inside():
    config = IterativeConfig(
        num_layers=1, hidden_size=16, num_heads=2, vocab_size=20, image_tokens=10, begin_of_image=19,
        height=6, width=6, text_slots=3, base_positions=3,
    )  # fmt: skip
    model = IterativeSuperResolution.from_config(config)
    text, tokens = torch.tensor([[11, 12, 13]] * 2), torch.randint(10, (2, 36))
    waits = []

    def run(device, note):
        def strategy(logits, step):
            note()
            return logits.argmax(-1)

        return model.to(device)(text.to(device), tokens.to(device), strategy=strategy).cpu()

    want = run("cpu", lambda: None)
    with PretendedGpu() as gpu:
        made = run("cuda", lambda: waits.append(gpu.waits.total()))
    assert torch.equal(made, want) and len(waits) == 12 and len(set(waits[2:])) == 1, gpu.waits


@pytest.mark.parametrize("careless", [False, True])
def test_i3d_and_the_frame_encoder_do_not_round(careless, monkeypatch):
    if careless:
        for module in ("evaluation.i3d", "tokenizers.frames"):
            monkeypatch.setattr(f"cogvideo.{module}.full_precision", lambda weight: contextlib.nullcontext())
    network = I3D()
    network.stages = nn.Sequential(nn.Conv3d(3, 1024, 1, stride=(1, 56, 56)))
    frames = FrameTokenizer(HVQVAE(8, 4, 32, (1,), ((1,),)))
    video, picture = torch.zeros(1, 3, 9, 224, 224), torch.zeros(1, 3, 4, 4)
    with PretendedGpu() as gpu, torch.inference_mode():
        network.to("cuda")(video)
        frames.to("cuda").encode(picture.to("cuda"), 1)
    assert set(gpu.convolutions) == {(torch.float32, careless)}


@pytest.mark.parametrize(("order", "window"), [("sequential", None), ("interpolation", 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_training_gives_the_cpus_losses(order, window, dtype, tolerance):
    text, frames = torch.tensor([[25, 26, 27]] * 2), torch.randint(24, (2, 5, 16))
    want = small(order, window).frame_losses(text, frames).detach()
    with PretendedGpu() as gpu, torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
        made = small(order, window).to("cuda").frame_losses(text.to("cuda"), frames.to("cuda"))
        assert made.requires_grad
        torch.testing.assert_close(made.detach().cpu(), want, atol=tolerance, rtol=0)
    assert set(gpu.attentions) == {False}, "cuDNN's gradients with masks have been wrong"


def test_cudnns_attention_would_be_seen(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    text, frames = torch.tensor([[25, 26, 27]]), torch.randint(24, (1, 5, 16))
    with PretendedGpu() as decoding:
        some_steps(small())
    with PretendedGpu() as training:
        small().to("cuda").frame_losses(text.to("cuda"), frames.to("cuda"))
    assert set(decoding.attentions) == set(training.attentions) == {True}


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_old_gpus_take_fp16(capability, dtype):
    assert wide_type("cuda") == torch.bfloat16  # planned for, where there is none
    with PretendedGpu(capability):
        assert wide_type("cuda") == dtype
