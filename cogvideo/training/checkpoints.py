"""Checkpoints of a training: whole or not there, whatever happens; of one process or many, for any number of processes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from cogvideo.errors import CogVideoError
from cogvideo.training import distributed

FILE, FOLDER = "checkpoint.pt", "checkpoint-{:09}"
WRITER = (
    "PytorchStreamWriter",
    "inline_container",
    "unexpected pos",
)  # of RuntimeErrors of torch's own writer


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full disk or a lost mount raises into a sentence, and leave no half-written file."""
    try:
        yield
    except BaseException as error:
        part = path.with_name(path.name + ".part")
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError) and not (
            isinstance(error, RuntimeError) and any(sign in str(error) for sign in WRITER)
        ):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CogVideoError(
            f"Cannot write {path} ({reason}): make room there and run the same command; the last checkpoint is kept."
        ) from None


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """write(file) into a file that is the old or the new one, whatever happens; raises CogVideoError on a full disk."""
    temporary = path.with_name(path.name + ".part")
    with writing(path):
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def save_atomic(value: object, path: Path) -> None:
    """torch.save as write_whole does it."""
    write_whole(path, lambda file: torch.save(value, file))


def read_checkpoint(path: Path, settings: dict) -> dict:
    """A checkpoint of a training with these settings; raises CogVideoError if it had others, or the file is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["settings"] != settings
    except FileNotFoundError:
        raise CogVideoError(f"{path} is missing; delete {path.parent} to start again.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise CogVideoError(
            f"{path} is damaged ({type(error).__name__}); delete it to start again."
        ) from None
    if other:
        raise _other_settings(path)
    return state


def _other_settings(path: Path) -> CogVideoError:
    return CogVideoError(
        f"{path} belongs to other settings; choose another run_dir, or delete {path.parent} to start again."
    )


class Checkpoints:
    """The one checkpoint of a run: checkpoint.pt of one process, or a folder that many write, each its share.

    Holds the trained weights, the optimisers' states, the step and `extra`, anything small that JSON can hold. Either kind
    is read by any number of processes.
    """

    def __init__(
        self, run_dir: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict
    ):
        self.run_dir, self.model, self.optimizers, self.settings = run_dir, model, optimizers, settings

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Replace the run's checkpoint. Raises CogVideoError when it cannot be written; the old one is there then."""
        if distributed.world_size() > 1:
            self._save_folder(step, extra)
        else:
            weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
            states = [optimizer.state_dict() for optimizer in self.optimizers]
            state = {"step": step, "weights": weights, "optimizers": states, "settings": self.settings}
            save_atomic(state | extra, self.run_dir / FILE)
            self._forget(self.run_dir / FILE)

    def load(self) -> tuple[int, dict[str, Any]]:
        """Go on from the run's checkpoint -> (step, extra), or from nothing: (0, {})."""
        path, folders = self.run_dir / FILE, self._folders()
        state = read_checkpoint(path, self.settings) if path.exists() else None
        of_file = state["step"] if state else -1
        of_folder = int(folders[-1].name.split("-")[1]) if folders else -1
        if not distributed.agree(of_file, of_folder):
            raise CogVideoError(
                f"The processes find different checkpoints in {self.run_dir}: run_dir must be one folder that all machines "
                "share."
            )
        if of_folder > of_file:
            return self._load_folder(folders[-1])
        if state is None:
            return 0, {}
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in state.pop("weights").items():
                own[name].copy_(distributed.shared_like(weight, own[name]))
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, values in saved["state"].items():
                values |= {k: distributed.shared_like(v, parameters[index]) for k, v in values.items()}
            optimizer.load_state_dict(saved)
        state.pop("settings")
        return state.pop("step"), state

    def _folders(self) -> list[Path]:
        """Whole ones, by step."""
        return sorted(
            path for path in self.run_dir.glob(FOLDER.format(0)[:-9] + "*") if path.suffix != ".part"
        )

    def _save_folder(self, step: int, extra: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        path = self.run_dir / FOLDER.format(step)
        part = path.with_name(path.name + ".part")
        distributed.first_only(lambda: shutil.rmtree(part, ignore_errors=True))
        with writing(path):
            try:
                save(self._shared_state(), checkpoint_id=part)
            except CheckpointException as error:  # in every process, with what happened to each
                raise next(iter(error.failures.values()))[0] from None

        def publish() -> None:
            with writing(path):
                text = json.dumps({"step": step, "settings": self.settings} | extra)
                (part / "state.json").write_text(text)
                if not path.exists():
                    os.replace(part, path)
            self._forget(path)

        distributed.first_only(publish)

    def _load_folder(self, path: Path) -> tuple[int, dict[str, Any]]:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        from cogvideo.training.folder_reading import Planner, Reader

        try:
            extra = json.loads((path / "state.json").read_text())
            if extra.pop("settings") != json.loads(json.dumps(self.settings)):
                raise _other_settings(path)
            state = self._shared_state()
            load(state, storage_reader=Reader(path), planner=Planner())
        except CogVideoError:
            raise
        except (Exception, CheckpointException) as error:  # torch raises many kinds for damaged files
            raise CogVideoError(
                f"{path} is damaged ({type(error).__name__}); delete it to start again."
            ) from None
        options = StateDictOptions(ignore_frozen_params=True, strict=False)
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizers"],
            options=options,
        )
        return extra.pop("step"), extra

    def _shared_state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        weights, optimizers = get_state_dict(
            self.model, self.optimizers, options=StateDictOptions(ignore_frozen_params=True)
        )
        return {"weights": weights, "optimizers": optimizers}

    def _forget(self, kept: Path) -> None:
        """Delete the checkpoints that `kept` replaces, and what a killed process left half-written."""
        for path in self.run_dir.glob(FOLDER.format(0)[:-9] + "*"):
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
        if kept.name != FILE:
            (self.run_dir / FILE).unlink(missing_ok=True)


def fingerprint(model: nn.Module) -> str:
    """Tells other weights of the same shapes apart, by some hundred numbers of each: reading all would take minutes."""
    total = hashlib.sha256()
    for name, weight in model.named_parameters():
        some = weight.detach().flatten()[:: max(1, weight.numel() // 256)].contiguous()
        total.update(
            f"{name} {list(weight.shape)} {weight.dtype}".encode() + some.view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()[:16]
