"""DPO on a table of answers ends where equation 4 says, whatever beta and whichever pairs are compared."""

import pytest
import torch

from custom_loss_dpo import LOSSES
from docs.exact_optimum import ANSWERS, optimum, preference_table, train

REFERENCE, REWARD = torch.tensor(list(ANSWERS.values()), dtype=torch.float64).T


@pytest.mark.parametrize("beta", [0.3, 0.5, 2.0])
def test_training_arrives_at_the_exact_optimum_to_three_digits(beta):
    policies = train(REFERENCE, preference_table(REWARD), beta, LOSSES["sigmoid"])
    assert torch.equal(policies[0].round(decimals=12), REFERENCE.round(decimals=12))
    assert (policies[-1] - optimum(REFERENCE, REWARD, beta)).abs().max() < 5e-4


def test_it_does_not_matter_how_often_a_pair_is_compared():
    often = torch.ones(len(REWARD), len(REWARD))
    often[0, 1] = often[1, 0] = 8  # one pair eight times as often
    often[2, 4] = often[4, 2] = 0  # and one never
    wins = preference_table(REWARD) * often
    policy = train(REFERENCE, wins / wins.sum(), 0.5, LOSSES["sigmoid"])[-1]
    assert (policy - optimum(REFERENCE, REWARD, 0.5)).abs().max() < 5e-4


def test_higher_beta_keeps_the_policy_closer_to_the_reference():
    policies = [train(REFERENCE, preference_table(REWARD), beta, LOSSES["sigmoid"])[-1] for beta in (0.3, 0.5, 2.0)]
    low, middle, high = ((policy * (policy / REFERENCE).log()).sum() for policy in policies)
    assert low > middle > high > 0


def test_no_other_policy_has_a_higher_objective():
    torch.manual_seed(0)
    others = torch.distributions.Dirichlet(torch.ones(len(REWARD), dtype=torch.float64)).sample((10_000,))

    def objective(policy, beta=0.5):
        return (policy * REWARD - beta * policy * (policy / REFERENCE).log()).sum(-1)

    assert objective(others).max() < objective(optimum(REFERENCE, REWARD, 0.5))
