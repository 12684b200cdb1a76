"""From a command line to settings: defaults in layers, what the machine asks for, and refusals before any work.

    args, training_args, model_args = settle((Arguments, Config, Model), __doc__, flags, demo, argv)

Each layer overrides the one before it: TRL's defaults, those of the script for every model, those of the demo where the
model is the demo's, those of the demo with one loss, the recipe, the command line. What would fail late, or pass in
silence and spoil the run, is a UserError here.
"""

import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing import get_start_method
from pathlib import Path

import torch
from accelerate import PartialState
from trl import DatasetMixtureConfig, get_quantization_config

from ..common.errors import UserError
from ..common.masking import remember_secrets
from ..common.safe_text import say
from ..hardware.precision import prefers_bf16
from ..models.adapters import base_of_adapter, check_adapter, noted_beside
from ..runs.checkpoints import is_checkpoint
from ..runs.folder import is_to_go_on, why_not
from ..runs.ownership import is_written
from ..training.losses import TRL_LOSSES, check_names
from ..training.token_budget import COUPLED
from .command_line import CommandLine
from .flag_checks import check_environment, check_paths, check_values
from .no_effect import without_effect
from .tried_out import check_dictionaries, try_out

PROJECT = Path(__file__).resolve().parents[2]


def settle(
    dataclasses: tuple[type, type, type],
    description: str,
    flags: dict[str, str],
    demo: dict,
    argv: list[str],
    *,
    defaults: dict | None = None,
    by_loss: dict[str, dict] | None = None,
    losses: Collection[str] = TRL_LOSSES,
    takes_adapters: bool = False,
    needs_data: bool = True,
) -> tuple:
    """An instance of each dataclass: the script's arguments, TRL's DPO and its model configuration, or subclasses.

    description: what --help opens with. flags: what it shows, with the effect of each. demo: the settings that hold
    when the model is the demo's and the user says nothing else. argv: the command line. defaults: the script's own for
    every model. by_loss: settings that go before those of the demo with one loss. losses: what --loss_type may be.
    takes_adapters: whether the script knows what to do with --use_peft and quantised weights. needs_data: whether the
    user has to name data, and a model that is no checkpoint. Raises UserError.
    """
    parser = CommandLine((*dataclasses, DatasetMixtureConfig), description, flags)
    remember_secrets(argv)
    try:
        said = parser.read(argv)
        check_paths(vars(said))
        values = _fill_in_layers(parser, said, demo, defaults or {}, by_loss or {})
        check_environment()
        check_values(values)
        check_dictionaries(values)
        args, training_args, model_args, mixture = parser.build()
        try_out(training_args, model_args)
        idle = without_effect(parser.given(), values) if needs_data else []
    except ValueError as error:
        raise UserError(str(error)) from error

    for sentence in idle:
        say(sentence)
    if mixture.datasets:
        if said.dataset_name is not None:
            say(f"--dataset_name {said.dataset_name} does nothing here: the recipe's datasets are read.")
        args.dataset_name = None  # nor the demo's, which its model brings
    args.source = mixture if mixture.datasets else args.dataset_name
    args.is_model_given = said.model_name_or_path is not None
    args.is_data_given = said.dataset_name is not None or bool(mixture.datasets)
    training_args.is_output_dir_given = said.output_dir is not None
    training_args.merges = getattr(args, "merge", False)
    training_args.checkpointing_if_needed = (
        values["gradient_checkpointing"] is None and values["activation_checkpointing"] is None
    )
    training_args.reads = _reads(parser.values() | {"config": parser.recipe_file}, mixture)
    _put_tokens_away(training_args)
    if needs_data:  # a training script; to evaluate a checkpoint is fine
        _refuse_checkpoint("model_name_or_path", model_args.model_name_or_path)
        _refuse_checkpoint("adapter", getattr(args, "adapter", None))
    if not takes_adapters and (model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit):
        raise UserError("This script trains all weights. Adapters and quantised models: lora_dpo_training.py.")
    _check(args, training_args, losses, needs_data)
    _check_reference_of_fsdp(training_args, model_args)
    _use_one_gpu(training_args)
    args.data_kwargs = _data_kwargs(args, training_args)
    args.model_kwargs = _model_kwargs(args, model_args, training_args)
    training_args.bf16_full_eval = training_args.fp16_full_eval = False  # they cast the policy for good
    training_args.model_init_kwargs = None  # they have gone into model_kwargs: the scripts load their models themselves
    return args, training_args, model_args


