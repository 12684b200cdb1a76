"""Is the model better? By how much, how sure is that, at what price, and for which prompts is it not?

    python dpo_evaluation.py

evaluates the newest run in runs/ against its own reference (trains the basic one first if there is none): one to
two minutes on two CPU cores. The loss of a training cannot tell: it is about answers that are in a file. Here both
models write answers to the same held-out prompts, a judge compares them, and every number comes with its interval. You
see (figures differ by seed and machine)

      What the models write
                                                        reference               runs/basic
      score of the judge                                2.38 [2.27, 2.50]       5.43 [5.32, 5.55]
      win rate against the reference, ties half                                 0.92 [0.90, 0.93]
      KL from the reference, nats a reply                                       3.04 [2.86, 3.22]

      runs/basic against demo/model: BETTER
        Win rate of runs/basic against demo/model: 0.92 [0.90, 0.93] on 200 prompts, ties half (paired test: p below 0.001).
        At matched entropy: 0.87 [0.85, 0.89] (p below 0.001); greedily, the likeliest token each time: 1.00 [0.98, 1.00] (p
        below 0.001).

and in report.html the same with figures and all answers side by side.

Try next:

    python dpo_evaluation.py --models runs/basic runs/lora          # several against one reference, and each other
    python dpo_evaluation.py --judge human                          # you are the judge: a blind table to fill in
    python dpo_evaluation.py --judge rules.py:score                 # a function of yours: of prompt and answer, a number
    python dpo_evaluation.py --judge_url http://localhost:8000/v1 --judge_model NAME       # a language model is
    python dpo_evaluation.py --answers_from vllm.jsonl --reference my/sft-model --dataset_name prompts.jsonl
    python dpo_evaluation.py --help
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from transformers.hf_argparser import HfArg

from demo.world import is_known, true_reward
from dpo_utils import (
    Completion,
    TutorialArguments,
    format_pair,
    load_any,
    load_any_tokenizer,
    load_preferences,
    pair_logps,
    parse_args,
    pick_prompts,
    run,
    sample_completions,
    say,
    sequence_kls,
    sequence_logps,
)
from machinery.answers.kept import from_the_first, sample_kept
from machinery.answers.prompts import load_prompts
from machinery.answers.server import ServerArguments
from machinery.answers.sources import sources_from_flags
from machinery.answers.texts import read_texts, text_losses, text_windows
from machinery.answers.written import Answer
from machinery.command.flag_help import EVALUATION_FLAGS
from machinery.common.chat import most_tokens, warn_of_cut_thoughts
from machinery.common.errors import UserError
from machinery.comparing.side_by_side import run_facts
from machinery.data.formatting import PLAIN_CHAT_TEMPLATE
from machinery.evaluation.entropy import Sureness, excess, matching_temperature, token_entropies
from machinery.evaluation.metrics import (
    NO_INTERVAL,
    PairLogps,
    kl_interval,
    preference_metrics,
    prompt_numbers,
    reply_metrics,
)
from machinery.evaluation.report import Report
from machinery.evaluation.verdict import GREEDY, MATCHED, Reference, judge_all
from machinery.judges.flags import JudgeArguments, judge_from_flags
from machinery.judges.interface import TRIED_ANSWER
from machinery.models.checks import is_same_tokenizer
from machinery.models.log_probs import sum_over_completions
from machinery.runs.failures import end_together
from machinery.runs.folder import claim_output_dir
from machinery.runs.interrupts import finished_first

# For every model. More prompts narrow the intervals; more answers a prompt do too, but less and less.
EVALUATION = dict(num_eval_prompts=200, per_device_eval_batch_size=64, beta=None)  # None: each run's own
DEMO = dict(dataset_name="demo")
MOST_DEMO_TOKENS = 96  # of a reply in the demo, where nothing else is said


@dataclass
class EvaluationArguments(TutorialArguments, JudgeArguments, ServerArguments):
    models: list[str] = HfArg(default_factory=list, help="several models: one table, and each against each other")
    reference: str | None = HfArg(default=None, help="the model they started from (default: what their run has noted)")
    num_samples: int = HfArg(default=4, help="answers a prompt and model")
    temperature: float = HfArg(
        default=1.0, help="1 is what the KL is defined on; lower writes likelier answers, 0 the likeliest"
    )
    control_entropy: bool = HfArg(
        default=True, help="win at the reference's matching temperature and greedily, too (where the judge is free)"
    )
    answers_from: list[str] = HfArg(
        default_factory=list, help="files of prompts with answers: their models need not be loaded"
    )
    texts: str | None = HfArg(default=None, help="texts (.txt, or rows with text): the loss per token on them")


def measure(name: str, reference: Reference, pairs, prompts: list, windows, others: dict, args, training_args) -> dict:
    """What a model writes, and what is found out about it beside the reference, as `Report` takes it.

    pairs: None where there are prompts alone. windows: of --texts. others: answers that were not sampled here, by model.
    """
    facts, policy = run_facts(name), None
    beta = training_args.beta or facts.get("beta") or 0.1  # a reward is beta * (log policy - log reference)
    if name not in others:
        policy, tokenizer = load_any(name, **args.model_kwargs)
        policy.to(training_args.device)
        if tokenizer.chat_template is None and not isinstance(prompts[0], str):
            tokenizer.chat_template = PLAIN_CHAT_TEMPLATE  # as for the reference, when its pairs were loaded
    answers = others.get(name) or write_answers(policy, tokenizer, name, prompts, args, training_args)
    is_comparable = policy is not None and is_same_tokenizer(tokenizer, reference.tokenizer)
    if policy is not None and not is_comparable:  # lengths are compared, too
        answers = [[Answer.counted_by(reference.tokenizer, answer) for answer in row] for row in answers]
    measured = reply_metrics(answers) | reply_metrics(reference.answers, "_reference")
    result = dict(model=name, beta=beta, trained_from=facts.get("reference"), answers=answers, measured=measured)
    if reference.model is None or not is_comparable:
        told = f"{name} has another tokenizer than {reference.name}"
        if policy is None or reference.model is None:
            told = f"the answers of {name if policy is None else reference.name} are from elsewhere"
        result["left_out"] = f"{told}: no log-prob can be compared, so rewards, KL, entropy and --texts are left out."
        return result

    pad = reference.tokenizer.pad_token_id
    if pairs is not None:
        chosen, rejected, *_ = pair_logps(policy, pairs, reference.tokenizer, training_args.max_length)
        result["given"] = PairLogps(*map(np.asarray, (chosen, rejected, *reference.given)))
        scores = [pairs[column] for column in ("score_chosen", "score_rejected") if column in pairs.column_names]
        scores = scores if len(scores) == 2 else None
        measured |= preference_metrics(result["given"], beta, scores, prompt_numbers(pairs["prompt"]))
    if windows is not None:  # what was forgotten
        measured |= text_losses(sequence_logps(policy, windows.rows, pad).numpy(), reference.text_logps, windows)
    # Its implicit reward of the reference's answers: the report says how good the one with the highest is
    result["implicit"] = beta * (logps_of(policy, reference.answers, pad) - reference.logps)
    if args.temperature == 1:
        # KL(policy || reference), over what the policy itself writes
        kls = sequence_kls(policy, reference.model, rows_of(answers), pad).numpy().reshape(len(answers), -1)
        measured["kl"] = kl_interval(kls.mean(axis=1))
    if reference.greedy is not None:
        result["controls"] = on_equal_terms(policy, tokenizer, reference, answers, prompts, name, args, training_args)
        measured |= result["controls"].pop("measured")
    return result


def on_equal_terms(
    policy, tokenizer, reference: Reference, answers, prompts: list, name: str, args, training_args
) -> dict:
    """Answers of the reference and of the model where neither is surer of itself, as `judge_all` takes them.

    A model whose likely answers are only likelier than before wins as any lower temperature would. So it is also held
    against the reference at the temperature at which that is as sure of itself, and greedily, where nothing is drawn.
    """
    pad, sampling = reference.tokenizer.pad_token_id, (prompts, args, training_args)

    def sureness(model, answers, temperature: float) -> Sureness:
        def of_the_tokens(logps, batch):
            return token_entropies(logps, temperature)

        rows = rows_of(answers)
        return Sureness.of(sum_over_completions(model, rows, pad, of_the_tokens), sum(len(ids) for _, ids in rows))

    def excess_at(temperature: float) -> float:
        written = reference.answers
        if temperature != args.temperature:
            label = f"reference at {temperature:.2f},"
            written = write_answers(reference.model, reference.tokenizer, label, *sampling, temperature, count=1)
        found.append((temperature, sureness(reference.model, written, temperature)))
        return from_the_first(excess(found[-1][1], own))  # or several processes could part ways

    own, found = sureness(policy, answers, args.temperature), []
    temperature = matching_temperature(excess_at, args.temperature)
    matched = reference.answers
    if temperature != args.temperature:
        matched = write_answers(reference.model, reference.tokenizer, "reference, matched,", *sampling, temperature)
    greedy = write_answers(policy, tokenizer, f"{name} greedy", *sampling, temperature=0, count=1)
    figures = {"entropy": own.a_token, "entropy_reference": found[0][1].a_token, "matched_temperature": temperature}
    figures |= {"entropy_reply": own.a_reply, "entropy_reply_reference": found[0][1].a_reply}
    return {
        MATCHED: (matched, answers),
        GREEDY: (reference.greedy, greedy),
        "measured": {key: (value, *NO_INTERVAL) for key, value in figures.items()},
    }


def write_answers(model, tokenizer, name: str, prompts: list, args, training_args, temperature=None, count=None):
    """--num_samples answers to each prompt, sampled with the same seed for every model, at --temperature or another.

    They are kept on disk batch by batch, and each of several processes samples a share.
    """
    count = count or args.num_samples
    temperature = args.temperature if temperature is None else temperature
    how = dict(max_new_tokens=args.max_new_tokens, temperature=temperature, seed=training_args.seed)
    how |= dict(batch_size=training_args.per_device_eval_batch_size, progress=f"{name} answers")
    repeated = [prompt for prompt in prompts for _ in range(count)]
    flat = [Completion(*row) for row in sample_kept(sample_completions, model, tokenizer, repeated, **how)]
    warn_of_cut_thoughts(f"{name} answers", args.max_new_tokens, flat)
    return [flat[start : start + count] for start in range(0, len(flat), count)]


def rows_of(answers: list[list]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each in tokens, as `sequence_logps` takes them."""
    return [(answer.prompt_ids, answer.ids) for row in answers for answer in row]


