"""The page of the human study: what is shown is blinded, buttons and keys answer, and the end is said."""

import numpy as np
import pytest
from explore.browser import opened

from cogvideo.data.video import write_video
from cogvideo.evaluation.human_study import Study, make_pairs, read_ratings
from cogvideo.evaluation.study_widget import Keys, StudyWidget


@pytest.fixture
def clips(tmp_path):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    files = {
        name: write_video(tmp_path / f"{name}-clip.mp4", frames + i, 8)
        for i, name in enumerate(("one", "two"))
    }
    return {name: {f"clip {i}": ("a <red> 3", path) for i in range(3)} for name, path in files.items()}


def test_buttons_and_keys_answer(clips, tmp_path):
    file = tmp_path / "ratings.jsonl"
    page = StudyWidget(Study(make_pairs(clips, "ann"), file, "ann"))
    assert "Pair 1 of 3" in page.where.value and "a &lt;red&gt; 3" in page.where.value
    assert page.clips.value.count("<video") == 2
    assert not any(name in page.clips.value + page.where.value for name in ("one", "two", "clip.mp4"))
    page.buttons["same"].click()
    assert [r.answer for r in read_ratings(file)] == ["same"] and "Pair 2 of 3" in page.where.value
    keys = next(child for child in page.children if isinstance(child, Keys))
    keys._handle_custom_msg({"answer": "left"}, [])  # as the browser sends it
    again = StudyWidget(Study(make_pairs(clips, "ann"), file, "ann"))
    assert "Pair 3 of 3" in again.where.value
    again.answer("right")
    assert [r.answer for r in read_ratings(file)] == ["same", "left", "right"]
    assert "Done" in again.where.value and again.clips.value == "" and again.buttons["left"].disabled


@pytest.mark.browser
def test_arrow_keys_in_a_browser():
    script = Keys._esm if isinstance(Keys._esm, str) else str(Keys._esm)
    module = script.replace("export default { render };", "window.render = render;")
    with opened() as page:
        page.set_content("<div id=keys></div>")
        page.add_script_tag(content=f"(() => {{ {module} }})()")
        page.evaluate(
            "window.sent = []; render({model: {send: m => sent.push(m.answer)}, el: document.all.keys})"
        )
        page.keyboard.press("ArrowLeft")  # without the focus nothing is taken
        page.click("#keys")
        assert "Arrow keys answer" in page.inner_text("#keys")
        for key in ("ArrowLeft", "x", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        assert page.evaluate("sent") == ["left", "same", "right"]
