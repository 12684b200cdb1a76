"""The flags of pairs of one's own, and what they refuse before anything is loaded.

@dataclass
class Arguments(TutorialArguments, SamplingArguments): ...
"""

import math
from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from ..answers.server import ServerArguments, check_server_flags
from ..common.errors import UserError
from ..judges.flags import JudgeArguments

DELTA = "delta"
MOST = {"sample_answers": 10_000, "rounds": 1_000}  # more is a slip of the hand
RARE = (  # only --help_all shows them
    "temperature num_prompts skip_prompts answers_url answers_model reference first_reference judge_prompt judge_max_tokens "
    "judge_samples judge_budget answers"
).split()


@dataclass
class SamplingArguments(JudgeArguments, ServerArguments):
    """Who answers prompts that have no pairs, who scores the answers, and how often that is done."""

    sample_answers: int = HfArg(
        default=0, help="the data are prompts: sample so many answers to each, and let --judge score them"
    )
    sample_from: list[str] = HfArg(
        default_factory=list,
        help="the models that answer, where it is not the one that is trained; with --judge delta the better one first",
    )
    temperature: float = HfArg(default=1.0, help="of sampled answers: 1 is the policy's own distribution")
    num_prompts: int | None = HfArg(
        default=None, help="answer so many of the prompts, drawn by the seed (default: all)"
    )
    skip_prompts: int = HfArg(default=0, help="leave out the first so many of that order, as later rounds do")
    rounds: int = HfArg(default=0, help="do all of it so many times, each time from the model just trained")
    reference: str | None = HfArg(
        default=None, help="the model that the policy is held to (default: the one that is trained, as it is now)"
    )
    first_reference: bool = HfArg(default=False, help="hold every round to the model that the first began with")

    def __post_init__(self):
        check_flags(self)


def check_flags(args) -> None:
    """Refuse what cannot be sampled or scored, and flags that would do nothing. Raises UserError."""
    if args.rounds < 0:
        raise UserError(f"--rounds must be 1 or more, or 0 for none, not {args.rounds}.")
    for name, most in MOST.items():
        if (getattr(args, name) or 0) > most:
            raise UserError(f"--{name} {getattr(args, name)}: at most {most:,}.")
    if args.rounds and not args.sample_answers:
        raise UserError("--rounds needs --sample_answers: a second round on the same pairs is a second epoch.")
    if args.rounds and (args.check_only or args.save_cleaned):
        raise UserError(
            "--rounds trains, and each round's answers stay in its folder: leave out --check_only and --save_cleaned."
        )
    if args.first_reference and (not args.rounds or args.reference):
        raise UserError("--first_reference counts with --rounds, and names what --reference would name.")
    if not args.sample_answers:
        rest = "sample_from num_prompts skip_prompts answers_url answers_model judge_model judge_url judge_prompt "
        rest += "judge_max_tokens judge_samples judge_budget"
        idle = [f"--{name}" for name in rest.split() if getattr(args, name)] + ["--judge"] * (args.judge != "auto")
        idle += ["--temperature"] * (args.temperature != 1.0)
        if idle:
            raise UserError(f"{' and '.join(idle)} counts with --sample_answers only: so many answers to each prompt.")
        return
    answering = len(args.sample_from) + bool(args.answers_url) or 1
    if args.sample_answers < 1 or args.sample_answers * answering < 2:
        raise UserError(f"--sample_answers {args.sample_answers}: a pair takes two answers to a prompt at least.")
    if args.dataset_streaming:
        raise UserError("--sample_answers reads all prompts, so it goes without --dataset_streaming.")
    check_server_flags(args)
    if not 0 < args.temperature < math.inf:
        raise UserError("--temperature must be a number above 0: at 0 the likeliest answer comes every time.")
    if args.judge == DELTA and answering != 2:
        raise UserError("--judge delta needs two that answer, the better one first: two models in --sample_from.")
    if args.judge == "human":
        raise UserError(
            "--judge human compares what two models wrote: dpo_evaluation.py. A person's scores go into a file."
        )
    for name, least in (("num_prompts", 1), ("skip_prompts", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}.")
