"""What a user can get wrong, script by script: exit code 2, the culprit named in a few lines, and nothing written.

A case is a command line, the words its message must hold and, where it takes some, the files that are wrong. All run in
a folder of their own, whose every file is compared before and after.
"""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from conftest import PATIENCE, PROJECT, run_forked
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

DEMO_MODEL = PROJECT / "demo" / "model"
TOKENS = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
PAIR = {"prompt": "why?", "chosen": "a cat, no, a dog.", "rejected": "the mat"}
BASIC, LORA, LOSS, DATA, EVALUATION = (
    "basic_dpo_training", "lora_dpo_training", "custom_loss_dpo", "custom_dataset_dpo", "dpo_evaluation",
)  # fmt: skip


class Case(NamedTuple):
    script: str
    words: str | list[str]  # the command line; {demo} is the demo's folder
    says: tuple[str, ...]  # what the message must hold
    make: Callable[[Path], None] = lambda folder: None  # writes the files of the case
    environment: dict[str, str] = {}  # noqa: RUF012


# --- Files -----------------------------------------------------------------------------------------------------------


def write(name: str, content: str | bytes | list) -> Callable[[Path], None]:
    """A file: text, bytes, or rows that become lines of JSON."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


PAIRS = write("pairs.jsonl", [PAIR | {"prompt": f"why {n}?"} for n in range(8)])


def all_of(*makers) -> Callable[[Path], None]:
    return lambda folder: [make(folder) for make in makers] and None


def model(change: Callable[[Path], None] = lambda m: None) -> Callable[[Path], None]:
    """The demo's model in the folder m, changed, and pairs to train it on."""

    def make(folder: Path) -> None:
        PAIRS(folder)
        shutil.copytree(DEMO_MODEL, folder / "m")
        change(folder / "m")

    return make


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def set_in(name: str, **values) -> Callable[[Path], None]:
    """A JSON file with other values."""

    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return change


def set_weights(change: Callable[[dict], dict], name: str = "model.safetensors") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return make


def one_nan(weights: dict) -> dict:
    some = sorted(weights)[3]
    return weights | {some: torch.full_like(weights[some], float("nan"))}


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def link(name: str, target: str) -> Callable[[Path], None]:
    """A link in a file's place."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    """A named pipe in a file's place, into which nobody writes."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def multiplied(line: str, alias: str, first: str = "x") -> str:
    """A recipe of nine lines, each of which names the one before it ten times."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, 10):
        lines.append(f"a{number}: " + line.format(number, ", ".join([alias.format(number - 1)] * 10)))
    return "\n".join(lines) + "\n"


def packed(size: int) -> bytes:
    """A line of so many bytes, compressed a thousand times."""
    return gzip.compress(b'{"prompt": "' + b"a" * size + b'"}', 1)


def instead(other) -> Callable[[Path], None]:
    """Another kind of model in the same folder."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        other().save_pretrained(folder)

    return change


def bert() -> BertForMaskedLM:
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=99)
    return BertForMaskedLM(BertConfig(**sizes))


def t5() -> T5ForConditionalGeneration:
    sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=99)
    return T5ForConditionalGeneration(T5Config(**sizes))


def small_embedding(folder: Path) -> None:
    set_in("config.json", vocab_size=500)(folder)
    set_weights(lambda w: w | {"model.embed_tokens.weight": w["model.embed_tokens.weight"][:500].clone()})(folder)


def shards(place: str) -> Callable[[Path], None]:
    """Weights in shards, all of which stand at one place."""

    def change(folder: Path) -> None:
        names = dict.fromkeys(load_file(folder / "model.safetensors"), place)
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return change


def adapter(change: Callable[[Path], None] = lambda a: None) -> Callable[[Path], None]:
    """An adapter of the demo's model in the folder a, changed."""

    def make(folder: Path) -> None:
        PAIRS(folder)
        base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, config).save_pretrained(folder / "a")
        change(folder / "a")

    return make


def recipe(content: str | bytes) -> Callable[[Path], None]:
    return write("r.yaml", content)


def saved_dataset(folder: Path) -> None:
    datasets.Dataset.from_list([PAIR]).save_to_disk(folder / "saved")
    next((folder / "saved").glob("*.arrow")).write_bytes(b"no arrow")


# --- The table -------------------------------------------------------------------------------------------------------

TRAIN = "--dataset_name pairs.jsonl --output_dir out "
MODEL = TRAIN + "--model_name_or_path m"
ON_ITSELF = "--model_name_or_path {demo}/model --reference {demo}/model --dataset_name {demo} --output_dir out "

FLAGS = {
    "misspelt": Case(BASIC, "--leaning_rate 1", ("--leaning_rate", "did you mean --learning_rate?")),
    "misspelt_twice": Case(
        BASIC, "--learning_rat 1 --leaning_rate 1", ("--learning_rat: did you mean --learning_rate?",)
    ),
    "unknown": Case(BASIC, "--qwertz 1", ("--qwertz", "--help_all")),
    "old_name": Case(BASIC, "--evaluation_strategy steps", ("did you mean --eval_strategy?",)),
    "merge_of_tied": Case(
        LORA, "--merge --lora_target_modules embed_tokens", ("--merge: head and embedding are one weight",)
    ),
    "list_twice": Case(BASIC, "--loss_type sigmoid --loss_type sft", ("--loss_type stands twice", "--loss_type A B")),
    "stream_without_end": Case(BASIC, "--dataset_streaming", ("a stream has no length", "--max_steps")),
    "stray_word": Case(BASIC, "stray", ("'stray'", "belongs to no flag")),
    "typographic_dash": Case(BASIC, "—beta 0.1", ("'—beta'", "belongs to no flag")),
    "without_value": Case(BASIC, "--beta", ("--beta", "expected one argument")),
    "no_number": Case(BASIC, "--beta much", ("--beta", "'much'")),
    "no_integer": Case(BASIC, "--per_device_train_batch_size 1.5", ("--per_device_train_batch_size", "'1.5'")),
    "no_truth_value": Case(BASIC, "--bf16 maybe", ("--bf16", "maybe")),
    "no_choice": Case(BASIC, "--lr_scheduler_type cosinus", ("--lr_scheduler_type", "did you mean cosine?")),
    "beta_0": Case(BASIC, "--beta 0", ("--beta must be above 0",)),
    "beta_negative": Case(BASIC, "--beta -0.1", ("--beta must be above 0, not -0.1",)),
    "beta_nan": Case(BASIC, "--beta nan", ("--beta must be above 0, not nan",)),
    "beta_infinite": Case(BASIC, "--beta inf", ("--beta must be above 0, not inf",)),
    "rate_negative": Case(BASIC, "--learning_rate -1", ("--learning_rate must be at least 0",)),
    "rate_infinite": Case(BASIC, "--learning_rate 1e999", ("--learning_rate must be at least 0, not inf",)),
    "epochs_infinite": Case(BASIC, "--num_train_epochs inf", ("--num_train_epochs",)),
    "steps_minus_5": Case(BASIC, "--max_steps -5", ("--max_steps must be above 0, or -1",)),
    "logging_infinite": Case(BASIC, "--logging_steps inf", ("--logging_steps must be above 0, not inf",)),
    "seed_too_large": Case(BASIC, "--seed 99999999999", ("--seed must be at least 0 and below 2**32",)),
    "warmup_negative": Case(BASIC, "--warmup_steps -1", ("warmup_steps",)),
    "adam_beta": Case(BASIC, "--adam_beta1 2", ("--adam_beta1 must be at least 0 and below 1",)),
    "grad_norm_nan": Case(BASIC, "--max_grad_norm nan", ("--max_grad_norm",)),
    "loss_weight_nan": Case(BASIC, "--loss_weights nan", ("--loss_weights must be a finite number",)),
    "save_steps_0": Case(BASIC, "--save_steps 0", ("--save_steps must be above 0",)),
    "share_nan": Case(DATA, "--held_out_share nan", ("--held_out_share must be at least 0 and below 1",)),
    "share_1": Case(DATA, "--held_out_share 1", ("--held_out_share must be at least 0 and below 1",)),
    "margin_negative": Case(BASIC, "--min_margin -1", ("--min_margin must be at least 0",)),
    "bf16_and_fp16": Case(BASIC, "--bf16 true --fp16 true", ("fp16 and bf16",)),
    "prompt_as_long_as_all": Case(
        BASIC, "--max_prompt_length 512 --max_length 512", ("--max_prompt_length 512", "--max_length 512")
    ),
    "best_without_evaluation": Case(BASIC, "--load_best_model_at_end --eval_strategy no", ("load_best_model_at_end",)),
    "metric_unknown": Case(BASIC, "--metric_for_best_model bleu", ("--metric_for_best_model bleu", "rewards/margins")),
    "dictionary": Case(BASIC, "--lr_scheduler_kwargs rubbish", ("--lr_scheduler_kwargs rubbish", "JSON")),
    "dictionary_broken": Case(BASIC, "--model_init_kwargs {bad", ("--model_init_kwargs {bad is not JSON",)),
    "loss_unknown": Case(BASIC, "--loss_type sigmoit", ("sigmoit", "did you mean sigmoid")),
    "loss_of_another_script": Case(BASIC, "--loss_type dpop", ("custom_loss_dpo.py",)),
    "loss_weights_too_few": Case(BASIC, "--loss_type sigmoid ipo --loss_weights 1", ("loss_weights",)),
    "loss_refused_by_trl": Case(BASIC, TRAIN + "--loss_type exo_pair", ("Label smoothing",), PAIRS),
    "divergence_unknown": Case(BASIC, TRAIN + "--f_divergence_type rubbish", ("rubbish", "js_divergence"), PAIRS),
    "coupled_loss_in_parts": Case(
        BASIC, "--loss_type aot --max_tokens_per_batch 99", ("--max_tokens_per_batch", "aot")
    ),
    "two_ways_to_have_a_reference": Case(
        BASIC, TRAIN + "--sync_ref_model --precompute_ref_log_probs", ("sync_ref_model",), PAIRS
    ),
    "cut_at_the_start": Case(BASIC, "--truncation_mode keep_end", ("--truncation_mode", "--max_prompt_length")),
    "cache_is_a_file": Case(
        BASIC, "--reference_cache pairs.jsonl", ("--reference_cache pairs.jsonl is a file",), PAIRS
    ),
    "adapter_in_the_basic_script": Case(BASIC, "--use_peft", ("lora_dpo_training.py",)),
    "4_bit_in_the_basic_script": Case(BASIC, "--load_in_4bit", ("lora_dpo_training.py",)),
    "no_data_named": Case(BASIC, "--model_name_or_path some/model", ("--dataset_name is missing",)),
    "data_name_empty": Case(BASIC, ["--dataset_name", ""], ("--dataset_name is empty",)),
    "model_name_empty": Case(BASIC, ["--model_name_or_path", ""], ("--model_name_or_path",)),
}

