"""Checkpoints of a training: whole or not there; written by one process or many, read by any number."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cogvideo.errors import CogVideoError
from cogvideo.io import disk_errors, read_json, replacing
from cogvideo.training import distributed

FILE, FOLDER = "checkpoint.pt", "checkpoint-"
STEPS, DATA = "optimizer.steps", "data"  # what may change between two commands, see Checkpoints.load


def save_atomic(value: object, path: Path) -> None:
    """torch.save that replaces the file when all of the new one is on the disk."""
    with replacing(path, one_writer=True, advice=disk_advice(path.parent)) as part, open(part, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def kept(folder: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any(path.suffix != ".part" for path in folder.glob("checkpoint*"))


def disk_advice(folder: Path) -> str:
    """What to do where the disk of a run's folder is full."""
    rest = "; the last checkpoint is kept" if kept(folder) else ""
    return f"make room there and run the same command{rest}"


def read_checkpoint(path: Path, settings: dict) -> dict:
    """A training's checkpoint; CogVideoError if it had other settings, is missing or is damaged."""
    state = _read(path)
    for name, old, new in differences(state["settings"], settings):
        raise _other_settings(path, name, old, new)
    return state


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["settings"].keys()
    except FileNotFoundError:
        raise CogVideoError(f"{path} is missing; delete {path.parent} to start again.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise _damaged(path, error) from None
    return state


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, by their dotted names: "optimizer.lr", its old value, its new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif json.dumps(old) != json.dumps(new):  # a tuple is a list there
        yield name, old, new


def changed(path: Path, old: dict, new: dict) -> list[str]:
    """What has changed that may change, in sentences; CogVideoError for what may not.

    More steps may be asked for, and clips added to the tokens: shards appended, the last one longer.
    """
    notes = []
    for name, before, now in differences({**old, DATA: None}, {**new, DATA: None}):
        if name != STEPS or now < before:
            raise _other_settings(path, name, before, now)
        notes.append(f"{name} raised from {before} to {now}: the learning rate follows the longer schedule")
    before, now = ({**(some.get(DATA) or {})} for some in (old, new))
    for files in (before, now):
        files.pop("index.safetensors", None)
    for name in sorted(before)[:-1]:
        if before[name] != now.get(name):
            raise _other_settings(path, f"the content of {name}", before[name], now.get(name))
    if before != now:
        notes.append(f"clips were added: {len(now)} shards of tokens, where there were {len(before)}")
    return notes


def _damaged(path: Path, error: BaseException) -> CogVideoError:
    return CogVideoError(f"{path} is damaged ({type(error).__name__}); delete it to start again.")


def _other_settings(path: Path, name: str, old: Any, new: Any) -> CogVideoError:
    return CogVideoError(
        f"{path} belongs to other settings: {name} was {old!r} and is {new!r}; set it back, choose another "
        f"run_dir, or delete {path.parent} to start again."
    )


class Checkpoints:
    """The one checkpoint of a run: checkpoint.pt of one process, or a folder to which each of many writes.

    Holds the trained weights, the model's buffers, the optimisers' states, the step and `extra`, anything
    small that JSON can hold. changes: after `load`, what of the settings is not as it was, in
    sentences.
    """

    def __init__(
        self, run_dir: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict
    ):
        self.run_dir, self.model, self.optimizers, self.settings = run_dir, model, optimizers, settings
        self.changes: list[str] = []

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Replace the run's checkpoint; where that fails, CogVideoError is raised and the old one is kept."""
        if distributed.world_size() > 1:
            self._save_folder(step, extra)
        else:
            weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
            weights |= dict(self.model.named_buffers())
            states = [optimizer.state_dict() for optimizer in self.optimizers]
            state = {"step": step, "weights": weights, "optimizers": states, "settings": self.settings}
            save_atomic(state | extra, self.run_dir / FILE)
            self._forget(self.run_dir / FILE)

    def load(self) -> tuple[int, dict[str, Any]]:
        """Read the run's checkpoint into model and optimisers -> (step, extra); without one (0, {}).

        Raises CogVideoError for other settings but more steps and more data, see `changed`.
        """
        path = self.run_dir / FILE
        folders = sorted(p for p in self.run_dir.glob(FOLDER + "*") if p.suffix != ".part")
        state = _read(path) if path.exists() else None
        of_file = state["step"] if state else -1
        of_folder = int(folders[-1].name.removeprefix(FOLDER)) if folders else -1
        if not distributed.agree(of_file, of_folder):
            advice = "run_dir must be one folder that all machines share"
            raise CogVideoError(f"Processes find different checkpoints in {self.run_dir}: {advice}.")
        if of_folder > of_file:
            return self._load_folder(folders[-1])
        if state is None:
            return 0, {}
        self.changes = changed(path, state.pop("settings"), self.settings)
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, weight in state.pop("weights").items():
                own[name].copy_(distributed.shard_like(weight, own[name]))
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, values in saved["state"].items():
                values |= {k: distributed.shard_like(v, parameters[index]) for k, v in values.items()}
            optimizer.load_state_dict(saved)
        return state.pop("step"), state

    def _save_folder(self, step: int, extra: dict[str, Any]) -> None:
        from cogvideo.training import sharded  # imported late: it takes more than a second

        path = self.run_dir / f"{FOLDER}{step:09}"
        part = path.with_name(path.name + ".part")

        def publish() -> None:
            (part / "state.json").write_text(json.dumps({"step": step, "settings": self.settings} | extra))
            if not path.exists():
                os.replace(part, path)
            self._forget(path)

        distributed.first_only(lambda: shutil.rmtree(part, ignore_errors=True))
        try:
            with disk_errors(path, disk_advice(self.run_dir)):
                sharded.save(part, self.model, self.optimizers)
                distributed.first_only(publish)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _load_folder(self, path: Path) -> tuple[int, dict[str, Any]]:
        from cogvideo.training import sharded

        extra = read_json(path / "state.json", advice="delete it to start again")
        self.changes = changed(path, extra.pop("settings", {}), self.settings)
        try:
            sharded.load(path, self.model, self.optimizers)
        except (Exception, sharded.CheckpointException) as error:  # torch raises many kinds for damaged files
            raise _damaged(path, error) from None
        return extra.pop("step"), extra

    def _forget(self, kept: Path) -> None:
        """Delete the checkpoints that `kept` replaces, and what a killed process left half-written."""
        for path in self.run_dir.glob(FOLDER + "*"):
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
        if kept.name != FILE:
            (self.run_dir / FILE).unlink(missing_ok=True)


def fingerprint(model: nn.Module) -> str:
    """A hash of some hundred numbers of every weight, which tells weights apart; all would take minutes."""
    total = hashlib.sha256()
    for name, weight in model.named_parameters():
        some = weight.detach().flatten()[:: max(1, weight.numel() // 256)].contiguous()
        total.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        total.update(some.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
