"""What the scripts share, in the order in which the data flows.

    configuration      parse_args, run                           flags, recipes, exit codes
    loading            load_model, load_preferences              a policy, its tokenizer, its pairs
    formatting         format_pair, show_pairs                   what is trained on, as text, turns and tokens
    before training    claim_output_dir, show_start              what the model will see; the loss is ln 2
    during training    watch                                     a short log line, a reply now and then, a word when it goes wrong
    generating         sample_completions, sequence_logps        what the model says, and how likely that is
    after training     report_change, save_run                   tables, files, figures

For those who want to know what the scripts' calls do. Every function takes models, tensors and plain values, so each
can be copied into another project; what it needs from `machinery/` is named in its imports.
"""

import json
import logging
import math
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import islice, pairwise
from multiprocessing import get_start_method
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

# TRL reports its use to the hub. Here nothing is sent unless the user asks for it (HF_HUB_DISABLE_TELEMETRY=0).
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# TRL 1.16 itself uses these old names of Transformers, so the advice to change them is not for the reader.
warnings.filterwarnings("ignore", message=r"`\w*gradient_checkpointing\w*` is deprecated", category=FutureWarning)

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from trl import (
    DatasetMixtureConfig,
    DPOConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.trainer.utils import use_adapter

from machinery.command.command_line import CommandLine
from machinery.command.flag_checks import check_environment, check_values
from machinery.command.flag_help import ADAPTER_FLAGS, FLAGS
from machinery.common.intervals import bootstrap_mean
from machinery.common.kept_files import UNFINISHED, complete_file, complete_files
from machinery.common.safe_text import completions_page, inert_record, printable, visible
from machinery.common.safe_text import first_line as _first_line
from machinery.data.doctor import tokenise
from machinery.data.length_figure import plot_lengths
from machinery.data.load import Refused, find_splits, load_pairs, stream_pairs
from machinery.data.report import print_report
from machinery.data.shorten import shorten_prompt
from machinery.evaluation.judges import JudgeError
from machinery.hardware.estimate import choose_checkpointing
from machinery.hardware.memory import give_back_freed_memory, keep_freed_memory, peak_memory_bytes
from machinery.hardware.precision import prefers_bf16
from machinery.models.adapters import (
    AdapterError,
    Base,
    base_of_adapter,
    check_adapter,
    check_base,
    check_targets,
    merge_adapter,
    note_base,
    weights_fingerprint,
)
from machinery.models.checks import check_architecture, check_model_folder, check_vocabulary, check_weights
from machinery.models.sharded_weights import keep_new_models_whole, whole_weights
from machinery.runs import folder as run_folder
from machinery.runs.checkpoints import complete_checkpoints, is_checkpoint, read_manifest
from machinery.runs.failures import explain
from machinery.runs.identity import describe_run, differences
from machinery.runs.interrupts import SaveOnSignal
from machinery.training.losses import LossError, check_names
from machinery.training.token_budget import COUPLED
from machinery.watching.curves import plot_training
from machinery.watching.log_lines import PreviewReply, show_log_lines
from machinery.watching.warning_list import WarningList
from machinery.watching.watcher import Watcher

Turn = dict  # {"role": "user", "content": "..."}
Prompt = str | list[Turn]

PROJECT = Path(__file__).resolve().parent
logger = logging.getLogger("dpo")
logger.addFilter(inert_record)
heard_warnings = WarningList("dpo", "trl", "transformers")
made_folders: list[Path] = []  # by claim_output_dir of the first process, the innermost first


# --- Configuration ---------------------------------------------------------------------------------------------------


class UserError(Exception):
    """Something the user can put right: one or a few sentences that name it and the way out."""


def _flag(name: str, **default):
    """A field that --help and --help_all describe in the same words."""
    return field(metadata={"help": FLAGS[name]}, **default)


@dataclass
class TutorialArguments(ScriptArguments):
    """TRL's script arguments and those of this tutorial."""

    dataset_format: str = _flag("dataset_format", default="auto")
    columns: str | None = _flag("columns", default=None)
    pairing: str = _flag("pairing", default="best_worst")
    min_margin: float = _flag("min_margin", default=0.0)
    held_out_share: float = _flag("held_out_share", default=0.0)
    skip_bad_rows: bool = _flag("skip_bad_rows", default=False)
    keep_findings: list[str] = field(default_factory=list, metadata={"help": FLAGS["keep_findings"]})
    keep_plain: bool = _flag("keep_plain", default=False)
    num_eval_prompts: int = _flag("num_eval_prompts", default=8)
    max_new_tokens: int = _flag("max_new_tokens", default=256)
    traceback: bool = _flag("traceback", default=False)
    # No flags: `parse_args` fills them in.
    source: str | DatasetMixtureConfig | None = field(default=None, init=False)  # the name, or a recipe's mixture
    names_output_dir: bool = field(default=False, init=False)  # whether the user has named it
    names_model: bool = field(default=False, init=False)
    names_data: bool = field(default=False, init=False)
    data_kwargs: dict = field(default_factory=dict, init=False)  # what `load_preferences` takes


@dataclass
class TutorialConfig(DPOConfig):
    """TRL's DPO configuration and what TRL lacks."""

    max_prompt_length: int | None = _flag("max_prompt_length", default=None)
    shared_prompt: bool = _flag("shared_prompt", default=True)
    precompute_ref_log_probs: bool = _flag("precompute_ref_log_probs", default=True)
    max_tokens_per_batch: int | None = _flag("max_tokens_per_batch", default=None)
    reference_cache: str | None = field(
        default="runs/.cache/reference", metadata={"help": "Where precomputed reference log-probs are kept."}
    )
    overwrite_output_dir: bool = _flag("overwrite_output_dir", default=False)
    stop_on_warning: bool = _flag("stop_on_warning", default=False)
    checkpointing_if_needed: bool = field(default=False, init=False)  # no flag: where the user left it open


@dataclass
class TutorialModel(ModelConfig):
    """TRL's model configuration, and what `load_model` takes of it."""

    init_kwargs: dict = field(default_factory=dict, init=False)  # no flag: `parse_args` fills it in


LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


def parse_args(
    description: str,
    demo: dict,
    argv: list[str] | None = None,
    arguments: type[TutorialArguments] = TutorialArguments,
    defaults: dict | None = None,
    takes_adapters: bool = False,
    losses: Collection[str] = LOSS_TYPES,
    by_loss: dict[str, dict] | None = None,
    flags: dict[str, str] = FLAGS,
    needs_data: bool = True,
):
    """Read flags and recipe with TRL's own names and parser.

    description: the script's docstring, printed by --help. demo: the settings that hold when the model is the demo's
    and the user says nothing else. argv: the command line, that of the process by default. arguments: the script's own
    flags besides those of all scripts. defaults: its own defaults for every model. takes_adapters: whether it knows
    what to do with --use_peft and quantised weights. losses: what --loss_type may be. by_loss: settings that go before
    those of the demo with one loss. flags: what --help shows besides the script's own. needs_data: whether the user has
    to name it.
    Returns (TutorialArguments, TutorialConfig, TutorialModel). Raises UserError.
    """
    own = {
        f.name: f.metadata["help"] for f in fields(arguments) if f.name not in TutorialArguments.__dataclass_fields__
    }
    shown = own | (ADAPTER_FLAGS if takes_adapters and flags is FLAGS else {}) | flags
    parser = CommandLine((arguments, TutorialConfig, TutorialModel, DatasetMixtureConfig), description, shown)
    try:
        said = parser.read(list(sys.argv[1:] if argv is None else argv))
        values = _fill_in_layers(parser, said, demo, defaults or {}, by_loss or {})
        check_environment()
        check_values(values)
        args, training_args, model_args, mixture = parser.build()
    except ValueError as error:
        raise UserError(str(error)) from error

    _running.shows_traceback |= args.traceback  # from a recipe
    args.source = mixture if mixture.datasets else args.dataset_name
    args.names_output_dir = said.output_dir is not None
    args.names_model = said.model_name_or_path is not None
    args.names_data = said.dataset_name is not None or bool(mixture.datasets)
    training_args.checkpointing_if_needed = (
        values["gradient_checkpointing"] is None and values["activation_checkpointing"] is None
    )
    if training_args.hub_token:  # it would be written into training_args.bin, beside the weights
        os.environ["HF_TOKEN"], training_args.hub_token = training_args.hub_token, None
    if needs_data:  # a training script; to evaluate a checkpoint is fine
        _refuse_checkpoint("model_name_or_path", model_args.model_name_or_path)
        _refuse_checkpoint("adapter", getattr(args, "adapter", None))
    if not takes_adapters and (model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit):
        raise UserError("This script trains all weights. Adapters and quantised models: lora_dpo_training.py.")
    _check(args, training_args, losses, needs_data)
    _use_one_gpu(training_args)
    args.data_kwargs = _data_kwargs(args, training_args)
    model_args.init_kwargs = _init_kwargs(model_args, training_args)
    training_args.model_init_kwargs = None  # they have gone into init_kwargs: the scripts load their models themselves
    return args, training_args, model_args


def _fill_in_layers(parser: CommandLine, said, demo: dict, defaults: dict, by_loss: dict[str, dict]) -> dict:
    """Fill in what the user left open, each layer overriding the one before it. Returns all values."""
    parser.fill({"gradient_checkpointing": None} | defaults)  # None: where memory asks for it
    if getattr(said, "adapter", None) and said.model_name_or_path is None:
        said.model_name_or_path = base_of_adapter(check_adapter(said.adapter))
        if said.model_name_or_path is None:
            raise UserError(f"--adapter {said.adapter} does not name its base: add --model_name_or_path.")
        parser.fill({"model_name_or_path": said.model_name_or_path})
    if said.model_name_or_path is None or Path(said.model_name_or_path).resolve() == PROJECT / "demo" / "model":
        paths = {"model_name_or_path": "demo/model", "dataset_name": demo["dataset_name"]}
        parser.fill(demo | {name: _from_here(path) for name, path in paths.items()})
        if not getattr(said, "loss_file", None):
            parser.fill(by_loss.get(parser.values()["loss_type"][0], {}))
    parser.fill(_device_settings(parser.values()))
    return parser.values()


def _use_one_gpu(training_args: TutorialConfig) -> None:
    """A process uses one GPU. Transformers would spread a batch over all by DataParallel, which parts chosen from rejected."""
    if training_args.n_gpu > 1:
        say(
            f"One of {training_args.n_gpu} GPUs is used. All of them: accelerate launch --config_file "
            "recipes/accelerate/ddp.yaml and the same command."
        )
        training_args._n_gpu = 1


def _init_kwargs(model_args: TutorialModel, training_args: TutorialConfig) -> dict:
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
    return kwargs


def _data_kwargs(args: TutorialArguments, training_args: TutorialConfig) -> dict:
    """What `load_preferences` takes."""
    names = "dataset_format pairing min_margin held_out_share skip_bad_rows keep_findings keep_plain".split()
    return {name: getattr(args, name) for name in names} | {
        "train_split": args.dataset_train_split,
        "test_split": args.dataset_test_split,
        "config": args.dataset_config,
        "streaming": args.dataset_streaming,
        "columns": _parse_columns(args.columns),
        "num_proc": training_args.dataset_num_proc,
        "max_length": training_args.max_length,
        "max_prompt_length": training_args.max_prompt_length,
        "seed": training_args.seed,
        "look_at": 500,
    }


def _refuse_checkpoint(flag: str, name: str | None) -> None:
    """A checkpoint as the model to start from would be the reference as well."""
    if name and is_checkpoint(Path(name)):
        raise UserError(
            f"--{flag} {name} is a checkpoint of a run: it would become the reference too. To go on with that run: "
            f"--output_dir {Path(name).parent} --resume_from_checkpoint. If it is meant as a new start, copy its "
            "config.json, *.safetensors and tokenizer files into a folder of their own."
        )


def _parse_columns(text: str | None) -> dict[str, str]:
    """prompt=question,chosen=good as a dictionary."""
    if not text:
        return {}
    parts = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in parts):
        raise UserError(f"--columns {text}: names are given as in prompt=question,chosen=good,rejected=bad.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in parts}


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
    if values["dataset_streaming"] or values["sync_ref_model"] or is_sharded:
        # Rows that pass by once, a reference that moves, or weights that are in pieces before training begins.
        settings["precompute_ref_log_probs"] = False
    if is_sharded and values["gradient_checkpointing"] is None and values["activation_checkpointing"] is None:
        # What it would save cannot be foreseen. Transformers refuses it beside FSDP's own.
        settings["gradient_checkpointing"] = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING") != "true"
    return settings


def _check(args: TutorialArguments, training_args: TutorialConfig, losses: Collection[str], needs_data: bool) -> None:
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
    except LossError as error:
        more = " (custom_loss_dpo.py has more, and takes your own)" if losses is LOSS_TYPES else ""
        raise UserError(f"{error}{more}") from error
    coupled = set(COUPLED) & set(training_args.loss_type)
    if training_args.max_tokens_per_batch and coupled:
        raise UserError(
            f"--max_tokens_per_batch splits batches, and the loss {min(coupled)} couples the pairs of one: its gradient would change."
        )
    if args.source is None and needs_data:
        raise UserError(
            "--dataset_name is missing: name a file, a folder or a hub dataset with prompt, chosen, rejected."
        )
    if args.dataset_streaming and training_args.dataloader_num_workers and get_start_method() != "fork":
        raise UserError(
            "--dataloader_num_workers: on this system streamed rows cannot be handed to workers; leave it out."
        )
    if args.dataset_train_split == args.dataset_test_split:
        raise UserError(f"--dataset_train_split and --dataset_test_split are both {args.dataset_test_split}.")
    if training_args.reference_cache and Path(training_args.reference_cache).is_file():
        raise UserError(f"--reference_cache {training_args.reference_cache} is a file, and must be a folder.")
    if args.names_output_dir:
        folder = Path(training_args.output_dir)
        if len(os.fsencode(folder.name)) > 255:
            raise UserError(f"--output_dir {folder.name[:40]}... is longer than a file system takes (255 bytes).")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output_dir {folder} is a file.")
        if run_folder.holds_run(folder) and not (
            training_args.overwrite_output_dir or training_args.resume_from_checkpoint
        ):
            raise UserError(
                f"--output_dir {folder} already holds a run. Name another folder, go on with it by "
                "--resume_from_checkpoint, or replace it by --overwrite_output_dir."
            )


def say(*words) -> None:
    """Print, on the first of several processes only, and nothing that a terminal would obey."""
    if PartialState().is_main_process:
        print(printable(" ".join(map(str, words))), flush=True)


_running = SimpleNamespace(trainer=None, shows_traceback=False)  # what `run` has to know when a script fails


def run(main) -> None:
    """Run a script's main function: a user's mistake becomes one sentence and exit code 2, a failed training 1."""
    _running.trainer, _running.shows_traceback = None, "--traceback" in sys.argv
    try:
        main()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().wait_for_everyone()  # the launcher ends all when one ends badly
            torch.distributed.destroy_process_group()  # else its threads may abort a process that is done
    except (Exception, KeyboardInterrupt) as error:
        code, text = explain(error, _running.trainer, (UserError, AdapterError, LossError, JudgeError))
        if code is None:
            raise  # a fault of ours
        if code == 2:
            for folder in made_folders:  # nothing is in it yet, or it stays
                with suppress(OSError):
                    folder.rmdir()
        if _running.shows_traceback:
            print(printable(traceback.format_exc()), file=sys.stderr)
        print(printable(text), file=sys.stderr)
        raise SystemExit(code) from None


# --- Loading ---------------------------------------------------------------------------------------------------------


def load_model(name: str, **init_kwargs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, with a pad token.

    name: a folder or a hub name. init_kwargs: for `from_pretrained` (revision, dtype, attn_implementation, ...).
    Only safetensors are read: other weight files can run code when they are loaded.
    Raises UserError where there is no such model, or it is not one that DPO can train.
    """
    hub_kwargs = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
    try:
        check_model_folder(name)
    except ValueError as error:
        raise UserError(f"--model_name_or_path: {error}.") from error
    try:
        is_small = Path(name).is_dir() and _size(Path(name)) < 1e9
        (transformers_logging.disable_progress_bar if is_small else transformers_logging.enable_progress_bar)()
        config = AutoConfig.from_pretrained(name, **hub_kwargs)
        check_architecture(config)
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **init_kwargs,
        )
        if not torch.accelerator.is_available():
            give_back_freed_memory() if model.num_parameters() > 50e6 else keep_freed_memory()
        tokenizer = load_tokenizer(name, **hub_kwargs)
        for key, in_file, in_config in sorted(report["mismatched_keys"])[:1]:
            raise ValueError(f"{key} is {tuple(in_file)} in the file, and {tuple(in_config)} by config.json")
        if report["missing_keys"]:
            some = sorted(report["missing_keys"])
            raise ValueError(f"it lacks {len(some)} of the model's weights (first: {some[0]}); they would be random")
        check_weights(model)
        check_vocabulary(model, tokenizer)
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except SafetensorError as error:
        raise UserError(f"{name}: a safetensors file is damaged ({error}). Copy it again.") from error
    except Exception as error:  # a broken configuration makes the libraries fail anywhere
        raise UserError(f"--model_name_or_path {name} cannot be loaded: {_first_line(error)}.") from error
    return model, tokenizer


def new_adapter(base: PreTrainedModel, model_args: ModelConfig, training_args: DPOConfig) -> PeftConfig | None:
    """The adapter that the flags describe, to be put on this model; None without --use_peft.

    Raises AdapterError where its target modules are none of the model's.
    """
    if model_args.use_peft:
        check_targets(base, model_args.lora_target_modules, model_args.lora_r, model_args.lora_modules_to_save)
        if model_args.lora_dropout and training_args.disable_dropout:
            unused = f"--lora_dropout {model_args.lora_dropout}"
            say(f"{unused} does nothing: TRL switches dropout off (--no_disable_dropout).")
    config = get_peft_config(model_args)
    if config is not None and isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        config.target_modules = {config.target_modules}  # TRL makes one name a string, which PEFT takes for a pattern
    return config


def load_adapter(base: PreTrainedModel, name: str) -> PeftModel:
    """Put a trained adapter on its base, to be trained on. Raises UserError where it is none, or not of this base."""
    try:
        folder = check_adapter(name)
        check_base(folder, weights_fingerprint(base))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(base, folder, is_trainable=True)
        if any("missing adapter keys" in str(warning.message) for warning in said):
            raise AdapterError("it lacks some of the adapter's weights; they would be random")
        check_weights(model)
        return model
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a broken file makes the libraries fail anywhere
        raise UserError(f"--adapter {name} on {base.config._name_or_path}: {_first_line(error)}.") from error


def load_any(name: str, **init_kwargs) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a full model, or an adapter's folder as its base with the adapter merged into it, to be used and not trained.

    On a quantised base the adapter stays beside it: rounded weights are no place to add anything to.
    """
    base = base_of(name)
    if base is None:
        return load_model(name, **init_kwargs)
    model, tokenizer = load_model(base, **init_kwargs)
    adapted = load_adapter(model, name)
    return adapted if getattr(model, "is_quantized", False) else adapted.merge_and_unload(), tokenizer


def base_of(name: str) -> str | None:
    """The base of an adapter's folder; None for a full model. Raises UserError where neither can be loaded."""
    if not (Path(name) / "adapter_config.json").is_file():
        try:
            check_model_folder(name)
        except ValueError as error:
            raise UserError(f"{error}.") from error
        return None
    base = base_of_adapter(check_adapter(name))
    if base is None:
        raise UserError(f"The adapter {name} does not name its base.")
    if not Path(base).is_dir() and Path(base).is_absolute():
        raise UserError(f"The base of the adapter {name} is gone: {base}.")
    return base


def load_tokenizer(name: str, **hub_kwargs) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a pad token. Raises UserError where it has no EOS, or is not there."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs)
    except Exception as error:  # a broken file makes the libraries fail anywhere
        raise UserError(f"{name}: its tokenizer cannot be loaded: {_first_line(error)}.") from error
    if tokenizer.eos_token is None:
        raise UserError(f"{name}: its tokenizer has no EOS token, so the model could not learn to stop.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    # It warns of the first long text only; `load_preferences` counts them all, and max_length cuts them.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    tokenizer.eos_token = _end_of_turn(tokenizer) or tokenizer.eos_token
    return tokenizer


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token by which the chat template ends an answer, where that is another than the tokenizer's EOS.

    Gemma's is <end_of_turn>: a reply ends there, and one that is sampled until <eos> would go on for ever.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So-it-ends"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # what a template refuses is said where the pairs are read
        return None
    end = text.rpartition("So-it-ends")[2].strip()
    return end if end in tokenizer.get_added_vocab() else None


def is_same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers write a conversation in the same tokens, so that log-probs under two models can be compared."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template


def load_preferences(
    source: str | DatasetMixtureConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config: str | None = None,
    streaming: bool = False,
    **how,
) -> tuple[Dataset | IterableDataset | None, Dataset | IterableDataset | None, dict]:
    """Load preference data of any usual shape as the pairs that TRL trains on, without those that teach nothing.

    source: a file, folder or hub name, or a mixture as TRL's recipes describe it. tokenizer: gets a plain chat template
    if it has none and the pairs are conversations; None only examines the texts.
    how: dataset_format ("auto", a name in SHAPES, or a function from a row to {"prompt", "chosen", "rejected"}),
    columns ({our name: yours}), pairing and min_margin (of several scored answers), held_out_share (of the prompts,
    where there is no test split), keep_findings (which drop nothing), skip_bad_rows, keep_plain, max_prompt_length,
    max_length, look_at (how many pairs to examine in tokens; all by default), num_proc, seed, save_cleaned (a .jsonl
    file to write).
    Returns the training pairs, the held-out pairs (None where nothing is held out), both with a column "rows", and a
    report by split. Raises UserError that names the file and the row.
    """
    # Bars for what takes seconds, none for what takes a moment.
    is_small = isinstance(source, str) and Path(source).exists() and _size(Path(source)) < 20e6
    (datasets.disable_progress_bars if is_small else datasets.enable_progress_bars)()
    try:
        loaded = source if isinstance(source, str) else get_dataset(source)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"datasets, the mixture of the recipe: {_first_line(error)}.") from error
    try:
        splits, others = find_splits(loaded, train_split, test_split, config, streaming)
        if streaming:
            streams = [stream_pairs(rows, tokenizer, format_pair, **how) for rows in splits.values()]
            notes = [note for _, said in streams for note in said]
            pairs, reports = [streams[0][0], streams[1][0] if len(streams) > 1 else None], {}
        else:
            pairs, reports, notes = load_pairs(splits, tokenizer, format_pair, **how)
    except Refused as error:
        is_named = str(source) in str(error) or "--" in str(error)[:3]
        raise UserError(str(error) if is_named else f"--dataset_name {source}: {error}") from error
    for note in notes:
        say(note)
    if pairs[1] is None:
        say(f"No split {test_split!r}: nothing is held out, and the prompts shown are training prompts.")
        if others:
            say(f"There is {', '.join(sorted(others))}: name it by --dataset_test_split.")
    return *pairs, reports


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def show_data(reports: dict, folder: Path | str) -> None:
    """Print the report of each split, and write data_report.json and data_report.png into the folder.

    reports: by split, from `load_preferences`; empty for streamed data.
    """
    if not reports or not PartialState().is_main_process:
        return
    for report in reports.values():
        print_report(report, report["source"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    with complete_file(Path(folder) / "data_report.json") as file:
        json.dump(reports, file, indent=2, ensure_ascii=True, allow_nan=False)
    plot_lengths(next(reversed(reports.values())), Path(folder) / "data_report.png")


def pick_prompts(pairs: Dataset | IterableDataset, count: int) -> list[Prompt]:
    """The first `count` different prompts. Says where the replies to them will lack the pairs' tools."""
    picked, has_tools = {}, False
    for row in pairs:
        if len(picked) == count:
            break
        picked.setdefault(json.dumps(row["prompt"], sort_keys=True), row["prompt"])
        has_tools |= bool(row.get("tools"))
    if has_tools:
        say("The pairs have tools: they are trained on with them, and the replies that are shown are sampled without.")
    return list(picked.values())


# --- Formatting ------------------------------------------------------------------------------------------------------


def format_pair(
    pair: dict,
    tokenizer: PreTrainedTokenizerBase,
    as_turns: bool = True,
    max_prompt_length: int | None = None,
) -> dict:
    """One pair as this tokenizer needs it: prompt, chosen and rejected as three strings or three lists of turns.

    pair: strings or turns. as_turns: write strings as a user's and an assistant's turn, so that the chat template is
    used. max_prompt_length: shorten the prompt to so many tokens (see `shorten_prompt`); ValueError where that cannot
    be done.
    """
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    if isinstance(prompt, str) and as_turns:
        prompt = [{"role": "user", "content": prompt}]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    full = prompt
    if max_prompt_length is not None:
        prompt = shorten_prompt(prompt, tokenizer, max_prompt_length, pair.get("tools"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "is_shortened": prompt != full}


MOST_TOKENS_SHOWN = 300


def show_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int, max_length: int | None = None) -> None:
    """Print pairs as the model sees them: every [token] in brackets is trained on, the rest is what it follows from.

    max_length: rows are cut to so many tokens, at their end.
    """
    for number, row in enumerate(islice(pairs, count)):
        parts = (row["prompt"], row["chosen"], row["rejected"])
        prompt, *answers, _ = tokenise(*parts, tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
        say(f"\nPair {number}" + (f", from row {', '.join(map(str, row['rows']))}" if "rows" in row else ""))
        say(f"  {'prompt':<9}{visible(tokenizer.decode(prompt))}")
        for name, whole in zip(("chosen", "rejected"), answers, strict=True):
            ids = whole if max_length is None else whole[: max(0, max_length - len(prompt))]
            shown = prompt[-1:] + ids[:MOST_TOKENS_SHOWN]
            # decoded as they grow, because some tokenizers drop the space before a token that stands alone
            ends = [len(tokenizer.decode(shown[:end])) for end in range(1, len(shown) + 1)]
            text = tokenizer.decode(shown)
            tokens = "".join(f"[{visible(text[start:end])}]" for start, end in pairwise(ends))
            more = " ..." if len(ids) > MOST_TOKENS_SHOWN else ""
            cut = f", {len(whole) - len(ids)} are cut by --max_length {max_length}" if len(ids) < len(whole) else ""
            say(f"  {name:<9}{tokens}{more}  {len(ids)} tokens{cut}")


# --- Before training -------------------------------------------------------------------------------------------------


def claim_output_dir(training_args: TutorialConfig, default: str | None) -> None:
    """Settle where the run goes and, if it goes on from a checkpoint, from which: sets both in `training_args`.

    default: the folder to take, with a number where it is taken; None where the user has named one.
    The first process chooses for all. Raises UserError where the folder cannot be written.
    """
    choice = [None, None, [], None]
    if PartialState().is_main_process:
        try:
            named = None if default is not None else training_args.output_dir
            wanted = Path(named or default)
            missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
            resume, replace = training_args.resume_from_checkpoint, training_args.overwrite_output_dir
            choice[:3] = run_folder.choose_folder(named, default, resume, replace)
            made_folders[:] = missing if named else [Path(choice[0]), *missing]
        except (OSError, ValueError) as error:
            choice[3] = str(error)
    folder, checkpoint, passed_over, refusal = broadcast_object_list(choice)
    if refusal is not None:
        raise UserError(f"The output folder: {refusal}.")
    training_args.output_dir = folder
    if training_args.resume_from_checkpoint:
        for sentence in passed_over:
            say(sentence)
        state = Path(checkpoint or "", "trainer_state.json")
        step = json.loads(state.read_text(encoding="utf-8"))["global_step"] if checkpoint else 0
        start = "" if checkpoint else ": there is no complete checkpoint yet, so it starts from the beginning"
        say(f"resumed from step {step}{start}")
        training_args.resume_from_checkpoint = checkpoint


@torch.no_grad()
def show_start(trainer, reference: str) -> None:
    """Show one pair as the model sees it, say who the reference is, and check that the policy still equals it.

    reference: a description of the reference, for the reader. Raises UserError where the two differ: DPO would then be
    measured from another model than the one it starts from.
    """
    _running.trainer = trainer
    rows = [row for row, _ in zip(trainer.train_dataset, range(4), strict=False)]
    batch = trainer.data_collator(rows)
    first, second = 0, len(rows)  # the batch is [chosen rows; rejected rows]
    say("\nOne pair as the model sees it; what is trained on stands between > and <")
    for name, row in (("chosen", first), ("rejected", second)):
        ids, mask = batch["input_ids"][row], batch["completion_mask"][row].bool()
        if name == "chosen":
            say(f"  {'prompt':<9}{visible(trainer.processing_class.decode(ids[: mask.int().argmax()]))}")
        say(f"  {name:<9}>{visible(trainer.processing_class.decode(ids[mask]))}<")

    say(f"\nReference: {reference}")
    say(f"Precision: {trainer.args.mixed_precision.replace('no', 'fp32')}. {choose_checkpointing(trainer)}")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        say("The weights are sharded, so the first loss that is logged must tell: it should be ln 2 = 0.6931.")
        return
    was_training = trainer.model.training
    trainer.model.eval()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item()
    trainer.model.train(was_training)
    metrics = trainer._metrics.pop("eval")  # TRL would mix them into the first evaluation
    trainer._metrics["eval"] = type(metrics)(list)
    if not getattr(trainer, "needs_reference", True):
        say(f"Loss before training: {loss:.4f}. It has no reference, so nothing but the rate holds the policy back.\n")
        return
    drift = abs(metrics["rewards/chosen"][-1]) + abs(metrics["rewards/rejected"][-1])
    is_exact = not (trainer.args.bf16 or trainer.args.fp16) and trainer.model.dtype == torch.float32
    if not drift / trainer.beta < (0.01 if is_exact else 5.0):  # in nats a completion
        raise UserError(
            f"The policy is not the reference: before training their log-probs already differ by {drift / trainer.beta:.3g} nats. "
            "A checkpoint or an adapter was loaded into one of them only."
        )
    meaning, off = "", abs(loss - math.log(2))
    if trainer.args.loss_type == ["sigmoid"] and off < 0.05:
        meaning = " = ln 2" if off < 5e-5 else f" = ln 2, but for what {trainer.args.mixed_precision} rounds off"
    say(
        f"Loss before training: {loss:.4f}{meaning}, because the policy still is the reference and every margin is 0.\n"
    )


# --- During training -------------------------------------------------------------------------------------------------


def watch(trainer, tokenizer: PreTrainedTokenizerBase, preview_prompt: Prompt) -> None:
    """Give a trainer a bar, short log lines, a reply now and then, a watcher, and checkpoints that a kill cannot spoil.

    preview_prompt: the most likely reply to it is printed after an eighth, a quarter and half of the training; the
    watcher samples others, unseen. It warns of what goes wrong, and with `stop_on_warning` in the trainer's arguments
    ends there. Raises UserError where the run is to go on from a checkpoint of another one.
    """

    def reply(model) -> str:
        [completion] = sample_completions(model, tokenizer, [preview_prompt], temperature=0, max_new_tokens=64)
        return visible(completion.text)

    def sample(model) -> list[tuple[list[int], bool]]:
        replies = sample_completions(model, tokenizer, [preview_prompt] * 8, max_new_tokens=128)
        return [(reply.ids, reply.is_finished) for reply in replies]

    _keep_checkpoints(trainer)
    show_log_lines(trainer)
    trainer.add_callback(PreviewReply(reply))
    trainer.add_callback(SaveOnSignal())
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.logging_first_step = True  # `show_start` could not compute the first loss; the watcher reads it
    has_reference = getattr(trainer, "needs_reference", True)
    stop_on_warning = getattr(trainer.args, "stop_on_warning", False)
    trainer.add_callback(Watcher(has_reference, stop_on_warning, sample))


def _keep_checkpoints(trainer) -> None:
    """Record in every checkpoint which run it belongs to, and refuse to resume from another run's checkpoint."""
    checkpoint, found = trainer.args.resume_from_checkpoint, [None, []]
    if PartialState().is_main_process:
        found[0] = describe_run(trainer, trainer.model.config._name_or_path)
        found[1] = differences(found[0], read_manifest(Path(checkpoint))["run"]) if checkpoint else []
    run_now, others = broadcast_object_list(found)
    if others:
        raise UserError(
            f"{checkpoint} belongs to another run: {'; '.join(others)}. Go on with the command it was started by, or begin a "
            "new run in another --output_dir."
        )
    complete_checkpoints(trainer, run_now)


# --- Generating ------------------------------------------------------------------------------------------------------


MOST_LOGITS = 2**28  # that are held at once: a gigabyte in float32


class Completion(NamedTuple):
    """A sampled reply."""

    text: str
    prompt_ids: list[int]
    ids: list[int]  # with the EOS token, if it came
    is_finished: bool  # whether the model stopped by itself


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: str | None = None,
) -> list[Completion]:
    """Sample one reply to each prompt from the model's own distribution: no top-k, no top-p, no repetition penalty.

    temperature: 1 samples what the KL is defined on; 0 takes the most likely token each time.
    progress: a label for a progress bar. Draws from a generator of its own, so training goes on with the same bits.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    rows = [prompt_ids(tokenizer, prompt)[1 - positions :] for prompt in prompts]  # room for one token at least
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))  # like lengths together: little padding
    completions: list[Completion | None] = [None] * len(rows)
    was_training = model.training
    model.eval()
    devices = [] if model.device.type == "cpu" else [model.device]
    bar = tqdm(total=len(rows), desc=progress, disable=progress is None, leave=False)
    with torch.random.fork_rng(devices), _neutral_generation(model), bar:
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            # The last prompt token is what the next one is predicted from, so padding goes to the left.
            batch = tokenizer.pad({"input_ids": [rows[n] for n in numbers]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            sampled = model.generate(
                **batch,
                max_new_tokens=min(max_new_tokens, positions - batch["input_ids"].shape[1]),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_k=0 if temperature > 0 else None,  # left alone it would be 50
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            for number, ids in zip(numbers, sampled[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                is_finished = tokenizer.eos_token_id in ids
                if is_finished:
                    ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
                text = tokenizer.decode(ids, skip_special_tokens=True)
                completions[number] = Completion(text, rows[number], ids, is_finished)
            bar.update(len(numbers))
    model.train(was_training)
    return completions


@contextmanager
def _neutral_generation(model: PreTrainedModel) -> Iterator[None]:
    """Whole weights, and none of the penalties and cuts of a generation_config.json: they make replies that are not its own."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with whole_weights(model):
            yield
    finally:
        model.generation_config = own


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """A prompt in tokens, as the model sees it before it answers."""
    if isinstance(prompt, str):  # from an empty one, too, a first token has to be predicted
        return tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id or tokenizer.eos_token_id]
    # A template of a thinking model shows an answer of the pairs behind an empty thought; so the reply begins there too.
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, enable_thinking=False)["input_ids"]


@torch.no_grad()
def sequence_logps(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad_token_id: int,
    batch_size: int = 32,
    progress: str | None = None,
) -> torch.Tensor:
    """The log-probability of each completion given its prompt: log pi(y|x), the SUM over the completion's tokens.

    rows: pairs of token lists (prompt, completion). progress: a label for a progress bar.
    Returns shape (len(rows),), float32, on the CPU.
    """
    was_training = model.training
    model.eval()
    logps = torch.zeros(len(rows))
    batches = _batches(rows, batch_size, MOST_LOGITS // model.config.get_text_config().vocab_size)
    with whole_weights(model):
        for numbers in tqdm(batches, desc=progress, disable=progress is None, leave=False):
            width = max(len(rows[n][0]) + len(rows[n][1]) for n in numbers)
            input_ids = torch.full((len(numbers), width), pad_token_id)
            attention_mask = torch.zeros_like(input_ids)
            is_completion = torch.zeros_like(input_ids, dtype=torch.bool)
            for line, number in enumerate(numbers):
                prompt, completion = rows[number]
                end = len(prompt) + len(completion)
                input_ids[line, :end] = torch.tensor(prompt + completion)
                attention_mask[line, :end] = 1
                is_completion[line, len(prompt) : end] = True
            input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].float()  # (B, L-1, V)
            targets = input_ids[:, 1:]  # position t predicts token t + 1
            token_logps = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)  # (B, L-1)
            logps[numbers] = (token_logps * is_completion[:, 1:].to(model.device)).sum(-1).cpu()
    model.train(was_training)
    return logps


def _batches(rows: list[tuple[list[int], list[int]]], most_rows: int, most_tokens: int) -> list[list[int]]:
    """The numbers of rows, batch by batch: like lengths together, and no more tokens in one, padding included."""
    batches = []
    for number in sorted(range(len(rows)), key=lambda number: sum(map(len, rows[number]))):
        width = sum(map(len, rows[number]))  # of the batch that ends with this row
        if not batches or len(batches[-1]) == most_rows or (len(batches[-1]) + 1) * width > most_tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


def pair_logps(
    model: PreTrainedModel, pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> tuple[torch.Tensor, ...]:
    """What a model makes of given pairs: log pi of the chosen and of the rejected answers, as TRL computes them.

    max_length: rows are cut to so many tokens, at their end. Returns chosen and rejected log-probs, and the lengths of
    both answers in tokens; each of shape (len(pairs),).
    """
    rows = []
    for row in pairs:
        parts = (row["prompt"], row["chosen"], row["rejected"])
        prompt, *answers, _ = tokenise(*parts, tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
        room = None if max_length is None else max(0, max_length - len(prompt))
        rows.append([(prompt[:max_length], answer[:room]) for answer in answers])
    flat = [answer for answers in zip(*rows, strict=True) for answer in answers]  # all chosen, then all rejected
    logps = sequence_logps(model, flat, tokenizer.pad_token_id, progress="given answers")
    lengths = torch.tensor([len(answer) for _, answer in flat])
    return *logps.chunk(2), *lengths.chunk(2)


def sequence_kl(
    policy: PreTrainedModel, reference: PreTrainedModel | None, completions: list[Completion], pad_token_id: int
):
    """How far the policy has moved: KL(policy || reference) over whole completions, in nats, with its 95% interval.

    reference: None where the policy is an adapter and its reference lies underneath: the model with the adapter off, or
    the frozen copy that TRL keeps as "ref". completions: sampled from the policy at temperature 1. The estimate is the
    mean of log policy(y|x) - log reference(y|x). Returns (mean, low, high).
    """
    rows = [(completion.prompt_ids, completion.ids) for completion in completions]
    policy_logps = sequence_logps(policy, rows, pad_token_id)
    if reference is None:
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            ref_logps = sequence_logps(policy, rows, pad_token_id)
    else:
        try:
            reference.to(policy.device)
        except torch.OutOfMemoryError:  # beside the optimizer: then slowly, where it was
            reference.to("cpu")
        ref_logps = sequence_logps(reference, rows, pad_token_id)
    return bootstrap_mean((policy_logps - ref_logps).tolist())


# --- After training --------------------------------------------------------------------------------------------------


def report_change(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    before: list[Completion],
    after: list[Completion],
    score_reply=None,
    maxima: dict[str, float] | None = None,
) -> dict:
    """Print what training changed in the replies to held-out prompts, and return it for metrics.json.

    reference: see `sequence_kl`. before, after: one reply a prompt, sampled at temperature 1 from the reference and
    from the policy.
    score_reply(prompt, text): the parts of a reply's true reward by name, with the maxima of each; None if unknown.
    Returns kl, reply_tokens_before and reply_tokens_after (a reply's length, EOS included) and, with score_reply,
    true_reward_before, true_reward_after and win_rate (after against before on the same prompt, ties half), each with
    the ends of its 95% bootstrap interval over prompts.
    """
    say("\nThe same prompts before and after")
    for prompt, old, new in list(zip(prompts, before, after, strict=True))[:3]:
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        say(f"  prompt   {visible(str(question))}\n  before   {visible(old.text)}\n  after    {visible(new.text)}\n")

    measured = {"kl": sequence_kl(policy, reference, after, tokenizer.pad_token_id)}
    for when, replies in (("before", before), ("after", after)):
        measured[f"reply_tokens_{when}"] = bootstrap_mean([float(len(reply.ids)) for reply in replies])
    if score_reply is not None:
        parts = [
            [score_reply(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
            for replies in (before, after)
        ]
        totals = [[sum(scores.values()) for scores in replies] for replies in parts]
        measured["true_reward_before"], measured["true_reward_after"] = map(bootstrap_mean, totals)
        wins = [(new > old) + 0.5 * (new == old) for old, new in zip(*totals, strict=True)]
        measured["win_rate"] = bootstrap_mean(wins)

        say(f"True reward of {len(prompts)} sampled replies, with 95% intervals over the prompts")
        say(f"  {'':<12}{'before':<20}{'after':<20}most")
        for name, most in maxima.items():
            old, new = (sum(scores[name] for scores in replies) / len(replies) for replies in parts)
            say(f"  {name:<12}{old:<20.2f}{new:<20.2f}{most:.0f}")
        old, new = (_with_interval(measured[f"true_reward_{when}"]) for when in ("before", "after"))
        say(f"  {'all':<12}{old:<20}{new:<20}{sum(maxima.values()):.0f}")
        say(f"Win rate of after against before, ties half: {_with_interval(measured['win_rate'])}")
    say(f"KL from the reference, nats a reply: {_with_interval(measured['kl'])}")
    lengths = [_with_interval(measured[f"reply_tokens_{when}"], 1) for when in ("before", "after")]
    say(f"Tokens a reply, before and after: {lengths[0]}, {lengths[1]}")
    return with_intervals(measured)


def _with_interval(measured: tuple[float, float, float], digits: int = 2) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in measured)
    return f"{mean} [{low}, {high}]"


def with_intervals(measured: dict[str, tuple[float, float, float]]) -> dict[str, float]:
    """Flatten {name: (mean, low, high)} to name, name_ci_low, name_ci_high."""
    flat = {}
    for name, (mean, low, high) in measured.items():
        flat |= {name: mean, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return flat


def save_run(
    trainer,
    outcome: dict,
    *,
    script: str,
    model: str,
    reference: str,
    dataset: str,
    replies: tuple[list[Prompt], list[Completion], list[Completion]],
    base: Base | None = None,
) -> dict:
    """Write the run's files into the trainer's output folder, each complete or not at all; metrics.json is the last.

    outcome: what `report_change` measured, added to what the trainer knows. replies: prompts, replies before training,
    replies after it. base: what an adapter belongs to, noted beside it. Returns the metrics. Measures the held-out
    pairs once more where that was not done at the last step.
    """
    last_measured = max((logs["step"] for logs in trainer.state.log_history if "eval_loss" in logs), default=None)
    is_other_model = last_measured != trainer.state.global_step or trainer.args.load_best_model_at_end
    if trainer.eval_dataset is not None and is_other_model:
        trainer.evaluate()
    folder, state = Path(trainer.args.output_dir), trainer.state
    metrics = {"script": script, "model": model, "reference": reference, "dataset": dataset}
    metrics |= _facts_of_training(trainer) | outcome
    metrics = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    if not trainer.args.should_save:  # one of the other processes
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            trainer.save_model(str(folder / UNFINISHED), _internal_call=True)  # its share of the weights is needed
        if trainer.args.push_to_hub:
            trainer.push_to_hub(dataset_name=dataset)  # here too
        return metrics
    with complete_files(folder) as unfinished:
        trainer.save_model(str(unfinished), _internal_call=True)  # else it would push what is unfinished
        shutil.rmtree(unfinished / "ref", ignore_errors=True)  # TRL's frozen copy of an adapter that was trained on
        if base is not None:
            note_base(unfinished, base)
        state.save_to_json(str(unfinished / "trainer_state.json"))
        plot_training(state.log_history, unfinished / "training_curves.png")
        (unfinished / "completions.md").write_text(completions_page(*replies), encoding="utf-8")
        if heard_warnings.texts:
            lines = [json.dumps({"warning": text}) + "\n" for text in heard_warnings.texts]
            (unfinished / "warnings.jsonl").write_text("".join(lines), encoding="utf-8")
    with complete_file(folder / run_folder.FINISHED) as file:
        json.dump(metrics, file, indent=2, allow_nan=False)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)
    return metrics


def merge_run(
    base: Base, folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], **init_kwargs
) -> str:
    """Write the full model of a run's adapter into folder/merged, in full precision, and say how exact it is.

    prompts: on which it is compared with base and adapter. init_kwargs: those of the base. Raises AdapterError where
    the two differ by more than rounding.
    """
    init_kwargs.pop("quantization_config", None)  # rounded weights are no place to add anything to
    keep_new_models_whole()  # the first of several processes does this alone
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    return merge_adapter(lambda name: load_model(name, **init_kwargs)[0], base.name, folder, tokenizer, rows)


def _facts_of_training(trainer) -> dict:
    """What metrics.json has of settings, size, time, memory and the last measurement of the held-out pairs."""
    logged = list(reversed(trainer.state.log_history))
    held_out = next((logs for logs in logged if "eval_loss" in logs), {})
    summary = next((logs for logs in logged if "train_runtime" in logs), {})
    return {
        "beta": trainer.args.beta,
        "loss_type": " + ".join(trainer.args.loss_type),
        "seed": trainer.args.seed,
        "max_length": trainer.args.max_length,
        "warnings": len(heard_warnings.texts),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "pairs_train": _length(trainer.train_dataset),
        "pairs_eval": _length(trainer.eval_dataset),
        "train_seconds": summary.get("train_runtime"),
        "train_pairs_per_second": summary.get("train_samples_per_second"),
        "peak_memory_bytes": peak_memory_bytes(),
        "eval_loss": held_out.get("eval_loss"),
        "reward_accuracy": held_out.get("eval_rewards/accuracies"),
        "reward_margin": held_out.get("eval_rewards/margins"),
        "chosen_logp_change": _logp_change(trainer, held_out, "chosen"),
        "rejected_logp_change": _logp_change(trainer, held_out, "rejected"),
    }


def _length(pairs) -> int | None:
    return len(pairs) if isinstance(pairs, Dataset) else None


def _logp_change(trainer, held_out: dict, answer: str) -> float | None:
    """The mean of log policy - log reference of the held-out answers, in nats."""
    if not held_out:
        return None
    if getattr(trainer, "needs_reference", True):
        return held_out[f"eval_rewards/{answer}"] / trainer.args.beta  # a reward is beta times the log-ratio
    first = next(logs for logs in trainer.state.log_history if "eval_loss" in logs)
    return held_out[f"eval_logps/{answer}"] - first[f"eval_logps/{answer}"] if first["step"] == 0 else None