NUMBERS = {  # what passed in silence, or ended in a traceback after the reference had been asked
    f"{flag}_{value}": Case(BASIC, f"--{flag} {value}", (f"--{flag} must be {words}",))
    for flag, values, words in (
        ("eval_steps", ("0", "-1", "nan", "inf"), "above 0"),
        ("warmup_steps", ("nan", "inf"), "at least 0"),
        ("neftune_noise_alpha", ("nan", "-1"), "at least 0"),
        ("precompute_ref_batch_size", ("0", "-1"), "above 0"),
        ("eval_accumulation_steps", ("-1",), "above 0"),
        ("ref_model_sync_steps", ("0",), "above 0"),
        ("ref_model_mixup_alpha", ("1.5", "nan"), "between 0 and 1"),
        ("label_smoothing_factor", ("1", "nan"), "at least 0 and below 1"),
        ("f_alpha_divergence_coef", ("nan", "inf"), "a finite number"),
        ("discopop_tau", ("0", "nan"), "above 0"),
        ("eval_delay", ("nan",), "at least 0"),
        ("router_aux_loss_coef", ("inf",), "at least 0"),
        ("dataset_num_proc", ("0",), "above 0"),
        ("max_new_tokens", (str(10**30),), "at most 2,147,483,647"),
        ("gradient_accumulation_steps", (str(10**30),), "at most 2,147,483,647"),
        ("beta", ("1e300",), "at most 3e+38"),
        ("num_train_epochs", ("1e30",), "at most 2,147,483,647"),
        ("dataloader_num_workers", ("100000",), "at most 1,024"),
    )
    for value in values
} | {
    "alpha_0": Case(LORA, "--lora_alpha 0", ("--lora_alpha must be above 0, not 0",)),
    "rank_negative": Case(LORA, "--lora_r -1", ("--lora_r must be at least 1",)),
    "rank_beyond_any_layer": Case(LORA, "--lora_r 1000000", ("--lora_r must be at least 1 and at most 16,384",)),
    "dropout_of_everything": Case(LORA, "--lora_dropout 1", ("--lora_dropout must be at least 0 and below 1",)),
    "task_of_another_kind": Case(LORA, "--lora_task_type SEQ_CLS", ("--lora_task_type SEQ_CLS: DPO trains CAUSAL_LM",)),
    "storage_of_no_kind": Case(LORA, "--bnb_4bit_quant_storage odd", ("--bnb_4bit_quant_storage odd",)),
    "temperature_tiny": Case(EVALUATION, "--temperature 1e-300", ("--temperature must be at least 0", "0.001")),
    "temperature_infinite": Case(EVALUATION, "--temperature inf", ("--temperature must be at least 0", "not inf")),
    "padding_to_a_word": Case(BASIC, "--pad_to_multiple_of some", ("--pad_to_multiple_of some: it is auto",)),
    "padding_to_0": Case(BASIC, "--pad_to_multiple_of 0", ("--pad_to_multiple_of 0: it is auto",)),
    "divergence_empty": Case(BASIC, ["--f_divergence_type", ""], ("--f_divergence_type", "js_divergence")),
    "workers_that_are_none": Case(
        BASIC, "--dataloader_persistent_workers", ("--dataloader_persistent_workers needs --dataloader_num_workers",)
    ),
    "offloading_without_a_gpu": Case(BASIC, "--activation_offloading", ("there is no GPU",)),
}  # fmt: skip
if torch.accelerator.is_available():
    del NUMBERS["offloading_without_a_gpu"]

