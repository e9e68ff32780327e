"""The page of a human study in Jupyter: two clips, and three buttons or arrow keys to answer."""

import base64
from html import escape
from pathlib import Path

import anywidget
import ipywidgets

from cogvideo.evaluation.human_study import Study

BUTTONS = {"left": "← the left one", "same": "↓ no difference", "right": "the right one →"}
SHOWN = 320  # pixels of a clip on the page


class Keys(anywidget.AnyWidget):
    """Takes arrow keys while it has the focus and sends {"answer": "left" | "right" | "same"}."""

    _esm = """
    const ANSWERS = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "same"};
    function render({ model, el }) {
      el.tabIndex = 0;
      el.dataset.lmSuppressShortcuts = "true";  // else Jupyter takes the arrows for its cells
      el.textContent = "Click here to answer with the arrow keys";
      el.style.cssText = "padding:.5em 1em;border:1px dashed #888;width:max-content;cursor:pointer";
      const say = (text) => () => { el.textContent = text; };
      el.addEventListener("focus", say("Arrow keys answer: ← left, ↓ no difference, → right"));
      el.addEventListener("blur", say("Click here to answer with the arrow keys"));
      el.addEventListener("click", () => el.focus());
      el.addEventListener("keydown", (event) => {
        const answer = ANSWERS[event.key];
        if (!answer || event.repeat) return;
        event.preventDefault();
        event.stopPropagation();
        model.send({ answer });
      });
    }
    export default { render };
    """


class StudyWidget(ipywidgets.VBox):
    """Shows the pairs of a study one after the other and hands every answer to it."""

    def __init__(self, study: Study):
        self.study = study
        self.where, self.clips, keys = ipywidgets.HTML(), ipywidgets.HTML(), Keys()
        self.buttons = {answer: ipywidgets.Button(description=text) for answer, text in BUTTONS.items()}
        for answer, button in self.buttons.items():
            button.on_click(lambda _, answer=answer: self.answer(answer))
        keys.on_msg(lambda _, content, __: self.answer(content["answer"]))
        self.answers = ipywidgets.HBox(list(self.buttons.values()))
        super().__init__([self.where, self.clips, self.answers, keys])
        self._show()

    def answer(self, answer: str) -> None:
        """Keep the answer and show the next pair."""
        self.study.answer(answer)
        self._show()

    def _show(self) -> None:
        pair, count = self.study.current, len(self.study.pairs)
        if pair is None:
            self.where.value = f"<b>Done: all {count} pairs are answered. Thank you!</b>"
            self.clips.value = ""
            for button in self.buttons.values():
                button.disabled = True
            return
        self.where.value = (
            f"Pair {self.study.answered + 1} of {count}. Which clip shows this better?"
            f"<br><b style='font-size:1.3em'>{escape(pair.prompt)}</b>"
        )
        sides = "".join(_video(path) for path in (pair.left_clip, pair.right_clip))
        self.clips.value = f"<div style='display:flex;gap:2em;margin:.5em 0'>{sides}</div>"


def _video(path: str) -> str:
    """The clip inside the page, without the name of its file, which would reveal the variant."""
    source = f"data:video/mp4;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    style = f"width:{SHOWN}px;height:{SHOWN}px;object-fit:contain;background:#000;image-rendering:pixelated"
    return f"<video autoplay loop muted playsinline style='{style}' src='{source}'></video>"
