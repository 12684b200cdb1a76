"""What an error means for the user: exit code, cause, and what would help this very run.

try:
    main()
except Exception as error:
    code = exit_code(error)                 # 1; it has printed "training failed: out of memory. By estimate ..."
    if code is None:
        raise                               # a fault in the code
"""

import os
import pickle
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import jinja2
import torch
from accelerate import PartialState
from huggingface_hub.utils import httpx  # the package is called httpx or httpx2
from safetensors import SafetensorError

from ..common.errors import UserError, is_out_of_memory
from ..common.kept_files import NO_ROOM
from ..common.masking import masked
from ..common.safe_text import first_line, printable
from ..common.token_rows import row_lengths
from ..hardware.estimate import estimate_memory
from ..watching.log_lines import NonFiniteLoss
from ..watching.watcher import StoppedOnWarning
from .checkpoints import newest_complete
from .interrupts import Stopped

PROJECT = Path(__file__).resolve().parents[2]

# What PyTorch and safetensors say when the system refuses a write; neither raises an OSError.
TORCH_MARKS = ("PytorchStreamWriter", "inline_container", "Parent directory", "cannot be opened")
SAFETENSORS_MARKS = ("os error", "I/O error")


def exit_code(error: BaseException) -> int | None:
    """Say on standard error what failed, and return the code to exit with; None, and nothing said, for a fault of ours.

    The trainer, and whether a traceback is wanted (`args.traceback`), are found among the variables of what failed.
    """
    code, text = explain(error, local_value(error, "trainer"))
    if code is None:
        return None
    if isinstance(error, (KeyboardInterrupt, Stopped)) and os.environ.get("RANK", "0") != "0":
        return code  # each of several processes hears it, and one says so
    if "--traceback" in sys.argv or getattr(local_value(error, "args"), "traceback", False):
        print_traceback(type(error), error, error.__traceback__)
    print(printable(masked(text)), file=sys.stderr)
    return code


def print_traceback(kind: type[BaseException], error: BaseException, trace) -> None:
    """As Python prints what nobody caught (`sys.excepthook`), but with nothing that is obeyed, and without secrets."""
    print(printable(masked("".join(traceback.format_exception(kind, error, trace)))), file=sys.stderr)


def end_together() -> None:
    """Wait for the other processes: the launcher ends all when one ends badly."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        PartialState().wait_for_everyone()
        torch.distributed.destroy_process_group()  # else its threads may abort a process that is done


def local_value(error: BaseException, name: str):
    """What a variable was when an error was raised, in the outermost function that has one of this name; else None."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((frame.f_locals[name] for frame in frames if name in frame.f_locals), None)


def explain(error: BaseException, trainer) -> tuple[int | None, str]:
    """Exit code and text for an error that has a cause the user can do something about; code None for all others.

    trainer: TRL's DPOTrainer where there was one already.
    """
    if isinstance(error, UserError):
        text = str(error).rstrip(".")
        return 2, f"error: {text}" + ("" if text.endswith("?") else ".")
    if isinstance(error, (KeyboardInterrupt, Stopped)):
        name = "Ctrl-C" if getattr(error, "code", 130) == 130 else error.signal.name
        kept = getattr(error, "kept", "") or ("" if trainer is None else _way_on(trainer))
        return getattr(error, "code", 130), f"stopped by {name}. {kept or 'Give the same command again.'}"
    if isinstance(error, (NonFiniteLoss, FloatingPointError)):
        return 1, (
            f"training failed: {error}. {_way_on(trainer)} Lower --learning_rate, use --bf16 rather than --fp16, and "
            "look for empty or broken pairs."
        )
    if isinstance(error, StoppedOnWarning):
        return 1, f"training stopped {error}."
    if is_out_of_memory(error):
        return 1, f"training failed: out of memory. {remedies(trainer, error)}"
    if isinstance(error, httpx.HTTPError):  # of --push_to_hub: what is read from there has sentences of its own
        code, kept = (2, "") if trainer is None else (1, f" {_way_on(trainer)}")
        return code, f"error: the hub cannot be reached, or refuses (`hf auth login`): {first_line(error)}.{kept}"
    args = trainer.args if trainer else local_value(error, "training_args")
    if reason := why_write_failed(error, Path(args.output_dir) if args else None):
        return 1, f"writing failed: {reason}. Nothing complete was overwritten. {_way_on(trainer)}"
    if isinstance(error, jinja2.TemplateError):
        return 2, f"error: the chat template refuses a conversation: {first_line(error)}."
    if isinstance(error, pickle.UnpicklingError):
        where = trainer.args.resume_from_checkpoint if trainer else "a file"
        return 2, f"error: {where} holds a file that could run code when it is loaded, so it was not loaded."
    if _is_refusal(error):
        return 2, f"error: {error}"
    return None, ""