TRIED = {  # keywords and packages, by what a library says of something tiny
    "schedule_keyword": Case(
        BASIC, ["--lr_scheduler_kwargs", '{"num_cycles": 2}'], ("--lr_scheduler_kwargs: linear takes no num_cycles, but nothing",)
    ),
    "schedule_keyword_of_another": Case(
        BASIC, ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"min_lr": 0}'], ("cosine takes no min_lr, but num_cycles",)
    ),
    "schedule_value_no_number": Case(
        BASIC, ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": "x"}'], ("--lr_scheduler_kwargs", "'x'")
    ),
    "schedule_value_nan": Case(
        BASIC, ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": NaN}'], ("--lr_scheduler_kwargs", "NaN")
    ),
    "schedule_that_needs_a_keyword": Case(BASIC, "--lr_scheduler_type warmup_stable_decay", ("num_decay_steps",)),
    "schedule_that_needs_a_rate": Case(BASIC, "--lr_scheduler_type cosine_with_min_lr", ("min_lr or min_lr_rate",)),
    "schedule_that_ends_above": Case(
        BASIC, ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_end": 5}'], ("lr_end (5) must be smaller",)
    ),
    "optimizer_setting_alone": Case(BASIC, "--optim_args foo", ("--optim_args foo: settings are given as in",)),
    "optimizer_setting_unknown": Case(
        BASIC, "--optim sgd --optim_args momentun=0.9", ("--optim_args momentun: sgd takes momentum",)
    ),
    "optimizer_setting_no_number": Case(BASIC, "--optim sgd --optim_args momentum=x", ("--optim sgd", "'x'")),
    "optimizer_without_its_package": Case(BASIC, "--optim galore_adamw", ("--optim galore_adamw", "pip install")),
    "optimizer_targets_no_pattern": Case(BASIC, "--optim_target_modules [", ("--optim_target_modules [",)),
    "checkpointing_keyword": Case(
        BASIC, ["--gradient_checkpointing_kwargs", '{"use_reentrent": true}'],
        ("--gradient_checkpointing_kwargs: there is no use_reentrent: did you mean use_reentrant?",),
    ),
    "checkpointing_value": Case(
        BASIC, ["--gradient_checkpointing_kwargs", '{"use_reentrant": "maybe"}'], ("use_reentrant is true or false, not",)
    ),
    "checkpointing_mode": Case(
        BASIC, ["--activation_checkpointing_kwargs", '{"determinism_check": "odd"}'], ("determinism_check should be one of",)
    ),
    "accelerator_keyword": Case(
        BASIC, ["--accelerator_config", '{"split_batch": true}'], ("--accelerator_config", "did you mean split_batches?")
    ),
    "accelerator_value": Case(BASIC, ["--accelerator_config", '{"even_batches": 7}'], ("even_batches is true or false, not 7",)),
    "accelerator_file_not_there": Case(BASIC, "--accelerator_config a.json", ("--accelerator_config a.json cannot be read",)),
    "accelerator_file_a_pipe": Case(
        BASIC, "--accelerator_config a.json", ("--accelerator_config a.json is no regular file",), pipe("a.json")
    ),
    "fsdp_file_a_pipe": Case(BASIC, "--fsdp_config a.json", ("--fsdp_config a.json is no regular file",), pipe("a.json")),
    "deepspeed_file_a_pipe": Case(BASIC, "--deepspeed a.json", ("--deepspeed a.json is no regular file",), pipe("a.json")),
    "accelerator_file_no_json": Case(
        BASIC, "--accelerator_config a.json", ("--accelerator_config a.json is not JSON",), write("a.json", "{x")
    ),
    "accelerator_file_a_list": Case(
        BASIC, "--accelerator_config a.json", ("a.json is no JSON object",), write("a.json", "[1]")
    ),
    "accelerator_accumulation": Case(
        BASIC, ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 3}}'], ("--gradient_accumulation_steps",)
    ),
    "fsdp_keyword": Case(BASIC, ["--fsdp_config", '{"cpu_ofload": true}'], ("did you mean cpu_offload?",)),
    "fsdp_file_not_there": Case(BASIC, "--fsdp_config a.json", ("--fsdp_config a.json cannot be read",)),
    "model_keyword_of_ours": Case(
        BASIC, ["--model_init_kwargs", '{"use_safetensors": false}'], ("--model_init_kwargs: use_safetensors is settled here",)
    ),
    "deepspeed_file_not_there": Case(BASIC, "--deepspeed a.json", ("--deepspeed a.json cannot be read",)),
    "deepspeed_without_its_package": Case(BASIC, ["--deepspeed", '{"a": 1}'], ("pip install deepspeed",)),
    "deepspeed_with_a_secret": Case(
        BASIC, ["--deepspeed", '{"comet": {"api_key": "sk-very-secret"}}'], ("--deepspeed holds a secret, api_key",)
    ),
    "liger_without_its_package": Case(BASIC, "--use_liger_kernel", ("pip install liger-kernel",)),
    "liger_no_json": Case(BASIC, "--liger_kernel_config x", ("--liger_kernel_config", "no JSON object")),
    "reporter_unknown": Case(BASIC, "--report_to nowhere", ("--report_to nowhere is not known", "tensorboard")),
    "reporter_without_its_package": Case(BASIC, "--report_to clearml", ("--report_to clearml", "pip install clearml")),
    "8_bit_without_its_package": Case(LORA, "--load_in_8bit", ("bitsandbytes", "pip install")),
    "compiler_unknown": Case(BASIC, "--torch_compile_backend odd", ("--torch_compile_backend odd", "inductor")),
    "compiler_mode_unknown": Case(BASIC, "--torch_compile_mode odd", ("--torch_compile_mode odd", "max-autotune")),
}  # fmt: skip
for name, package in {
    "optimizer_without_its_package": "galore_torch", "deepspeed_without_its_package": "deepspeed",
    "liger_without_its_package": "liger_kernel", "reporter_without_its_package": "clearml",
    "8_bit_without_its_package": "bitsandbytes",
}.items():  # fmt: skip
    if importlib.util.find_spec(package):
        del TRIED[name]

LONG, LONG_PART = "d/" * 2500, "d/" + "x" * 300 + "/e"
PATHS = {
    f"{flag}_{name}": Case(script, f"--{flag} {path}", (f"--{flag} d/", words))
    for script, flags in {
        BASIC: "model_name_or_path dataset_name output_dir reference_cache resume_from_checkpoint accelerator_config "
               "fsdp_config deepspeed",
        LORA: "adapter", LOSS: "loss_file", DATA: "save_cleaned", 
        EVALUATION: "reference answers models judge judge_model judge_prompt answers_from texts",
    }.items()
    for flag in flags.split()
    for name, path, words in (("too_long", LONG, "bytes long; the system takes"), ("part_too_long", LONG_PART, "has a part of 300 bytes"))
} | {
    "config_too_long": Case(BASIC, f"--config {LONG}", ("--config d/", "bytes long; the system takes")),
    "path_with_nul": Case(BASIC, ["--reference_cache", "a\0b"], ("--reference_cache a\\x00b holds a character",)),
}  # fmt: skip

OUTPUT = {
    "output_dir_empty": Case(BASIC, ["--output_dir", ""], ("--output_dir is empty",)),
    "output_dir_is_a_file": Case(BASIC, "--output_dir pairs.jsonl", ("--output_dir pairs.jsonl is a file",), PAIRS),
    "output_dir_below_a_file": Case(
        BASIC, "--dataset_name pairs.jsonl --output_dir pairs.jsonl/out", ("pairs.jsonl",), PAIRS
    ),
    "output_dir_too_long": Case(BASIC, "--output_dir " + "x" * 300, ("--output_dir xxx", "a part of 300 bytes", "255")),
    "output_dir_not_writable": Case(BASIC, "--dataset_name pairs.jsonl --output_dir /proc/x/y", ("/proc/x",), PAIRS),
    "output_dir_holds_what_no_run_left": Case(
        BASIC,
        "--output_dir out --overwrite_output_dir",
        ("--output_dir out holds metrics.json", "move them away"),
        write("out/metrics.json", "{}"),
    ),
    **{
        f"output_dir_holds_{name}": Case(
            BASIC,
            "--output_dir out --overwrite_output_dir",
            (f"--output_dir out holds {name}",),
            write(f"out/{name}", "mine"),
        )
        for name in ("README.md", "tokenizer.json", "checkpoint-2/mine.txt")
    },
    **{
        f"output_dir_is_where_{flag}_is": Case(
            script,
            f"--{flag} {given} --output_dir {given.split('/')[0]} --overwrite_output_dir {more}",
            (f"is where --{flag} {given} is, which this run reads",),
            make,
        )
        for flag, script, given, more, make in (
            ("model_name_or_path", BASIC, "m", "--dataset_name pairs.jsonl", model()),
            ("reference", EVALUATION, "m", "--models {demo}/model", model()),
            ("adapter", LORA, "a", "--dataset_name pairs.jsonl", adapter()),
            ("dataset_name", BASIC, "out/generations.jsonl", "", write("out/generations.jsonl", [PAIR])),
            (
                "accelerator_config",
                BASIC,
                "out/a_config.json",
                "",
                write("out/a_config.json", '{"even_batches": true}'),
            ),
        )
    },
    "output_dir_is_where_the_base_is": Case(
        EVALUATION,
        "--models b --dataset_name pairs.jsonl --output_dir m --overwrite_output_dir",
        ("m is where the base of --models b is",),
        all_of(
            model(),
            lambda folder: adapter(set_in("adapter_config.json", base_model_name_or_path="m"))(folder),
            lambda folder: (folder / "a").rename(folder / "b") and None,
        ),
    ),
    "rounds_over_their_own_model": Case(
        DATA,
        "--sample_answers 2 --rounds 2 --model_name_or_path r/round-2 --output_dir r --dataset_name pairs.jsonl --judge rules.py:f",
        ("r is where --model_name_or_path r/round-2 is",),
        all_of(
            PAIRS,
            lambda folder: shutil.copytree(DEMO_MODEL, folder / "r" / "round-2") and None,
            write("rules.py", "def f(p, a): return 1"),
        ),
    ),
    "cache_is_where_the_model_is": Case(
        BASIC, TRAIN + "--model_name_or_path m --reference_cache m", ("name a folder that only caches use",), model()
    ),
    "runs_leads_nowhere": Case(
        BASIC,
        "--dataset_name pairs.jsonl",
        ("runs is no folder, but a link to gone",),
        all_of(PAIRS, link("runs", "gone")),
    ),
    "output_dir_leads_nowhere": Case(
        BASIC, TRAIN, ("out is no folder, but a link to gone",), all_of(PAIRS, link("out", "gone"))
    ),
    "checkpoint_not_there": Case(BASIC, TRAIN + "--resume_from_checkpoint nope", ("nope is no folder",), PAIRS),
    "checkpoint_is_a_file": Case(
        BASIC, TRAIN + "--resume_from_checkpoint pairs.jsonl", ("pairs.jsonl is no folder",), PAIRS
    ),
}

