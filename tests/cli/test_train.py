"""`cogvideo train` as a user meets it; trainings themselves are tested in tests/training."""

from cli.test_app import assert_one_sentence


def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run("train", "absent.yaml"), "absent.yaml")
    assert list(tmp_path.iterdir()) == []  # nothing half-written
