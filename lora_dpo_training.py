"""Adapters: how to train a model without training it, and why DPO then needs no second model.

    python lora_dpo_training.py

A LoRA adapter adds to each frozen weight matrix W a product B A of two thin ones: W + (alpha / r) B A. Only A and B are
trained, here 88,064 numbers beside the demo's million. B starts at zero, so at first the policy *is* the base; and the
base with the adapter switched off *is* the reference. There is no second model even where the reference is run at
every step, and only a few percent of the weights have gradients and optimizer states. It takes one to two minutes
on two CPU cores. You see (figures differ by seed and machine)

    Trained: 88,064 parameters, 7.9% of the model's
                  sampled             greedily
                  before    after     before    after     of
      all         2.44      5.28      2.58      6.69      7
    Win rate of after against before, ties half: 0.90 [0.86, 0.93] sampled, 1.00 [1.00, 1.00] greedily
    KL from the reference, nats a reply: 3.62 [2.94, 4.33]

Try next:

    python lora_dpo_training.py --lora_r 2 --lora_alpha 2               # a fiftieth of the model's parameters
    python lora_dpo_training.py --adapter runs/lora --merge             # go on with it: a frozen copy is the reference
    python lora_dpo_training.py --compare_full                          # beside a run of all weights, made now
    python lora_dpo_training.py --help
"""

from dataclasses import dataclass, field
from pathlib import Path

from demo.world import known_truth
from dpo_utils import (
    TutorialArguments,
    load_model,
    load_preferences,
    parse_args,
    pick_prompts,
    prompt_ids,
    report_change,
    run,
    sample_at,
    say,
    watch,
)
from machinery.common.errors import UserError
from machinery.comparing.side_by_side import beside_full_run
from machinery.hardware.estimate import MemoryMeter
from machinery.models.adapters import describe_base, load_adapter, merge_adapter, new_adapter, save_base
from machinery.runs.folder import claim_output_dir
from machinery.runs.saving import save_run
from machinery.runs.start import check_start, show_start
from machinery.training.shared_prompt import SharedPromptDPOTrainer

# NEW marks what basic_dpo_training.py does not have.

# NEW: for every model. The rate is about ten times that of full training: B A starts at zero and has few parameters.
LORA = dict(
    use_peft=True,
    lora_target_modules=["all-linear"],  # attention alone is cheaper and weaker, see docs/lora.md
    lora_dropout=0.0,  # TRL switches dropout off in policy and reference alike (--no_disable_dropout leaves it on)
    learning_rate=1e-5,
)
# The demo's settings. They are no advice for other models: for those the defaults are TRL's.
DEMO = dict(
    dataset_name="demo",
    lora_r=8,  # NEW: 88,064 trained parameters, 8.5% of the base's
    lora_alpha=8,  # NEW: alpha / r = 1; with another --lora_r give the same --lora_alpha
    beta=0.1,  # the paper's; higher stays closer to the reference
    learning_rate=5e-3,  # NEW: five times the basic script's
    adam_epsilon=1e-4,  # NEW: an adapter's gradients are smaller, so what counts as almost 0 is, too
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
    eval_steps=64,  # NEW: once, at the end: saves the time that the adapter's extra products cost
    save_steps=32,
    num_eval_prompts=200,
    max_new_tokens=96,
)


@dataclass
class LoraArguments(TutorialArguments):  # NEW
    adapter: str | None = field(
        default=None, metadata={"help": "train on this adapter; its frozen copy is the reference"}
    )
    merge_first: bool = field(
        default=False, metadata={"help": "merge --adapter into the base first; that is the reference"}
    )
    merge: bool = field(
        default=False, metadata={"help": "after training, write a full model too, checked against the adapter"}
    )
    compare_full: bool = field(default=False, metadata={"help": "train all weights too, now, to compare"})


def load_policy(args, training_args, model_args):  # NEW
    """The policy, its tokenizer, the adapter that is still to be put on it, and in words what its reference is.

    The base is loaded once and stays frozen; the policy is the base with an adapter on it. The reference is what the
    policy is at first, and it takes no second model: the base; or, with --adapter, a frozen copy of that adapter; or,
    with --merge_first, the base with it merged in.
    """
    if args.merge_first and (args.adapter is None or "quantization_config" in args.model_kwargs):
        raise UserError("--merge_first needs --adapter, and a base in full precision.")
    if not model_args.use_peft:
        raise UserError("--use_peft false: to train all weights is what basic_dpo_training.py does.")
    policy, tokenizer = load_model(model_args.model_name_or_path, **args.model_kwargs)
    reference = "the base, which is the policy with its adapter off"
    if args.adapter and not args.merge_first:
        return load_adapter(policy, args.adapter), tokenizer, None, f"a frozen copy of the adapter {args.adapter}"
    if args.merge_first:
        policy = load_adapter(policy, args.adapter).merge_and_unload(safe_merge=True)
        reference = f"the base with {args.adapter} merged into it, which is the policy with its new adapter off"
    return policy, tokenizer, new_adapter(policy, model_args, training_args), reference