RECIPES = {
    "config_without_name": Case(BASIC, "--config", ("--config needs the name of a YAML file",)),
    "config_missing": Case(BASIC, "--config no_such.yaml", ("no_such.yaml cannot be read",)),
    "config_is_a_folder": Case(BASIC, "--config .", ("--config . cannot be read",)),
    "config_twice": Case(BASIC, "--config r.yaml --config r.yaml", ("stands twice",), recipe("beta: 0.2\n")),
    "not_closed": Case(BASIC, "--config r.yaml", ("r.yaml is not YAML",), recipe("beta: [")),
    "tab": Case(BASIC, "--config r.yaml", ("r.yaml is not YAML", "line 1"), recipe("\tbeta: 0.1\n")),
    "utf16": Case(BASIC, "--config r.yaml", ("r.yaml is not YAML",), recipe("beta: 0.1".encode("utf-16"))),
    "empty": Case(BASIC, "--config r.yaml", ("r.yaml must hold names and values",), recipe("")),
    "list": Case(BASIC, "--config r.yaml", ("r.yaml must hold names and values",), recipe("- beta\n")),
    "key_unknown": Case(BASIC, "--config r.yaml", ("r.yaml", "--bata: did you mean --beta"), recipe("bata: 0.1\n")),
    "key_no_text": Case(BASIC, "--config r.yaml", ("1 is no name of a flag",), recipe("1: 2\n")),
    "key_twice": Case(BASIC, "--config r.yaml", ("beta stands twice",), recipe("beta: 0.1\nbeta: 0.5\n")),
    "value_a_list": Case(BASIC, "--config r.yaml", ("r.yaml: beta is a list",), recipe("beta: [0.1, 0.2]\n")),
    "value_a_mapping": Case(BASIC, "--config r.yaml", ("loss_type is a mapping",), recipe("loss_type: {a: b}\n")),
    "value_empty": Case(BASIC, "--config r.yaml", ("beta is empty",), recipe("beta:\n")),
    "value_no_number": Case(BASIC, "--config r.yaml", ("r.yaml: beta", "'fast'"), recipe("beta: fast\n")),
    "value_a_date": Case(BASIC, "--config r.yaml", ("r.yaml: beta", "'2020-01-01'"), recipe("beta: 2020-01-01\n")),
    "seed_a_fraction": Case(BASIC, "--config r.yaml", ("r.yaml: seed", "'1.5'"), recipe("seed: 1.5\n")),
    "name_with_nul": Case(BASIC, "--config r.yaml", ("output_dir holds a character",), recipe('output_dir: "a\\0b"\n')),
    "number_of_5000_digits": Case(BASIC, "--config r.yaml", ("r.yaml is not YAML",), recipe("seed: 1" + "0" * 5000)),
    "nested_too_deeply": Case(BASIC, "--config r.yaml", ("r.yaml is not YAML",), recipe("a: " + "[" * 2000)),
    "aliases_that_multiply": Case(
        BASIC, "--config r.yaml", ("r.yaml: with its aliases written out it would hold 1,",), recipe(multiplied("&a{0} [{1}]", "*a{0}"))
    ),
    "merges_that_multiply": Case(
        BASIC, "--config r.yaml", ("r.yaml: with its aliases written out",), recipe(multiplied("&a{0}\n    <<: [{1}]", "*a{0}", "{k: 1}"))
    ),
    "too_large": Case(BASIC, "--config r.yaml", ("r.yaml is 1.", "MiB large"), recipe("# " + "a" * 1_100_000)),
    "config_a_pipe": Case(BASIC, "--config r.yaml", ("r.yaml is no regular file",), pipe("r.yaml")),
    "holds_itself": Case(BASIC, "--config r.yaml", ("beta is a list",), recipe("beta: &a [*a]\n")),
    "python_object": Case(
        BASIC, "--config r.yaml", ("r.yaml is not YAML", "python/object"),
        recipe("beta: !!python/object/apply:os.system ['touch trace']\n"),
    ),
    "env_a_list": Case(BASIC, "--config r.yaml", ("env must hold names and values",), recipe("env: [a]\n")),
    "env_no_name": Case(BASIC, "--config r.yaml", ("env cannot set 'A=B'",), recipe("env: {'A=B': 1}\n")),
    "mixture_not_there": Case(BASIC, "--config r.yaml", ("datasets", "org/nope"), recipe("datasets: [{path: org/nope}]\n")),
}  # fmt: skip

