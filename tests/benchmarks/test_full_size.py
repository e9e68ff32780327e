"""`cogvideo bench full-size` at a tiny size on the CPU, and the planned memory against the real one."""

import gc
import json
import sys
from typing import Any, cast

import pytest
import torch

from cogvideo import CogVideoError
from cogvideo.benchmarks import full_size
from cogvideo.benchmarks.full_size import Settings
from cogvideo.benchmarks.memory_plan import cache_bytes, device_memory, plan_table, released_geometry
from cogvideo.checkpoints.pipeline_folder import DTYPES, Loader
from cogvideo.checkpoints.synthetic import make_checkpoint
from cogvideo.cli import app as cli
from cogvideo.io import write_json
from cogvideo.sampling import backends, interpolate_frames

TINY = Settings(layers=2, hidden=64, heads=2, side=2, dtype="fp32", device="cpu", seconds=1.0)


def test_the_report_tells_every_stage(tmp_path, capsys):
    report = full_size.run(TINY, progress=False)
    write_json(tmp_path / "new" / "full_size.json", report, parents=True)
    assert json.loads((tmp_path / "new" / "full_size.json").read_text()) == report
    assert not list(tmp_path.rglob("*.part"))
    stages = {stage["stage"]: stage for stage in report["stages"]}
    assert list(stages) == ["first frame", "key frames", "between, round 1", "enlarging", "pixels"]
    assert [stage.get("steps") for stage in report["stages"]] == [4, 16, 8, None, None]
    assert [stage.get("tokens") for stage in report["stages"]] == [4, 16, 16, 9 * 36, None]
    assert stages["pixels"]["frames"] == [1, 9, 48, 48, 3]
    assert report["total_seconds"] == sum(stage["seconds"] for stage in stages.values()) > 0
    for stage in ("first frame", "key frames", "between, round 1"):
        row = stages[stage]
        assert row["ms_per_step"] == pytest.approx(1000 * row["seconds"] / row["steps"])
        limit = row["bytes_per_step"] / report["bandwidth_bytes_per_second"]
        assert row["share_of_limit"] == pytest.approx(1000 * limit / row["ms_per_step"])
    # Block weights in fp32: the image channel 12 D^2 + 13 D, the temporal one 4 D^2 + 5 D with its gate;
    # the head 20000 D.
    d = TINY.hidden
    image, video = 2 * (12 * d * d + 17 * d), 2 * (16 * d * d + 22 * d)
    assert stages["first frame"]["bytes_per_step"] == 4 * (image + d * 2 + 20000 * d)
    assert stages["key frames"]["bytes_per_step"] == 4 * (video + 20000 * d)
    assert report["settings"]["layers"] == 2 and report["machine"]["torch"] == torch.__version__
    shown = full_size.render(report)
    assert all(f"| {stage} |" in shown for stage in stages) and "width 64" in shown


@pytest.mark.parametrize("dtype, offload", [("int8", "layers"), ("bf16", "stages")])
def test_precision_and_offloading(dtype, offload):
    settings = Settings(
        **{**full_size.asdict(TINY), "dtype": dtype, "offload": offload, "seconds": 0.5, "clips": 2}
    )
    report = full_size.run(settings, progress=False)
    assert [stage["stage"] for stage in report["stages"]] == [
        "first frame",
        "key frames",
        "enlarging",
        "pixels",
    ]
    assert report["stages"][-1]["frames"] == [2, 5, 48, 48, 3]


