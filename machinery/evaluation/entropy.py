"""Better, or only surer of itself? The temperature at which the reference is as sure of itself as a model is.

    own = Sureness.of(sums, lengths)                             # entropies of its replies, and their tokens
    temperature = matching_temperature(lambda t: surer_than(own, measured_at(t)), start=1.0)

A judge likes likely answers better than unlikely ones, and training makes answers likelier whatever it teaches: so does
a lower temperature, at no cost. A model that is better also wins against its reference where that is as sure of itself,
and with the likeliest token at each step against the reference's likeliest.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

LEAST, MOST = 0.05, 8.0  # temperatures
CLOSE = 0.02
STEPS = 7


class Sureness(NamedTuple):
    """The mean entropy of what a model writes, in nats, exact at each step of its own samples."""

    a_token: float
    a_reply: float

    @classmethod
    def of(cls, sums: torch.Tensor, tokens: int) -> "Sureness":
        """sums: of each reply, the entropies of its tokens. tokens: of all replies together."""
        return cls(sums.sum().item() / max(tokens, 1), sums.mean().item())


def token_entropies(logps: torch.Tensor, temperature: float) -> torch.Tensor:
    """The entropy of each next token at a temperature, in nats: (B, L-1) from log-probs (B, L-1, V) at temperature 1."""
    return torch.special.entr((logps / temperature).softmax(-1)).sum(-1)


def excess(reference: Sureness, policy: Sureness) -> float:
    """By what factor the reference is less sure of itself than the policy, a token or a reply, whichever is more.

    A token alone would not do: at a lower temperature replies can be shorter, and a token of them no surer. Nor would a
    reply, which is less sure by being longer.
    """
    return max(theirs / max(ours, 1e-6) for theirs, ours in zip(reference, policy, strict=True))


def matching_temperature(excess_at: Callable[[float], float], start: float) -> float:
    """The highest temperature at which the reference is no less sure of itself, to a few percent.

    excess_at(temperature): see `excess`; it grows with the temperature, but for the noise of sampling. start: where to
    look first.
    """
    place, low, high, growth = math.log(start), math.log(LEAST), math.log(MOST), 1.0
    before, tried = None, {}
    for _ in range(STEPS):
        tried[place] = found = math.log(max(excess_at(math.exp(place)), 1e-6))
        if abs(found) <= CLOSE:
            break
        low, high = (low, place) if found > 0 else (place, high)
        if before is not None:  # entropy grows with about this power of the temperature
            growth = min(max((found - before[1]) / (place - before[0]), 0.3), 4.0)
        before = place, found
        place -= found / growth
        if not low < place < high:
            place = (low + high) / 2
    return math.exp(min(reversed(tried), key=lambda place: abs(tried[place])))  # not the one that would come next
