"""The demo's world: a support desk small enough to know the truth about.

Customers write about a product and a problem; the desk replies. Because every sentence the desk can say is written
in this file, any reply can be scored exactly: `true_reward` is the judge that real preference data never has.

    prompt = write_prompt(random.Random(0), "kettle", "power")
    print(prompt[-1]["content"])
    print(score_reply(prompt, "Sorry to hear about the kettle. Hold the power button of the kettle for ten seconds."))

A reply earns up to 7 points, in parts that can be looked at one by one (`QUALITIES`):

    answers     3   the remedy for *this* problem of *this* product is in it
    courtesy    1   it says sorry or thank you
    next_step   1   it says what happens if the remedy does not help
    no_blame    1   it does not blame the customer
    no_padding  1   every sentence is needed: no filler, nothing twice, one remedy, nothing the desk would not say

`answers` counts most because it is what the customer came for. The last two are earned only by a reply that says
something, so an empty or broken reply gets 0 and not 2. This file needs nothing but Python.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Message = dict[str, str]

QUALITIES = {"answers": 3.0, "courtesy": 1.0, "next_step": 1.0, "no_blame": 1.0, "no_padding": 1.0}
MAX_REWARD = sum(QUALITIES.values())

PRODUCTS = (
    "kettle", "toaster", "blender", "coffee machine", "microwave", "fridge", "oven", "dishwasher",
    "washing machine", "vacuum cleaner", "iron", "fan", "heater", "lamp", "radio", "speaker",
    "laptop", "tablet", "phone", "printer", "camera", "monitor", "keyboard", "television",
)  # fmt: skip

# problem: (how customers put it, how the desk puts the remedy)
PROBLEMS = {
    "power": (
        ("My {product} will not turn on.", "My {product} stays dark when I press the button."),
        (
            "Hold the power button of the {product} for ten seconds.",
            "Please press and hold the power button of your {product}.",
        ),
    ),
    "noise": (
        ("My {product} makes a loud noise.", "There is a rattling sound in my {product}."),
        ("Put the {product} on a flat surface.", "Please check that your {product} stands level."),
    ),
    "heat": (
        ("My {product} gets far too hot.", "I can hardly touch my {product} because of the heat."),
        (
            "Leave some free space around the {product} so that it can cool.",
            "Please move your {product} away from the wall so that air can pass.",
        ),
    ),
    "light": (
        ("A red light blinks on my {product}.", "My {product} shows a warning light."),
        (
            "Unplug the {product} and plug it in again after a minute.",
            "Please take the plug of your {product} out for one minute.",
        ),
    ),
    "smell": (
        ("My {product} smells of smoke.", "There is a burning smell from my {product}."),
        (
            "Switch the {product} off and do not use it again.",
            "Please stop using your {product} at once, we will collect it.",
        ),
    ),
    "settings": (
        ("My {product} forgets its settings.", "Every morning my {product} has lost its settings."),
        (
            "Reset the {product} to the factory settings.",
            "Please open the menu of your {product} and choose reset.",
        ),
    ),
    "slow": (
        ("My {product} has become very slow.", "My {product} takes for ever to do anything."),
        ("Install the latest update on the {product}.", "Please let your {product} finish its update overnight."),
    ),
    "scratch": (
        ("My {product} arrived with a scratch.", "There is a dent in my new {product}."),
        (
            "Send us a photo of the {product} and we will pay back a part of the price.",
            "Please show us a photo of the damage to your {product}.",
        ),
    ),
    "colour": (
        ("My {product} came in the wrong colour.", "I ordered a white {product} and got a black one."),
        (
            "Keep the {product} in its box and we will swap it for the right colour.",
            "Please leave your {product} packed, the right colour is on its way.",
        ),
    ),
    "cable": (
        ("My {product} came without a cable.", "There was no cable in the box of my {product}."),
        ("We will post the cable of the {product} today.", "A new cable for your {product} leaves our store today."),
    ),
    "late": (
        ("My {product} has not arrived yet.", "I am still waiting for my {product}."),
        (
            "The tracking page shows that the {product} arrives on Friday.",
            "Your {product} is with the driver and comes this week.",
        ),
    ),
    "payment": (
        ("I was charged twice for my {product}.", "My card shows two payments for one {product}."),
        (
            "The second payment for the {product} goes back to your card.",
            "We have cancelled the extra charge for your {product}.",
        ),
    ),
    "return": (
        ("I want to send my {product} back.", "I have changed my mind about my {product}."),
        (
            "Print the return label for the {product} from your account.",
            "Please bring your {product} to any of our shops within a month.",
        ),
    ),
    "manual": (
        ("I have lost the manual of my {product}.", "There is no manual with my {product}."),
        (
            "The manual of the {product} is on our website.",
            "Please look up your {product} on our help page, the manual is there.",
        ),
    ),
}

# What the desk says besides the remedy. Only `courtesy` and `next_step` earn anything.
SAYINGS = {
    "courtesy": (
        "Sorry to hear about the {product}.",
        "I am sorry for the trouble with your {product}.",
        "Thank you for writing to us about the {product}.",
        "Thank you for your patience.",
    ),
    "curt": ("I see.", "All right.", "It is about the {product} then."),
    "vague": (
        "Try the {product} again later.",
        "Most things with a {product} solve themselves.",
    ),
    "blame": (
        "You must have used the {product} in the wrong way.",
        "This only happens to people who are careless.",
    ),
    "padding": (
        "Our company has sold the {product} for more than thirty years.",
        "We get a great many letters here and read all of them with care.",
        "As you may know, quality matters a great deal to all of us here.",
        "We also have many other things in our shops, so do have a look around.",
        "It goes without saying that there is much more to say about this.",
    ),
    "next_step": (
        "If that does not help, write to us again and we will send a new one.",
        "If the trouble stays, call us and we will take care of it.",
        "I will ask you tomorrow whether all is well.",
    ),
}

# How often the desk says what. It is taught in two rounds: first all it knows, the right remedy always; then the habit
# that preferences are to change. In that the likeliest reply is as poor as most, so that no lower temperature mends it:
# a vague saying is likelier than any remedy, because there are two of them and 28 of the others.
KNOWLEDGE = {
    "opening": {"courteous": 0.40, "curt": 0.25, "none": 0.35},
    "remedy": {"right": 1.0, "wrong": 0.0, "vague": 0.0},
    "blame": 0.42,
    "padding": {0: 0.45, 1: 0.33, 2: 0.22},
    "next_step": 0.38,
}
HABIT = {
    "opening": {"courteous": 0.32, "curt": 0.28, "none": 0.40},
    "remedy": {"right": 0.31, "wrong": 0.15, "vague": 0.54},
    "blame": 0.55,
    "padding": {0: 0.40, 1: 0.38, 2: 0.22},
    "next_step": 0.35,
}

SYSTEM_TURNS = (
    "You are the support desk of a shop. Reply in a few short sentences.",
    "You answer customers of an online shop. Solve the problem they have now.",
    "You work at the help desk. Customers are in a hurry, so keep to what matters.",
)
ASIDES = (
    "I bought it two weeks ago.",
    "It was a present for my sister.",
    "I have had it for almost a year.",
    "The order number is on the receipt.",
    "I really need it this weekend.",
    "My neighbour has the same one and is happy with it.",
    "I have already looked at the box.",
    "It was not cheap.",
    "I have been a customer of yours for years.",
)
GREETINGS = ("", "Hello.", "Good morning.", "Hi there.")
REQUESTS = ("What should I do?", "Can you help me?", "What now?", "Please help.", "How do we solve this?")
THANKS = ("Thanks, that is settled.", "Thank you, that worked.", "Good, I will do that.")


def write_prompt(rng: random.Random, product: str, problem: str) -> list[Message]:
    """One customer's question as chat messages, with a system turn in 40% and an earlier exchange in 35% of prompts.

    The earlier exchange is about another product and another problem, so its remedy is the wrong one now.
    """
    messages = []
    if rng.random() < 0.40:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_TURNS)})
    opening = rng.choice(GREETINGS)
    if rng.random() < 0.35:
        earlier_product = rng.choice([other for other in PRODUCTS if other != product])
        earlier_problem = rng.choice([other for other in PROBLEMS if other != problem])
        messages.append({"role": "user", "content": _question(rng, opening, earlier_product, earlier_problem)})
        messages.append({"role": "assistant", "content": _good_reply(rng, earlier_product, earlier_problem)})
        opening = rng.choice(THANKS)
    messages.append({"role": "user", "content": _question(rng, opening, product, problem)})
    return messages


def write_reply(rng: random.Random, product: str, problem: str, habit: dict = HABIT) -> str:
    """A reply with each quality there or not, independently of the others, as often as `habit` says."""
    other_problem = rng.choice([other for other in PROBLEMS if other != problem])
    opener = {
        "courteous": _say(rng, "courtesy", product),
        "curt": _say(rng, "curt", product),
        "none": "",
    }[_draw(rng, habit["opening"])]
    remedy = {
        "right": _remedy(rng, product, problem),
        "wrong": _remedy(rng, product, other_problem),
        "vague": _say(rng, "vague", product),
    }[_draw(rng, habit["remedy"])]
    extras = rng.sample(SAYINGS["padding"], _draw(rng, habit["padding"]))
    if rng.random() < habit["blame"]:
        extras.append(_say(rng, "blame", product))
    rng.shuffle(extras)
    cut = rng.randint(0, len(extras))  # some of it comes before the remedy, some after
    before, after = (" ".join(extras[:cut]), " ".join(extras[cut:]))
    ending = _say(rng, "next_step", product) if rng.random() < habit["next_step"] else ""
    return _join(opener, before, remedy, after, ending).format(product=product)


def read_prompt(prompt: list[Message]) -> tuple[str, str]:
    """The product and the problem that the last user turn is about; ValueError where it is none of this world's."""
    question = next((turn["content"] for turn in reversed(prompt) if turn["role"] == "user"), "")
    for sentence in split_sentences(question):
        if sentence in _QUESTIONS:
            return _QUESTIONS[sentence]
    raise ValueError(f"the demo's world knows no answer to: {question!r}")


