"""What test_distributed.py runs under torchrun: trains by its files; of `name.yaml:STEP` that step fails.

A folder in place of a file: each process writes there what it is told where process 0 alone fails or has a
checkpoint.
"""

import json
import sys
from pathlib import Path

import torch
from tiny_tokens import train_watched

from cogvideo.config import from_dict
from cogvideo.data.sources import open_dataset
from cogvideo.data.tokenized import TokenizedBatches
from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.checkpoints import Checkpoints, save_atomic
from cogvideo.training.frame_tokenizer import FrameTokenizerConfig, train_frame_tokenizer


def faults(folder: Path) -> None:
    rank, own, told = distributed.rank(), folder / f"own-{distributed.rank()}", []
    own.mkdir()
    if rank == 0:
        save_atomic({"step": 3, "weights": {}, "optimizers": [], "settings": {}}, own / "checkpoint.pt")

    def fail() -> None:
        raise OSError("disk gone")

    for work in (lambda: distributed.first_only(fail), Checkpoints(own, torch.nn.Linear(1, 1), [], {}).load):
        try:
            work()
        except (OSError, CogVideoError) as error:
            told.append(str(error))
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    read = TokenizedBatches.__call__
    for argument in sys.argv[1:]:
        if Path(argument).is_dir():
            faults(Path(argument))
            continue
        if Path(argument).name == "tokenizer.json":
            config = from_dict(FrameTokenizerConfig, json.loads(Path(argument).read_text()), argument)
            train_frame_tokenizer(config, open_dataset(config.data))
            continue
        path, _, missing = argument.partition(":")

        def cut_off(self, step, device="cpu", split="train", missing=missing):
            if str(step) == missing and split == "train":
                raise CogVideoError("missing")
            return read(self, step, device, split)

        setattr(TokenizedBatches, "__call__", cut_off)  # noqa: B010 - pyright takes no assignment to a method
        try:
            train_watched(path)
        except CogVideoError as error:
            assert missing and str(error) == "missing", error
    distributed.leave()
