"""What a training will need in memory, before it starts, and what it took, after it.

    print(choose_checkpointing(trainer))  # turns gradient checkpointing on where memory is short
    meter = MemoryMeter(trainer)
    print(meter.table())                  # what is estimated
    trainer.train()
    print(meter.table())                  # and beside it what was measured

Weights, gradients, optimizer and reference are counted from the parameters. The activations are found by a trial: a
forward pass over the longest pair, in which every tensor that is kept for the backward pass is counted; a batch of such
pairs takes that times its size, or times as many as `max_tokens_per_batch` lets through at once. The trial changes no
weight and draws no random number that the training would draw. The runtime is what the process holds besides: code that
was loaded, and the kernels' own memory (on a CPU only).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback

from ..common.errors import is_out_of_memory
from ..common.token_rows import row_lengths
from . import memory

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "runtime")
STATES_PER_PARAMETER = {"sgd": 0, "lion": 1, "lion_32bit": 1, "adafactor": 0}  # all others as AdamW: two
ONE_BYTE_STATES = ("8bit",)


class MemoryMeter(TrainerCallback):
    """Estimates the memory of a trainer's training when it is made, and measures what the training took."""

    def __init__(self, trainer):
        self.trainer, self.estimate, self.measured = trainer, {}, {}
        try:
            self.estimate = estimate_memory(trainer)
        except (RuntimeError, MemoryError) as error:  # without checkpointing it can need more than the training
            if not is_out_of_memory(error):
                raise
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        memory.reset_peak()

    def on_train_end(self, args, state, control, **kwargs):
        start = 0 if memory.uses_gpu() else memory.START
        self.measured = measure_memory(self.trainer, memory.peak_since_reset(), start)

    def table(self) -> str:
        """Estimate and, after the training, what was measured."""
        return memory_table(self.estimate, self.measured)

    def metrics(self) -> dict[str, int]:
        """Both in bytes under flat names, for metrics.json."""
        flat = {f"memory_{part}_bytes": size for part, size in self.measured.items()}
        return flat | {f"memory_{part}_bytes_estimated": size for part, size in self.estimate.items()}


