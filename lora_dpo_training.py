"""Adapters: how to train a model without training it, and why DPO then needs no second model.

    python lora_dpo_training.py

A LoRA adapter adds to each frozen weight matrix W a product B A of two thin ones: W + (alpha / r) B A. Only A and B are
trained, here 88,064 numbers beside the demo's million. B starts at zero, so at first the policy *is* the base; and the
base with the adapter switched off *is* the reference. No second model even where the
reference is asked at every step, and gradients and optimizer for a few percent of it. It takes about a minute on two CPU cores. You see (figures differ by seed and machine)

    Trained: 88,064 parameters, 7.5% of the model's
      all         2.83 [2.60, 3.06]   5.28 [5.10, 5.45]   7
    Win rate of after against before, ties half: 0.86 [0.81, 0.90]
    KL from the reference, nats a reply: 1.74 [1.53, 2.00]

Try next:

    python lora_dpo_training.py --lora_r 2 --lora_alpha 2               # a fiftieth of the parameters, a smaller gain
    python lora_dpo_training.py --adapter runs/lora --merge             # train on: its frozen copy is the reference
    python lora_dpo_training.py --compare_full                          # beside a run of all weights, made now
    python lora_dpo_training.py --help
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed
from trl import get_peft_config
from trl.trainer.utils import use_adapter

from demo.world import QUALITIES, is_known, score_reply
from dpo_utils import (
    PROJECT,
    TutorialArguments,
    UserError,
    claim_output_dir,
    load_adapter,
    load_model,
    load_preferences,
    parse_args,
    pick_prompts,
    prompt_ids,
    report_change,
    run,
    sample_completions,
    save_run,
    say,
    show_start,
    watch,
)
from machinery import memory
from machinery.adapters import check_targets, merge_adapter, note_base, weights_fingerprint
from machinery.memory_estimate import estimate_memory, measure_memory, memory_metrics, memory_table
from machinery.run_comparison import beside_full_run
from machinery.shared_prompt import SharedPromptDPOTrainer

# NEW: for every model. The rate is about ten times that of full training: B A starts at zero and has few parameters.
LORA = dict(
    use_peft=True,
    lora_target_modules=["all-linear"],  # attention alone is cheaper and weaker, see docs/lora.md
    lora_dropout=0.0,  # TRL switches dropout off in policy and reference alike (--no_disable_dropout: on)
    learning_rate=1e-5,
)
# The demo's settings. They are no advice for other models: for those the defaults are TRL's.
DEMO = dict(
    dataset_name="demo",
    lora_r=8,  # NEW: 88,064 trained parameters, 8% of the base's
    lora_alpha=8,  # NEW: so that alpha / r = 1, whatever r is
    beta=0.1,  # the paper's; higher stays closer to the reference
    learning_rate=1.5e-3,  # NEW: four times the basic script's
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=0.1,  # a tenth of all steps
    per_device_train_batch_size=32,  # 2048 pairs / 32 = 64 steps
    per_device_eval_batch_size=64,
    num_train_epochs=1,
    train_sampling_strategy="group_by_length",  # batches of rows of like length: less padding
    max_length=512,  # the demo's longest row has 250 tokens: nothing is cut
    gradient_checkpointing=False,  # the activations of so small a model fit anywhere
    bf16=False,  # for so small a model conversions cost what faster products save
    logging_steps=4,
    eval_strategy="steps",
    eval_steps=64,  # NEW: once, at the end; that pays for the products beside each matrix
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


def main():
    args, training_args, model_args = parse_args(
        __doc__, DEMO, arguments=LoraArguments, defaults=LORA, takes_adapters=True
    )

    # Model: the base is loaded once and stays frozen. NEW
    base, tokenizer = load_model(model_args.model_name_or_path, **model_args.init_kwargs)
    fingerprint = weights_fingerprint(base)
    base_name, reference = model_args.model_name_or_path, "the base, which is the policy with its adapter off"
    policy, peft_config = base, get_peft_config(model_args)
    if args.merge_first and (args.adapter is None or "quantization_config" in model_args.init_kwargs):
        raise UserError("--merge_first needs --adapter, and a base in full precision.")
    if args.merge_first:
        policy = load_adapter(base, args.adapter).merge_and_unload(safe_merge=True)
        reference = f"the base with {args.adapter} merged into it, which is the policy with its new adapter off"
    elif args.adapter:
        policy, peft_config = load_adapter(base, args.adapter), None  # TRL keeps a frozen copy of it as the reference
        reference = f"a frozen copy of the adapter {args.adapter}"
    if peft_config is not None:
        check_targets(policy, model_args.lora_target_modules, model_args.lora_r, model_args.lora_modules_to_save)
    if model_args.lora_dropout and training_args.disable_dropout:
        say(f"--lora_dropout {model_args.lora_dropout} does nothing: TRL switches dropout off (--no_disable_dropout).")

    # Data: every row becomes a prompt, a chosen and a rejected completion; what teaches nothing is left out, and said.
    train_pairs, eval_pairs, _ = load_preferences(args.source, tokenizer, **args.data_kwargs)
    prompts = pick_prompts(train_pairs if eval_pairs is None else eval_pairs, args.num_eval_prompts)
    if eval_pairs is None:
        training_args.eval_strategy = "no"

    # Trainer: TRL's, with each prompt computed once instead of twice. `trl.DPOTrainer` fits too, without
    # group_by_length.
    claim_output_dir(training_args, None if args.names_output_dir else "runs/lora")
    folder = Path(training_args.output_dir)
    if args.merge_first:  # NEW: the adapter to come belongs to this base, so it has to be kept
        base_name = str(folder / "base")
        policy.save_pretrained(base_name)
        tokenizer.save_pretrained(base_name)
        fingerprint = weights_fingerprint(policy)
    set_seed(training_args.seed)  # NEW: A is drawn at random
    trainer = SharedPromptDPOTrainer(
        model=policy,
        ref_model=None,  # NEW: with an adapter TRL finds the reference underneath
        args=training_args,
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
        peft_config=peft_config,  # NEW
    )

    # Training (Eq. 7, arXiv:2305.18290): -log sigmoid(chosen_reward - rejected_reward), reward = beta * (log policy -
    # log reference). What is logged: their difference, the margin, and how often it is above 0, the accuracy.
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = trained / sum(p.numel() for name, p in trainer.model.named_parameters() if ".ref." not in name)
    say(f"\nTrained: {trained:,} parameters, {share:.1%} of the model's")  # NEW
    show_start(trainer, reference)
    estimate = estimate_memory(trainer)  # NEW
    say(memory_table(estimate) + "\n")
    watch(trainer, tokenizer, prompts[0])
    sampling = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed)
    with use_adapter(trainer.model, "ref" if peft_config is None else None):  # NEW: the policy still is the reference
        before = sample_completions(trainer.model, tokenizer, prompts, **sampling, progress="replies before")
    memory.reset_peak()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    measured = measure_memory(trainer, memory.peak_since_reset(), 0 if memory.uses_gpu() else memory.START)
    after = sample_completions(trainer.model, tokenizer, prompts, **sampling, progress="replies after")

    # Result: the same held-out prompts before and after. In the demo's world the true reward of a reply is known.
    score = score_reply if all(is_known(prompt) for prompt in prompts) else None
    outcome = report_change(trainer.model, None, tokenizer, prompts, before, after, score, QUALITIES)
    outcome |= memory_metrics(estimate, measured)  # NEW
    metrics = save_run(
        trainer,
        outcome,
        script="lora",
        model=model_args.model_name_or_path,
        reference=args.adapter if args.adapter and not args.merge_first else base_name,
        dataset=args.dataset_name,
        replies=(prompts, before, after),
        beside=lambda unfinished: note_base(unfinished, base_name, model_args.model_revision, fingerprint),
    )
    # NEW: what it took, beside a run of all weights; and the adapter merged into its base
    say("\n" + memory_table(estimate, measured) + "\n")
    if trainer.accelerator.is_main_process:
        say(beside_full_run(metrics, folder, PROJECT / "basic_dpo_training.py" if args.compare_full else None))
        if args.merge:
            model_args.init_kwargs.pop("quantization_config", None)  # rounded weights are no place to add anything to
            rows = [prompt_ids(tokenizer, prompt) for prompt in prompts[:8]]
            merged = merge_adapter(
                lambda name: load_model(name, **model_args.init_kwargs)[0], base_name, folder, tokenizer, rows
            )
            say(f"\n{merged}")
    say(
        f"""
What to look at   {folder}/training_curves.png, completions.md, metrics.json
What to try next  the same command with --lora_r 2 --lora_alpha 2, or --adapter {folder} --merge
The adapter is in {folder}"""
    )


if __name__ == "__main__":
    run(main)
