"""DPO (arXiv:2305.18290) in its smallest honest form: pairs of a better and a worse answer change what a model says.

    python basic_dpo_training.py

trains the demo: a language model of one million parameters that answers a shop's customers, well and badly alike.
Nothing is downloaded, and it takes one to two minutes on two CPU cores. At the end you see what was won, and its
price (figures differ by seed and machine):

                  sampled             greedily
                  before    after     before    after     of
      all         2.44      5.55      2.58      7.00      7
    Win rate of after against before, ties half: 0.91 [0.87, 0.94] sampled, 1.00 [0.98, 1.00] greedily
    KL from the reference, nats a reply: 3.04 [2.74, 3.33]

Try next:

    python basic_dpo_training.py --beta 1.0               # nearer to the reference: KL about 1, a smaller gain
    python basic_dpo_training.py --learning_rate 3e-3     # too fast: the text breaks, accuracy hardly notices
    python basic_dpo_training.py --help                   # the flags that matter, and what each does
"""

from torch.nn.functional import logsigmoid

from demo.world import known_truth
from dpo_utils import (
    describe_logp,
    load_model,
    load_preferences,
    pair_logps,
    parse_args,
    pick_prompts,
    report_change,
    run,
    sample_at,
    say,
    watch,
)
from machinery.runs.folder import claim_output_dir
from machinery.runs.saving import save_run
from machinery.runs.start import check_start, show_start
from machinery.training.shared_prompt import SharedPromptDPOTrainer

# The demo's settings. They are no advice for other models: for those the defaults are TRL's.
DEMO = dict(
    dataset_name="demo",
    beta=0.1,  # the paper's; higher stays closer to the reference
    learning_rate=1e-3,  # a thousand times what a model of a billion parameters bears
    adam_epsilon=1e-3,  # at the usual 1e-8 Adam takes full steps even where a gradient is almost 0
    warmup_steps=0.1,  # a tenth of all steps
    per_device_train_batch_size=32,  # 2048 pairs / 32 = 64 steps
    per_device_eval_batch_size=64,
    num_train_epochs=1,
    train_sampling_strategy="group_by_length",  # batches of rows of like length: less padding
    max_length=512,  # the demo's longest row has 237 tokens: nothing is cut
    gradient_checkpointing=False,  # the activations of so small a model fit anywhere
    bf16=False,  # in so small a model casting costs what faster matrix products save
    logging_steps=4,
    eval_strategy="steps",
    eval_steps=16,
    save_steps=32,
    num_eval_prompts=200,
    max_new_tokens=96,
)


def show_loss(policy, reference, tokenizer, pair: dict, beta: float) -> None:
    """The loss of one pair, by hand (Eq. 7, arXiv:2305.18290): what the trainer computes of every pair of a batch."""
    policy_chosen_logps, policy_rejected_logps, *_ = pair_logps(policy, [pair], tokenizer)
    ref_chosen_logps, ref_rejected_logps, *_ = pair_logps(reference, [pair], tokenizer)

    chosen_reward = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - ref_rejected_logps)
    margin = chosen_reward - rejected_reward
    loss = -logsigmoid(margin)

    say(f"""
The first training pair, by hand (before training its margin was 0, and its loss ln 2 = 0.693)
  log-prob of chosen now   {describe_logp(policy, tokenizer, pair)}
            policy  reference  reward = {beta:g} * (policy - reference)
  chosen  {policy_chosen_logps.item():8.2f}   {ref_chosen_logps.item():8.2f}  {chosen_reward.item():+.3f}
  rejected{policy_rejected_logps.item():8.2f}   {ref_rejected_logps.item():8.2f}  {rejected_reward.item():+.3f}
  margin = reward of chosen - reward of rejected = {margin.item():+.3f}, loss = -log sigmoid(margin) = {loss.item():.3f}""")


def main():
    args, training_args, model_args = parse_args(__doc__, DEMO)

    # Model: the policy is trained; the reference is the same model, frozen, that DPO measures the policy against.
    name = model_args.model_name_or_path
    policy, tokenizer = load_model(name, **args.model_kwargs)
    # The reference never changes, so its log-probs of all pairs are computed once, before training, when the policy
    # still equals it, and kept on disk. Only --no_precompute_ref_log_probs runs a second model beside the policy.
    reference = None if training_args.precompute_ref_log_probs else load_model(name, **args.model_kwargs)[0]

    # Data: every row becomes a prompt, a chosen and a rejected completion; what teaches nothing is left out, and said.
    train_pairs, eval_pairs, _ = load_preferences(args.source, tokenizer, **args.data_kwargs)
    prompts = pick_prompts(eval_pairs or train_pairs, args.num_eval_prompts)

    # Trainer: TRL's, with each prompt computed once instead of twice. `trl.DPOTrainer` fits too, without
    # group_by_length.
    claim_output_dir(training_args, "runs/basic")
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
    show_start(trainer, f"a frozen copy of {name}")
    watch(trainer, tokenizer, prompts[0])  # warnings, a reply now and then, checkpoints that survive a kill
    truth = known_truth(prompts)  # in the demo's world the true reward of any reply is known; elsewhere this is None
    temperatures = (1, 0) if truth else (1,)  # sampled; greedily, which sharper sampling does not change
    sampling = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed)
    before = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies after")

    # Result: the same held-out prompts before and after.
    if reference is None or training_args.sync_ref_model:  # which has moved it
        reference = load_model(name, **args.model_kwargs)[0]  # for the KL
    if truth and training_args.loss_type == ["sigmoid"]:
        show_loss(policy, reference, tokenizer, next(iter(train_pairs)), training_args.beta)
    outcome = report_change(policy, reference, tokenizer, prompts, before, after, truth)
    about = dict(script="basic", model=name, reference=name, dataset=args.dataset_name)
    save_run(trainer, about, outcome, replies=(prompts, before[1], after[1]))
    say(f"""
What to look at   {training_args.output_dir}/training_curves.png, completions.md, metrics.json
What to try next  the same command with --beta 1.0 (closer to the reference), or with three times the rate (too fast)
The model is in   {training_args.output_dir}""")


if __name__ == "__main__":
    run(main)
