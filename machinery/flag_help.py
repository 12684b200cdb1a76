"""The flags that matter in these scripts, and what each does to the result.

They are what --help prints; --help_all lists the several hundred others of TRL and Transformers.
"""

FLAGS = {
    "model_name_or_path": "the model to train: a folder or a hub name (default: the demo's)",
    "dataset_name": "the pairs: a file, a folder or a hub name with prompt, chosen, rejected",
    "dataset_train_split": "the split to train on",
    "dataset_test_split": "the split to hold out, for the held-out metrics and the replies shown",
    "output_dir": "where the run goes; the default takes a number rather than overwrite anything",
    "overwrite_output_dir": "replace the run that is in --output_dir",
    "resume_from_checkpoint": "go on from the newest whole checkpoint, or from the one named",
    "beta": "how dear it is to leave the reference: higher stays CLOSER to it",
    "loss_type": "sigmoid is DPO; see docs/method.md before changing it",
    "learning_rate": "too low: the loss stays at ln 2; too high: accuracy rises and the text breaks",
    "lr_scheduler_type": "how the rate falls: linear, cosine, constant_with_warmup, ...",
    "warmup_steps": "steps until the full rate, or below 1 a share of all steps; steadies the beginning",
    "num_train_epochs": "passes over the pairs; more than one or two and the policy learns them by heart",
    "max_steps": "stop after so many optimizer steps, whatever num_train_epochs says",
    "per_device_train_batch_size": "pairs a step and device; memory grows with it",
    "gradient_accumulation_steps": "batches added up before a step: a larger batch in the same memory",
    "max_length": "prompt and completion together, in tokens; what is longer loses its END, EOS included",
    "max_prompt_length": "shorten longer prompts: oldest exchanges first, then the start of the last question",
    "keep_plain": "do not turn plain strings into chat turns although the tokenizer has a chat template",
    "precompute_ref_log_probs": "ask the reference once, before training: less memory, and faster from two epochs on",
    "shared_prompt": "compute each prompt once for both answers (same numbers, faster); off: --no_shared_prompt",
    "gradient_checkpointing": "recompute activations instead of keeping them: less memory, a third slower",
    "bf16": "compute in bfloat16: half the memory, fast on recent GPUs (default there)",
    "eval_strategy": "no, steps or epoch: when to measure on the held-out split",
    "eval_steps": "how often, with --eval_strategy steps",
    "logging_steps": "how often a line is printed",
    "num_eval_prompts": "how many held-out prompts are answered before and after training",
    "max_new_tokens": "the longest reply that is sampled, in tokens",
    "seed": "the order of the pairs and all sampling; the spread over seeds is your error bar",
    "config": "a YAML file with any of these names; the command line wins over it",
    "traceback": "show where in the code an error arose",
    "help_all": "every flag of TRL and Transformers",
}
