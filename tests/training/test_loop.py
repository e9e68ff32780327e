"""The training loop: what it trains, that a killed run resumes undisturbed, what it refuses."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.io import replacing
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.training.loop import Job, _StopOnTerm, fit
from cogvideo.training.optimizer import Muon, OptimizerConfig

TINY = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=2, frame_width=3, num_frames=1, text_length=4,
    first_frame_position=4, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=10,
    temporal=False,
)  # fmt: skip


def data(step: int, frames: int):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(10, 19, (4, 3), generator=generator), torch.randint(
        3, (4, frames, 6), generator=generator
    )


def stage1() -> CogVideoTransformer:
    image = CogVideoTransformer(TINY).initialize(0)
    return inherit_image_model(image, config=TINY.video(num_frames=3), seed=0)


def run(folder: Path, steps: int, *, until: int | None = None, muon_lr: float = 0.0) -> CogVideoTransformer:
    """Train for `steps`; with `until` the loss raises at that step, as a crash would."""
    model = stage1()

    def loss(step: int):
        if step == until:
            raise RuntimeError("crash")
        return model.loss(*data(step, 3))

    config = OptimizerConfig(steps=steps, batch_size=4, warmup=2, muon_lr=muon_lr)
    trained = model.temporal_parameters().values()
    fit(Job(model, trained, loss, config, folder, {"x": 1}, checkpoint_seconds=0, log_every=1))
    return model


@pytest.mark.parametrize("muon_lr", [0.0, 1e-2])
def test_a_crashed_run_resumes_to_the_same_weights_and_losses(tmp_path, muon_lr):
    straight = run(tmp_path / "a", 8, muon_lr=muon_lr)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "b", 8, until=5, muon_lr=muon_lr)
    resumed = run(tmp_path / "b", 8, muon_lr=muon_lr)
    assert all(
        torch.equal(a, b)
        for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )

    def losses(name):
        return [
            line.split('"peak_gb"')[0]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]

    assert losses("a") == losses("b") and len(losses("a")) == 8


def test_the_base_stays_bit_for_bit_and_the_new_channel_moves(tmp_path):
    before, after = stage1(), run(tmp_path, 3)
    trained = set(before.temporal_parameters())
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        assert torch.equal(old, new) == (name not in trained), name


def test_the_loss_falls(tmp_path):
    model = stage1()
    start = model.loss(*data(0, 3)).item()
    config = OptimizerConfig(steps=60, batch_size=4, warmup=5, lr=5e-3)
    trained = model.temporal_parameters().values()
    fit(Job(model, trained, lambda step: model.loss(*data(step % 2, 3)), config, tmp_path, {}))
    assert model.loss(*data(0, 3)).item() < start - 0.3


def test_a_nan_loss_stops_with_a_sentence_and_keeps_the_checkpoint(tmp_path):
    model = stage1()

    def loss(step: int):
        return model.loss(*data(step, 3)) * (float("nan") if step == 2 else 1)

    trained, config = model.temporal_parameters().values(), OptimizerConfig(steps=4, batch_size=4)
    with pytest.raises(CogVideoError, match="step 2"):
        fit(Job(model, trained, loss, config, tmp_path, {}, checkpoint_seconds=0))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_nan_loss_before_the_first_checkpoint_promises_none(tmp_path):
    model = nn.Linear(2, 1)
    job = Job(
        model, model.parameters(), lambda step: model.weight.sum() + float("nan"),
        OptimizerConfig(steps=4, batch_size=4), tmp_path, {},
    )  # fmt: skip
    with pytest.raises(CogVideoError, match="loss is nan at step 0, before the first checkpoint") as error:
        fit(job)
    assert "kept" not in str(error.value)


def test_a_disk_that_is_full_at_the_start_is_one_sentence(tmp_path):
    model = nn.Linear(2, 1)
    config = OptimizerConfig(steps=4, batch_size=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file may hold anything
    try:
        with pytest.raises(CogVideoError, match="cannot be written") as error:
            fit(Job(model, model.parameters(), lambda step: model.weight.sum(), config, tmp_path / "run", {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and "kept" not in str(error.value)


def test_other_settings_are_refused(tmp_path):
    run(tmp_path, 2)
    model = stage1()
    trained, config = model.temporal_parameters().values(), OptimizerConfig(steps=4, batch_size=4)
    with pytest.raises(CogVideoError, match="other settings"):
        fit(Job(model, trained, lambda step: model.loss(*data(step, 3)), config, tmp_path, {"x": 2}))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(CogVideoError, match="damaged"):
        run(tmp_path, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"lr": float("nan")},
        {"final_lr": 2.0},
    ],
)
def test_settings_of_the_optimiser_that_cannot_be_used_are_named(change):
    with pytest.raises(CogVideoError, match=next(iter(change))):
        OptimizerConfig(steps=1, batch_size=1, **change)


def test_only_what_a_disk_does_is_called_so(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), replacing(tmp_path / "x", one_writer=True):
        (tmp_path / "x.part").touch()
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(CogVideoError, match="make room"), replacing(tmp_path / "x"):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")
    assert not list(tmp_path.iterdir())


def test_learning_rate_warms_up_and_follows_one_cosine():
    config = OptimizerConfig(steps=1000, batch_size=1, lr=1.0, warmup=100, final_lr=0.1)
    assert config.rate_at(49) == pytest.approx(0.5, rel=0.02)
    assert config.rate_at(500) == pytest.approx(0.55) and config.rate_at(1000) == pytest.approx(0.1)


ENDLESS = """
import sys; sys.path.insert(0, {tests!r})
import pathlib, time, torch
from torch import nn
from cogvideo.training.loop import Job, fit
from cogvideo.training.optimizer import OptimizerConfig
model = nn.Linear(2, 1)
def loss(step):
    time.sleep(0.02); print(step, flush=True)
    return model(torch.ones(2)).sum() ** 2
