"""Tokenized folders: what is written is read, in an order that seed and step decide; damage is a sentence."""

import dataclasses
import json

import pytest
import torch

from cogvideo.config import ModelConfig
from cogvideo.data import tokenized
from cogvideo.data.tokenized import (
    Sample,
    TokenFormat,
    TokenizedBatches,
    finish,
    read_notes,
    shard_name,
    span_key,
    write_shard,
)
from cogvideo.errors import CogVideoError

FORMAT = TokenFormat("sequential", 5, 2, 3, 40000, 40100, 40001, 8, "aa", "bb")
UNGUIDED = {"0.0": [7], "2.0": [8, 9], "4.0": [8, 9]}


def sample(clip: int, number: int = 0, made: TokenFormat = FORMAT) -> Sample:
    generator = torch.Generator().manual_seed(1000 * clip + number)
    frames = torch.randint(made.image_tokens, (made.num_frames, 6), generator=generator)
    large = torch.randint(made.image_tokens, (54,), generator=generator) if made.kind == "superres" else None
    text = [100 + clip] * (1 + clip % 4)
    return Sample(
        frames, text, None if made.num_frames == 1 else float(2 + 2 * (clip % 2)), clip * 10**15, large
    )


def make(folder, clips=range(10), each=2, made=FORMAT):
    """A folder of three shards, the second without samples."""
    folder.mkdir(exist_ok=True)
    half = len(clips) // 2
    parts = [clips[:half], [], clips[half:]]
    for number, part in enumerate(parts):
        samples = [sample(clip, i, made) for clip in part for i in range(each)]
        write_shard(folder / shard_name(number), samples, made, {"number": number})
    finish(folder, [shard_name(i) for i in range(3)], made, unguided=UNGUIDED, notes={"clips": len(clips)})
    return folder


def rows(batch) -> list:
    """Each row as (text, frames)."""
    texts = [ids[mask].tolist() for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True)]
    return list(zip(texts, batch.frames.tolist(), strict=True))


def test_an_epoch_holds_every_sample_once_and_test_clips_are_not_trained(tmp_path):
    batches = TokenizedBatches(make(tmp_path), 3, seed=1, caption_dropout=0.0, test_share=0.2)
    assert (batches.count("train"), batches.count("test")) == (16, 4)
    train = [row for step in range(16) for row in rows(batches(step))]  # three epochs
    test = [row for step in range(4) for row in rows(batches(step, split="test"))]
    written = {
        (tuple(s.text), str(s.frames.tolist())) for clip in range(10) for s in (sample(clip), sample(clip, 1))
    }
    for begin in (0, 16, 32):
        epoch = {(tuple(text), str(frames)) for text, frames in train[begin : begin + 16]}
        assert len(epoch) == 16 and epoch < written
    assert {text[0] for text, _ in train} == set(range(102, 110)) and {text[0] for text, _ in test} == {
        100,
        101,
    }
    assert train[:16] != train[16:32]


