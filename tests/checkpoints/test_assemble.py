"""Pipeline folders of parts: where they are found, what is missing, which do not belong together."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogvideo.checkpoints.assemble import TRAINED, assemble, find_parts
from cogvideo.checkpoints.pipeline_folder import read_sampling
from cogvideo.checkpoints.registry import DEMO, weights_folder
from cogvideo.checkpoints.tokenizers import load_tokenizers
from cogvideo.errors import CogVideoError
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.patches import PatchVQVAE


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """What `cogvideo train` leaves of a stage 2, with a checkpoint beside it."""
    folder = tmp_path / "run"
    shutil.copytree(DEMO / "stage2", folder / "model")
    (folder / "checkpoint.pt").touch()
    return folder


def note(folder: Path, **values) -> None:
    (folder / TRAINED).write_text(json.dumps(values))


def test_trained_parts_come_first_and_the_pipeline_is_whole(run_dir, tmp_path):
    weights = load_file(run_dir / "model/model.safetensors")
    parts = find_parts([run_dir, "demo"])
    assert parts["stage2"] == run_dir / "model" and parts["stage1"] == DEMO / "stage1"
    made = assemble(tmp_path / "new", parts)
    assert {path.name for path in made.iterdir()} == {path.name for path in DEMO.iterdir()} - {"README.md"}
    assert load_file(made / "stage2/model.safetensors").keys() == weights.keys()
    assert (made / "stage2/model.safetensors").samefile(run_dir / "model/model.safetensors")  # no second copy
    assert read_sampling(made) == read_sampling(DEMO)
    pipe = Pipeline.from_pretrained(made, device="cpu")
    assert torch.equal(pipe.stage2.final_norm.weight, weights["final_norm.weight"].float())


def test_parts_in_another_type(run_dir, tmp_path):
    made = assemble(tmp_path / "new", find_parts([run_dir, "demo"]), dtype=torch.bfloat16)
    kept, shrunk = (load_file(folder / "stage1/model.safetensors") for folder in (DEMO, made))
    assert all(torch.equal(shrunk[name], weight.bfloat16()) for name, weight in kept.items())


def test_a_recipe_s_folder_gives_every_part_and_a_pipeline_in_it_is_found_and_replaced(tmp_path):
    run, spans = tmp_path / "mine", [1.0, 2.0]
    for name in ("stage1", "stage2", "superres"):
        shutil.copytree(DEMO / name, run / name / "model")
    for name in ("text.model", "frames.safetensors"):
        shutil.copyfile(DEMO / "tokenizers" / name, run / name)
    with pytest.raises(CogVideoError, match="does not say which seconds"):
        assemble(run / "pipeline", find_parts([run]))
    note(run / "stage1/model", spans=spans)
    assemble(run / "pipeline", find_parts([run]))
    assert weights_folder(run) == run / "pipeline" and read_sampling(run / "pipeline").spans == (1.0, 2.0)
    (run / "superres/model/README.md").write_text("new")
    with pytest.raises(CogVideoError, match="is there already"):
        assemble(run / "pipeline", find_parts([run]))
    assemble(run / "pipeline", find_parts([run / "pipeline", run]), overwrite=True)  # its own parts
    assert not (run / "pipeline/superres/README.md").exists()
    assemble(run / "pipeline", find_parts([run]), overwrite=True)
    assert (run / "pipeline/superres/README.md").read_text() == "new"
    assert load_tokenizers(run).frames.digest == load_tokenizers("demo").frames.digest


def test_what_is_missing_is_named(run_dir, tmp_path):
    with pytest.raises(
        CogVideoError, match="without stage 1 and super-resolution and the text tokenizer and"
    ):
        assemble(tmp_path / "new", find_parts([run_dir]))
    assert not (tmp_path / "new").exists()
    with pytest.raises(CogVideoError, match="nothing at .*nowhere"):
        find_parts([tmp_path / "nowhere"])


def test_parts_of_other_tokenizers_are_refused(run_dir, tmp_path):
    note(run_dir / "model", frame_tokenizer=load_tokenizers("demo").frames.digest, text_tokenizer="other")
    with pytest.raises(CogVideoError, match="stage 2 .* another text tokenizer than .*text.model"):
        assemble(tmp_path / "new", find_parts([run_dir, "demo"]))
    FrameTokenizer(PatchVQVAE(10, (8, 8, 4, 4))).save(tmp_path / "frames.safetensors")
    with pytest.raises(CogVideoError, match="do not share frame size and token ids"):
        assemble(tmp_path / "new", find_parts([tmp_path / "frames.safetensors", "demo"]))


def test_folders_that_are_no_pipeline_say_how_one_comes_of_them(run_dir, tmp_path):
    with pytest.raises(CogVideoError, match=f"weights assemble NEW {run_dir} demo"):
        Pipeline.from_pretrained(run_dir, device="cpu")
    shutil.rmtree(run_dir / "model")
    with pytest.raises(CogVideoError, match="training that has not ended"):
        load_tokenizers(run_dir)
    with pytest.raises(CogVideoError, match="no weights at"):
        Pipeline.from_pretrained(tmp_path / "nowhere", device="cpu")