config, folder = OptimizerConfig(steps=10**6, batch_size=1), pathlib.Path(sys.argv[1])
fit(Job(model, model.parameters(), loss, config, folder, {{}}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_stop(tmp_path, number):
    script = ENDLESS.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=600)
    assert b"Stopped at step" in errors
    assert (b"KeyboardInterrupt" in errors) == (
        number == signal.SIGINT
    )  # which the command line turns into exit code 130
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] >= 5


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), _StopOnTerm() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_muon_moves_linear_weights_by_an_orthogonal_step_and_adamw_the_rest(tmp_path):
    """The first step has nearly equal singular values, whatever the gradient's are (Jordan et al. 2024)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16))
    before = [p.detach().clone() for p in model.parameters()]
    x, scale = torch.randn(64, 24) * torch.logspace(-1, 1, 24), torch.randn(16)
    config = OptimizerConfig(
        steps=1, batch_size=64, lr=1e-3, muon_lr=1e-2, warmup=0, weight_decay=0.0, clip=1e9
    )
    fit(Job(model, model.parameters(), lambda _: (model(x) * scale).pow(3).mean(), config, tmp_path, {}))
    moved = [(new - old).detach() for new, old in zip(model.parameters(), before, strict=True)]
    stretched = torch.linalg.svdvals(moved[0]) / (1e-2 * 0.2 * 24**0.5)
    assert stretched[-2] > 0.5 and stretched[0] < 1.5  # the norm hides one direction: the mean of its inputs
    assert all(
        step.abs().max() == pytest.approx(1e-3, rel=1e-2) for step in moved[1:]
    )  # AdamW begins with steps of lr


@pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch 2.9 and newer have a Muon to compare with"
)
@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_torchs_own_which_rounds_to_bf16(shape):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = [
        Muon([ours], 0.1, weight_decay=0.2),
        torch.optim.Muon([theirs], 0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        before = ours.detach().clone()
        ours.grad = theirs.grad = torch.randn(shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
        assert (ours - theirs).norm() < 0.05 * (ours - before).norm()
        theirs.data.copy_(ours)


def test_linear_regression_reaches_the_closed_form(tmp_path):
    """AdamW without decay on a least-squares problem ends at numpy's solution."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, generator=generator), torch.randn(64, 1, generator=generator)
    model = nn.Linear(3, 1, bias=False)
    config = OptimizerConfig(steps=1500, batch_size=64, lr=0.02, weight_decay=0.0, clip=100.0)
    started = time.process_time()  # not the clock: the machine may be busy
    fit(Job(model, model.parameters(), lambda _: ((model(x) - y) ** 2).mean(), config, tmp_path, {}))
    torch.testing.assert_close(model.weight.detach().T, torch.linalg.lstsq(x, y).solution, atol=2e-3, rtol=0)
    assert time.process_time() - started < 60


@pytest.mark.parametrize(("call", "zeros"), [("use_threads(2)", 2**20), ("torch.set_num_threads(2)", 0)])
def test_all_threads_take_the_smallest_numbers_for_nothing(call, zeros):
    """Half of 2e-38 has no normal form in fp32. In an own process: threads have the mode they began with."""
    begin = "import torch; from cogvideo.training.loop import use_threads"
    script = f"{begin}; {call}; x = torch.full((2**20,), 2e-38) * 0.5; print(int((x == 0).sum()))"
    command = [sys.executable, "-c", script]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == zeros
