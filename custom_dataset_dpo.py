"""Your own preferences: what is in the file, what is wrong with it, and training on what is sound.

    python custom_dataset_dpo.py

takes a copy of the demo's pairs that was spoilt on purpose, in sixteen ways. Before training it reads every row and
says which it cannot use and why. Then it trains as basic_dpo_training.py does, in one to two minutes on two CPU cores.
You see (figures differ by seed and machine)

    Data: demo/spoilt, train: 2,054 rows, 1,965 used in 1,965 pairs, 89 dropped (12 identical, 12 opposite_label, ...
    Verdict: Sound, once the dropped rows are out.
                  sampled             greedily
                  before    after     before    after     of
      all         2.44      4.81      2.58      7.00      7

Try next:

    python custom_dataset_dpo.py --check_only --dataset_name my_pairs.csv      # look, and train nothing
    python custom_dataset_dpo.py --dataset_name my_pairs.csv --columns prompt=question,chosen=good,rejected=bad
    python custom_dataset_dpo.py --dataset_name my_votes.csv --verdict 0=response_a,1=response_b,2=tie
    python custom_dataset_dpo.py --check_only --save_cleaned cleaned.jsonl     # the sound pairs, for any TRL script
    python custom_dataset_dpo.py --dataset_name prompts.jsonl --sample_answers 4 --judge rules.py:score  # no pairs yet
"""

from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

import dpo_utils
from demo.world import known_truth
from dpo_utils import (
    TutorialArguments,
    load_model,
    load_preferences,
    load_reference,
    load_tokenizer,
    parse_args,
    pick_prompts,
    report_change,
    run,
    sample_at,
    say,
    show_pairs,
    watch,
)
from machinery.command.flag_help import DATA_FLAGS
from machinery.data.report import show_reports
from machinery.own_pairs import answering, scored
from machinery.own_pairs.flags import RARE, SamplingArguments
from machinery.own_pairs.rounds import run_rounds
from machinery.runs.folder import claim_output_dir
from machinery.runs.saving import save_run
from machinery.runs.start import check_start, show_start
from machinery.training.shared_prompt import SharedPromptDPOTrainer

# NEW marks what basic_dpo_training.py does not have.

# The demo's settings. They are no advice for other models: for those the defaults are TRL's.
DEMO = dict(
    dataset_name="demo/spoilt",  # NEW: 1,024 whole pairs of the demo and 1,030 among which faults are hidden
    beta=0.1,  # the paper's; higher stays closer to the reference
    learning_rate=1e-3,  # a thousand times what a model of a billion parameters bears
    adam_epsilon=3e-3,  # NEW: three times the basic script's: tokens of faults, and of its own answers, pull harder
    warmup_steps=0.1,  # a tenth of all steps
    per_device_train_batch_size=32,
    per_device_eval_batch_size=64,
    num_train_epochs=1,
    train_sampling_strategy="group_by_length",  # batches of rows of like length: less padding
    max_length=512,  # NEW: the spoilt copy has longer rows, and the report says which
    gradient_checkpointing=False,  # the activations of so small a model fit anywhere
    bf16=False,  # in so small a model casting costs what faster matrix products save
    logging_steps=4,
    eval_strategy="steps",
    eval_steps=16,
    save_steps=32,
    num_eval_prompts=200,
    max_new_tokens=96,
)


@dataclass
class DataArguments(TutorialArguments, SamplingArguments):  # NEW
    check_only: bool = HfArg(default=False, help="report on the data and stop before training")
    save_cleaned: str | None = HfArg(default=None, help="write the sound pairs to this .jsonl file")
    show: int = HfArg(default=2, help="how many pairs to print as the model sees them")
    held_out_share: float = HfArg(default=0.1, help="the share of prompts held out if there is no test split")


def mine(row: dict) -> dict:  # NEW: where no known shape fits, a few lines make one
    """`--dataset_format mine`, to be edited; here of {"ticket": {"title", "body"}, "answers": [best, ..., worst]}."""
    ticket, answers = row["ticket"], row["answers"]
    return {"prompt": f"{ticket['title']}\n\n{ticket['body']}", "chosen": answers[0], "rejected": answers[-1]}


CONVERTERS = {"mine": mine}


def answer_prompts(args, training_args, name: str, policy, tokenizer, folder: str):  # NEW
    """Prompts become a file of scored answers, which goes on as any other: the policy writes them, the judge scores."""
    splits, are_texts = answering.prompts_by_split(args, training_args.seed, tokenizer, dpo_utils)
    judge = scored.scoring_judge(args, training_args, splits["train"], are_texts, known_truth)
    claim_output_dir(training_args, folder)
    folder = Path(training_args.output_dir) / "answers"
    answers = answering.several_answers(splits, name, policy, tokenizer, args, training_args, dpo_utils)
    scored.score_and_write(judge, splits, answers, folder, args)
    args.source, args.data_kwargs = str(folder), args.data_kwargs | scored.AS_WRITTEN
    return scored.asked_again(judge), answering.held_out(splits, args.num_eval_prompts)


