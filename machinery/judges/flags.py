"""The judge that a command line names, and the flags that name it.

@dataclass
class Arguments(TutorialArguments, JudgeArguments): ...
judge = judge_from_flags(args, training_args, truth)          # None for --judge none
judge.try_on(prompts[:2], answers[:2])                        # before any long work
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from ..common.http_client import key_from_environment
from ..common.safe_text import say
from .endpoint import MOST_TOKENS, EndpointJudge
from .interface import TRUTH, Judge, JudgeError, Prompt
from .person import HumanJudge
from .question import Question
from .reward_model import load_reward_model
from .scores import ScoreJudge, function_judge

JUDGES = ("auto", "truth", "reward_model", "endpoint", "human", "none")
KEPT_ANSWERS = Path("runs/.cache/judge_answers.jsonl")  # of an endpoint, across evaluations
KEY_NAME = "DPO_JUDGE_API_KEY"
# The flags that belong to each kind of judge; with any other they do nothing.
USED = {
    "function": (),
    "truth": (),
    "none": (),
    "reward_model": ("judge_model",),
    "endpoint": "judge_model judge_url judge_prompt judge_max_tokens judge_samples judge_budget".split(),
    "human": ("answers", "judge_samples"),
}
BELONG = {flag: [kind for kind, flags in USED.items() if flag in flags] for flags in USED.values() for flag in flags}


@dataclass
class JudgeArguments:
    judge: str = HfArg(
        default="auto",
        help="truth (the demo), reward_model, endpoint, human, none, or your own file.py:function of prompt and answer; "
        "auto: what fits",
    )
    judge_model: str | None = HfArg(
        default=None, help="a reward model; with --judge_url the name of a language model there"
    )
    judge_url: str | None = HfArg(
        default=None,
        help="an OpenAI-compatible endpoint; its key is read from DPO_JUDGE_API_KEY, else from OPENAI_API_KEY",
    )
    judge_prompt: str | None = HfArg(
        default=None, help="what the endpoint is asked: a text file with {prompt}, {answer_a} and {answer_b}"
    )
    judge_max_tokens: int | None = HfArg(
        default=None, help=f"of an answer of the endpoint (default: {MOST_TOKENS}; one that thinks needs 8000 or more)"
    )
    judge_samples: int | None = HfArg(
        default=None, help="answers a prompt that an endpoint or a person compares, which costs (default: 1)"
    )
    judge_budget: int | None = HfArg(default=None, help="the most requests to the endpoint")
    answers: str | None = HfArg(default=None, help="the blind table of --judge human, filled in")


def judge_from_flags(
    args, training_args, truth: Callable[[Prompt, str], float] | None, are_texts: bool = False
) -> Judge | None:
    """The judge that --judge names, or None. "auto": what the other flags speak for, and else the truth.

    args: `JudgeArguments`. truth(prompt, answer): the true reward, where it is known. are_texts: see `function_judge`.
    A blind table goes to what is training_args.output_dir by then. A flag that does nothing is said. Raises UserError.
    """
    kind, model, url = args.judge, args.judge_model, args.judge_url
    if kind == "auto":
        asked = [("human", args.answers), ("endpoint", url), ("reward_model", model), ("truth", truth)]
        kind = next((name for name, value in asked if value is not None), "none")
    elif ".py" in kind:
        kind = "function"
    elif kind not in JUDGES:
        raise JudgeError(f"--judge {kind}: there are {', '.join(JUDGES)}, and your own as file.py:function")
    for flag, kinds in BELONG.items():
        if getattr(args, flag) is not None and kind not in kinds:
            say(f"--{flag} does nothing here: it counts with --judge {' or '.join(kinds)} only.")
    if kind == "function":
        return function_judge(args.judge, are_texts)
    if kind == "human":

        def folder() -> Path:
            return Path(training_args.output_dir)

        return HumanJudge(folder, args.answers, training_args.seed, args.judge_samples or 1)
    if kind == "truth":
        if truth is None:
            raise JudgeError("--judge truth: the true reward is known in the demo only")
        return ScoreJudge(TRUTH, lambda prompts, answers: list(map(truth, prompts, answers)))
    if kind == "reward_model":
        if model is None:
            raise JudgeError("--judge reward_model needs --judge_model, a folder or a hub name")
        score = load_reward_model(model, training_args.device, training_args.trust_remote_code)
        return ScoreJudge(f"the reward model {model}", score)
    if kind == "endpoint":
        if url is None or model is None:
            raise JudgeError("--judge endpoint needs --judge_url and --judge_model")
        return EndpointJudge(
            url,
            model,
            key_from_environment(KEY_NAME),
            KEPT_ANSWERS,
            args.judge_budget,
            question=None if args.judge_prompt is None else Question.read(args.judge_prompt),
            most_tokens=args.judge_max_tokens or MOST_TOKENS,
            most_answers=args.judge_samples or 1,
        )
    return None