MODELS = {
    "model_not_there": Case(BASIC, MODEL, ("no model folder",), all_of(PAIRS, write("m", "a file"))),
    "model_folder_not_there": Case(BASIC, TRAIN + "--model_name_or_path ./gone", ("./gone", "no model folder"), PAIRS),
    "model_folder_empty": Case(BASIC, TRAIN + "--model_name_or_path .", ("no config.json",), PAIRS),
    "model_on_the_hub_offline": Case(BASIC, TRAIN + "--model_name_or_path org/no-model", ("org/no-model",), PAIRS),
    "config_json_broken": Case(BASIC, MODEL, ("config.json is not JSON",), model(write("config.json", "{x"))),
    "config_json_null": Case(BASIC, MODEL, ("config.json is no JSON object",), model(write("config.json", "null"))),
    "config_json_without_type": Case(BASIC, MODEL, ("m cannot be loaded", "model_type"), model(write("config.json", "{}"))),
    "architecture_unknown": Case(BASIC, MODEL, ("`nope`",), model(set_in("config.json", model_type="nope"))),
    "architecture_no_name": Case(
        BASIC, MODEL, ("not a causal language model",), model(set_in("config.json", architectures=7))
    ),
    "config_json_too_deep": Case(BASIC, MODEL, ("m/config.json is nested more than 100",), model(write("config.json", "[" * 90000))),
    "config_json_too_large": Case(
        BASIC, MODEL, ("m/config.json is 7.", "MiB large"), model(set_in("config.json", eos_token_id=[2] * 2_500_000))
    ),
    "config_json_a_device": Case(BASIC, MODEL, ("m/config.json is no regular file",), model(link("config.json", "/dev/zero"))),
    "config_json_a_lost_link": Case(BASIC, MODEL, ("m/config.json is a link to gone",), model(link("config.json", "gone"))),
    "layers_ten_million": Case(
        BASIC, MODEL, ("num_hidden_layers is 10,000,000",), model(set_in("config.json", num_hidden_layers=10**7, layer_types=None))
    ),
    "layers_none": Case(BASIC, MODEL, ("num_hidden_layers is 0",), model(set_in("config.json", num_hidden_layers=0, layer_types=[]))),
    "layers_of_a_part": Case(
        BASIC, MODEL, ("num_hidden_layers is 9,000,000",), model(set_in("config.json", text_config={"num_hidden_layers": 9_000_000}))
    ),
    "labels_a_billion": Case(BASIC, MODEL, ("num_labels is 1,000,000,000",), model(set_in("config.json", num_labels=10**9))),
    "width_of_a_million": Case(
        BASIC, MODEL, ("describes a model of", "files hold 4,1"), model(set_in("config.json", hidden_size=10**6))
    ),
    "vocabulary_of_a_billion": Case(BASIC, MODEL, ("describes a model of 128,",), model(set_in("config.json", vocab_size=10**9))),
    "positions_1": Case(BASIC, MODEL, ("no room for a reply",), model(set_in("config.json", max_position_embeddings=1))),
    "generation_config_too_deep": Case(
        BASIC, MODEL, ("generation_config.json is nested",), model(write("generation_config.json", "[" * 90000))
    ),
    "tokenizer_config_too_deep": Case(
        BASIC, MODEL, ("tokenizer_config.json is nested",), model(write("tokenizer_config.json", '{"a":' * 90000))
    ),
    "weights_a_pipe": Case(BASIC, MODEL, ("model.safetensors is no regular file",), model(pipe("model.safetensors"))),
    "index_names_a_pickle": Case(BASIC, MODEL, ("names w.bin, which is no safetensors",), model(shards("w.bin"))),
    "index_outside_on_windows": Case(BASIC, MODEL, ("leads out of its folder",), model(shards("..\\w.safetensors"))),
    "size_no_number": Case(BASIC, MODEL, ("hidden_size", "'big'"), model(set_in("config.json", hidden_size="big"))),
    "heads_do_not_fit": Case(BASIC, MODEL, ("o_proj.weight", "by config.json"), model(set_in("config.json", num_attention_heads=3))),
    "dtype_unknown": Case(BASIC, MODEL, ("float99",), model(set_in("config.json", dtype="float99"))),
    "encoder": Case(BASIC, MODEL, ("BertForMaskedLM", "not a causal language model"), model(instead(bert))),
    "encoder_and_decoder": Case(BASIC, MODEL, ("T5ForConditionalGeneration",), model(instead(t5))),
    "weights_missing": Case(BASIC, MODEL, ("m holds no weights",), model(without("model.safetensors"))),
    "weights_pickled": Case(BASIC, MODEL, ("pickled", "Convert them to safetensors"), model(pickled)),
    "weights_truncated": Case(BASIC, MODEL, ("safetensors file is damaged",), model(truncated)),
    "weights_a_web_page": Case(BASIC, MODEL, ("is damaged",), model(write("model.safetensors", "<!DOCTYPE html>"))),
    "weights_nan": Case(BASIC, MODEL, ("a NaN or an infinity in model.layers",), model(set_weights(one_nan))),
    "weights_too_few": Case(
        BASIC, MODEL, ("lacks", "would be random"), model(set_weights(lambda w: dict(list(w.items())[:10])))
    ),
    "weights_of_another_shape": Case(
        BASIC, MODEL, ("model.norm.weight is (7,)", "(128,)"), model(set_weights(lambda w: w | {"model.norm.weight": torch.ones(7)}))
    ),
    "shard_missing": Case(BASIC, MODEL, ("model-00002-of-00002",), model(shards("model-00002-of-00002.safetensors"))),
    "shard_outside_its_folder": Case(BASIC, MODEL, ("leads out of its folder",), model(shards("../../w.safetensors"))),
    "remote_code": Case(
        BASIC, MODEL, ("custom code",),
        model(all_of(
            set_in("config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
            write("evil.py", "open('trace', 'w')"),
        )),
    ),
    "tokenizer_missing": Case(BASIC, MODEL, ("m: its tokenizer",), model(without("tokenizer.json"))),
    "tokenizer_broken": Case(BASIC, MODEL, ("m: its tokenizer",), model(write("tokenizer.json", "{x"))),
    "tokenizer_config_a_list": Case(BASIC, MODEL, ("m: its tokenizer",), model(write("tokenizer_config.json", "[]"))),
    "tokenizer_without_eos": Case(BASIC, MODEL, ("no EOS token",), model(set_in("tokenizer_config.json", eos_token=None))),
    "tokenizer_of_a_larger_model": Case(BASIC, MODEL, (f"{TOKENS:,} tokens", "embeds 500"), model(small_embedding)),
    "pad_that_is_not_embedded": Case(
        BASIC, MODEL, (f"{TOKENS + 1:,} tokens", f"embeds {TOKENS:,}"), model(set_in("tokenizer_config.json", pad_token="<new>"))
    ),
    "template_broken": Case(BASIC, MODEL, ("chat template", "end of template"), model(write("chat_template.jinja", "{% for"))),
    "template_that_raises": Case(
        BASIC, MODEL, ("chat template", "must alternate"),
        model(write("chat_template.jinja", "{{ raise_exception('roles must alternate') }}")),
    ),
    "template_without_end": Case(
        BASIC, MODEL, ("m: its chat template has not ended",),
        model(write("chat_template.jinja", 2 * "{% for a in range(90000) %}" + "{% if a %}x{% endif %}" + 2 * "{% endfor %}")),
    ),
    "template_of_gigabytes": Case(
        BASIC, MODEL, ("m: its chat template takes more than 2.0 GiB",), model(write("chat_template.jinja", "{{ 'a' * 99999999999 }}"))
    ),
    "template_that_talks": Case(
        BASIC, MODEL, ("writes 9,000,000 characters",), model(write("chat_template.jinja", "{{ 'a' * 9000000 }}"))
    ),
    "template_that_raises_to_a_power": Case(
        BASIC, MODEL, ("raises to a power",), model(write("chat_template.jinja", "{{ 9 ** (9 ** 9) }}"))
    ),
    "template_named_out_of_its_folder": Case(
        BASIC, MODEL, ("chat template is called '../../x'",),
        model(all_of(
            without("chat_template.jinja"),
            set_in("tokenizer_config.json", chat_template=[{"name": n, "template": "x"} for n in ("default", "../../x")]),
        )),
    ),
    "template_that_divides_by_0": Case(BASIC, MODEL, ("division by zero",), model(write("chat_template.jinja", "{{ 1/0 }}"))),
    "template_without_answers": Case(
        BASIC, MODEL, ("it leaves the answers out",), model(write("chat_template.jinja", "hello"))
    ),
    "template_that_reaches_for_python": Case(
        BASIC, MODEL, ("chat template", "unsafe"), model(write("chat_template.jinja", "{{ ''.__class__.__mro__ }}"))
    ),
    "adapter_as_model": Case(
        BASIC, MODEL, ("adapter without its base", "lora_dpo_training.py"), all_of(PAIRS, write("m/adapter_config.json", "{}"))
    ),
}  # fmt: skip

ADAPTERS = {
    "rank_0": Case(LORA, TRAIN + "--lora_r 0", ("--lora_r must be at least 1",), PAIRS),
    "target_unknown": Case(LORA, TRAIN + "--lora_target_modules q_porj", ("q_porj matches nothing", "down_proj"), PAIRS),
    "target_is_the_head": Case(LORA, TRAIN + "--lora_target_modules lm_head", ("--lora_modules_to_save lm_head",), PAIRS),
    "adapter_not_there": Case(LORA, "--adapter nothing", ("--adapter nothing is no folder",)),
    "adapter_is_a_model": Case(LORA, "--adapter {demo}/model", ("holds a full model, not an adapter",)),
    "adapter_is_something_else": Case(LORA, "--adapter {demo}", ("holds no adapter",)),
    "adapter_config_broken": Case(LORA, TRAIN + "--adapter a", ("adapter_config.json",), adapter(write("adapter_config.json", "{x"))),
    "adapter_config_a_list": Case(LORA, TRAIN + "--adapter a", ("adapter_config.json",), adapter(write("adapter_config.json", "[]"))),
    "adapter_pattern_without_end": Case(
        LORA, TRAIN + "--adapter a", ("a/adapter_config.json: trying its patterns", "not ended"),
        adapter(set_in("adapter_config.json", target_modules=r"(([a-z_.0-9]+)+)+!")),
    ),
    "adapter_rank_pattern_without_end": Case(
        LORA, TRAIN + "--adapter a", ("a/adapter_config.json: trying its patterns", "not ended"),
        adapter(set_in("adapter_config.json", rank_pattern={r"(\w+\.?)*\d\d\d": 4})),
    ),
    "adapter_that_copies_layers": Case(
        LORA, TRAIN + "--adapter a", ("layer_replication makes more than",),
        adapter(set_in("adapter_config.json", layer_replication=[[0, 4]] * 1000)),
    ),
    "adapter_base_no_name": Case(
        LORA, TRAIN + "--adapter a", ("base_model_name_or_path is 5",), adapter(set_in("adapter_config.json", base_model_name_or_path=5))
    ),
    "adapter_config_too_deep": Case(LORA, TRAIN + "--adapter a", ("is nested more than",), adapter(write("adapter_config.json", "[" * 90000))),
    "adapter_config_a_pipe": Case(LORA, TRAIN + "--adapter a", ("is no regular file",), adapter(pipe("adapter_config.json"))),
    "adapter_type_unknown": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a", "NOPE"), adapter(set_in("adapter_config.json", peft_type="NOPE"))
    ),
    "adapter_of_another_rank": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a",), adapter(set_in("adapter_config.json", r=4))
    ),
    "adapter_rank_negative": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a",), adapter(set_in("adapter_config.json", r=-1))
    ),
    "adapter_weights_pickled": Case(
        LORA, TRAIN + "--adapter a", ("adapter_model.bin can run code",),
        adapter(lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin")),
    ),
    "adapter_weights_damaged": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a",), adapter(write("adapter_model.safetensors", "<html>"))
    ),
    "adapter_weights_nan": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a", "a NaN or an infinity"),
        adapter(set_weights(one_nan, "adapter_model.safetensors")),
    ),
    "adapter_weights_missing": Case(
        LORA, TRAIN + "--adapter a", ("--adapter a", "lacks"),
        adapter(set_weights(lambda w: dict(list(w.items())[:2]), "adapter_model.safetensors")),
    ),
    "adapter_note_broken": Case(LORA, TRAIN + "--adapter a", ("base_model.json",), adapter(write("base_model.json", "[]"))),
    "adapter_of_another_base": Case(
        LORA, TRAIN + "--adapter a", ("was trained on another base",),
        adapter(write("base_model.json", '{"name": "other", "fingerprint": "0"}')),
    ),
    "adapter_base_gone": Case(
        LORA, TRAIN + "--adapter a", ("/nowhere/base is no model folder",),
        adapter(set_in("adapter_config.json", base_model_name_or_path="/nowhere/base")),
    ),
    "adapter_base_unnamed": Case(
        LORA, TRAIN + "--adapter a", ("add --model_name_or_path",),
        adapter(set_in("adapter_config.json", base_model_name_or_path=None)),
    ),
    "merge_first_without_adapter": Case(LORA, "--merge_first", ("--merge_first needs --adapter",)),
    "4_bit_without_its_package": Case(LORA, TRAIN + "--load_in_4bit", ("bitsandbytes",), PAIRS),
    "4_bit_and_8_bit": Case(LORA, "--load_in_4bit --load_in_8bit", ("8 bit and 4 bit",)),
}  # fmt: skip
if importlib.util.find_spec("bitsandbytes"):
    del ADAPTERS["4_bit_without_its_package"]