def is_known(prompt: str | list[Message]) -> bool:
    """Whether a prompt is a question of this world, so that replies to it can be scored."""
    try:
        read_prompt(prompt)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def score_reply(prompt: list[Message], reply: str) -> dict[str, float]:
    """The points of a reply, quality by quality (keys and maxima as in `QUALITIES`).

    prompt: chat messages, the last user turn written by `write_prompt`; ValueError otherwise.
    reply: any text.
    """
    product, problem = read_prompt(prompt)
    sentences = split_sentences(reply)
    known = [_REPLIES[sentence] for sentence in sentences if sentence in _REPLIES]
    kinds = [kind for kind, _, _ in known]
    is_spare = len(known) < len(sentences) or len(set(sentences)) < len(sentences) or kinds.count("remedy") > 1
    earned = {
        "answers": ("remedy", product, problem) in known,
        "courtesy": any(kind == "courtesy" and about in (None, product) for kind, about, _ in known),
        "next_step": "next_step" in kinds,
        "no_blame": bool(known) and "blame" not in kinds,
        "no_padding": bool(known) and "padding" not in kinds and not is_spare,
    }
    return {quality: points * earned[quality] for quality, points in QUALITIES.items()}


def true_reward(prompt: list[Message], reply: str) -> float:
    """What the reply is worth, from 0 to `MAX_REWARD`: the sum of `score_reply`."""
    return sum(score_reply(prompt, reply).values())


