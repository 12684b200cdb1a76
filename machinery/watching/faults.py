"""What the watcher says of each kind of fault: what it means, what to try, and where more is said.

section, text = FAULTS["stuck"]
text.format(beta=0.1, rate=1e-6, loss="sigmoid")      # "--learning_rate 1e-06 is too low for this model and ..."
"""

from typing import NamedTuple

PAGE = "docs/when_it_goes_wrong.md"


class Fault(NamedTuple):
    """What a kind of fault means and what to try ({beta}, {rate}, {loss}: the run's), and the section of PAGE on it."""

    section: str
    text: str


BY_SECTION = {
    "The first loss is not ln 2": {
        "wrong-reference": "They should be the same model: DPO would hold the policy to one that it did not start "
        "from. Load the weights, and an adapter from SFT, into both, or merge the adapter first.",
        "first-loss": "The loss does not compute what its name says: look at its formula and weights.",
    },
    "The loss stays at 0.693": {
        "no-parameter": "Nothing would be trained. An adapter has to be loaded with is_trainable=True.",
        "rate-zero": "--learning_rate is 0.",
        "rounded": "Updates of {rate:g} are lost in rounding. Weights stored in 16 bits need --dtype float32 (--bf16 "
        "still computes in 16 bits) or an adapter; otherwise raise the rate.",
        "unreached": "They get no gradient, or the optimizer does not know them: an adapter that is switched off or "
        "was added after the trainer was made, or layers that the answers do not go through.",
        "stuck": "--learning_rate {rate:g} is too low for this model and batch: try ten times that. (An adapter takes "
        "about ten times the rate of full training.)",
        "same-answers": "Such a pair teaches nothing, its margin is always 0. Look for a column that was named twice, "
        "and for answers that differ only beyond --max_length; leave them out.",
    },
    "The accuracy stays near 0.5": {
        "coin": "That is hardly more than a coin's: the labels are near chance, or contradict each other. Read twenty "
        "pairs yourself; run custom_dataset_dpo.py on them; of scored answers keep those that are clear "
        "(--min_margin).",
    },
    "The held-out accuracy is below 0.5": {
        "reversed": "The policy learns the opposite of what it is held to. In one of the two splits chosen and "
        "rejected are the wrong way round: compare a few pairs of both (--columns chosen=...,rejected=... sets the "
        "names).",
    },
    "The held-out accuracy falls while that of training rises": {
        "overfit": "The pairs are being learnt by heart. The checkpoint of that step was better; train for fewer "
        "steps, on more pairs, or with a higher --beta.",
    },
    "The accuracy is 1.0, the loss goes to 0": {
        "separated": "In the first epoch that is no skill: something trivial tells the answers apart (one is empty or "
        "cut, a marker, another author). Later they are known by heart. What is left is to drive them further apart: "
        "look at the pairs by custom_dataset_dpo.py, stop earlier, or take a loss with an end (ipo, or cdpo with "
        "--label_smoothing 0.1).",
    },
    "The chosen reward falls": {
        "displaced": "Training lowers both answers and only minds their difference; what gains is text that nobody "
        "wrote (likelihood displacement, arXiv:2410.08847). Try a third of --learning_rate {rate:g}, a higher --beta, "
        "--loss_type {loss} sft, or fewer steps.",
        "beta": "With --beta {beta:g} the loss hardly notices, and nothing holds the policy to its reference. A "
        "higher beta does: 0.1 is usual.",
        "ipo-beta": "With --beta {beta:g} ipo drives the answers 1 / (2 beta) nats a TOKEN apart, further than text "
        "survives. Its beta is no DPO beta, for it takes means over tokens: try 0.5 to 1.5.",
    },
    "The margin runs away": {
        "runaway": "The policy is running away from the reference, and replies break next. Try a third of "
        "--learning_rate {rate:g}, a higher --beta, or fewer steps; and see whether the rejected answers are all "
        "alike, or empty.",
    },
    "NaN, or a gradient without end": {
        "overflow": "The next update can make every weight NaN. Lower --learning_rate, and look for empty or broken "
        "pairs.",
        "fp16-overflow": "fp16 ends at 65504, and the loss scale, halved each time, finds no place. Use --bf16, or "
        "fp32.",
    },
    "Gibberish, and replies that do not end": {
        "replies": "The accuracy does not see this. Try a third of --learning_rate {rate:g} or a higher --beta; for "
        "lengths, compare those of the answers (custom_dataset_dpo.py), and see that the chosen ones end with the EOS "
        "token.",
    },
}
FAULTS = {kind: Fault(section, text) for section, kinds in BY_SECTION.items() for kind, text in kinds.items()}