def test_weights_may_come_from_files(tmp_path):
    make_checkpoint(tmp_path, kind="all", layers=1, hidden=64, heads=1)
    settings = Settings(layers=1, hidden=64, heads=1, dtype="fp32", device="cpu")
    pipe = full_size.build(settings, tmp_path)
    assert pipe.stage1.config.frame_tokens == 400 and pipe.superres.config.high_tokens == 3600
    assert pipe.stage1.blocks[0].mlp.up.weight.dtype == torch.float32
    with pytest.raises(CogVideoError, match="cogvideo-stage1"):
        full_size.build(settings, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change, message", [
        ({"device": "cuda:77"}, "cuda:77"), ({"dtype": "int4"}, "int4"), ({"offload": "disk"}, "disk"),
        ({"clips": 0}, "clip"), ({"side": 0}, "side"), ({"heads": 3}, "num_heads 3"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(change, message):
    with pytest.raises(CogVideoError, match=message) as error:
        full_size.run(Settings(**{**full_size.asdict(TINY), **change}), progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_planned_weights_are_those_of_the_models(dtype):
    pipe = full_size.build(Settings(**{**full_size.asdict(TINY), "dtype": dtype}))
    load = Loader(dtype, "cpu", "cpu", None)
    for model in (pipe.stage1, pipe.stage2, pipe.superres):
        tensors = [*model.parameters(), *model.buffers()]
        with torch.device("meta"):
            empty = type(model)(cast(Any, model.config))
        assert load.bytes_of(dict(empty.named_parameters())) == sum(tensor.nbytes for tensor in tensors)


def test_planned_caches_are_those_of_the_decoder(monkeypatch):
    """All tensors alive at the last step of two sequences, less the weights: caches, and little besides."""
    # As on a GPU: no second layout of the weights, caches in the order of time.
    monkeypatch.setattr(backends, "backend_of", lambda _model: "plain")
    pipe, seen = (
        full_size.build(Settings(layers=16, hidden=64, heads=1, side=4, dtype="fp32", device="cpu")),
        [],
    )

    def alive() -> int:
        storages = {}
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        return sum(storages.values())

    def strategy(logits, step):
        if step == 31:
            seen.append(alive())
        return logits.argmax(-1)

    c = pipe.stage2.config
    text, given = torch.zeros(2, c.text_length, dtype=torch.long), torch.zeros(2, 3, 16, dtype=torch.long)
    before = alive()
    interpolate_frames(pipe.stage2, text, given, strategy=strategy)
    assert cache_bytes(c, 2, 4) == pytest.approx(seen[0] - before, rel=0.1)


def test_the_table_of_the_release():
    """Orders that must hold, and the sizes told in the paper's terms: 7.7 billion weights a stage."""
    g = released_geometry()
    need = {
        (d, o): device_memory(g, d, o) for d in ("fp32", "bf16", "int8") for o in ("none", "stages", "layers")
    }
    assert need["bf16", "stages"].weights == pytest.approx(2 * 7.72e9, rel=0.005)
    assert need["fp32", "stages"].weights == 2 * need["bf16", "stages"].weights
    for dtype in ("fp32", "bf16", "int8"):
        none, stages, layers = (need[dtype, offload].device for offload in ("none", "stages", "layers"))
        assert none > stages > layers
    assert need["int8", "stages"].weights < 0.55 * need["bf16", "stages"].weights
    assert need["bf16", "layers"].device < 16e9 and need["bf16", "layers"].host > 46e9
    # A sequence: keys and values of 2 * 64 + 400 + 2000 positions, three projections of the text, 48 layers.
    assert cache_bytes(g.stage2, 1, 2) == 48 * 3072 * 2 * (2 * 2528 + 6 * 64)
    table = plan_table(g).splitlines()
    assert len(table) == 2 + 9 and len({line.count("|") for line in table}) == 1
    assert device_memory(g, "bf16", "none", clips=4).caches == 4 * need["bf16", "none"].caches
    assert set(DTYPES) == {"fp32", "bf16", "fp16"}


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["cogvideo", "bench", "full-size", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), *capsys.readouterr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(monkeypatch, capsys, tmp_path):
    code, out, err = command(monkeypatch, capsys, "--out", str(tmp_path / "report.json"))
    assert code == 2 and out == "" and err.startswith("Error: Device cuda is not on this machine")
    assert err.count("\n") == 1 and not (tmp_path / "report.json").exists()


def test_the_command(monkeypatch, capsys, tmp_path):
    sizes = ["--layers", "1", "--hidden", "64", "--heads", "1", "--side", "2", "--seconds", "0.5"]
    code, out, _ = command(monkeypatch, capsys, "--plan", *sizes)
    assert code == 0 and out.startswith("| dtype | offload |") and len(out.splitlines()) == 11
    file = tmp_path / "report.json"
    code, out, _ = command(
        monkeypatch, capsys, *sizes, "--device", "cpu", "--dtype", "fp32", "--out", str(file)
    )
    assert code == 0 and "| key frames |" in out and json.loads(file.read_text())["settings"]["side"] == 2
