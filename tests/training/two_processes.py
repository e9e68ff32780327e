"""What test_distributed.py runs under torchrun: trains by the files it is given; at `name.yaml:STEP` that step is missing."""

import sys

import torch

from cogvideo.data.tokenized import TokenizedBatches
from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    read = TokenizedBatches.__call__
    distributed.leave, leave = lambda: None, distributed.leave  # one process group for all trainings
    for argument in sys.argv[1:]:
        path, _, missing = argument.partition(":")

        def cut_off(self, step, device="cpu", split="train", missing=missing):
            if str(step) == missing and split == "train":
                raise CogVideoError("missing")
            return read(self, step, device, split)

        TokenizedBatches.__call__ = cut_off  # type: ignore[method-assign]
        try:
            train(path)
        except CogVideoError as error:
            assert missing and str(error) == "missing", error
    leave()
