"""`cogvideo train` as a user meets it; trainings themselves are tested in tests/training."""

from dataclasses import fields

from cli.test_app import assert_one_sentence

from cogvideo.training.run import TrainingConfig


def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run("train", "absent.yaml"), "absent.yaml")
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_help_lists_every_setting_and_what_the_code_says_of_it(run):
    code, out, _ = run("train", "--help")
    rows = out.partition("Settings of")[2].splitlines()
    settings = [row.strip().split("  ")[0] for row in rows]
    assert code == 0 and {"stage", "optimizer.steps", "seed = 0", "tensorboard = True"} <= set(settings)
    assert "a folder that `cogvideo data tokenize` made" in out and "stage1 or stage2 or image" in out
    names = {field.name for field in fields(TrainingConfig)}
    assert names <= {name.split(" ")[0].split(".")[0] for name in settings}