def estimate_memory(trainer) -> dict[str, int]:
    """Bytes by part, for this trainer's model, batch size, precision and settings.

    Nothing where it cannot be foreseen: the pairs are streamed, or the weights lie in pieces.
    """
    if not can_be_foreseen(trainer):
        return {}
    counted = _count(trainer)
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    states = STATES_PER_PARAMETER.get(optimizer, 2)
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    width = 1 if any(mark in optimizer for mark in ONE_BYTE_STATES) else None
    counted["optimizer"] = sum(states * p.numel() * (width or p.element_size()) for p in trainable)
    lengths = row_lengths(trainer.train_dataset)
    longest = trainer.train_dataset[int(lengths.argmax())]
    per_pair = in_full = kept_for_backward(trainer, [longest], checkpointing=False)
    if trainer.args.gradient_checkpointing:
        per_pair = kept_for_backward(trainer, [longest], checkpointing=True)
    # the backward pass works on one layer at a time: its gradients, or what of it is computed again
    per_pair += in_full // trainer.model.config.get_text_config().num_hidden_layers
    standing = memory.memory_in_use() - memory.START - counted["weights"] - counted["reference"]
    runtime = 0 if memory.uses_gpu() else max(0, standing)
    at_once = trainer.args.per_device_train_batch_size
    if budget := getattr(trainer.args, "max_tokens_per_batch", None):
        at_once = max(1, min(at_once, budget // int(lengths.max())))
    return counted | {"activations": per_pair * at_once, "runtime": runtime}


def can_be_foreseen(trainer) -> bool:
    """Whether the longest pair and the whole of the weights are at hand."""
    return isinstance(trainer.train_dataset, Dataset) and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def choose_checkpointing(trainer) -> str:
    """Turn gradient checkpointing on where `args.checkpointing_if_needed` and memory is short; returns what was chosen.

    Without checkpointing the training must fit into nine tenths of what is free now, on every process.
    """
    args, why = trainer.args, ""
    if getattr(args, "checkpointing_if_needed", False) and not args.gradient_checkpointing:
        if not can_be_foreseen(trainer):
            is_short, why = True, ", because what it would save cannot be foreseen"
        else:
            try:
                estimate = estimate_memory(trainer)
                needed = sum(estimate[part] for part in ("gradients", "optimizer", "activations"))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                needed = float("inf")
            free = memory.free_bytes()
            worst_needed, worst_free = max(gather_object([(needed, free)]), key=lambda pair: pair[0] / pair[1])
            is_short = worst_needed > 0.9 * worst_free
            why = f": about {worst_needed / 1e9:.1f} GB more would be needed without it, {worst_free / 1e9:.1f} GB are free"
        if is_short:
            args.gradient_checkpointing = args.activation_checkpointing = True
            how = args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = how
    return f"Gradient checkpointing: {'on' if args.gradient_checkpointing else 'off'}{why}."


def measure_memory(trainer, peak: int, start: int) -> dict[str, int]:
    """Bytes by part after a training; the activations are what the peak held besides all others.

    peak: the most that was in use during it. start: what was in use before the model was loaded.
    """
    counted = _count(trainer)
    states = trainer.optimizer.state.values() if trainer.optimizer is not None else ()
    counted["optimizer"] = sum(_bytes(value for value in state.values() if torch.is_tensor(value)) for state in states)
    counted["total"] = peak - start
    return counted


def memory_table(estimate: dict[str, int], measured: dict[str, int] | None = None) -> str:
    """Estimate, and what was measured beside it, in MiB."""
    if not estimate:
        return "Memory: not estimated; the pairs are streamed, the weights lie in pieces, or the trial did not fit."
    lines = [f"{'Memory, MiB':<14}{'estimated':>10}" + (f"{'measured':>10}" if measured else "")]
    for part in PARTS:
        line = f"  {part:<12}{estimate[part] / 2**20:>10,.0f}"
        if measured and part in measured:
            line += f"{measured[part] / 2**20:>10,.0f}"
        elif measured and part == "activations":
            rest = measured["total"] - sum(measured[name] for name in PARTS[:4])
            line += f"{rest / 2**20:>10,.0f}  with the runtime"
        lines.append(line)
    total = f"  {'peak':<12}{sum(estimate[part] for part in PARTS) / 2**20:>10,.0f}"
    return "\n".join([*lines, total + (f"{measured['total'] / 2**20:>10,.0f}" if measured else "")])


def _count(trainer) -> dict[str, int]:
    model, names = trainer.model, {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names[name] = tensor
    frozen_copy = [tensor for name, tensor in names.items() if ".ref." in name]
    reference = list(trainer.ref_model.parameters()) if trainer.ref_model is not None else []
    return {
        "weights": _bytes(tensor for name, tensor in names.items() if ".ref." not in name),
        "gradients": _bytes(p for p in model.parameters() if p.requires_grad),
        "reference": _bytes(frozen_copy) + _bytes(reference),
    }


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_for_backward(trainer, rows: list[dict], checkpointing: bool) -> int:
    """The bytes that a forward pass over a batch of pairs keeps for the backward pass, parameters aside."""
    model, args = trainer.model, trainer.args
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_seen, was_training = trainer._total_train_tokens, model.training
    model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    devices = [] if model.device.type == "cpu" else [model.device]  # whose random numbers go on as if nothing had been
    try:
        with (
            torch.enable_grad(),  # nothing is kept without
            torch.random.fork_rng(devices),
            hooks,
            trainer.compute_loss_context_manager(),
            _without_gathering(trainer.accelerator),
        ):
            trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))
    finally:  # after running out of memory too: the caller may go on
        model.train(was_training)
        if checkpointing:
            model.gradient_checkpointing_disable()  # the training switches it on itself
        trainer._total_train_tokens = tokens_seen
        trainer._metrics["train"].clear()  # TRL would mix them into the first line that it logs
    return sum(kept.values())


@contextmanager
def _without_gathering(accelerator: Accelerator) -> Iterator[None]:
    """A process's trial is its own: the others may be elsewhere, and what TRL gathers for its metrics would wait for them."""
    accelerator.gather = accelerator.gather_for_metrics = lambda values, *args, **kwargs: values
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