def _fill_in_layers(parser: CommandLine, said, demo: dict, defaults: dict, by_loss: dict[str, dict]) -> dict:
    """Fill in what the user left open, each layer overriding the one before it. Returns all values."""
    parser.fill({"gradient_checkpointing": None} | defaults)  # None: where memory asks for it
    if getattr(said, "adapter", None) and said.model_name_or_path is None:
        said.model_name_or_path = base_of_adapter(check_adapter(said.adapter))
        if said.model_name_or_path is None:
            raise UserError(f"--adapter {said.adapter} does not name its base: add --model_name_or_path.")
        revision = noted_beside(said.adapter).get("revision")
        parser.fill(
            {"model_name_or_path": said.model_name_or_path} | ({"model_revision": revision} if revision else {})
        )
    if said.model_name_or_path is None or Path(said.model_name_or_path).resolve() == PROJECT / "demo" / "model":
        paths = {"model_name_or_path": "demo/model", "dataset_name": demo["dataset_name"]}
        parser.fill(demo | {name: _from_here(path) for name, path in paths.items()})
        if not getattr(said, "loss_file", None):
            parser.fill(by_loss.get(parser.values()["loss_type"][0], {}))
    parser.fill(_device_settings(parser.values()))
    return parser.values()


def _from_here(path: str) -> str:
    """A path of this project as seen from where the user stands."""
    try:
        return os.path.relpath(PROJECT / path)
    except ValueError:  # on another drive, on Windows
        return str(PROJECT / path)


def _device_settings(values: dict) -> dict:
    """Defaults that depend on the machine and on other flags. Without them TRL asks for bf16 anywhere, and refuses."""
    has_accelerator = torch.accelerator.is_available() and not values["use_cpu"]
    settings = {
        "use_cpu": not has_accelerator,
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_nan_inf_filter": False,  # it would log an older loss in place of a NaN
    }
    if values["bf16"] is None and not values["fp16"]:
        settings["bf16"] = prefers_bf16(torch.accelerator.current_accelerator() if has_accelerator else "cpu")
    is_sharded = any(os.environ.get(f"ACCELERATE_USE_{engine}") == "true" for engine in ("FSDP", "DEEPSPEED"))
    if values["dataset_streaming"] or values["sync_ref_model"] or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Rows that pass by once, a reference that moves, or one that FSDP would have to shard besides.
        settings["precompute_ref_log_probs"] = False
    if is_sharded and values["gradient_checkpointing"] is None and values["activation_checkpointing"] is None:
        # What it would save cannot be foreseen. Transformers refuses it beside FSDP's own.
        settings["gradient_checkpointing"] = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING") != "true"
    return settings


READS = (
    "config model_name_or_path adapter reference models sample_from dataset_name judge_model judge_prompt answers answers_from texts "
    "accelerator_config fsdp_config deepspeed"
).split()
OWN_CODE = ("loss_file", "judge")  # file.py:function


def _reads(values: dict, mixture: DatasetMixtureConfig) -> dict[str, str]:
    """What the run reads, as the user calls it, and the name of each."""
    named = [(f"--{flag}", values.get(flag)) for flag in READS]
    named += [(f"--{flag}", (values.get(flag) or "").rpartition(":")[0]) for flag in OWN_CODE]
    named += [("datasets:", part) for one in mixture.datasets for part in (one.path, one.data_dir, one.data_files)]
    reads = {f"{what} {name}": name for what, names in named for name in _strings(names) if name}
    for what, name in list(reads.items()):
        with suppress(UserError, OSError):  # whoever loads it says what is wrong
            if (Path(name) / "adapter_config.json").is_file() and (base := base_of_adapter(Path(name))):
                reads[f"the base of {what}"] = base
    return reads


