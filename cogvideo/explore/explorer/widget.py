"""The widget class, in a module of its own because it needs anywidget to be defined."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import rollout_of
from cogvideo.explore.explorer.page import front_end
from cogvideo.explore.explorer.payload import describe, losses, picture, select, silences, token_sheet
from cogvideo.explore.explorer.scenes import Scene, drawn_anew, scenes
from cogvideo.explore.recording import CHANNELS, Captured
from cogvideo.explore.silence import Silent

KEPT_RECORDINGS = 2  # each holds the inputs of all layers: 1.2 GB at full size, 1 MB for the demo
SHOWN_EVERY = 16  # tokens, while a clip is decoded
Answer = tuple[dict[str, Any], list[bytes]]


class LiveExplorer(anywidget.AnyWidget):
    """Answers the front end's questions about scenes, and makes new ones when it is given a prompt.

    selection: what is chosen there: scene, layer, head, channel, patch (frame, row, column), word (or None).
    `captured` holds the arrays behind it.
    """

    _esm, _css = front_end()
    info = traitlets.Dict().tag(sync=True)
    selection = traitlets.Dict().tag(sync=True)

    def __init__(self, scenes: Sequence[Scene], **chosen: Any):
        super().__init__()
        self._chosen = chosen
        self._show(scenes)
        self.on_msg(self._answer)

    def _show(self, scenes: Sequence[Scene]) -> None:
        self.scenes = list(scenes)
        selection = select(self.scenes[0].model.config, **self._chosen)
        info = describe(self.scenes, selection)
        for scene, description in zip(self.scenes, info["scenes"], strict=True):
            description["silences"] = silences(scene, selection)
        first = self.scenes[0]
        asks = {"seconds": first.span, "seed": first.seed} if first.pipe else None
        spans = list(first.pipe.sampling.spans) if first.pipe else []
        record = lambda scene: self.scenes[scene].record()  # noqa: E731
        self._recording = lru_cache(KEPT_RECORDINGS)(record)
        self._rollout = lru_cache(KEPT_RECORDINGS)(lambda scene: rollout_of(self._recording(scene)))
        self._recording(0)  # now, not at the first click
        self.info = info | {"live": True, "asks": asks, "spans": spans}

    @property
    def captured(self) -> Captured:
        """The arrays of the selected layer, all heads and positions of the selected scene."""
        scene = self.scenes[self.selection.get("scene", 0)]
        layer = self.selection.get("layer", self.info["layers"][self.info["start"]["layer"]])
        words = [text for text, _ in scene.words]
        return self._recording(self.scenes.index(scene)).capture(layers=[layer], words=words)

    def _answer(self, _, question: dict[str, Any], __) -> None:
        number = question["number"]
        try:
            values, buffers = self.answer(question)
        except CogVideoError as error:
            self.send({"number": number, "error": str(error)})
        else:
            self.send({"number": number} | values, buffers)

    def answer(self, question: dict[str, Any]) -> Answer:
        """A question of the front end -> values, and buffers of float32.

        {scene, layer, place}: what a position reads, [spatial, temporal] [heads, keys], then the lengths of
        all values [heads, L+T*N]. {scene, layer, key}: who reads a key of the sequence, [heads, T*N] each.
        {scene, rollout: place}: [L+T*N]. {scene, silence}: nats more, [T*N]. {scene, pictures: patch}: what
        its likeliest tokens would draw. {scene, anew: silence}: the frames decoded once more. {prompt,
        seconds, seed}: another clip.
        """
        if "prompt" in question:
            return self._generate(question)
        if "silence" in question:
            return {}, [losses(self._recording(question["scene"]), [question["silence"]]).tobytes()]
        if "anew" in question:
            return self._draw(question)
        if "pictures" in question:
            return {"sheet": token_sheet(self.scenes[question["scene"]], [question["pictures"]])}, []
        if "rollout" in question:
            return {}, [self._rollout(question["scene"])[question["rollout"]].astype("<f4").tobytes()]
        return self._maps(question)

    def _maps(self, question: dict[str, Any]) -> Answer:
        scene, n = question["scene"], self.info["height"] * self.info["width"]
        length, column = len(self.scenes[scene].text_ids), "key" in question
        captured = self._recording(scene).capture(
            layers=[self.info["layers"][question["layer"]]],
            heads=self.info["heads"],
            queries=None if column else [divmod(question["place"], n)],
        )
        values: dict[str, Any] = {"heads": len(captured.heads)}
        if not column:
            values["norms"] = {channel: float(captured.norm(channel)[0, 0]) for channel in CHANNELS}
            parts = [captured.maps(channel)[0, :, 0] for channel in CHANNELS]
            parts += [captured.values(channel)[0] for channel in CHANNELS]
        else:
            key = question["key"]
            spatial = captured.maps("spatial")[0]
            own = spatial[..., key] if key < length else np.zeros(spatial.shape[:2], np.float32)
            if key >= length:  # only its own frame sees it
                frame, position = divmod(key - length, n)
                rows = captured.queries[:, 0] == frame
                own[:, rows] = spatial[:, rows, length + position]
            parts = [own, captured.maps("temporal")[0, :, :, key]]
        return values, [np.ascontiguousarray(part, "<f4").tobytes() for part in parts]

    def _watch(self, question: dict[str, Any], tokens: Tensor, scene: Scene) -> None:
        """Show the frames so far, now and then."""
        self._steps += 1
        if self._steps % SHOWN_EVERY == 0 and scene.pipe is not None:
            frames = [picture(frame) for frame in scene.pipe.pixels(tokens[None])[0]]
            self.send({"number": question["number"], "frames": frames})

    def _draw(self, question: dict[str, Any]) -> Answer:
        scene, anew = self.scenes[question["scene"]], question["anew"]
        self._steps, parts = 0, [Silent(*part) for part in anew["parts"]]
        tokens = drawn_anew(
            scene, parts=parts, words=anew["words"], watch=lambda some: self._watch(question, some, scene)
        )
        assert scene.pipe is not None
        pixels = scene.pipe.pixels(tokens[None])[0]
        changed = int(torch.ne(tokens, scene.frames)[scene.made].sum())
        return {"frames": [picture(frame) for frame in pixels], "changed": changed, "done": True}, []

    def _generate(self, question: dict[str, Any]) -> Answer:
        first, seconds, seed = self.scenes[0], float(question["seconds"]), int(question["seed"])
        if first.pipe is None:
            raise CogVideoError("These scenes have no pipeline to draw with: make them by scenes().")
        if first.pipe.text.unknown_words(question["prompt"]):
            unknown = ", ".join(first.pipe.text.unknown_words(question["prompt"]))
            raise CogVideoError(f"These weights have never seen the words {unknown}: try others.")
        self._steps = 0
        watch = lambda tokens: self._watch(question, tokens, first)  # noqa: E731
        self._show(scenes(first.pipe, question["prompt"], seconds=seconds, seed=seed, watch=watch))
        return {"done": True}, []
