"""Where the true reward of any reply is known, as in the demo: what training won, sampled and greedily.

measured = show_true_rewards(truth, prompts, before, after)
"""

import math

from ..common.intervals import mean_interval, rate, with_interval
from ..common.safe_text import say

# by temperature, what metrics.json calls the reward, the win rate and the share of garbled replies
NAMES = {1: ("true_reward", "win_rate", "garbled"), 0: ("greedy_reward", "greedy_win_rate", "greedy_garbled")}


def show_true_rewards(truth, prompts: list, before: dict, after: dict) -> dict[str, tuple[float, float, float]]:
    """Print the rewards of the replies before and after training, part by part, the win rates and the garbled share.

    truth: see demo/world.py. before, after: one reply a prompt with its `text`, by temperature, 1 and 0.
    Returns what `NAMES` lists, rewards and shares with _before and _after, each a mean with the ends of its 95% interval.
    """
    measured, columns = {}, []
    for temperature, (reward, win_rate, garbled) in NAMES.items():
        totals = []
        for when, replies in (("before", before[temperature]), ("after", after[temperature])):
            scores = [truth.score(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
            totals.append([sum(parts.values()) for parts in scores])
            measured[f"{reward}_{when}"] = mean_interval(totals[-1])
            is_garbled = [not truth.is_well_formed(reply.text) for reply in replies]
            measured[f"{garbled}_{when}"] = rate(is_garbled)
            means = [sum(parts[name] for parts in scores) / len(scores) for name in truth.maxima]
            columns.append([*means, *measured[f"{reward}_{when}"]])
        wins = [(new > old) + 0.5 * (new == old) for old, new in zip(*totals, strict=True)]
        measured[win_rate] = rate(wins)

    say(f"True reward of {len(prompts)} replies: sampled, and greedily (the likeliest token each time)")
    say(f"  {'':<12}{'sampled':<20}greedily\n  {'':<12}{'before    after     ' * 2}most")
    rows = [*truth.maxima, "all", "95% from", "to"]
    most = [f"{value:.0f}" for value in (*truth.maxima.values(), sum(truth.maxima.values()))] + ["", ""]
    for row, *values, best in zip(rows, *columns, most, strict=True):
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        say(f"  {row:<12}{''.join(f'{cell:<10}' for cell in cells)}{best}".rstrip())
    say(truth.without_training)
    sampled, greedily = (with_interval(measured[win_rate]) for _, win_rate, _ in NAMES.values())
    say(f"Win rate of after against before, ties half: {sampled} sampled, {greedily} greedily")
    shares = [measured[f"{garbled}_{when}"][0] for _, _, garbled in NAMES.values() for when in ("before", "after")]
    say(
        "Garbled replies, with a sentence that nobody wrote, before and after: "
        "{:.1%}, {:.1%} sampled, {:.1%}, {:.1%} greedily".format(*shares)
    )
    return measured