def _strings(value) -> list[str]:
    """A name, or those in a list or a mapping."""
    if isinstance(value, (list, dict)):
        return [name for part in (value.values() if isinstance(value, dict) else value) for name in _strings(part)]
    return [value] if isinstance(value, str) else []


def _put_tokens_away(training_args) -> None:
    """Hand the hub's token to the environment: elsewhere it would be written into training_args.bin, beside the weights."""
    kwargs = training_args.model_init_kwargs or {}
    in_kwargs = [kwargs.pop(name) for name in ("token", "use_auth_token") if isinstance(kwargs.get(name), str)]
    for token in filter(None, [training_args.hub_token, *in_kwargs]):
        os.environ["HF_TOKEN"] = token
    training_args.hub_token = None


def _model_kwargs(args, model_args, training_args) -> dict:
    """What `load_model` takes."""
    kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "trust_remote_code": training_args.trust_remote_code,
        **(training_args.model_init_kwargs or {}),
    }
    if model_args.load_in_4bit or model_args.load_in_8bit:
        kwargs["quantization_config"] = get_quantization_config(model_args)
    adapter = getattr(args, "adapter", None)
    if adapter and (own := noted_beside(adapter).get("tokenizer_from")):
        kwargs["tokenizer_from"] = own
    return kwargs


def _data_kwargs(args, training_args) -> dict:
    """What `load_preferences` takes."""
    names = "dataset_format pairing min_margin held_out_share skip_bad_rows keep_findings keep_plain".split()
    return {name: getattr(args, name) for name in names} | {
        "train_split": args.dataset_train_split,
        "test_split": args.dataset_test_split,
        "config": args.dataset_config,
        "streaming": args.dataset_streaming,
        "encoding": args.encoding,
        "columns": _parse_columns(args.columns),
        "verdict": _parse_verdict(args.verdict),
        "num_proc": training_args.dataset_num_proc,
        "max_length": training_args.max_length,
        "max_prompt_length": training_args.max_prompt_length,
        "seed": training_args.seed,
        "look_at": 500,
    }


def _parse_columns(text: str | None) -> dict[str, str]:
    """prompt=question,chosen=good as a dictionary."""
    told = f"--columns {text}: names are given as in prompt=question,chosen=good,rejected=bad."
    return _parse(text, str.partition, told)


def _parse_verdict(text: str | None) -> dict[str, str]:
    """0=response_a,1=response_b,2=tie as a dictionary; what is behind the last = is the meaning, as in A=B=tie."""
    told = f"--verdict {text}: values are given as in 0=response_a,1=response_b,2=tie."
    return _parse(text, str.rpartition, told)


def _parse(text: str | None, split: Callable, refusal: str) -> dict[str, str]:
    parts = [tuple(map(str.strip, split(part, "="))) for part in text.split(",")] if text else []
    if not all(left and right for left, _, right in parts):
        raise UserError(refusal)
    made = {left: right for left, _, right in parts}
    if len(made) < len(parts):
        raise UserError(f"{refusal.partition(':')[0]}: a name stands twice on the left of =.")
    return made