def main():
    args, training_args, model_args = parse_args(
        __doc__, DEMO, arguments=LoraArguments, defaults=LORA, takes_adapters=True
    )

    # Model: the base, and the adapter that makes it the policy; the reference lies underneath. NEW: see `load_policy`.
    name = model_args.model_name_or_path
    policy, tokenizer, peft_config, reference = load_policy(args, training_args, model_args)

    # Data: every row becomes a prompt, a chosen and a rejected completion; what teaches nothing is left out, and said.
    train_pairs, eval_pairs, _ = load_preferences(args.source, tokenizer, **args.data_kwargs)
    prompts = pick_prompts(eval_pairs or train_pairs, args.num_eval_prompts)

    # Trainer: TRL's, with each prompt computed once instead of twice. `trl.DPOTrainer` fits too, without
    # group_by_length.
    claim_output_dir(training_args, "runs/lora")
    besides = args.merge + args.merge_first  # NEW: whole models, which take room too
    check_start(training_args, policy, train_pairs, eval_pairs, peft_config, besides)  # held out? room on the disk?
    folder = Path(training_args.output_dir)
    if args.merge_first:  # NEW: the adapter to come belongs to this base, so it has to be kept
        name = save_base(policy, tokenizer, folder / "base")
    base = describe_base(policy, name, model_args.model_revision)  # NEW: noted beside the adapter, with a checksum
    trainer = SharedPromptDPOTrainer(
        model=policy,
        ref_model=None,  # NEW: TRL finds the reference under the adapter
        args=training_args,
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
        peft_config=peft_config,  # NEW
    )
    policy = trainer.model  # NEW: with its adapter

    # Training (Eq. 7, arXiv:2305.18290; derived in docs/method.md): -log sigmoid(chosen_reward - rejected_reward). The
    # implicit reward of an answer is beta * (log policy - log reference): its log-probability given the prompt, summed
    # over its tokens, under the policy minus that under the reference. Logged are the margin (the difference of the two
    # rewards) and the accuracy (how often the margin is above 0).
    trained, there = policy.get_nb_trainable_parameters()
    say(f"\nTrained: {trained:,} parameters, {trained / there:.1%} of the model's")  # NEW
    show_start(trainer, reference)
    memory = MemoryMeter(trainer)  # NEW: estimates it now, and measures it during the training
    say(memory.table() + "\n")
    watch(trainer, tokenizer, prompts[0])  # warnings, a reply now and then, checkpoints that survive a kill
    truth = known_truth(prompts)  # in the demo's world the true reward of any reply is known; elsewhere this is None
    temperatures = (1, 0) if truth else (1,)  # sampled; greedily, which sharper sampling does not change
    sampling = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed)
    before = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies after")

    # Result: the same held-out prompts before and after. NEW: None, as the reference lies under the adapter.
    outcome = report_change(policy, None, tokenizer, prompts, before, after, truth) | memory.metrics()
    reference = name if peft_config else args.adapter
    about = dict(script="lora", model=model_args.model_name_or_path, reference=reference, dataset=args.dataset_name)
    metrics = save_run(trainer, about, outcome, replies=(prompts, before[1], after[1]), base=base)
    # NEW: what it took, beside the newest run of the basic script or one made now; and the adapter merged into its base
    say("\n" + memory.table() + "\n")
    if trainer.accelerator.is_main_process:
        say(beside_full_run(metrics, folder, args.compare_full))
        if args.merge:
            rows = [prompt_ids(tokenizer, prompt) for prompt in prompts[:8]]  # on which both are compared
            say("\n" + merge_adapter(load_model, base.name, folder, tokenizer, rows, **args.model_kwargs))
    say(f"""
What to look at   {folder}/training_curves.png, completions.md, metrics.json
What to try next  the same command with --lora_r 2 --lora_alpha 2, or --adapter {folder} --merge
The adapter is in {folder}""")


if __name__ == "__main__":
    run(main)