ROWS = "--dataset_name rows.jsonl --output_dir out "
ROWS_FILE = {
    "no_columns_known": (
        [{"question": "a", "answer": "b"}],
        ("rows.jsonl", "--columns prompt=...", "question, answer"),
    ),
    "answer_a_number": ([PAIR | {"chosen": 7}], ("line 1", "'chosen' is a number")),
    "answer_always_null": ([PAIR | {"chosen": None}], ("chosen (always null)", "--columns")),
    "prompt_null": ([PAIR | {"prompt": None}], ("rows.jsonl", "prompt")),
    "answers_always_equal": ([PAIR | {"chosen": "the mat"}], ("no pair can be used", "line 1")),
    "answers_always_empty": ([PAIR | {"rejected": " "}], ("no pair can be used", "line 1")),
    "turns_without_content": ([PAIR | {"prompt": [{"role": "user"}]}], ("rows.jsonl, line 1",)),
    "rows_are_texts": ('"a"\n"b"\n', ("line 1", "no object with named columns")),
    "line_broken": (json.dumps(PAIR) + "\n{broken\n", ("line 2", "not JSON", "--skip_bad_rows")),
    "key_of_a_row_twice": (
        '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}\n',
        ("line 1", "'chosen' stands twice"),
    ),
    "line_nested_too_deeply": (json.dumps(PAIR) + "\n" + "[" * 99999 + "\n", ("line 2", "nested too deeply")),
    "latin_1": (json.dumps(PAIR).encode() + b'\n{"prompt": "\xe9"}\n', ("line 2", "not UTF-8")),
    "nothing_in_it": ("", ("rows.jsonl is empty",)),
    "blank_lines_only": ("\n \n", ("no rows",)),
}
DATA_FILES = {
    name: Case(BASIC, ROWS, says, write("rows.jsonl", content)) for name, (content, says) in ROWS_FILE.items()
} | {
    "file_not_there": Case(BASIC, "--dataset_name gone.jsonl --output_dir out", ("no file or folder gone.jsonl",)),
    "file_of_another_kind": Case(BASIC, "--dataset_name a.txt --output_dir out", ("a.txt", ".jsonl"), write("a.txt", "x")),
    "folder_without_data": Case(BASIC, "--dataset_name . --output_dir out", ("holds no data",)),
    "data_on_the_hub_offline": Case(BASIC, "--dataset_name org/none --output_dir out", ("org/none",)),
    "list_of_nothing": Case(BASIC, "--dataset_name a.json --output_dir out", ("no rows",), write("a.json", "[]")),
    "archive_of_one_endless_line": Case(
        BASIC, "--dataset_name a.jsonl.gz --output_dir out", ("a.jsonl.gz, line 1: a row of more than 64 MiB",),
        lambda folder: (folder / "a.jsonl.gz").write_bytes(packed(2**27)) and None,
    ),
    "table_of_one_endless_cell": Case(
        BASIC, "--dataset_name a.csv.gz --output_dir out", ("a.csv.gz, line 2: a row of more than 64 MiB",),
        lambda folder: (folder / "a.csv.gz").write_bytes(gzip.compress(b"prompt,chosen\n" + b"a" * 2**27, 1)) and None,
    ),
    "blank_lines_without_end": Case(
        BASIC, "--dataset_name a.jsonl --output_dir out", ("a million blank lines follow line 1",),
        write("a.jsonl", json.dumps(PAIR) + "\n" * 1_200_000),
    ),
    "data_a_pipe": Case(BASIC, "--dataset_name a.jsonl --output_dir out", ("a.jsonl is no regular file",), pipe("a.jsonl")),
    "encoding_of_no_text": Case(BASIC, TRAIN + "--encoding zlib", ("--encoding zlib: there is no such",), PAIRS),
    "no_archive": Case(
        BASIC, "--dataset_name a.jsonl.gz --output_dir out", ("not compressed by gzip",), write("a.jsonl.gz", [PAIR])
    ),
    "archive_of_nothing": Case(
        BASIC, "--dataset_name a.jsonl.gz --output_dir out", ("no rows",), write("a.jsonl.gz", gzip.compress(b"", mtime=0))
    ),
    "column_twice": Case(
        BASIC, "--dataset_name a.csv --output_dir out", ("stands twice",), write("a.csv", "prompt,prompt\na,b\n")
    ),
    "header_only": Case(
        BASIC, "--dataset_name a.csv --output_dir out", ("no rows",), write("a.csv", "prompt,chosen,rejected\n")
    ),
    "no_parquet": Case(
        BASIC, "--dataset_name a.parquet --output_dir out", ("as Parquet",), write("a.parquet", "PAR1 but no more")
    ),
    "saved_dataset_broken": Case(BASIC, "--dataset_name saved --output_dir out", ("saved",), saved_dataset),
    "split_unknown": Case(BASIC, "--dataset_train_split trian --output_dir out", ("'trian'", "train, test")),
    "split_twice": Case(BASIC, "--dataset_train_split test", ("both test",)),
    "prompts_fill_max_length": Case(BASIC, TRAIN + "--max_length 5", ("no pair can be used", "max_length"), PAIRS),
    "prompt_cannot_be_so_short": Case(BASIC, TRAIN + "--max_prompt_length 1", ("no pair can be used",), PAIRS),
    "columns_named_twice": Case(DATA, "--columns prompt=a,prompt=b", ("--columns prompt=a,prompt=b: a name stands twice",)),
    "columns_without_values": Case(DATA, "--columns prompt", ("--columns prompt: names are given as in",)),
    "column_not_there": Case(
        DATA, ROWS + "--check_only --columns prompt=ask", ("there is no column ask", "prompt, chosen, rejected"),
        write("rows.jsonl", [PAIR]),
    ),
    "format_unknown": Case(DATA, TRAIN + "--check_only --dataset_format shargpt", ("shargpt: there are auto",), PAIRS),
    "format_does_not_fit": Case(DATA, TRAIN + "--check_only --dataset_format sharegpt", ("not of the shape sharegpt",), PAIRS),
    "pairing_unknown": Case(DATA, TRAIN + "--check_only --pairing some", ("--pairing some: there are best_worst",), PAIRS),
    "finding_unknown": Case(DATA, TRAIN + "--check_only --keep_findings roles", ("--keep_findings roles: there are",), PAIRS),
    "streamed_check": Case(DATA, TRAIN + "--check_only --dataset_streaming", ("--check_only reads all rows",), PAIRS),
    "cleaned_is_there": Case(
        DATA, TRAIN + "--check_only --save_cleaned pairs.jsonl", ("--save_cleaned: pairs.jsonl is there already",), PAIRS
    ),
    "cleaned_below_a_file": Case(
        DATA, TRAIN + "--check_only --save_cleaned pairs.jsonl/x.jsonl", ("--save_cleaned", "pairs.jsonl"), PAIRS
    ),
    "show_negative": Case(DATA, "--show -1", ("--show must be at least 0",)),
}  # fmt: skip