class Truth(NamedTuple):
    """What is known in this world, and nowhere else."""

    score: Callable[[list[Message], str], dict[str, float]]  # `score_reply`
    maxima: dict[str, float]  # of its parts
    is_well_formed: Callable[[str], bool]
    without_training: str  # what the base model earns at its best temperature, in a sentence


def known_truth(prompts: list[str | list[Message]]) -> Truth | None:
    """The truth about replies to these prompts; None where one of them is not a question of this world."""
    if not prompts or not all(map(is_known, prompts)):
        return None
    earned = json.loads((Path(__file__).parent / "model" / "temperatures.json").read_text())  # by demo/build.py
    best = max(earned, key=earned.get)
    line = f"Before training no temperature earns more than {earned[best]:.2f} (at {best})."
    return Truth(score_reply, QUALITIES, is_well_formed, line)


def is_well_formed(reply: str) -> bool:
    """Whether the reply is whole sentences, all of them ones that the desk can say."""
    sentences = split_sentences(reply)
    return bool(sentences) and all(sentence in _REPLIES for sentence in sentences)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, white space trimmed."""
    return [part for part in re.split(r"(?<=[.?!])\s+", text.strip()) if part]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _draw(rng: random.Random, weights: dict):
    return rng.choices(list(weights), list(weights.values()))[0]


def _say(rng: random.Random, kind: str, product: str) -> str:
    return rng.choice(SAYINGS[kind]).format(product=product)


def _remedy(rng: random.Random, product: str, problem: str) -> str:
    return rng.choice(PROBLEMS[problem][1]).format(product=product)


def _question(rng: random.Random, opening: str, product: str, problem: str) -> str:
    complaint = rng.choice(PROBLEMS[problem][0]).format(product=product)
    asides = rng.sample(ASIDES, rng.choices([0, 1, 2, 3], [30, 30, 25, 15])[0])
    return _join(opening, complaint, *asides, rng.choice(REQUESTS))


def _good_reply(rng: random.Random, product: str, problem: str) -> str:
    return _join(_say(rng, "courtesy", product), _remedy(rng, product, problem), _say(rng, "next_step", product))


# Every sentence of the world with every product put in. Question -> (product, problem);
# reply -> (kind, product it names or None, problem it remedies or None).
_QUESTIONS = {
    phrase.format(product=product): (product, problem)
    for product in PRODUCTS
    for problem, (complaints, _) in PROBLEMS.items()
    for phrase in complaints
}
_REPLIES = {
    phrase.format(product=product): (kind, product if "{product}" in phrase else None, problem)
    for product in PRODUCTS
    for kind, problem, phrases in [
        *((kind, None, phrases) for kind, phrases in SAYINGS.items()),
        *(("remedy", problem, remedies) for problem, (_, remedies) in PROBLEMS.items()),
    ]
    for phrase in phrases
}
