"""Blinded pairs, answers that survive, Bradley-Terry against closed forms, Krippendorff's own examples."""

import json
import math

import numpy as np
import pytest

from cogvideo import CogVideoError
from cogvideo.evaluation.human_study import (
    Rating,
    Study,
    agreement,
    alpha,
    make_pairs,
    read_ratings,
    simulate,
    strengths,
)

VARIANTS = ("a", "b", "c", "d")


def clips_of(names=VARIANTS, count=6):
    return {name: {f"clip {i}": (f"prompt {i}", f"{name}/{i}.mp4") for i in range(count)} for name in names}


def test_pairs_are_blinded_and_the_rater_s_own():
    pairs = make_pairs(clips_of(), "ann")
    assert len({pair.id for pair in pairs}) == len(pairs) == 6 * 6
    assert pairs == make_pairs(clips_of(), "ann")
    other = make_pairs(clips_of(), "bob")
    assert [p.id for p in other] != [p.id for p in pairs] and {p.id for p in other} == {p.id for p in pairs}
    assert 0.25 < np.mean([pair.left < pair.right for pair in pairs]) < 0.75  # on either side
    assert all(p.left_clip.split("/")[0] == p.left and p.right_clip.split("/")[0] == p.right for p in pairs)
    few = [{p.id for p in make_pairs(clips_of(), rater, most=5)} for rater in ("ann", "bob")]
    assert few[0] == few[1] and len(few[0]) == 5
    with pytest.raises(CogVideoError, match="nothing to compare"):
        make_pairs({"a": {"x": ("x", "x.mp4")}, "b": {"y": ("y", "y.mp4")}}, "ann")


def test_every_answer_is_kept_and_a_study_goes_on(tmp_path):
    file, pairs = tmp_path / "new" / "ratings.jsonl", make_pairs(clips_of(), "ann")
    study = Study(pairs, file, "ann")
    for answer in ("left", "same", "right"):
        study.answer(answer)
    file.write_bytes(
        file.read_bytes() + '{"pair": "数'.encode()[:-1]
    )  # killed while it wrote, within a letter
    again = Study(pairs, file, "ann")
    assert again.answered == 3 and again.current == pairs[3]
    again.answer("left")
    assert [rating.answer for rating in read_ratings(file)] == ["left", "same", "right", "left"]
    assert Study(make_pairs(clips_of(), "bob"), file, "bob").answered == 0  # others share the file
    with pytest.raises(CogVideoError, match="left, right, same"):
        again.answer("both")
    with pytest.raises(CogVideoError, match="name"):
        Study(pairs, file, " ")
    file.write_text(json.dumps({"pair": "x"}) + "\n")
    with pytest.raises(CogVideoError, match="Line 1"):
        read_ratings(file)


def test_two_variants_have_the_log_odds():
    """In closed form: strengths +-log(w / l) / 2, standard error of the difference sqrt(1 / w + 1 / l)."""
    wins, losses = 23, 9
    ratings = [
        Rating(f"pair {i}", "ann", "a", "b", "left" if i < wins else "right") for i in range(wins + losses)
    ]
    found = strengths(ratings)
    assert list(found) == ["a", "b"]
    assert found["a"].mean == pytest.approx(math.log(wins / losses) / 2) == -found["b"].mean
    half = 1.959964 * math.sqrt(1 / wins + 1 / losses) / 2
    assert (found["a"].high - found["a"].low) / 2 == pytest.approx(half, rel=1e-6)
    assert (found["a"].wins, found["b"].wins, found["a"].answers) == (23, 9, 32)


def test_answers_about_one_pair_are_one_piece_of_evidence():
    once = [Rating(f"pair {i}", "ann", "a", "b", "left" if i % 3 else "right") for i in range(30)]
    twice = once + [Rating(r.pair, "bob", r.left, r.right, r.answer) for r in once]
    one, two = strengths(once)["a"], strengths(twice)["a"]
    assert (two.mean, two.low, two.high) == pytest.approx((one.mean, one.low, one.high))


def test_known_strengths_come_back(tmp_path):
    """Simulated raters, who answer by the model; about 95 % of intervals hold the truth."""
    truth = {"a": 1.0, "b": 0.3, "c": -0.3, "d": -1.0}
    held = []
    for seed in range(20):
        file = tmp_path / f"{seed}.jsonl"
        for rater in ("ann", "bob"):
            simulate(make_pairs(clips_of(count=20), rater), truth, file, rater, ties=0.0, seed=seed)
        ratings = read_ratings(file)
        assert all(r.simulated for r in ratings) and len(ratings) == 2 * 6 * 20
        found = strengths(ratings)
        held += [found[name].low <= value <= found[name].high for name, value in truth.items()]
        assert max(abs(found[name].mean - value) for name, value in truth.items()) < 0.7
    assert 0.87 < np.mean(held) <= 1.0


def test_strengths_stay_finite_and_need_comparisons():
    swept = [Rating(f"pair {i}", "ann", "a", "b", "left") for i in range(10)]
    found = strengths(swept)
    assert found["a"].mean == pytest.approx(math.log(10.5 / 0.5) / 2)
    half = (
        1.959964 * math.sqrt(1 / 10.5 + 1 / 0.5) / 2
    )  # in closed form, as for answers that are not all alike
    assert (found["a"].high - found["a"].low) / 2 == pytest.approx(half)
    with pytest.raises(CogVideoError, match="not even by way of others"):
        strengths([*swept, Rating("pair x", "ann", "c", "d", "left")])
    with pytest.raises(CogVideoError, match="no answers"):
        strengths([])


@pytest.mark.parametrize(
    "raters, expected",
    [
        (["0100000010", "1110010000"], 0.095),
        (["aabbdcccedda", "babbbccceddd"], 0.692),
        (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),
    ],
)
def test_krippendorff_s_examples(raters, expected):
    """Of "Computing Krippendorff's Alpha-Reliability" (2011), sections A to C."""
    units = [[value for value in unit if value != "."] for unit in zip(*raters, strict=True)]
    assert alpha(units) == pytest.approx(expected, abs=6e-4)


def test_agreement_is_about_variants_and_not_about_sides():
    one = [Rating(f"pair {i}", "ann", "a", "b", "left" if i % 2 else "right") for i in range(8)]
    mirrored = [Rating(r.pair, "bob", "b", "a", "right" if r.answer == "left" else "left") for r in one]
    assert agreement(one + mirrored) == 1
    assert agreement(one) is None
