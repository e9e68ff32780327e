"""The widget class, in a module of its own because it needs anywidget to be defined."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import anywidget
import numpy as np
import traitlets

from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.page import front_end
from cogvideo.explore.explorer.payload import describe, select
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.explore.recording import CHANNELS

KEPT_RECORDINGS = 2  # each holds the inputs of all layers: 1.2 GB at full size, 1 MB for the demo


class LiveExplorer(anywidget.AnyWidget):
    """Answers the front end: a row of a layer (what a position reads) or a column (who reads a word)."""

    _esm, _css = front_end()
    info = traitlets.Dict().tag(sync=True)

    def __init__(self, scenes: Sequence[Scene], **chosen: Any):
        super().__init__(info=describe(scenes, select(scenes[0].model.config, **chosen)))
        record = lambda scene: scenes[scene].record(self.info["layers"])  # noqa: E731
        self._recording = lru_cache(KEPT_RECORDINGS)(record)
        self._recording(0)  # now, not at the first click
        self.on_msg(self._answer)

    def _answer(self, _, question: dict[str, Any], __) -> None:
        number = question["number"]
        try:
            values, buffers = self.answer(question)
        except CogVideoError as error:
            self.send({"number": number, "error": str(error)})
        else:
            self.send({"number": number} | values, buffers)

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """{scene, layer, place} or {scene, layer, word} -> values, [spatial, temporal].

        place: the number of a position of the clip. The buffers hold float32 [heads, keys or, for a word,
        positions].
        """
        column = "word" in question
        n = self.info["height"] * self.info["width"]
        captured = self._recording(question["scene"]).capture(
            layers=[self.info["layers"][question["layer"]]],
            heads=self.info["heads"],
            queries=None if column else [divmod(question["place"], n)],
        )
        values: dict[str, Any] = {"heads": len(captured.heads)}
        if not column:
            values["norms"] = {channel: float(captured.norm(channel)[0, 0]) for channel in CHANNELS}
        chosen = np.s_[0, :, :, question["word"]] if column else np.s_[0, :, 0]
        maps = [captured.maps(channel)[chosen] for channel in CHANNELS]
        return values, [np.ascontiguousarray(part, "<f4").tobytes() for part in maps]