def look_at_pairs(args, training_args, tokenizer, folder: str):  # NEW
    """Load the pairs and show what was found: as a table, JSON and a picture, and some of them as the model sees them."""
    args.data_kwargs |= {"save_cleaned": args.save_cleaned, "look_at": None}  # None: the tokens of all, not of 500
    train_pairs, eval_pairs, reports = load_preferences(args.source, tokenizer, **args.data_kwargs)
    claim_output_dir(training_args, folder)
    show_reports(reports, training_args.output_dir)
    if tokenizer is not None:
        show_pairs(train_pairs, tokenizer, args.show, training_args.max_length)
    return train_pairs, eval_pairs, reports


def check_only(args, training_args, model_args):  # NEW
    """Look at data and train nothing. Without your model they are looked at as text: the demo's tokens are not yours."""
    name, tokenizer = model_args.model_name_or_path, None
    if args.sample_answers:
        policy, tokenizer = load_model(name, **args.model_kwargs)
        answer_prompts(args, training_args, name, policy, tokenizer, "runs/data")
    elif args.is_model_given or not args.is_data_given:
        hub = dict(revision=model_args.model_revision, trust_remote_code=training_args.trust_remote_code)
        tokenizer = load_tokenizer(name, **hub)
    look_at_pairs(args, training_args, tokenizer, "runs/data")
    say(f"\nWhat to look at   {training_args.output_dir}/data_report.json, data_report.png")
    say("What to try next  the same command without --check_only")


def main():
    args, training_args, model_args = parse_args(__doc__, DEMO, arguments=DataArguments, flags=DATA_FLAGS, rare=RARE)
    args.data_kwargs["dataset_format"] = CONVERTERS.get(args.dataset_format, args.dataset_format)  # NEW
    if args.rounds:  # NEW: each is a run of this script, from the model that the one before has trained
        return run_rounds(__file__, args, training_args, model_args, dpo_utils, DEMO)
    if args.check_only:  # NEW
        return check_only(args, training_args, model_args)

    # Model: the policy is trained; the reference is the same model, frozen, that DPO measures the policy against.
    name = model_args.model_name_or_path
    policy, tokenizer = load_model(name, **args.model_kwargs)
    # The reference never changes, so its log-probs of all pairs are computed once, before training, when the policy
    # still equals it, and kept on disk. Only --no_precompute_ref_log_probs runs a second model beside the policy.
    is_apart = args.reference or not training_args.precompute_ref_log_probs  # NEW: so does another --reference
    reference_name = args.reference or name  # NEW: in later rounds it may be the first model
    reference = load_reference(reference_name, tokenizer, **args.model_kwargs) if is_apart else None

    # Data: every row becomes a prompt, a chosen and a rejected completion; what teaches nothing is left out, and said.
    judge, prompts, folder = None, None, "runs/custom_dataset"
    if args.sample_answers:  # NEW: held-out prompts count whether or not their answers make a pair
        judge, prompts = answer_prompts(args, training_args, name, policy, tokenizer, folder)
    train_pairs, eval_pairs, reports = look_at_pairs(args, training_args, tokenizer, folder)  # NEW
    prompts = prompts or pick_prompts(eval_pairs or train_pairs, args.num_eval_prompts)

    # Trainer: TRL's, with each prompt computed once instead of twice. `trl.DPOTrainer` fits too, without
    # group_by_length.
    check_start(training_args, policy, train_pairs, eval_pairs)  # held out? room on the disk?
    trainer = SharedPromptDPOTrainer(
        model=policy,
        ref_model=reference,
        args=training_args,
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
    )

    # Training (Eq. 7, arXiv:2305.18290; derived in docs/method.md): -log sigmoid(chosen_reward - rejected_reward). The
    # implicit reward of an answer is beta * (log policy - log reference): its log-probability given the prompt, summed
    # over its tokens, under the policy minus that under the reference. Logged are the margin (the difference of the two
    # rewards) and the accuracy (how often the margin is above 0).
    show_start(trainer, f"a frozen copy of {reference_name}", is_the_policy=reference_name == name)
    watch(trainer, tokenizer, prompts[0], reference_name == name)  # warnings, a reply now and then, checkpoints
    truth = known_truth(prompts)  # in the demo's world the true reward of any reply is known; elsewhere this is None
    temperatures = (1, 0) if truth or judge else (1,)  # sampled; greedily, which sharper sampling does not change
    sampling = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed)
    before = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies after")

    # Result: the same held-out prompts before and after.
    if reference is None or training_args.sync_ref_model:  # which has moved it
        reference = load_reference(reference_name, tokenizer, **args.model_kwargs)  # for the KL
    outcome = report_change(policy, reference, tokenizer, prompts, before, after, truth, judge)
    about = dict(script="custom_dataset", model=name, reference=reference_name, dataset=args.dataset_name)
    save_run(trainer, about, outcome, replies=(prompts, before[1], after[1]))
    say(f"""
What to look at   {training_args.output_dir}/{"data_report.png, " if reports else ""}training_curves.png, completions.md
What to try next  --check_only --dataset_name YOUR_FILE; --keep_findings duplicate (trains on what was dropped)
The model is in   {training_args.output_dir}""")


if __name__ == "__main__":
    run(main)
