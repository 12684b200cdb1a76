"""A model that is only surer of itself is told from one that is better: the reference is made as sure, and both greedy."""

import math

import numpy as np
import pytest
import torch

from machinery.evaluation.entropy import Sureness, excess, matching_temperature, token_entropies
from machinery.evaluation.verdict import GREEDY, MATCHED, Outcome, decide


def test_entropies_are_those_of_the_tempered_distribution():
    logps = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    assert token_entropies(logps, 1.0).item() == pytest.approx(1.5 * math.log(2))
    by_hand = torch.tensor([0.5**2, 0.25**2, 0.25**2])
    by_hand /= by_hand.sum()
    assert token_entropies(logps, 0.5).item() == pytest.approx(-(by_hand * by_hand.log()).sum().item())
    impossible = torch.tensor([[[1.0, 0.0]]]).log()
    assert token_entropies(impossible, 0.7).item() == 0


def test_a_token_and_a_reply_are_held_to_be_as_sure():
    policy = Sureness.of(torch.tensor([2.0, 4.0]), tokens=12)
    assert policy == (0.5, 3.0)
    assert excess(Sureness(0.5, 6.0), policy) == 2  # longer replies, each token as sure
    assert excess(Sureness(0.75, 3.0), policy) == 1.5


@pytest.mark.parametrize("power", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("own", [0.02, 0.3, 0.9, 1.0, 1.4])
def test_the_temperature_is_found_in_a_few_steps(power, own):
    asked = []

    def excess_at(temperature):
        asked.append(temperature)
        return temperature**power / own

    found = matching_temperature(excess_at, start=1.0)
    expected = min(max(own ** (1 / power), 0.05), 8)
    assert found == pytest.approx(expected, rel=0.1)
    assert len(asked) <= 7
    assert len(asked) <= 4 or expected < 0.1


def test_what_is_returned_has_been_tried_and_is_the_nearest():
    asked = {}

    def excess_at(temperature):
        asked[temperature] = 1.3 if len(asked) % 2 else 0.8
        return asked[temperature]

    found = matching_temperature(excess_at, start=1.0)
    assert abs(math.log(asked[found])) == min(abs(math.log(excess)) for excess in asked.values())


def test_noise_and_a_reference_that_is_always_surer_have_an_end():
    generator = np.random.default_rng(0)
    found = matching_temperature(lambda t: t / 0.6 * math.exp(generator.normal(0, 0.03)), start=1.0)
    assert found == pytest.approx(0.6, rel=0.15)
    assert matching_temperature(lambda t: 0.5, start=1.0) > 4
    assert matching_temperature(lambda t: 2.0, start=1.0) < 0.2


def outcome_of(wins, **controls):
    outcome = Outcome("m", "r", [], np.array(wins, dtype=float), np.zeros(len(wins)))
    for name, control in controls.items():
        outcome.controls[{"matched": MATCHED, "greedy": GREEDY}[name]] = outcome_of(control)
    entropies = dict(entropy=0.2, entropy_reference=0.3, entropy_reply=5.0, entropy_reply_reference=8.0, kl=3.0)
    if controls:
        outcome.measured = {name: (value, math.nan, math.nan) for name, value in entropies.items()}
        outcome.measured["matched_temperature"] = (0.6, math.nan, math.nan)
    return outcome


WINS, EVEN, LOSES = [1] * 40 + [0] * 10, [1, 0] * 25, [1] * 10 + [0] * 40
WORDS = [
    (WINS, WINS, WINS, "better", "At matched entropy: 0.80"),
    (LOSES, LOSES, LOSES, "worse", "greedily, the likeliest token each time: 0.20"),
    (EVEN, WINS, WINS, "better", "as sure of itself at temperature 0.60"),
    (WINS, EVEN, EVEN, "only surer of itself", "a lower temperature of r does too"),
    (WINS, WINS, EVEN, "mixed", "Better at matched entropy."),
    (WINS, EVEN, WINS, "mixed", "Better greedily."),
    (WINS, LOSES, WINS, "mixed", "Better greedily, worse at matched entropy."),
    (EVEN, EVEN, LOSES, "mixed", "Better in neither, worse greedily."),
    (EVEN, EVEN, EVEN, "cannot tell", "Cannot tell with 50 prompts"),
    (LOSES, EVEN, EVEN, "cannot tell", "At matched entropy: 0.50"),
]


@pytest.mark.parametrize(("sampled", "matched", "greedy", "word", "says"), WORDS)
def test_better_holds_at_matched_entropy_and_greedily(sampled, matched, greedy, word, says):
    outcome = outcome_of(sampled, matched=matched, greedy=greedy)
    decide([outcome])
    assert outcome.word == word
    assert says in " ".join(outcome.sentences)
    assert "The price: KL 3.00 nats a reply" in " ".join(outcome.sentences)


@pytest.mark.parametrize(
    ("sampled", "reference", "word"),
    [(WINS, 0.3, "only surer of itself"), (LOSES, 0.1, "only less sure of itself"), (WINS, 0.1, "cannot tell")],
)
def test_who_is_surer_is_told_by_the_entropies_at_any_temperature(sampled, reference, word):
    outcome = outcome_of(sampled, matched=EVEN, greedy=EVEN)
    outcome.measured |= {"entropy_reference": (reference, 0, 0), "entropy_reply_reference": (reference * 25, 0, 0)}
    outcome.measured["matched_temperature"] = (0.5 * reference / 0.2, math.nan, math.nan)  # answers sampled at 0.5
    decide([outcome])
    assert outcome.word == word


def test_what_can_be_told_is_told_of_the_comparisons_that_the_verdict_rests_on():
    outcome = outcome_of(WINS, matched=[1] * 30 + [0] * 20, greedy=[1, *[0.5] * 48, 0, 1])
    decide([outcome])
    assert outcome.word == "only surer of itself"
    assert "a win rate 0.20 away from 0.5 at matched entropy and greedily four times" in outcome.sentences[-1]
    outcome = outcome_of([1, 0] * 25, matched=[1] * 28 + [0] * 22, greedy=[1] * 28 + [0] * 22)
    decide([outcome])
    assert "For a difference as small as this about 550 would be needed" in " ".join(outcome.sentences)
    outcome = outcome_of([1] * 26 + [0] * 24, matched=[1] * 28 + [0] * 22, greedy=[0.5] * 50)
    decide([outcome])
    assert "No difference was seen greedily." in " ".join(outcome.sentences)


def test_many_models_make_it_harder_for_the_controls_too():
    wins = [1] * 33 + [0] * 17
    alone = outcome_of(WINS, matched=wins, greedy=WINS)
    decide([alone])
    assert alone.word == "better"
    among = [
        outcome_of(WINS, matched=wins, greedy=WINS),
        *(outcome_of(EVEN, matched=EVEN, greedy=EVEN) for _ in range(9)),
    ]
    decide(among)
    assert among[0].word == "mixed"
