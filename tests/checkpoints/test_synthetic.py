"""Checkpoints made for measuring: in the release's layout, the same by seed, however they are split."""

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cogvideo.checkpoints.convert import open_checkpoint
from cogvideo.checkpoints.sat import load_sat_checkpoint, read_sat_folder
from cogvideo.checkpoints.synthetic import make_checkpoint
from cogvideo.cli.app import app
from cogvideo.config import COGVIDEO_9B
from cogvideo.errors import CogVideoError
from cogvideo.superres import DirectSuperResolution

SMALL: dict[str, Any] = {"layers": 2, "hidden": 16, "heads": 4}
IDS: dict[str, Any] = {"image_tokens": COGVIDEO_9B.image_tokens, "begin_of_image": COGVIDEO_9B.begin_of_image}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stage 1 in one rank file."""
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "stage1", kind="stage1", **SMALL)[0]


def test_stage_1_has_the_geometry_and_the_names_of_the_release(whole):
    model = load_sat_checkpoint(whole)
    for name in (
        "num_frames",
        "frame_height",
        "text_length",
        "vocab_size",
        "begin_of_image",
        "extra_positions",
        "order",
        "window",
    ):
        assert getattr(model.config, name) == getattr(COGVIDEO_9B, name), name
    assert (model.config.num_layers, model.config.hidden_size, model.config.num_heads) == (2, 16, 4)
    weights, _ = read_sat_folder(whole)
    for name in (
        "transformer.layers.1.attention.query_key_value.bias", "mixins.attention_plus.dense.1.weight",
        "mixins.attention_plus.attn_distribution.0",
        "mixins.extra_position_embedding.position_embeddings.weight",
    ):  # fmt: skip
        assert name in weights
    assert {weight.dtype for weight in weights.meta.values()} == {torch.float16}
    drawn = weights["transformer.word_embeddings.weight"].float()
    assert abs(drawn.mean()) < 1e-4 and abs(drawn.std() - 0.02) < 1e-4
    assert abs(weights["transformer.final_layernorm.weight"].float().mean() - 1) < 0.02
    with torch.no_grad():
        logits = model.float()(torch.tensor([[20001, 20002]]), torch.zeros(1, 5, 400, dtype=torch.long))
    assert logits.shape == (1, 2000, 20000) and logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_and_runs_give_the_same_weights(whole, ranks, tmp_path):
    model = load_sat_checkpoint(whole)
    split = load_sat_checkpoint(make_checkpoint(tmp_path / "split", kind="stage1", ranks=ranks, **SMALL)[0])
    assert len(list((tmp_path / "split" / "1").iterdir())) == ranks
    assert split.config.vocab_size == {2: 150010, 4: 150012}[ranks]  # a multiple
    for name, weight in model.state_dict().items():
        if ranks == 2 or name != "word_embedding.weight":
            assert torch.equal(split.state_dict()[name], weight), name


def test_another_seed_gives_others(whole, tmp_path):
    other, _ = read_sat_folder(make_checkpoint(tmp_path / "other", kind="stage1", seed=1, **SMALL)[0])
    first, _ = read_sat_folder(whole)
    assert not any(torch.equal(other[name], first[name]) for name in first)


def test_all_parts_of_the_pipeline(tmp_path):
    made = make_checkpoint(tmp_path / "all", kind="all", dtype="bf16", **SMALL)
    assert [path.name for path in made] == ["coglm", "cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr"]
    assert not list(tmp_path.rglob("*.part"))
    image, stage1, stage2 = (load_sat_checkpoint(folder) for folder in made[:3])
    assert not image.config.temporal
    assert (stage1.config.order, stage1.config.window) == ("sequential", None)
    assert (stage2.config.order, stage2.config.window) == ("interpolation", 10)
    assert {weight.dtype for weight in stage2.parameters()} == {torch.bfloat16}
    large = DirectSuperResolution.from_sat(made[3], num_heads=4)
    assert (large.config.low_tokens, large.config.high_tokens) == (400, 3600)


def test_iterative_super_resolution(tmp_path):
    folder = make_checkpoint(tmp_path / "new", kind="itersr", ranks=2, **SMALL)[0]
    build, config, _ = open_checkpoint(folder, **IDS)
    assert (
        build.__name__ == "IterativeSuperResolution" and config.high_tokens == 3600 and config.num_heads == 4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "stage3"}, "choose coglm"), ({"dtype": "int8"}, "choose fp32"),
        ({"heads": 3}, "divide hidden"),
        ({"ranks": 3}, "ranks 3 heads"), ({"layers": 0}, "positive"), ({"hidden": 10**8}, "GB free"),
    ],
)  # fmt: skip
def test_wrong_sizes_are_refused(change, message, tmp_path):
    with pytest.raises(CogVideoError, match=message):
        make_checkpoint(tmp_path / "new", **{"kind": "stage1", **SMALL, **change})
    assert not list(tmp_path.iterdir())


def test_commands(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    out, new = tmp_path / "out", tmp_path / "new"
    made = run("bench", "make-checkpoint", out, "--kind", "dsr", "--layers", 1, "--hidden", 16, "--heads", 2)
    assert made.exit_code == 0 and made.stdout.split() == [str(out)] and "rank file(s)" in made.stderr
    converted = run("weights", "convert", out, new, "--dtype", "fp16")
    assert converted.exit_code == 0 and "peak host memory" in converted.stdout
    loaded = run("bench", "load", new)
    assert loaded.exit_code == 0 and "weights on cpu" in loaded.stdout
    again = run("weights", "convert", out, new)
    assert isinstance(again.exception, CogVideoError) and "there already" in str(again.exception)