def logps_of(model, answers: list[list], pad_token_id: int) -> np.ndarray:
    """log model(answer | prompt) of each answer, (prompts, answers)."""
    return sequence_logps(model, rows_of(answers), pad_token_id).numpy().reshape(len(answers), -1)


def main():
    args, training_args, model_args = parse_args(
        __doc__,
        DEMO,
        arguments=EvaluationArguments,
        defaults=EVALUATION,
        takes_adapters=True,
        flags=EVALUATION_FLAGS,
        needs_data=False,
    )
    started = time.time()
    texts = read_texts(args.texts, args.encoding)
    sources = sources_from_flags(args, training_args, model_args)
    reference_name, names, dataset = sources.reference, sources.names, sources.dataset
    say(f"Evaluating {', '.join(names)} against {reference_name} on {dataset}")

    # Data: the held-out pairs, or prompts alone; and who has answered those already.
    model = tokenizer = None
    if sources.is_local(reference_name):
        model, tokenizer = load_any(reference_name, **args.model_kwargs)
        model.to(training_args.device)
    elif sources.local:
        tokenizer = load_any_tokenizer(sources.local[0], **args.model_kwargs)
    if tokenizer is not None and tokenizer.chat_template is None and not args.data_kwargs["keep_plain"]:
        chats = [name for name in sources.local if load_any_tokenizer(name, **args.model_kwargs).chat_template]
        if chats:
            tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
            say(f"{reference_name} has no chat template and {chats[0]} has one: every prompt becomes a user's turn.")
    args.data_kwargs["look_at"] = None  # every pair in tokens: one whose prompt fills max_length has no answer to score
    pairs, rows, is_held_out, are_texts = load_prompts(
        dataset, tokenizer, load_preferences, format_pair, **args.data_kwargs
    )
    windows = text_windows(texts, model, tokenizer, training_args.max_length)
    is_drawn = len(rows) > args.num_eval_prompts  # files are often sorted, and their beginning stands for itself alone
    drawn = rows.shuffle(seed=training_args.seed) if is_drawn else rows
    prompts = pick_prompts(drawn, args.num_eval_prompts if sources.is_all_local else len(rows))
    truth = true_reward if all(is_known(prompt) for prompt in prompts) else None
    judge = judge_from_flags(args, training_args, truth, are_texts)
    if judge is not None:
        judge.try_on(prompts[:2], [TRIED_ANSWER] * len(prompts[:2]))  # better now than after all have answered
    args.max_new_tokens = args.max_new_tokens or (MOST_DEMO_TOKENS if truth else most_tokens(prompts))
    settings = dict(max_tokens=args.max_new_tokens, temperature=args.temperature, seed=training_args.seed)
    wanted = dict(most_prompts=args.num_eval_prompts, count=args.num_samples, tokenizer=tokenizer)
    prompts, args.num_samples, others = sources.answers_of_others(prompts, **wanted, **settings)
    claim_output_dir(training_args, "runs/evaluation")

    # The reference: how likely it finds the given answers, what it writes itself, and how likely it finds that.
    reference = Reference(reference_name, model, tokenizer, answers=others.get(reference_name))
    if model is not None:
        pad = tokenizer.pad_token_id
        answers = write_answers(model, tokenizer, "the reference", prompts, args, training_args)
        reference = reference._replace(answers=answers, logps=logps_of(model, answers, pad))
        if pairs is not None:
            reference = reference._replace(given=pair_logps(model, pairs, tokenizer, training_args.max_length))
        if windows is not None:
            reference = reference._replace(text_logps=sequence_logps(model, windows.rows, pad).numpy())
        if args.control_entropy and args.temperature > 0 and judge is not None and judge.is_free:
            greedy = write_answers(model, tokenizer, "the reference greedy", prompts, args, training_args, 0, count=1)
            reference = reference._replace(greedy=greedy)

    # The models: the same, one after the other. What is left is for the first of several processes.
    results = [measure(name, reference, pairs, prompts, windows, others, args, training_args) for name in names]
    end_together()
    if not PartialState().is_main_process:
        return

    # The judge: every model against the reference, and each against each other. "Better" and "worse" need a p below
    # 0.05, of a paired test over the prompts, corrected for the number of comparisons; all else is "cannot tell".
    outcomes = judge_all(judge, prompts, reference, results)

    # Result: verdicts in words, a table, and report.html with all answers side by side.
    report = Report(results, outcomes, reference, judge, prompts, rows, is_held_out, sources.notes)
    report.show()
    made = {"temperature": args.temperature, "num_samples": args.num_samples, "max_new_tokens": args.max_new_tokens}
    made |= {"seed": str(training_args.seed), "dataset": str(dataset), "seconds": f"{time.time() - started:.0f}"}
    with finished_first(f"The evaluation is finished, and its files are in {training_args.output_dir}."):
        files = report.write(Path(training_args.output_dir), made)
    problem = next((outcome.problem for outcome in outcomes if outcome.problem), None)
    if problem:
        raise UserError(f"{problem}. What needs no judge is in {files}.")
    say(f"""
What to look at   {files}
What to try next  more prompts (--num_eval_prompts), another judge (--judge human), several models (--models a b)
What it forgot    {sources.benchmarks(training_args.output_dir)}""")


if __name__ == "__main__":
    run(main)
