"""Strategies against the release's exact distributions, and their draws against those distributions."""

import json
from typing import Any

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from scipy.stats import chisquare

from cogvideo.errors import CogVideoError
from cogvideo.model.strategies import (
    ClusterStrategy,
    TopKStrategy,
    TopPStrategy,
    _sample,
    cluster_codebook,
    draw,
    fork,
)

IO = load_file(DATA / "strategies" / "io.safetensors")
CASES = json.loads((DATA / "strategies" / "meta.json").read_text())["configs"]


def strategy_of(case: dict):
    if "top_k_tokens" in case:
        return TopKStrategy(temperature=case["temperature_argument"], top_k=case["top_k_tokens"])
    temperature = case.get("temperature", case.get("temperature_argument", 1.0))
    labels = IO["cluster_labels"]
    return ClusterStrategy(
        labels, temperature=temperature, top_k=case["top_k_clusters"], temperature2=case["temperature2"]
    )


def logits_of(case: dict) -> torch.Tensor:
    logits = IO["logits"].clone()
    if case["invalid_from"] is not None:
        logits[:, case["invalid_from"] :] = float("-inf")
    return logits


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_release(name):
    logits = logits_of(CASES[name])
    before = logits.clone()
    p = strategy_of(CASES[name]).probabilities(logits)
    torch.testing.assert_close(p, IO[f"{name}.probs"], atol=1e-5, rtol=0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", ["coglm_video", "dsr_default", "itersr_k20"])
def test_draws_follow_the_distribution(name):
    strategy, row = strategy_of(CASES[name]), IO["logits"][2:3]
    p = strategy.probabilities(row)[0].double()
    draws = draw(strategy, row.expand(20000, -1), 0, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=len(p)).double()
    assert not counts[p == 0].any()
    common = p * 20000 >= 5  # the test's approximation needs a few expected draws in every bin
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([p[common], p[~common].sum()[None]])
    expected = expected / expected.sum() * seen.sum()
    keep = expected > 0
    assert chisquare(seen[keep].numpy(), expected[keep].numpy()).pvalue > 1e-3


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    p = TopPStrategy(top_p=0.7).probabilities(logits)
    torch.testing.assert_close(p, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 0.375, 0.625]]))


def test_a_row_draws_the_same_whatever_stands_beside_it():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))

    def tokens(rows):
        return draw(
            TopKStrategy(top_k=30), logits[rows], 0, [torch.Generator().manual_seed(row) for row in rows]
        )

    assert tokens([0, 1, 2])[2] == tokens([2])[0]


def test_tokens_without_probability_are_never_drawn():
    p = torch.tensor([0.0, 0.3, 0.0, 0.0, 0.7, 0.0]).expand(20_000, -1)
    drawn = _sample(p, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 4} and abs((drawn == 4).float().mean() - 0.7) < 0.02
    part = _sample(
        p * 0.4, torch.Generator().manual_seed(0)
    )  # sums below 1 are no reason to name another token
    assert torch.equal(part, drawn)


def test_a_row_that_is_not_finite_names_a_token_all_the_same():
    rows = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 0.0, 1.0], [0.0, 1.0, 2.0]])
    drawn = draw(TopKStrategy(), rows, 0, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() < 3


def test_generators_are_one_or_one_a_row():
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for count in (1, 2):
        with pytest.raises(
            CogVideoError, match=f"3 rows need one generator each, or one for all, not {count}"
        ):
            draw(TopKStrategy(), torch.zeros(3, 5), 0, generators[:count])


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_that_was_split_gives_the_tokens_of_the_whole_one_in_any_order(several):
    logits, strategy = (
        torch.randn(6, 2, 30, generator=torch.Generator().manual_seed(0)),
        TopKStrategy(top_k=30),
    )

    def streams():
        made = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return made if several else made[0]

    whole, split = streams(), streams()
    one_by_one = [draw(strategy, row, i, whole) for i, row in enumerate(logits)]
    parts = fork(split, 3, 2, 2, torch.device("cpu"))
    other_way = {i: draw(strategy, logits[i], i, parts[i // 2]) for i in (4, 5, 0, 2, 1, 3)}
    assert all(torch.equal(one_by_one[i], other_way[i]) for i in range(6))
    assert torch.equal(draw(strategy, logits[0], 6, whole), draw(strategy, logits[0], 6, split))


def test_any_callable_is_a_strategy():
    assert draw(lambda logits, step: logits.argmax(-1) + step, torch.eye(3), 4).tolist() == [4, 5, 6]


def test_a_subclass_is_called_as_it_is():
    class Loud(TopKStrategy):
        def __call__(self, logits, step):
            return torch.full((len(logits),), 7)

    assert draw(Loud(), torch.eye(3), 0, torch.Generator()).tolist() == [7, 7, 7]


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(CogVideoError, match="positive"):
        TopKStrategy(**wrong)


def test_labels_for_another_vocabulary_are_refused():
    with pytest.raises(CogVideoError, match="3 image tokens, but 5"):
        labels: Any = [0, 1, 1]
        ClusterStrategy(labels, temperature=1, top_k=1, temperature2=1).probabilities(torch.zeros(1, 5))


def test_k_means_labels_group_near_codes():
    codebook = torch.tensor([[0.0, 0], [0, 0.1], [9, 9], [9, 9.1], [0.1, 0]])
    labels = cluster_codebook(codebook, num_clusters=2)
    assert labels[0] == labels[1] == labels[4] != labels[2] == labels[3]


def test_wrong_labels_are_refused():
    with pytest.raises(CogVideoError, match="labels"):
        ClusterStrategy(torch.tensor([[1]]), temperature=1, top_k=1, temperature2=1)