OWN_LOSS = write("mine.py", "def mean(beta, **pair):\n    return 0\n\nvalue = 3\n")
LOSSES = {
    "loss_unknown_here": Case(LOSS, "--loss_type dpo", ("--loss_type dpo is not known", "dpop")),
    "hyperparameter_unknown": Case(LOSS, "--loss_type dpop --loss_kwargs lambda=5", ("--loss_kwargs lambda", "dpop has lambda_")),
    "hyperparameter_of_none": Case(LOSS, "--loss_kwargs lambda_=5 --loss_type sigmoid", ("sigmoid has no hyperparameters",)),
    "hyperparameter_no_number": Case(LOSS, "--loss_type dpop --loss_kwargs lambda_", ("name=number",)),
    "hyperparameter_negative": Case(
        LOSS, "--loss_type dpop --loss_kwargs lambda_=-1", ("lambda_ of dpop must be at least 0, and is -1",)
    ),
    "smoothing_of_a_half": Case(LOSS, "--loss_type cdpo --label_smoothing 0.5", ("label_smoothing", "below 0.5")),
    "temperature_of_discopop": Case(LOSS, "--loss_type discopop --discopop_tau -1", ("discopop_tau",)),
    "divergence_with_apo": Case(LOSS, TRAIN + "--loss_type apo_zero --f_divergence_type js_divergence", ("f_divergence_type",), PAIRS),
    "divergence_with_simpo": Case(
        LOSS, "--loss_type simpo --f_divergence_type js_divergence", ("--f_divergence_type is TRL's",)
    ),
    "weighting_with_dpop": Case(LOSS, "--loss_type dpop --use_weighting", ("--use_weighting is TRL's",)),
    "loss_file_not_there": Case(LOSS, "--loss_file nowhere.py:loss", ("--loss_file nowhere.py", "no such file")),
    "loss_file_without_function": Case(LOSS, "--loss_file my_losses", ("name a file and a function",)),
    "loss_file_broken": Case(LOSS, "--loss_file bad.py:f", ("bad.py cannot be run", "SyntaxError"), write("bad.py", "def f(:")),
    "loss_file_that_exits": Case(LOSS, "--loss_file bad.py:f", ("bad.py cannot be run",), write("bad.py", "import sys\nsys.exit(0)")),
    "loss_file_no_such_function": Case(LOSS, "--loss_file mine.py:nope", ("has no function nope: it has mean",), OWN_LOSS),
    "loss_file_no_function": Case(LOSS, "--loss_file mine.py:value", ("has no function value",), OWN_LOSS),
    "loss_of_one_number": Case(LOSS, "--loss_file mine.py:mean", ("one number a pair is wanted",), OWN_LOSS),
    "beside_unknown": Case(LOSS, "--beside dpo", ("--beside dpo", "dpop")),
    "comparison_unknown": Case(LOSS, "--compare everything --output_dir out", ("--compare everything", "noise")),
    "comparison_of_unknown_losses": Case(LOSS, "--compare --losses sigmoit --output_dir out", ("sigmoit", "sigmoid")),
    "comparison_betas_no_numbers": Case(LOSS, "--compare --betas x --output_dir out", ("--betas x",)),
    "comparison_betas_0": Case(LOSS, "--compare --betas 0 --output_dir out", ("--betas 0",)),
    "comparison_seeds_negative": Case(LOSS, "--compare --seeds -1 --output_dir out", ("--seeds",)),
    "comparison_without_the_demo": Case(LOSS, TRAIN + "--compare", ("known in the demo only",), PAIRS),
}  # fmt: skip

OWN_JUDGE = write("mine.py", "def score(prompt):\n    return 1\n")
ASKED = ON_ITSELF + "--judge_url http://localhost:9 --judge_model m "

