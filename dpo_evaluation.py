"""Is the model better? By how much, how sure is that, at what price, and for which prompts is it not?

    python dpo_evaluation.py

evaluates the newest run in runs/ against its own reference (trains the basic one first if there is none): about a
minute on two CPU cores. The loss of a training cannot tell: it is about answers that are in a file. Here both models
write answers to the same held-out prompts, a judge compares them, and every number comes with its interval. You see
(figures differ by seed and machine)

      What the models write
                                                        reference          runs/basic
      score of the judge                                2.37 [2.26, 2.48]  5.30 [5.18, 5.42]
      score of the reference's best by implicit reward                     3.81 [3.60, 4.03]
      KL from the reference, nats a reply                                  3.52 [3.06, 4.00]

      runs/basic against demo/model: BETTER
        Win rate of runs/basic against demo/model: 0.89 [0.87, 0.91] on 200 prompts, ties half (paired test: p below 0.001).

and in report.html the same with figures and all answers side by side.

Try next:

    python dpo_evaluation.py --models runs/basic runs/lora          # several against one reference, and each other
    python dpo_evaluation.py --judge human                          # you are the judge: a blind table to fill in
    python dpo_evaluation.py --judge_url http://localhost:8000/v1 --judge_model NAME       # a language model is
    python dpo_evaluation.py --help
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.hf_argparser import HfArg

from demo.world import is_known, true_reward
from dpo_utils import (
    TutorialArguments,
    load_any,
    load_preferences,
    pair_logps,
    parse_args,
    pick_prompts,
    run,
    sample_completions,
    say,
    sequence_kls,
    sequence_logps,
    sum_over_completions,
)
from machinery.command.flag_help import EVALUATION_FLAGS
from machinery.common.errors import UserError
from machinery.common.intervals import mean_interval
from machinery.comparing.side_by_side import newest_trained, run_facts, train_basic
from machinery.data.formatting import PLAIN_CHAT_TEMPLATE
from machinery.evaluation.entropy import Sureness, excess, matching_temperature, token_entropies
from machinery.evaluation.judges import ScoreJudge, judge_from_flags
from machinery.evaluation.metrics import NO_INTERVAL, PairLogps, preference_metrics, reply_metrics
from machinery.evaluation.report import Report
from machinery.evaluation.verdict import GREEDY, MATCHED, Reference, judge_all
from machinery.models.adapters import base_of
from machinery.models.checks import is_same_tokenizer
from machinery.runs.folder import claim_output_dir
from machinery.runs.interrupts import finished_first

# For every model. More prompts narrow the intervals; more answers a prompt do too, but less and less.
EVALUATION = dict(num_eval_prompts=200, per_device_eval_batch_size=64, beta=None)  # None: each run's own
DEMO = dict(dataset_name="demo", max_new_tokens=96)


@dataclass
class EvaluationArguments(TutorialArguments):
    models: list[str] = HfArg(default_factory=list, help="several models: one table, and each against each other")
    reference: str | None = HfArg(default=None, help="the model they started from (default: what their run has noted)")
    num_samples: int = HfArg(default=4, help="answers a prompt and model")
    temperature: float = HfArg(
        default=1.0, help="1 is what the KL is defined on; lower writes likelier answers, 0 the likeliest"
    )
    control_entropy: bool = HfArg(
        default=True, help="win at the reference's matching temperature and greedily, too (where the judge is free)"
    )
    judge: str = HfArg(default="auto", help="truth (the demo), reward_model, endpoint, human, none; auto: what fits")
    judge_model: str | None = HfArg(
        default=None, help="a reward model; with --judge_url the name of a language model there"
    )
    judge_url: str | None = HfArg(
        default=None, help="an OpenAI-compatible endpoint; its key is read from DPO_JUDGE_API_KEY"
    )
    judge_budget: int | None = HfArg(default=None, help="the most requests to the endpoint")
    answers: str | None = HfArg(default=None, help="the blind table of --judge human, filled in")


def what_to_evaluate(args, training_args, model_args):
    """The names of the models, of their reference and of the data: as given, else as the first model's run has noted.

    Where no model is given it is the newest run in runs/; where there is none, the basic script is run first.
    """
    if args.dataset_streaming:
        raise UserError("--dataset_streaming: the held-out pairs are read more than once; leave it out.")
    names = args.models or ([model_args.model_name_or_path] if args.is_model_given else [])
    names = names or [newest_trained(Path("runs")) or train_basic()]
    facts = run_facts(names[0])
    reference_name = args.reference or facts.get("reference")
    dataset = args.source if args.is_data_given else facts.get("dataset")
    if reference_name is None or dataset is None:
        lacking = "reference" if reference_name is None else "dataset_name"
        raise UserError(f"{names[0]} has no metrics.json that names it: add --{lacking}.")
    training_args.reads |= {"the reference": reference_name, "what is evaluated": names[0], "its data": str(dataset)}
    for name in (reference_name, *names):
        base_of(name)  # refuses what cannot be loaded: better now than after the reference has written its answers
    if len(set(names)) > 1 and (args.judge == "human" or args.answers):
        raise UserError("A person judges one model at a time: name one by --model_name_or_path.")
    return names, reference_name, dataset


def measure(name: str, reference: Reference, pairs, prompts: list, args, training_args) -> dict:
    """What a model writes, and what is found out about it beside the reference, as `Report` takes it."""
    policy, tokenizer = load_any(name, **args.model_kwargs)
    policy.to(training_args.device)
    if tokenizer.chat_template is None and not isinstance(prompts[0], str):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE  # as for the reference, when its pairs were loaded
    answers = write_answers(policy, tokenizer, name, prompts, args, training_args)
    facts = run_facts(name)
    beta = training_args.beta or facts.get("beta") or 0.1  # a reward is beta * (log policy - log reference)
    measured = reply_metrics(answers) | reply_metrics(reference.answers, "_reference")
    result = dict(model=name, beta=beta, trained_from=facts.get("reference"), answers=answers, measured=measured)
    if not is_same_tokenizer(tokenizer, reference.tokenizer):
        say(
            f"{name} has another tokenizer than {reference.name}: no log-prob can be compared, so rewards and KL are left out."
        )
        return result

    chosen, rejected, *_ = pair_logps(policy, pairs, reference.tokenizer, training_args.max_length)
    result["given"] = PairLogps(*map(np.asarray, (chosen, rejected, *reference.given)))
    scores = [pairs[column] for column in ("score_chosen", "score_rejected") if column in pairs.column_names]
    measured |= preference_metrics(result["given"], beta, scores if len(scores) == 2 else None)
    pad = reference.tokenizer.pad_token_id
    # Its implicit reward of the reference's answers: the report says how good the one with the highest is
    result["implicit"] = beta * (logps_of(policy, reference.answers, pad) - reference.logps)
    if args.temperature == 1:
        # KL(policy || reference), over what the policy itself writes
        kls = sequence_kls(policy, reference.model, rows_of(answers), pad).numpy().reshape(len(answers), -1)
        measured["kl"] = mean_interval(kls.mean(axis=1))
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
        return excess(found[-1][1], own)

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


def write_answers(
    model,
    tokenizer,
    name: str,
    prompts: list,
    args,
    training_args,
    temperature: float | None = None,
    count: int | None = None,
) -> list[list]:
    """--num_samples answers to each prompt, sampled with the same seed for every model, at --temperature or another."""
    count = count or args.num_samples
    flat = sample_completions(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(count)],
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature if temperature is None else temperature,
        seed=training_args.seed,
        batch_size=training_args.per_device_eval_batch_size,
        progress=f"{name} answers",
    )
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
    names, reference_name, dataset = what_to_evaluate(args, training_args, model_args)
    say(f"Evaluating {', '.join(names)} against {reference_name} on {dataset}")

    # Data: the held-out pairs, and their prompts.
    model, tokenizer = load_any(reference_name, **args.model_kwargs)
    model.to(training_args.device)
    args.data_kwargs["look_at"] = None  # every pair in tokens: one whose prompt fills max_length has no answer to score
    train_pairs, eval_pairs, _ = load_preferences(dataset, tokenizer, **args.data_kwargs)
    pairs = train_pairs if eval_pairs is None else eval_pairs
    prompts = pick_prompts(pairs, args.num_eval_prompts)
    claim_output_dir(training_args, "runs/evaluation")
    truth = true_reward if all(is_known(prompt) for prompt in prompts) else None
    judge = judge_from_flags(args, training_args, truth)

    # The reference: how likely it finds the given answers, what it writes itself, and how likely it finds that.
    given = pair_logps(model, pairs, tokenizer, training_args.max_length)
    answers = write_answers(model, tokenizer, "the reference", prompts, args, training_args)
    logps = logps_of(model, answers, tokenizer.pad_token_id)
    greedy = None
    if args.control_entropy and args.temperature > 0 and isinstance(judge, ScoreJudge):  # others cost by the answer
        greedy = write_answers(model, tokenizer, "the reference greedy", prompts, args, training_args, 0, count=1)
    reference = Reference(reference_name, model, tokenizer, given, answers, logps, greedy)

    # The models: the same, one after the other.
    results = [measure(name, reference, pairs, prompts, args, training_args) for name in dict.fromkeys(names)]

    # The judge: every model against the reference, and each against each other. "Better" and "worse" need a p below
    # 0.05, of a paired test over the prompts, corrected for the number of comparisons; all else is "cannot tell".
    outcomes = judge_all(judge, prompts, reference, results)

    # Result: verdicts in words, a table, and report.html with all answers side by side.
    report = Report(results, outcomes, reference, judge, prompts, pairs, eval_pairs is not None)
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
What to try next  more prompts (--num_eval_prompts), another judge (--judge human), several models (--models a b)""")


if __name__ == "__main__":
    run(main)
