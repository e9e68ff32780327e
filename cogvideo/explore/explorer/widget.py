"""The widget class, apart from `live` because it needs anywidget to be defined."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import anywidget
import numpy as np
import traitlets

from cogvideo.errors import CogVideoError
from cogvideo.explore.capture import Recording
from cogvideo.explore.explorer.page import front_end
from cogvideo.explore.explorer.payload import describe, select
from cogvideo.explore.explorer.scenes import Scene

KEPT_RECORDINGS = 2  # each holds the inputs of all layers: 1.2 GB at full size, 1 MB for the demo


class LiveExplorer(anywidget.AnyWidget):
    """Answers the front end's questions: a row of a layer (what a place reads) or a column (who reads a word)."""

    _esm, _css = front_end()
    info = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        scenes: Sequence[Scene],
        *,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        patch: Sequence[int] | None,
    ):
        super().__init__(info=describe(scenes, select(scenes[0].model.config, layers, heads, patch)))
        self._scenes = list(scenes)
        self._recording = lru_cache(KEPT_RECORDINGS)(self._record)
        self._recording(0)  # now, not at the first click
        self.on_msg(self._answer)

    def _record(self, scene: int) -> Recording:
        return self._scenes[scene].record(self.info["layers"])

    def _answer(self, _, question: dict[str, Any], __) -> None:
        number = question["number"]
        try:
            told, buffers = self.answer(question)
        except CogVideoError as error:
            self.send({"number": number, "error": str(error)})
        else:
            self.send({"number": number} | told, buffers)

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """{scene, layer, place} or {scene, layer, word} -> what the front end needs to know, [spatial, temporal].

        scene and layer count what was chosen. The two buffers hold float32 [heads, keys], or for a word [heads, places].
        """
        column = "word" in question
        n = self.info["height"] * self.info["width"]
        captured = self._recording(question["scene"]).capture(
            layers=[self.info["layers"][question["layer"]]],
            heads=self.info["heads"],
            queries=None if column else [divmod(question["place"], n)],
        )
        assert captured.spatial is not None and captured.temporal is not None
        chosen = np.s_[0, :, :, question["word"]] if column else np.s_[0, :, 0]
        norms = {"spatial": captured.spatial_norm, "temporal": captured.temporal_norm}
        told: dict[str, Any] = {"heads": len(captured.heads)}
        if not column:
            told["norms"] = {channel: float(norm[0, 0]) for channel, norm in norms.items()}  # type: ignore[index]
        maps = (captured.spatial, captured.temporal)
        return told, [np.ascontiguousarray(part[chosen], "<f4").tobytes() for part in maps]
