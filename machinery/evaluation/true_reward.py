"""What training won, sampled and greedily: by the true reward, which the demo knows, or by the scores of a judge.

measured = show_true_rewards(truth, prompts, before, after)
measured = show_scores(judge, prompts, before, after)
"""

import math

from ..common.intervals import mean_interval, rate, with_interval
from ..common.safe_text import say

# by temperature, what metrics.json calls the reward, the win rate and the share of garbled replies
NAMES = {1: ("true_reward", "win_rate", "garbled"), 0: ("greedy_reward", "greedy_win_rate", "greedy_garbled")}


# by temperature, what it calls the score of a judge and the win rate
SCORES = {1: ("score", "score_win_rate"), 0: ("greedy_score", "greedy_score_win_rate")}


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
    say(f"  {'':<12}{'sampled':<20}greedily\n  {'':<12}{'before    after     ' * 2}of")
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
        "Garbled replies (a sentence that nobody wrote): sampled {:.1%} before, {:.1%} after, "
        "greedily {:.1%}, {:.1%}".format(*shares)
    )
    return measured


def show_scores(judge, prompts: list, before: dict, after: dict) -> dict[str, tuple[float, float, float]]:
    """Print a judge's scores of the replies before and after training, and the win rates.

    judge: one that gives scores. before, after: as for `show_true_rewards`. Returns what `SCORES` lists.
    """
    measured = {}
    say(f"Score of {len(prompts)} replies by {judge.name}, before and after; win rate of after against before")
    for temperature, (name, win_rate) in SCORES.items():
        old, new = (
            judge.scores(prompts, [reply.text for reply in replies[temperature]]) for replies in (before, after)
        )
        measured |= {f"{name}_before": mean_interval(old), f"{name}_after": mean_interval(new)}
        measured[win_rate] = rate([(b > a) + 0.5 * (b == a) for a, b in zip(old, new, strict=True)])
        figures = [with_interval(measured[key]) for key in (f"{name}_before", f"{name}_after", win_rate)]
        say(f"  {'sampled' if temperature else 'greedily':<12}{figures[0]:<22}{figures[1]:<22}{figures[2]}")
    cut = [sum(not reply.is_finished for reply in replies[1]) for replies in (before, after)]
    if any(cut):
        say(
            f"  {cut[0]} and {cut[1]} of the sampled replies were cut off by --max_new_tokens, and are scored as they are."
        )
    return measured