def _is_refusal(error: BaseException) -> bool:
    """Whether a library says no to settings: in the trainer's constructor, in TRL's loss, or for want of a package."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    file = frames[-1][0]
    if file.parent == PROJECT or file.is_relative_to(PROJECT / "machinery") or "torch" in file.parts:
        return False
    if isinstance(error, ImportError):
        return True
    constructs = any(file.name == "dpo_trainer.py" and function == "__init__" for file, function in frames)
    is_loss = file.name == "dpo_trainer.py" and frames[-1][1] == "_compute_loss"
    return isinstance(error, (ValueError, NotImplementedError, RuntimeError, OSError)) and (constructs or is_loss)


def _way_on(trainer) -> str:
    """Where a run that failed can go on from."""
    checkpoint = newest_complete(Path(trainer.args.output_dir))[0] if trainer is not None else None
    if checkpoint is None:
        return "No checkpoint was complete yet."
    if trainer.args.sync_ref_model:
        return (
            f"{checkpoint} is complete, but no run goes on from it: under --sync_ref_model the reference is not saved."
        )
    return f"{checkpoint} is complete: go on from it by --output_dir {checkpoint.parent} --resume_from_checkpoint."


def why_write_failed(error: BaseException, folder: Path | None) -> str | None:
    """What kept a file from being written, or None where the error is of another kind.

    folder: where the run writes, which may be gone by now; None before it has one.
    """
    text = (str(error).splitlines() or [""])[0].rstrip(".")
    if isinstance(error, OSError):
        is_ours = folder is not None and bool(error.filename)
        is_ours = is_ours and Path(str(error.filename)).absolute().is_relative_to(folder.absolute())
        is_write = is_ours or error.errno in NO_ROOM
    elif isinstance(error, RuntimeError) and any(mark in text for mark in TORCH_MARKS):
        text, is_write = "a file of a checkpoint could not be written to its end", True
    else:
        is_write = isinstance(error, SafetensorError) and any(mark in text for mark in SAFETENSORS_MARKS)
    if not is_write:
        return None
    place = Path(getattr(error, "filename", None) or folder or ".").absolute()
    there = next((path for path in (place, *place.parents) if path.is_dir()), place)
    with suppress(OSError):
        text += f", with {shutil.disk_usage(there).free / 2**20:,.0f} MiB free in {there}"
    return text


def remedies(trainer, error: BaseException) -> str:
    """What this run needs by estimate, and what would make it need less, the least harmful first.

    trainer: TRL's DPOTrainer, as it was when memory ran out with the error; None if that was before there was one.
    """
    where = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if trainer is None:
        if where & {"sample_completions", "sequence_logps"}:
            doing = "replies were sampled or scored"
            flags = "--per_device_eval_batch_size, --max_new_tokens and --max_length"
        elif "_precompute_ref_logps" in where:
            doing = "the reference's log-probs were computed"
            flags = "--precompute_ref_batch_size, --max_length and --max_prompt_length"
        else:
            return "Not even the model fits: take a smaller one, or --load_in_4bit in lora_dpo_training.py."
        return f"It ran out while {doing}: {flags} lower."
    args, needs = trainer.args, _needs(trainer)

    def less(part: str, **changed) -> str:
        """How much a change takes off a part, where it can be told."""
        then = _needs(trainer, **changed) if needs and changed else {part: 0}
        return f" (about {(needs[part] - then[part]) / 2**20:,.0f} MiB less)" if needs and then else ""

    steps = []
    size, pairs = args.per_device_train_batch_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    if "sample_completions" in where:
        steps.append("--num_eval_prompts and --max_new_tokens lower: it ran out while replies were sampled")
    elif "evaluate" in where:
        below = f"--per_device_eval_batch_size below {args.per_device_eval_batch_size}"
        steps.append(f"{below}: it ran out while measuring")
    if budget := getattr(args, "max_tokens_per_batch", None):
        steps.append(f"--max_tokens_per_batch {budget // 2}" + less("activations", max_tokens_per_batch=budget // 2))
    elif size > 1:
        half = max(part for part in range(1, size // 2 + 1) if pairs % part == 0)
        flags = f"--per_device_train_batch_size {half} --gradient_accumulation_steps {pairs // half}"
        steps.append(flags + less("activations", per_device_train_batch_size=half))
    if not args.gradient_checkpointing:
        steps.append("--gradient_checkpointing true" + less("activations", gradient_checkpointing=True))
    if trainer.ref_model is not None and not args.precompute_ref_log_probs:
        steps.append("--precompute_ref_log_probs" + less("reference"))
    lower = "--max_length and --max_prompt_length lower"
    if needs:
        longest = int(row_lengths(trainer.train_dataset).max())
        lower += f" than the longest pair's {longest:,} tokens, prompt and both answers"
    steps.append(lower)
    if not hasattr(trainer.model, "peft_config"):
        steps.append("an adapter instead of all weights, by lora_dpo_training.py" + less("optimizer"))
    elif not getattr(trainer.model, "is_quantized", False) and torch.cuda.is_available():
        steps.append("--load_in_4bit: the frozen base in half a byte a weight")
    if args.world_size == 1:
        steps.append("several GPUs that share the weights: recipes/accelerate/fsdp2.yaml")
    expected = "What it needs cannot be estimated here."
    if needs:
        listed = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in needs.items())
        expected = f"By estimate this run needs {sum(needs.values()) / 2**20:,.0f} MiB: {listed}."
    lines = [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([expected, "What helps, in this order:", *lines])


def _needs(trainer, **changed) -> dict[str, int]:
    """The estimate with some of the arguments changed; empty where there is none (a stream, weights in pieces)."""
    before = {name: getattr(trainer.args, name) for name in changed}
    try:
        vars(trainer.args).update(changed)
        needs = estimate_memory(trainer)
    except Exception:  # not enough memory for one pair either, or a stream that has no longest pair
        return {}
    finally:
        vars(trainer.args).update(before)
    needs.pop("runtime", None)  # in the middle of a training it would count the training itself
    return needs