EVALUATIONS = {
    "judge_unknown": Case(EVALUATION, ON_ITSELF + "--judge oracle", ("--judge oracle", "reward_model")),
    "judge_without_function": Case(EVALUATION, ON_ITSELF + "--judge mine.py", ("--judge mine.py: name a file and a function",)),
    "judge_not_there": Case(EVALUATION, ON_ITSELF + "--judge mine.py:score", ("--judge mine.py: there is no such file",)),
    "judge_broken": Case(EVALUATION, ON_ITSELF + "--judge bad.py:f", ("bad.py cannot be run", "SyntaxError"), write("bad.py", "def f(:")),
    "judge_no_such_function": Case(EVALUATION, ON_ITSELF + "--judge mine.py:nope", ("has no function nope: it has score",), OWN_JUDGE),
    "judge_fails": Case(EVALUATION, ON_ITSELF + "--judge mine.py:score", ("mine.py:score failed in row 0", "TypeError"), OWN_JUDGE),
    "judge_no_number": Case(
        EVALUATION, ON_ITSELF + "--judge mine.py:score", ("mine.py:score gave None in row 0", "a finite number is wanted"),
        write("mine.py", "def score(prompt, answer):\n    pass\n"),
    ),
    "judge_empty": Case(EVALUATION, [*ON_ITSELF.split(), "--judge", ""], ("--judge is empty",)),
    "judge_prompt_not_there": Case(EVALUATION, ASKED + "--judge_prompt gone.txt", ("--judge_prompt gone.txt cannot be read",)),
    "judge_prompt_without_places": Case(
        EVALUATION, ASKED + "--judge_prompt p.txt", ("--judge_prompt p.txt: the question has no place {answer_a} and no {answer_b}",),
        write("p.txt", "Verdict: on {prompt}"),
    ),
    "judge_prompt_empty": Case(EVALUATION, [*ASKED.split(), "--judge_prompt", ""], ("--judge_prompt is empty",)),
    "judge_tokens_0": Case(EVALUATION, ASKED + "--judge_max_tokens 0", ("--judge_max_tokens must be above 0",)),
    "judge_samples_0": Case(EVALUATION, ASKED + "--judge_samples 0", ("--judge_samples must be above 0",)),
    "endpoint_without_address": Case(EVALUATION, ON_ITSELF + "--judge endpoint", ("--judge_url",)),
    "address_no_address": Case(EVALUATION, ON_ITSELF + "--judge_url ftp://x/v1 --judge_model m", ("address",)),
    "address_with_a_password": Case(EVALUATION, ON_ITSELF + "--judge_url http://me:pw@x/v1 --judge_model m", ("user name",)),
    "key_in_the_clear": Case(
        EVALUATION, ON_ITSELF + "--judge_url http://example.org/v1 --judge_model m", ("plain http",),
        environment={"DPO_JUDGE_API_KEY": "sk-very-secret"},
    ),
    "key_of_two_lines": Case(
        EVALUATION, ON_ITSELF + "--judge_url https://example.org/v1 --judge_model m", ("the judge's key",),
        environment={"DPO_JUDGE_API_KEY": "sk-very\nsecret"},
    ),
    "several_models_and_a_person": Case(
        EVALUATION, ON_ITSELF.replace("--model_name_or_path {demo}/model", "--models {demo}/model m") + "--judge human",
        ("one model at a time",),
    ),
    "streamed": Case(EVALUATION, ON_ITSELF + "--dataset_streaming --max_steps 1", ("--dataset_streaming",)),
    "budget_negative": Case(EVALUATION, ON_ITSELF + "--judge_budget -1", ("--judge_budget must be at least 0",)),
    "reward_model_unnamed": Case(EVALUATION, ON_ITSELF + "--judge reward_model", ("--judge_model",)),
    "reward_model_not_there": Case(EVALUATION, ON_ITSELF + "--judge_model no/where", ("--judge_model no/where",)),
    "reward_model_without_head": Case(EVALUATION, ON_ITSELF + "--judge_model {demo}/model", ("no reward model",)),
    "reward_model_broken": Case(
        EVALUATION, ON_ITSELF + "--judge_model m", ("--judge_model m",), model(write("config.json", "null"))
    ),
    "no_prompts": Case(EVALUATION, ON_ITSELF + "--num_eval_prompts 0", ("--num_eval_prompts must be above 0",)),
    "no_samples": Case(EVALUATION, ON_ITSELF + "--num_samples 0", ("--num_samples must be above 0",)),
    "temperature_negative": Case(EVALUATION, ON_ITSELF + "--temperature -1", ("--temperature must be at least 0",)),
    "temperature_nan": Case(EVALUATION, ON_ITSELF + "--temperature nan", ("--temperature must be at least 0",)),
    "reference_not_there": Case(EVALUATION, ON_ITSELF + "--reference no/such/model", ("no/such/model",)),
    "answers_not_there": Case(EVALUATION, ON_ITSELF + "--answers gone.csv", ("gone.csv",)),
    "written_answers_not_there": Case(EVALUATION, ON_ITSELF + "--answers_from gone.jsonl", ("--answers_from", "gone.jsonl")),
    "written_answers_of_others": Case(
        EVALUATION, ON_ITSELF + "--answers_from {demo}/test.jsonl", ("--answers_from", "test.jsonl")
    ),
    "server_without_a_model": Case(EVALUATION, ON_ITSELF + "--answers_url http://localhost:9", ("--answers_url and --answers_model",)),
    "server_without_an_address": Case(
        EVALUATION, ON_ITSELF + "--answers_model m --answers_url localhost", ("the server's address must be like",)
    ),
    "texts_not_there": Case(EVALUATION, ON_ITSELF + "--texts gone.txt", ("--texts gone.txt",)),
    "models_empty_name": Case(EVALUATION, [*ON_ITSELF.split(), "--models", ""], ("--models is empty",)),
    "no_run_to_tell": Case(EVALUATION, "--model_name_or_path {demo}/model --output_dir out", ("--reference",)),
    "run_note_broken": Case(EVALUATION, "--model_name_or_path m --output_dir out", ("--reference",), model(write("metrics.json", "[]"))),
    "adapter_base_gone_too": Case(
        EVALUATION, "--model_name_or_path a --reference {demo}/model --dataset_name {demo} --output_dir out", ("is gone: /gone/model",),
        adapter(set_in("adapter_config.json", base_model_name_or_path="/gone/model")),
    ),
}  # fmt: skip

ENVIRONMENTS = {
    "world_size_no_number": Case(BASIC, "", ("WORLD_SIZE is 'many'",), environment={"WORLD_SIZE": "many"}),
    "rank_no_number": Case(BASIC, "", ("LOCAL_RANK is 'x'",), environment={"LOCAL_RANK": "x"}),
    "temporary_folder_gone": Case(BASIC, "", ("TMPDIR is /no/such", "unset it"), environment={"TMPDIR": "/no/such"}),
    "temporary_folder_a_file": Case(BASIC, "", ("TMPDIR is pairs.jsonl",), PAIRS, {"TMPDIR": "pairs.jsonl"}),
}

GROUPS = dict(
    flags=FLAGS, numbers=NUMBERS, tried=TRIED, paths=PATHS, output=OUTPUT, recipes=RECIPES, models=MODELS, adapters=ADAPTERS, data=DATA_FILES, losses=LOSSES,
    evaluation=EVALUATIONS, environment=ENVIRONMENTS,
)  # fmt: skip
CASES = {f"{group}-{name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


def everything_in(folder: Path) -> dict[Path, tuple]:
    """Every file and folder below, so that two states can be compared."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items() if path.is_file()} | {
        path: (stat.st_mode,) for path, stat in stats.items() if path.is_dir()
    }


@pytest.fixture(scope="module", autouse=True)
def _the_demo_stays_as_it_is():
    before = everything_in(PROJECT / "demo")
    yield
    assert everything_in(PROJECT / "demo") == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_named_and_nothing_is_written(case, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    case.make(tmp_path)
    before = everything_in(tmp_path)
    words = case.words.split() if isinstance(case.words, str) else case.words
    code, _, error = call(case.script, *(word.replace("{demo}", str(PROJECT / "demo")) for word in words))
    assert code == 2, error
    assert "Traceback" not in error
    message = error[error.index("error: ") :].rstrip()
    assert message.count("\n") < 6
    assert len(message) < 1000
    assert "sk-very" not in error
    for part in case.says:
        assert part in message
    assert everything_in(tmp_path) == before


def test_there_are_cases_for_all_scripts():
    assert len(CASES) > 220  # as docs/safety.md says
    assert {case.script for case in CASES.values()} == {BASIC, LORA, LOSS, DATA, EVALUATION}


@pytest.mark.thorough
def test_in_a_process_of_its_own_there_is_no_traceback_unless_asked_for(tmp_path):
    for words, has_traceback in (((), False), (("--traceback",), True)):
        done = run_forked(PROJECT / "basic_dpo_training.py", "--beta", "-1", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert "--beta must be above 0" in done.stderr
        assert ("Traceback" in done.stderr) == has_traceback
    assert not list(tmp_path.iterdir())


def test_a_recipe_can_ask_for_the_traceback_too(call, tmp_path):
    (tmp_path / "recipe.yaml").write_text("traceback: true\ndataset_name: nowhere.jsonl\n")
    code, _, error = call("basic_dpo_training", "--config", tmp_path / "recipe.yaml")
    assert code == 2
    assert "nowhere.jsonl" in error
    assert "Traceback" in error


@pytest.mark.thorough
def test_processes_without_a_meeting_place_are_refused(tmp_path):
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    environment.pop("MASTER_ADDR", None)
    command = [sys.executable, PROJECT / "basic_dpo_training.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "MASTER_ADDR" in done.stderr
