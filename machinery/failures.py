"""Why a training failed, and what would help this very run: memory that ran out, files that could not be written.

    try:
        trainer.train()
    except Exception as error:
        if is_out_of_memory(error):
            print(remedies(trainer, error))       # "By estimate this run needs 812 MiB: ... What helps, in this order: ..."
        elif is_failed_write(error, folder):
            print("the disk is full, or the folder cannot be written any more")

Needs memory_estimate.py beside it.
"""

import errno
import traceback
from pathlib import Path

import torch
from safetensors import SafetensorError

from machinery.memory_estimate import estimate_memory

NO_WRITING = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM ENOTDIR EISDIR ESTALE".split()
    if hasattr(errno, name)
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or elsewhere."""
    is_cpu_full = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_cpu_full


def is_failed_write(error: BaseException, folder: Path) -> bool:
    """Whether a file could not be written. folder: where the run writes; it may be gone."""
    if isinstance(error, OSError):
        name = str(error.filename or "")
        return error.errno in NO_WRITING or (bool(name) and Path(name).absolute().is_relative_to(folder.absolute()))
    text = str(error)
    if isinstance(error, SafetensorError):
        return "os error" in text or "I/O error" in text
    marks = ("PytorchStreamWriter", "inline_container", "Parent directory", "cannot be opened")
    return isinstance(error, RuntimeError) and any(mark in text for mark in marks)


def remedies(trainer, error: BaseException) -> str:
    """What this run needs by estimate, and what would make it need less, the least harmful first.

    trainer: TRL's DPOTrainer, as it was when memory ran out with the error.
    """
    args, needs = trainer.args, _needs(trainer)
    where = {frame.name for frame in traceback.extract_tb(error.__traceback__)}

    def less(part: str, **changed) -> str:
        """How much a change takes off a part, where it can be told."""
        then = _needs(trainer, **changed) if needs and changed else {part: 0}
        return f" (about {(needs[part] - then[part]) / 2**20:,.0f} MiB less)" if needs and then else ""

    steps = []
    size, pairs = args.per_device_train_batch_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    if "sample_completions" in where:
        steps.append("--num_eval_prompts and --max_new_tokens lower: it ran out while replies were sampled")
    elif "evaluate" in where:
        steps.append(
            f"--per_device_eval_batch_size below {args.per_device_eval_batch_size}: it ran out while measuring"
        )
    if size > 1:
        half = max(part for part in range(1, size // 2 + 1) if pairs % part == 0)
        flags = f"--per_device_train_batch_size {half} --gradient_accumulation_steps {pairs // half}"
        steps.append(flags + less("activations", per_device_train_batch_size=half))
    if not args.gradient_checkpointing:
        steps.append("--gradient_checkpointing true" + less("activations", gradient_checkpointing=True))
    if trainer.ref_model is not None:
        steps.append("--precompute_ref_log_probs" + less("reference"))
    longest = f" than the longest pair's {_longest(trainer.train_dataset):,} tokens" if needs else ""
    steps.append(f"--max_length and --max_prompt_length lower{longest}")
    if not hasattr(trainer.model, "peft_config"):
        steps.append("an adapter instead of all weights, by lora_dpo_training.py" + less("optimizer"))
    elif not getattr(trainer.model, "is_quantized", False) and torch.cuda.is_available():
        steps.append("--load_in_4bit: the frozen base in half a byte a weight")
    if args.world_size == 1:
        steps.append("several GPUs that share the weights: recipes/accelerate/fsdp2.yaml")
    lines = [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([_expected(needs), "What helps, in this order:", *lines])


def _needs(trainer, **changed) -> dict[str, int] | None:
    """The estimate with some of the arguments changed; None where there is none (a stream, weights in pieces)."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    before = {name: getattr(trainer.args, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(trainer.args, name, value)
        needs = estimate_memory(trainer)
    except Exception:  # not enough memory for one pair either, or a stream that has no longest pair
        return None
    finally:
        for name, value in before.items():
            setattr(trainer.args, name, value)
    needs.pop("runtime")  # in the middle of a training it would count the training itself
    return needs


def _longest(pairs) -> int:
    """The tokens of the longest pair, its prompt counted once."""
    columns = [pairs[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in zip(*columns, strict=True))


def _expected(needs: dict[str, int] | None) -> str:
    if needs is None:
        return "What it needs cannot be estimated here."
    listed = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in needs.items())
    return f"By estimate this run needs {sum(needs.values()) / 2**20:,.0f} MiB: {listed}."
