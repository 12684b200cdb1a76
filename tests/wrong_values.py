"""Flags with values that they cannot have, and the command lines to try them on: what bad_inputs.py goes through."""

PAIRS = [{"prompt": f"why {n}?", "chosen": "a cat, no, a dog.", "rejected": f"the mat {n}"} for n in range(8)]
SHORT = (
    "--dataset_name pairs.jsonl --output_dir out --max_steps 1 --num_eval_prompts 1 --max_new_tokens 4 "
    "--per_device_train_batch_size 4 --eval_strategy no --reference_cache kept"
).split()
LONG = "x" * 5000  # a path may have 4,096 bytes on Linux
LONG_PART = "d/" + "x" * 300 + "/e"  # and a part of it 255

INTEGERS = (0, -1, 10**30)
NUMBERS = ("nan", "inf", -1, 0, 1e300)
DICTIONARIES = ('{"nonsense": 1}', "[1]", "{", '{"a": NaN}', "nothing.json", '"text"', "null", "{}")

OWN = ("--sample_answers", "2")  # beside the flags that need it
BY_KIND = {
    "processes": ((-1, 0), "dataset_num_proc dataloader_num_workers"),  # large numbers of workers would be started
    "integer": (INTEGERS, (
        "num_eval_prompts max_new_tokens per_device_train_batch_size per_device_eval_batch_size max_steps "
        "gradient_accumulation_steps torch_empty_cache_steps eval_accumulation_steps save_total_limit seed data_seed "
        "dataloader_prefetch_factor ddp_bucket_cap_mb ddp_timeout max_length "
        "precompute_ref_batch_size ref_model_sync_steps max_prompt_length max_tokens_per_batch local_rank"
    )),
    "number": (NUMBERS, (
        "min_margin held_out_share num_train_epochs learning_rate warmup_steps weight_decay adam_beta1 adam_beta2 "
        "adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha logging_steps eval_steps eval_delay "
        "save_steps router_aux_loss_coef ld_alpha f_alpha_divergence_coef label_smoothing beta discopop_tau "
        "ref_model_mixup_alpha loss_weights test_split_size"
    )),
    "dictionary": (DICTIONARIES, (
        "lr_scheduler_kwargs activation_checkpointing_kwargs gradient_checkpointing_kwargs liger_kernel_config "
        "accelerator_config fsdp_config deepspeed model_init_kwargs parallelism_config"
    )),
    "word": (("rubbish", "", "-1"), (
        "dataset_format columns verdict encoding pairing keep_findings optim_args optim_target_modules "
        "torch_compile_backend torch_compile_mode report_to run_name project hub_model_id hub_revision "
        "metric_for_best_model include_for_metrics label_names length_column_name fsdp debug pad_to_multiple_of "
        "loss_type f_divergence_type pad_token attn_implementation dtype model_revision dataset_config "
        "dataloader_multiprocessing_context ddp_backend train_sampling_strategy"
    )),
    "switch": (("true",), (
        "ignore_bias_buffers average_tokens_across_devices bf16_full_eval fp16_full_eval tf32 torch_compile "
        "use_liger_kernel use_cache auto_find_batch_size include_num_input_tokens_seen prediction_loss_only "
        "eval_on_start eval_use_gather_object batch_eval_metrics save_only_model save_on_each_node "
        "enable_jit_checkpoint push_to_hub load_best_model_at_end ignore_data_skip "
        "restore_callback_states_from_checkpoint full_determinism dataloader_drop_last dataloader_persistent_workers "
        "ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph do_train do_eval do_predict padding_free "
        "use_weighting activation_offloading sync_ref_model fp16 remove_unused_columns skip_memory_metrics"
    )),
    "path": ((LONG, LONG_PART), (
        "output_dir dataset_name model_name_or_path reference_cache resume_from_checkpoint deepspeed fsdp_config "
        "accelerator_config config"
    )),
}  # fmt: skip
MORE = {
    "lr_scheduler_type": [
        (name,) for name in (
            "cosine_with_restarts", "polynomial", "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr",
            "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
        )
    ],
    "lr_scheduler_kwargs": [
        ('{"num_cycles": "many"}', "--lr_scheduler_type", "cosine"), ('{"min_lr": 1e-5}', "--lr_scheduler_type", "linear"),
        ('{"min_lr": "low"}', "--lr_scheduler_type", "cosine_with_min_lr"), ('{"lr_end": 5}', "--lr_scheduler_type", "polynomial"),
        ('{"num_decay_steps": "x"}', "--lr_scheduler_type", "warmup_stable_decay"),
        ('{"num_decay_steps": 2, "decay_type": "odd"}', "--lr_scheduler_type", "warmup_stable_decay"),
        ('{"num_training_steps": 5}', "--lr_scheduler_type", "cosine"), ('{"num_cycles": null}', "--lr_scheduler_type", "cosine"),
        ('{"factor": 2}', "--lr_scheduler_type", "reduce_lr_on_plateau"),
    ],
    "optim_args": [
        ("beta=1",), ("foo",), ("foo=bar", "--optim", "adamw_torch"), ("momentum=x", "--optim", "sgd"), ("momentum=0.9", "--optim", "sgd"),
        ("rank=64", "--optim", "galore_adamw"), ("rank=x", "--optim", "apollo_adamw", "--optim_target_modules", "all-linear"),
    ],
    "optim": [(name,) for name in (
        "adafactor", "sgd", "adagrad", "rmsprop", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision", "adamw_torch_4bit",
        "adamw_torch_8bit", "ademamix", "ademamix_8bit", "adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "lion_32bit",
        "paged_adamw_32bit", "paged_adamw_8bit", "rmsprop_bnb", "galore_adamw", "galore_adafactor", "lomo", "adalomo", "grokadamw",
        "schedule_free_radam", "schedule_free_adamw", "apollo_adamw", "stable_adamw", "flash_adamw", "flash_lion",
    )],
    "optim_target_modules": [("all-linear", "--optim", "galore_adamw"), ("nothing", "--optim", "apollo_adamw"), ("[", "--optim", "galore_adamw")],
    "gradient_checkpointing_kwargs": [
        ('{"use_reentrant": "maybe"}', "--gradient_checkpointing"), ('{"nonsense": 1}', "--gradient_checkpointing"),
        ('{"context_fn": 1}', "--gradient_checkpointing"), ('{"preserve_rng_state": 7}', "--gradient_checkpointing"),
        ('{"determinism_check": "odd", "use_reentrant": false}', "--gradient_checkpointing"), ('{"use_reentrant": true}', "--gradient_checkpointing"),
    ],
    "activation_checkpointing_kwargs": [('{"nonsense": 1}', "--activation_checkpointing")],
    "accelerator_config": [
        ('{"split_batches": "x"}',), ('{"split_batches": true}',), ('{"dispatch_batches": true}',), ('{"even_batches": 7}',),
        ('{"gradient_accumulation_kwargs": {"num_steps": 3}}',), ('{"gradient_accumulation_kwargs": {"odd": 3}}',),
        ('{"gradient_accumulation_kwargs": 3}',), ('{"use_seedable_sampler": null}',), ('{"non_blocking": "x"}',), ("pairs.jsonl",),
    ],
    "fsdp": [("full_shard",), ("full_shard auto_wrap",), ("true", "--fsdp_config", '{"min_num_params": "x"}')],
    "fsdp_config": [('{"fsdp_transformer_layer_cls_to_wrap": "Nope"}', "--fsdp", "true"), ('{"xla": true}', "--fsdp", "true"), ('{"version": 7}', "--fsdp", "true")],
    "deepspeed": [("ds.json",), ('{"zero_optimization": {"stage": 9}}',)],
    "model_init_kwargs": [
        ('{"device_map": "odd"}',), ('{"dtype": "odd"}',), ('{"attn_implementation": "odd"}',), ('{"quantization_config": {"load_in_4bit": true}}',),
        ('{"use_cache": false}',), ('{"num_labels": 2}',), ('{"revision": "none"}',), ('{"dtype": "bfloat16"}',), ('{"max_memory": 3}',),
        ('{"gguf_file": "x.gguf"}',), ('{"tp_plan": "auto"}',), ('{"config": 3}',), ('{"state_dict": {}}',), ('{"trust_remote_code": "x"}',),
        ('{"output_loading_info": false}',), ('{"use_safetensors": false}',), ('{"low_cpu_mem_usage": "x"}',), ('{"subfolder": "x"}',), ('{"adapter_kwargs": 3}',),
    ],
    "report_to": [(name,) for name in ("wandb", "tensorboard", "mlflow", "comet_ml", "trackio", "swanlab", "all", "none", "clearml", "neptune", "dvclive", "codecarbon", "azure_ml", "flyte", "dagshub")],
    "attn_implementation": [(name,) for name in ("flash_attention_2", "flash_attention_3", "eager", "flex_attention", "kernels-community/flash-attn2", "paged|sdpa")],
    "debug": [("underflow_overflow",), ("tpu_metrics_debug",)],
    "torch_compile_backend": [("inductor",), ("eager",), ("tensorrt",)],
    "torch_compile_mode": [("odd", "--torch_compile_backend", "eager"), ("max-autotune",)],
    "liger_kernel_config": [('{"rope": true}', "--use_liger_kernel")],
    "lora_alpha": [("0", "LORA"), ("-1", "LORA"), (str(10**30), "LORA")],
    "lora_r": [("0", "LORA"), ("-1", "LORA"), (str(10**6), "LORA"), (str(10**30), "LORA")],
    "lora_dropout": [("1", "LORA"), ("nan", "LORA"), ("-0.5", "LORA"), ("2", "LORA"), ("2", "LORA", "--no_disable_dropout")],
    "lora_target_modules": [("nope", "LORA"), ("", "LORA"), ("(", "LORA"), ("*", "LORA"), ("embed_tokens", "LORA")],
    "lora_target_parameters": [("nope", "LORA"), ("model.embed_tokens.weight", "LORA")],
    "lora_modules_to_save": [("nope", "LORA"), ("lm_head", "LORA")],
    "lora_task_type": [("odd", "LORA"), ("SEQ_CLS", "LORA")],
    "use_dora": [("true", "LORA", "--load_in_8bit")],
    "bnb_4bit_quant_storage": [("odd", "LORA"), ("odd", "LORA", "--load_in_4bit")],
    "load_in_8bit": [("true", "LORA")],
    "adapter": [(LONG, "LORA"), (LONG_PART, "LORA")],
    "loss_kwargs": [("a=nan", "LOSS"), ("lambda_=inf", "LOSS", "--loss_type", "dpop"), ("", "LOSS")],
    "loss_file": [(LONG, "LOSS"), (LONG_PART + ":f", "LOSS"), (":", "LOSS")],
    "save_cleaned": [(LONG, "DATA"), (LONG_PART + ".jsonl", "DATA"), ("a.odd", "DATA")],
    "dataset_num_proc": [("100000", "DATA")],
    "hub_strategy": [("odd",)],
    "hub_token": [("",)],
    "push_to_hub": [("true", "--hub_model_id", "a/b/c"), ("true", "--hub_model_id", "a b")],
    "reference": [(LONG, "EVALUATION"), (LONG_PART, "EVALUATION"), ("gone", "DATA"), (LONG, "DATA"), ("pairs.jsonl", "DATA")],
    "sample_answers": [("1", "DATA"), ("-1", "DATA"), (str(10**30), "DATA"), ("2", "DATA"), ("2", "DATA", "--dataset_streaming")],
    "rounds": [("0", "DATA"), ("2", "DATA"), (str(10**30), "DATA", *OWN)],
    "num_prompts": [("0", "DATA", *OWN), ("5", "DATA")],
    "skip_prompts": [(str(10**30), "DATA", *OWN, "--judge", "{demo}/world.py:true_reward"), ("-1", "DATA", *OWN)],
    "judge": [
        (judge, "DATA", *OWN) for judge in ("no.py:f", "odd", "pairs.jsonl:f", "pairs.jsonl", "{demo}/world.py:no", "delta", "human", "none", "truth", "reward_model", "endpoint", LONG, f"{LONG}.py:f")
    ],
    "sample_from": [("gone", "DATA", *OWN, "--judge", "{demo}/world.py:true_reward"), ("a", "DATA"), ("a", "DATA", *OWN, "--judge", "delta")],
    "answers": [(LONG, "EVALUATION")],
    "judge_model": [(LONG, "EVALUATION")],
    "judge_url": [(LONG, "EVALUATION"), ("http://[::1", "EVALUATION"), ("http://a:99999/v1", "EVALUATION")],
    "temperature": [("0", "DATA", *OWN), ("nan", "DATA", *OWN), ("inf", "DATA", *OWN), ("inf", "EVALUATION"), ("1e300", "EVALUATION"), ("1e-300", "EVALUATION")],
    "num_samples": [(str(10**30), "EVALUATION"), ("-1", "EVALUATION")],
    "judge_budget": [(str(10**30), "EVALUATION")],
    "save_total_limit": [("1",)],
    "metric_for_best_model": [("loss", "--load_best_model_at_end")],
    "eval_steps": [("0", "--eval_strategy", "steps"), ("-1", "--eval_strategy", "steps"), ("nan", "--eval_strategy", "steps"), ("inf", "--eval_strategy", "steps"), ("0.5", "--eval_strategy", "steps"), ("1.5", "--eval_strategy", "steps")],
    "logging_steps": [("1.5",), ("0.5",)],
    "save_steps": [("1.5",)],
    "warmup_steps": [("1.5",), (str(10**9),)],
}  # fmt: skip
SCRIPTS = {
    "LORA": ("lora_dpo_training", SHORT),
    "LOSS": ("custom_loss_dpo", SHORT),
    "DATA": ("custom_dataset_dpo", SHORT),
    "EVALUATION": (
        "dpo_evaluation",
        (
            "--model_name_or_path {demo}/model --reference {demo}/model --dataset_name {demo} --output_dir out "
            "--num_eval_prompts 2 --max_new_tokens 4"
        ).split(),
    ),
}
ENVIRONMENTS = {
    "TMPDIR nowhere": {"TMPDIR": "/no/such/folder"},
    "TMPDIR a file": {"TMPDIR": "/etc/hostname"},
}