def _check(args, training_args, losses: Collection[str], needs_data: bool) -> None:
    """Refuse values that would fail late or pass silently."""
    started, connected = os.environ.get("WORLD_SIZE", "1"), PartialState().num_processes
    if started != str(connected):  # each would train alone, and both write into one folder
        raise UserError(
            f"{started} processes were started, and this one knows of {connected}. Start them by accelerate launch "
            "--config_file recipes/accelerate/ddp.yaml, or cpu.yaml without GPUs."
        )
    prompt, whole = training_args.max_prompt_length, training_args.max_length
    if prompt is not None and whole is not None and prompt >= whole:
        raise UserError(
            f"--max_prompt_length {prompt} must be below --max_length {whole}: the difference is what is left for the "
            "completion."
        )
    try:
        check_names(training_args.loss_type, losses)
    except UserError as error:
        more = " (custom_loss_dpo.py has more, and takes your own)" if losses is TRL_LOSSES else ""
        raise UserError(f"{error}{more}") from error
    coupled = set(COUPLED) & set(training_args.loss_type)
    if training_args.max_tokens_per_batch and coupled:
        raise UserError(
            f"--max_tokens_per_batch splits batches, and the loss {min(coupled)} couples the pairs of one: its gradient would change."
        )
    if training_args.truncation_mode != "keep_start":
        raise UserError(
            "--truncation_mode: here the END of what is too long is cut, as keep_start says. See --max_prompt_length."
        )
    if args.source is None and needs_data:
        raise UserError(
            "--dataset_name is missing: name a file, a folder or a hub dataset with prompt, chosen, rejected."
        )
    if (
        args.dataset_streaming
        and training_args.max_steps <= 0
        and needs_data
        and not getattr(args, "check_only", False)
    ):
        raise UserError("--dataset_streaming: a stream has no length, so --max_steps has to say where training ends.")
    if args.dataset_streaming and training_args.dataloader_num_workers and get_start_method() != "fork":
        raise UserError(
            "--dataloader_num_workers: on this system streamed rows cannot be handed to workers; leave it out."
        )
    if args.dataset_train_split == args.dataset_test_split:
        raise UserError(f"--dataset_train_split and --dataset_test_split are both {args.dataset_test_split}.")
    if training_args.reference_cache and Path(training_args.reference_cache).is_file():
        raise UserError(f"--reference_cache {training_args.reference_cache} is a file, and must be a folder.")
    if training_args.is_output_dir_given:
        folder = Path(training_args.output_dir)
        if len(os.fsencode(folder.name)) > 255:
            raise UserError(f"--output_dir {folder.name[:40]}... is longer than a file system takes (255 bytes).")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output_dir {folder} is a file.")
        is_first = PartialState().is_main_process  # which may be in the folder already when the others look
        goes_on = is_to_go_on(folder, training_args.resume_from_checkpoint)
        replace, reads = training_args.overwrite_output_dir, training_args.reads
        if is_first and (refusal := why_not(folder, replace, goes_on, reads)):
            raise UserError(f"--output_dir {refusal}.")
    cleaned = getattr(args, "save_cleaned", None)
    if cleaned and training_args.is_output_dir_given and is_written(Path(training_args.output_dir), Path(cleaned)):
        raise UserError(f"--save_cleaned {cleaned} is where the run writes a file of its own: name another file.")
    cache = training_args.reference_cache
    for what, name in training_args.reads.items():
        if cache and os.path.isdir(cache) and os.path.isdir(name) and Path(name).samefile(cache):
            raise UserError(f"--reference_cache {cache} is where {what} is: name a folder that only caches use.")


def _check_reference_of_fsdp(training_args, model_args) -> None:
    asks_beforehand = training_args.precompute_ref_log_probs and not model_args.use_peft
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and asks_beforehand and model_args.model_revision != "main":
        raise UserError(
            "--precompute_ref_log_probs: under FSDP TRL loads the reference itself, and not by --model_revision. Leave it out."
        )


def _refuse_checkpoint(flag: str, name: str | None) -> None:
    """A checkpoint as the model to start from would be the reference as well."""
    if name and is_checkpoint(Path(name)):
        raise UserError(
            f"--{flag} {name} is a checkpoint of a run: it would become the reference too. To go on with that run: "
            f"--output_dir {Path(name).parent} --resume_from_checkpoint. If it is meant as a new start, copy its "
            "config.json, *.safetensors and tokenizer files into a folder of their own."
        )


def _use_one_gpu(training_args) -> None:
    """A process uses one GPU. Transformers would spread a batch over all by DataParallel, which parts chosen from rejected."""
    if training_args.n_gpu > 1:
        say(
            f"One of {training_args.n_gpu} GPUs is used. All of them: accelerate launch --config_file "
            "recipes/accelerate/ddp.yaml and the same command."
        )
        training_args._n_gpu = 1
