"""The flags that matter in these scripts, and what each does to the result.

They are what --help prints; --help_all lists the several hundred others of TRL and Transformers.
"""

FLAGS = {
    "model_name_or_path": "the model to train: a folder or a hub name (default: the demo's)",
    "dataset_name": "the pairs: a file, a folder or a hub name, in any shape of docs/data.md",
    "dataset_train_split": "the split to train on",
    "dataset_test_split": "the split to hold out, for the held-out metrics and the replies shown",
    "dataset_format": "a public schema or a kind of docs/data.md, where the rows are not recognised rightly",
    "columns": "which column is what: prompt=question,chosen=good,rejected=bad (a.b for b inside a)",
    "verdict": "what each value of a verdict or label means: 0=response_a,1=response_b,2=tie",
    "encoding": "of text files that are not UTF-8: utf-16, cp1252, ...",
    "pairing": "of several scored answers: best_worst, best_random, best_2sigma (of many), or all pairs (more, and less clear)",
    "min_margin": "the least difference of two scores that makes a pair: higher is fewer and clearer pairs",
    "held_out_share": "the share of prompts to hold out where there is no test split",
    "skip_bad_rows": "go on without rows that cannot be read; they are counted",
    "keep_findings": "findings that are to drop no pair, such as duplicate or opposite_label",
    "dataset_num_proc": "processes that format and tokenise",
    "output_dir": "where the run goes; the default takes a number rather than overwrite anything",
    "overwrite_output_dir": "replace the run that is in --output_dir",
    "resume_from_checkpoint": "go on from the newest complete checkpoint, or from the one named",
    "save_steps": "steps between checkpoints: the most work that a kill can cost",
    "save_total_limit": "keep so many complete checkpoints, two at least (default: all)",
    "beta": "how dear it is to leave the reference: higher stays CLOSER to it",
    "loss_type": "sigmoid is DPO; see docs/losses.md before changing it",
    "learning_rate": "too low: the loss stays at ln 2; too high: the text breaks, and accuracy hardly shows it",
    "lr_scheduler_type": "how the rate falls: linear, cosine, constant_with_warmup, ...",
    "warmup_steps": "steps until the full rate, or below 1 a share of all steps; steadies the beginning",
    "num_train_epochs": "passes over the pairs; more than one or two and the policy learns them by heart",
    "max_steps": "stop after so many optimizer steps, whatever num_train_epochs says",
    "per_device_train_batch_size": "pairs a step and device; memory grows with it",
    "gradient_accumulation_steps": "batches added up before a step: a larger batch in the same memory",
    "max_tokens_per_batch": "split a batch with more tokens into parts, with the same gradient; the smallest part is one pair",
    "max_length": "prompt and completion together, in tokens; what is longer loses its END, EOS included",
    "max_prompt_length": "shorten longer prompts: oldest exchanges first, then the start of the last question",
    "keep_plain": "do not turn plain strings, transcripts aside, into chat turns although the tokenizer has a chat template",
    "precompute_ref_log_probs": "ask the reference once, before training, and keep its answers (default); off: --no_precompute_ref_log_probs",
    "shared_prompt": "compute each prompt once for both answers (same numbers, faster); off: --no_shared_prompt",
    "gradient_checkpointing": "recompute activations: less memory, a step takes about a third longer (default: only where they would not fit)",
    "bf16": "compute in bfloat16: activations take half the memory, and it is faster where the device can (default there); off: --bf16 false",
    "eval_strategy": "no, steps or epoch: when to measure on the held-out split",
    "eval_steps": "how often, with --eval_strategy steps",
    "logging_steps": "how often a line is printed",
    "stop_on_warning": "end at the first warning of the watcher, with a checkpoint and exit code 1: for unattended runs",
    "num_eval_prompts": "how many held-out prompts are answered before and after training",
    "max_new_tokens": "the longest reply that is sampled, in tokens (default: 256, and 1024 where the pairs think)",
    "seed": "the order of the pairs and all sampling; the spread over seeds is your error bar",
    "config": "a YAML file with any of these names; the command line wins over it",
    "traceback": "show where in the code an error arose",
    "help_all": "every flag of TRL and Transformers",
}

# What custom_dataset_dpo.py is about, and what is not its subject: each stands in --help_all of the scripts that do not show it.
OF_DATA = (
    "dataset_format verdict encoding pairing min_margin skip_bad_rows keep_findings keep_plain dataset_num_proc"
).split()
OF_TRAINING = (
    "lr_scheduler_type warmup_steps max_steps gradient_accumulation_steps max_tokens_per_batch precompute_ref_log_probs "
    "shared_prompt gradient_checkpointing bf16 eval_strategy eval_steps logging_steps save_steps save_total_limit"
).split()
OF_A_RUN = "lr_scheduler_type save_total_limit eval_steps logging_steps stop_on_warning dataset_train_split max_tokens_per_batch shared_prompt".split()
TRAINING_FLAGS = {name: text for name, text in FLAGS.items() if name not in OF_DATA}
FEWER_FLAGS = {name: text for name, text in TRAINING_FLAGS.items() if name not in OF_A_RUN}  # beside many of one's own
DATA_FLAGS = {name: text for name, text in FLAGS.items() if name not in OF_TRAINING}

ADAPTER_FLAGS = {
    "lora_r": "the rank: more parameters to learn with; see the table in docs/lora.md",
    "lora_alpha": "the adapter counts alpha / r times: raising it is like raising the rate",
    "lora_target_modules": "which layers get an adapter: all-linear, or names such as q_proj v_proj",
    "lora_dropout": "does nothing unless --no_disable_dropout",
    "use_rslora": "scale by alpha / sqrt(r): for ranks of 32 and more",
    "use_dora": "train length and direction of the weights apart: for very low ranks, slower",
    "load_in_4bit": "QLoRA: the base in half a byte a weight; needs bitsandbytes",
}

EVALUATION_FLAGS = {
    "model_name_or_path": "the model to evaluate: a run's folder, a model's or an adapter's, or a hub name",
    "dataset_name": "the pairs to hold it to (default: those of its run)",
    "dataset_test_split": FLAGS["dataset_test_split"],
    "dataset_format": FLAGS["dataset_format"],
    "columns": FLAGS["columns"],
    "verdict": FLAGS["verdict"],
    "output_dir": "where the report goes; the default takes a number rather than overwrite anything",
    "overwrite_output_dir": "replace what is in --output_dir",
    "beta": "scales the rewards (default: the run's)",
    "num_eval_prompts": "how many held-out prompts are drawn and answered: the intervals shrink with its square root",
    "max_new_tokens": FLAGS["max_new_tokens"],
    "per_device_eval_batch_size": "answers that are written at a time",
    "max_length": "given answers are cut where prompt and answer have more tokens",
    "seed": "all sampling; the same for every model",
    "config": FLAGS["config"],
    "traceback": FLAGS["traceback"],
    "help_all": FLAGS["help_all"],
}