def test_a_step_gives_the_same_batch_however_it_is_asked(tmp_path):
    folder = make(tmp_path)
    one, other = TokenizedBatches(folder, 6, seed=3), TokenizedBatches(folder, 6, seed=3)
    for step in (5, 0, 17, 5):
        a, b = one(step), other(step)
        assert torch.equal(a.frames, b.frames) and torch.equal(a.text_ids, b.text_ids)
    assert not torch.equal(TokenizedBatches(folder, 6, seed=4)(5).frames, one(5).frames)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_global_batch(tmp_path, world_size):
    folder = make(tmp_path)
    whole = TokenizedBatches(folder, 6, seed=3)
    parts = [
        TokenizedBatches(folder, 6, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in range(5):
        joined = [part(step) for part in parts]
        for name in ("text_ids", "text_mask", "frames"):
            assert torch.equal(torch.cat([getattr(b, name) for b in joined]), getattr(whole(step), name))
    with pytest.raises(CogVideoError, match="cannot be shared"):
        TokenizedBatches(folder, 5, seed=3, rank=0, world_size=2)


def test_dropped_captions_keep_the_frame_rate_and_test_captions_stay(tmp_path):
    batches = TokenizedBatches(make(tmp_path), 8, seed=0, caption_dropout=0.5)
    texts = [text for step in range(50) for text, _ in rows(batches(step))]
    assert 0.4 < sum(text == [8, 9] for text in texts) / len(texts) < 0.6
    assert all(text[0] >= 100 for step in range(20) for text, _ in rows(batches(step, split="test")))


def test_a_span_is_found_again_that_has_no_short_binary_form(tmp_path):
    """Ten frames a second span 0.4 s, which 32 bits read back as 0.4000000059604645."""
    made = [dataclasses.replace(sample(clip), span=0.4) for clip in range(4)]
    write_shard(tmp_path / shard_name(0), made, FORMAT, {})
    finish(tmp_path, [shard_name(0)], FORMAT, unguided={span_key(0.4): [5, 6]}, notes={})
    batches = TokenizedBatches(tmp_path, 2, seed=0, caption_dropout=1.0)
    assert [text for text, _ in rows(batches(0))] == [[5, 6], [5, 6]]


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    """However often the shards come and go from the cache of open ones."""
    hashed = []
    monkeypatch.setattr(
        tokenized, "file_hash", lambda path, real=tokenized.file_hash: hashed.append(path.name) or real(path)
    )
    batches = TokenizedBatches(make(tmp_path), 10, seed=0)
    hashed.clear()
    for step in range(4):
        batches(step)
        batches._shard.cache_clear()
    assert sorted(hashed) == [shard_name(0), shard_name(2)]


def test_text_is_padded_on_the_left_to_the_slots_or_the_longest(tmp_path):
    folder = make(tmp_path)
    assert TokenizedBatches(folder, 8, seed=0)(0).text_ids.shape[1] == 4
    batch = TokenizedBatches(folder, 2, seed=0, text_length=8)(0)
    assert batch.text_ids.shape == (2, 8) and (batch.text_ids[~batch.text_mask] == FORMAT.pad_id).all()
    assert batch.text_mask[:, -1].all() and not batch.text_mask[:, 0].any()
    with pytest.raises(CogVideoError, match="2 text slots"):
        [TokenizedBatches(folder, 8, seed=0, text_length=2)(step) for step in range(3)]


@pytest.mark.parametrize("tokens", [512, 40000])
def test_pairs_of_super_resolution(tmp_path, tokens):
    made = dataclasses.replace(FORMAT, kind="superres", num_frames=1, image_tokens=tokens)
    batch = TokenizedBatches(make(tmp_path, made=made), 4, seed=0)(0)
    assert batch.frames.shape == (4, 1, 6) and batch.high_res is not None and batch.high_res.shape == (4, 54)
    assert batch.high_res.dtype == torch.int64 and batch.frames.max() > (20000 if tokens == 40000 else 400)
    written = {
        str(sample(c, i, made).frames.tolist()): sample(c, i, made).high_res
        for c in range(10)
        for i in (0, 1)
    }
    for frames, large in zip(batch.frames, batch.high_res, strict=True):
        high_res = written[str(frames.tolist())]
        assert high_res is not None and torch.equal(high_res, large)


def test_one_file_is_both_splits(tmp_path):
    batches = TokenizedBatches(make(tmp_path, range(1)), 2, seed=0)
    assert batches.count("train") == batches.count("test") == 2


def test_a_model_has_to_fit(tmp_path):
    batches = TokenizedBatches(make(tmp_path), 2, seed=0)
    config = ModelConfig(
        num_layers=1, hidden_size=8, num_heads=1, frame_height=2, frame_width=3, num_frames=5, text_length=8,
        first_frame_position=8, image_tokens=40000, vocab_size=40101, begin_of_image=40100, base_positions=14,
        extra_positions=24,
    )  # fmt: skip
    batches.check(config)
    with pytest.raises(CogVideoError, match="frame_height 2, the model 3"):
        batches.check(dataclasses.replace(config, frame_height=3, frame_width=2))
    with pytest.raises(CogVideoError, match="--kind interpolation"):
        batches.check(dataclasses.replace(config, order="interpolation"))
    batches.check(config, frame_tokenizer="aa", text_tokenizer="bb")
    with pytest.raises(
        CogVideoError, match="by another frame tokenizer than the model's: tokenize the videos with"
    ):
        batches.check(config, frame_tokenizer="ab")
    with pytest.raises(CogVideoError, match="by another text tokenizer"):
        batches.check(config, frame_tokenizer="aa", text_tokenizer="")
    with pytest.raises(CogVideoError, match="up to 8 ids, the model has 7 text slots: tokenize"):
        batches.check(dataclasses.replace(config, text_length=7, first_frame_position=7))
    folder = make(tmp_path / "pads", made=dataclasses.replace(FORMAT, pad_id=40101))
    with pytest.raises(CogVideoError, match="the id 40101, the model only 40101 of them"):
        TokenizedBatches(folder, 2, seed=0).check(config)


def test_damage_is_one_sentence(tmp_path):
    folder = make(tmp_path)
    last = folder / shard_name(2)
    good = last.read_bytes()
    last.unlink()
    with pytest.raises(
        CogVideoError, match="shard-00002.safetensors is missing: run `cogvideo data tokenize` again"
    ):
        TokenizedBatches(folder, 4, seed=0)
    last.write_bytes(good[:-1])
    with pytest.raises(CogVideoError, match="cut off"):
        TokenizedBatches(folder, 4, seed=0)
    assert read_notes(last) is None and read_notes(folder / shard_name(0)) == {"number": 0}
    last.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    batches = TokenizedBatches(folder, 8, seed=0)
    with pytest.raises(CogVideoError, match="damaged: delete it"):
        for step in range(3):
            batches(step)
    last.write_bytes(good)
    with pytest.raises(CogVideoError, match="Split 'validate' is unknown"):
        TokenizedBatches(folder, 8, seed=0)(0, split="validate")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CogVideoError, match=r"manifest.json is damaged"):
        TokenizedBatches(folder, 4, seed=0)
    (folder / "manifest.json").unlink()
    with pytest.raises(CogVideoError, match="no complete tokens"):
        TokenizedBatches(folder, 4, seed=0)
    with pytest.raises(CogVideoError, match="no training sequences"):
        TokenizedBatches(make(folder, range(0)), 4, seed=0)


def test_the_manifest_tells_all_files(tmp_path):
    manifest = json.loads((make(tmp_path) / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in tmp_path.iterdir()} - {"manifest.json"}
    assert manifest["samples"] == 20 and manifest["clips"] == 10 and manifest["format"]["pad_id"] == 40001
