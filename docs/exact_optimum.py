"""Does DPO arrive where it says it does? One prompt, five answers, and a best policy that is known exactly.

    python docs/exact_optimum.py

A language model has too many answers for anyone to write down its best policy. A table of five answers has not: the
policy that maximises reward - beta * KL is reference * exp(reward / beta) / Z, and Z is a sum of five numbers. Here a
table of probabilities is trained with the loss of custom_loss_dpo.py, by nothing but PyTorch, in about ten seconds. You
see it arrive at the known optimum, and what 200 labelled pairs in the place of all of them cost.

Try next:

    python docs/exact_optimum.py --beta 2              # dearer: the optimum lies nearer to the reference
    python docs/exact_optimum.py --loss_type ipo       # another loss has another optimum
    python docs/exact_optimum.py --pairs 20            # a few pairs: an answer may win by luck alone
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into files; there may be no screen
import matplotlib.pyplot as plt
import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from custom_loss_dpo import LOSSES

# A customer's kettle will not turn on. Answer: (probability under the reference, true reward)
ANSWERS = {
    "swap+sorry": (0.05, 3.0),  # the best one is rare at first
    "swap": (0.15, 2.0),
    "ask maker": (0.30, 1.0),
    "works here": (0.30, 0.5),
    "your fault": (0.20, 0.0),
}
BETA_ALONE = ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero")  # no other hyperparameter
STEPS, RATE = 500, 0.05  # of Adam; sigmoid, hinge and ipo are convex here, so any small rate arrives
SHOWN = (0, 3, 10, 30, 100, 200, 500)
DRAWS = 200  # sets of --pairs pairs


def optimum(reference, reward, beta):
    """The policy with the highest E[reward] - beta * KL(policy || reference); Eq. 4, arXiv:2305.18290. Shape (N,)."""
    weights = reference * torch.exp((reward - reward.max()) / beta)  # less the maximum: nothing overflows
    return weights / weights.sum()  # the sum is Z


def preference_table(reward):
    """Two different answers by chance, labelled by a coin (Eq. 1): [i, j], how often i is chosen over j. (N, N)."""
    wins = torch.sigmoid(reward[:, None] - reward[None, :]).fill_diagonal_(0)
    return wins / wins.sum()


def mean_loss(logits, reference, wins, beta, loss):
    """The loss over all pairs, each counted as often as it occurs; logits (..., N), wins (..., N, N)."""
    policy_logps, ref_logps = logits.log_softmax(-1), reference.log()
    ones = torch.ones_like(wins)  # an answer is one token here
    losses = loss(  # (..., N, N): row i chosen, column j rejected
        beta=beta,
        policy_chosen_logps=policy_logps[..., :, None] * ones,
        policy_rejected_logps=policy_logps[..., None, :] * ones,
        ref_chosen_logps=ref_logps[:, None] * ones,
        ref_rejected_logps=ref_logps[None, :] * ones,
        chosen_lengths=ones,
        rejected_lengths=ones,
    )
    return (wins * losses).sum((-2, -1))


def train(reference, wins, beta, loss):
    """Policies before the first step and after each: (STEPS + 1, ..., N). The policy starts as the reference."""
    logits = reference.log().expand(wins.shape[:-1]).clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    policies = [logits.softmax(-1).detach()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        mean_loss(logits, reference, wins, beta, loss).sum().backward()  # a sum: the sets do not touch each other
        optimizer.step()
        policies.append(logits.softmax(-1).detach())
    return torch.stack(policies)


def draw(path, policies, best, reference, reward, beta):
    """Left the arrival over the steps, right the optimum over beta between the reference and the best answer."""
    figure, (arrival, table) = plt.subplots(1, 2, figsize=(11, 4.2))
    colours = plt.get_cmap("viridis_r")(torch.linspace(0.05, 0.95, len(ANSWERS)).numpy())
    columns = {"reference": reference} | {f"{b:g}": optimum(reference, reward, b) for b in (10, 3, 1, 0.5, 0.2, 0.1)}
    columns["best answer"] = (reward == reward.max()).double()
    bottom = torch.zeros(len(columns))
    for number, (name, colour, marker) in enumerate(zip(ANSWERS, colours, "osD^v", strict=True)):
        style = dict(color=colour, marker=marker, markevery=(10 * number, 50), markersize=5)
        arrival.plot(policies[:, number], label=f"{name}, reward {reward[number]:g}", **style)
        arrival.axhline(best[number], color=colour, linestyle=":", linewidth=1)
        heights = torch.tensor([column[number] for column in columns.values()])
        table.bar(list(columns), heights, bottom=bottom, color=colour, edgecolor="white")
        bottom += heights
    arrival.set(xlim=(0, 300), xlabel="step", ylabel="probability")
    arrival.set_title(f"training arrives at the optimum (dotted), beta {beta:g}", fontsize=10)
    arrival.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.62))
    table.set_xlabel("beta: the price of leaving the reference falls from left to right")
    table.set_title("the optimum for each beta", fontsize=10)
    table.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=0.5, help="the price of leaving the reference (%(default)s)")
    parser.add_argument("--loss_type", choices=BETA_ALONE, default="sigmoid", help="which loss to train with")
    parser.add_argument("--pairs", type=int, default=200, help="how many pairs to draw in the second part")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn pairs; the first part needs no chance")
    parser.add_argument("--figure", default="", help="draw into this file")
    options = parser.parse_args()
    if options.beta <= 0 or options.pairs < 1:
        parser.error("--beta must be above 0, and --pairs at least 1.")

    torch.set_num_threads(1)  # these tables are too small to share the work
    reference, reward = torch.tensor(list(ANSWERS.values()), dtype=torch.float64).T  # (N,) each
    best = optimum(reference, reward, options.beta)
    wins, loss = preference_table(reward), LOSSES[options.loss_type]

    print(f"Every pair as often as it occurs, {options.loss_type}, beta {options.beta:g}")
    print("     step     loss  " + "".join(f"{name:>12}" for name in ANSWERS))
    policies = train(reference, wins, options.beta, loss)
    for name, policy in [*((step, policies[step]) for step in SHOWN), ("exact", best)]:
        value = mean_loss(policy.log(), reference, wins, options.beta, loss)
        print(f"{name:>9}{value:9.4f}  " + "".join(f"{probability:12.3f}" for probability in policy))
    print(f"furthest from the exact optimum: {(policies[-1] - best).abs().max():.4f}")

    print(f"\n{options.pairs} pairs drawn, {DRAWS} times: where 95% of the policies end")
    generator = torch.Generator().manual_seed(options.seed)
    picks = torch.multinomial(wins.flatten().expand(DRAWS, -1), options.pairs, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(picks, wins.numel()).sum(1).reshape(DRAWS, *wins.shape)
    drawn = train(reference, counts / options.pairs, options.beta, loss)[-1]  # (DRAWS, N)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    for number, name in enumerate(ANSWERS):
        interval = f"95% [{low[number]:.3f}, {high[number]:.3f}]"
        print(f"{name:>12}   exact {best[number]:.3f}   one draw {drawn[0, number]:.3f}   {interval}")
    off = (drawn - best).abs().max(-1).values
    print(f"furthest from the exact optimum, mean over the draws: {off.mean():.3f}")

    if options.figure:
        draw(options.figure, policies, best, reference, reward, options.beta)


if __name__ == "__main__":
    main()
