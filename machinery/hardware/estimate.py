"""What a training will need in memory, before it starts, and what it took, after it.

    print(choose_checkpointing(trainer))  # turns gradient checkpointing on where memory is short
    meter = MemoryMeter(trainer)
    print(meter.table())                  # what is estimated
    trainer.train()
    print(meter.table())                  # and beside it what was measured

Weights, gradients, optimizer and reference are counted from the parameters. The activations are found by a trial: a
forward pass over the longest pair, and one over two of it, in which every tensor that is kept for the backward pass is
counted; what the second adds is added for each further pair of a batch, or for as many as `max_tokens_per_batch` lets
through at once. The trial changes no weight and draws no random number that the training would draw. The runtime is
what the process holds besides: code that was loaded, and the kernels' own memory (on a CPU only).
"""

import re

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback

from ..common.errors import is_out_of_memory
from ..common.for_a_while import in_mode, without_gathering
from ..common.token_rows import row_lengths
from . import memory

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "runtime")
SMALL = 50e6  # parameters
IN_PIECES = 2.0  # times what tensors take, where freed memory stays with the process: measured were 1.1 to 2.4
LION = ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
STATES_PER_PARAMETER = {
    "sgd": 0,
    "adafactor": 0,
    **dict.fromkeys((*LION, "rmsprop", "adagrad"), 1),
}  # others as AdamW: two


def least_states(optim) -> int:
    """How many numbers an optimizer keeps of each parameter, at least: what is sure to be in a checkpoint."""
    name = str(getattr(optim, "value", optim))
    return 2 if re.fullmatch("adamw_(torch|torch_fused|anyprecision)", name) else STATES_PER_PARAMETER.get(name, 0)


class MemoryMeter(TrainerCallback):
    """Estimates the memory of a trainer's training when it is made, and measures what the training took."""

    def __init__(self, trainer):
        self.trainer, self.estimate, self.measured = trainer, _estimate_if_it_fits(trainer), {}
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        memory.reset_peak()

    def on_train_end(self, args, state, control, **kwargs):
        self.measured = measure_memory(self.trainer)

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
    one_state = counted["gradients"]  # which is as large, but in optimizers of 8 bits
    if "8bit" in optimizer:
        one_state = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    counted["optimizer"] = STATES_PER_PARAMETER.get(optimizer, 2) * one_state
    lengths = row_lengths(trainer.train_dataset)
    at_once = trainer.args.per_device_train_batch_size
    if budget := getattr(trainer.args, "max_tokens_per_batch", None):
        at_once = max(1, min(at_once, budget // int(lengths.max())))
    longest = trainer.train_dataset[int(lengths.argmax())]
    activations = in_full = _kept_of_many(trainer, longest, at_once, checkpointing=False)
    if trainer.args.gradient_checkpointing:
        activations = _kept_of_many(trainer, longest, at_once, checkpointing=True)
    # the backward pass works on one layer at a time: its gradients, or what of it is computed again
    activations += in_full // trainer.model.config.get_text_config().num_hidden_layers
    memory.give_back_freed_memory()
    standing = memory.memory_in_use() - memory.before_all() - counted["weights"] - counted["reference"]
    runtime = 0 if memory.uses_gpu() else max(0, standing)
    return _in_pieces(counted | {"activations": activations, "runtime": runtime})


def _in_pieces(estimate: dict[str, int]) -> dict[str, int]:
    """An estimate of what tensors take, with what lies between them where freed memory stays with the process."""
    if not memory.freed_memory_stays():
        return estimate
    return estimate | {"activations": int(IN_PIECES * estimate["activations"])}


def _kept_of_many(trainer, row: dict, count: int, checkpointing: bool) -> int:
    """What a batch of equal pairs keeps, from a batch of one and of two: weights in another precision are kept once."""
    one = kept_for_backward(trainer, [row], checkpointing)
    return one + (count - 1) * (kept_for_backward(trainer, [row] * 2, checkpointing) - one) if count > 1 else one


def _estimate_if_it_fits(trainer) -> dict[str, int]:
    """Nothing where memory runs out in the trial: without checkpointing it can need more than the training."""
    try:
        return estimate_memory(trainer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {}


def can_be_foreseen(trainer) -> bool:
    """Whether the longest pair and the whole of the weights are at hand."""
    return isinstance(trainer.train_dataset, Dataset) and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def choose_checkpointing(trainer) -> str:
    """Turn gradient checkpointing on where `args.checkpointing_if_needed` and memory is short; returns what was chosen.

    Without checkpointing the training must fit into nine tenths of what is free now, on every process. On a CPU freed
    memory stays with the process where that fits into seven tenths, and goes back to the system elsewhere.
    """
    args, why, estimate = trainer.args, "", {}
    may_choose = getattr(args, "checkpointing_if_needed", False) and not args.gradient_checkpointing
    may_stay = memory.freed_memory_stays()
    is_small = sum(parameter.numel() for parameter in trainer.model.parameters()) < SMALL
    if may_stay:
        memory.keep_freed_memory(False)  # so that what is estimated is what is needed
    if can_be_foreseen(trainer) and (may_choose or (may_stay and not is_small)):
        estimate = _estimate_if_it_fits(trainer)
    needed = sum(estimate.get(part, float("inf")) for part in ("gradients", "optimizer", "activations"))
    free, is_short = memory.free_bytes(), False
    if may_choose:
        is_short, why = True, ", because what it would save cannot be foreseen"
        if can_be_foreseen(trainer):
            by_process = gather_object([(needed, free)])
            worst_needed, worst_free = max(by_process, key=lambda pair: pair[0] / pair[1])
            is_short = worst_needed > 0.9 * worst_free
            if worst_needed < float("inf"):
                why = f": about {worst_needed / 1e9:.1f} GB more would be needed without it, {worst_free / 1e9:.1f} GB are free"
        if is_short:
            args.gradient_checkpointing = args.activation_checkpointing = True
            how = args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = how
    if may_stay and (is_small or IN_PIECES * needed < 0.7 * free):
        memory.keep_freed_memory(True)
    if may_choose and not is_short:
        trainer.estimated_peak_bytes = sum(_in_pieces(estimate).values()) + memory.before_all()
    return f"Gradient checkpointing: {'on' if args.gradient_checkpointing else 'off'}{why}."


def measure_memory(trainer) -> dict[str, int]:
    """Bytes by part after a training, and the peak since `reset_peak`; the activations are what that held besides.

    What was in use before the model was loaded does not count.
    """
    counted = _count(trainer)
    states = trainer.optimizer.state.values()
    counted["optimizer"] = sum(_bytes(value for value in state.values() if torch.is_tensor(value)) for state in states)
    return counted | {"total": memory.peak_since_reset() - memory.before_all()}


def memory_table(estimate: dict[str, int], measured: dict[str, int] | None = None) -> str:
    """Estimate, and what was measured beside it, in MiB."""
    if not estimate:
        return "Memory: not estimated; the pairs are streamed, the weights lie in pieces, or the trial did not fit."
    estimate = estimate | {"peak": sum(estimate[part] for part in PARTS)}
    if measured:
        activations = measured["total"] - sum(measured[part] for part in PARTS[:4])
        measured = measured | {"activations": activations, "peak": measured["total"]}
    lines = [f"{'Memory, MiB':<14}{'estimated':>10}" + (f"{'measured':>10}" if measured else "")]
    for part in (*PARTS, "peak"):
        line = f"  {part:<12}{estimate[part] / 2**20:>10,.0f}"
        if measured and part in measured:
            line += f"{measured[part] / 2**20:>10,.0f}" + "  with the runtime" * (part == "activations")
        lines.append(line)
    return "\n".join(lines)


def _count(trainer) -> dict[str, int]:
    tensors = [*trainer.model.named_parameters(), *trainer.model.named_buffers()]
    reference = [] if trainer.ref_model is None else trainer.ref_model.parameters()
    return {
        "weights": _bytes(tensor for name, tensor in tensors if ".ref." not in name),
        "gradients": _bytes(p for p in trainer.model.parameters() if p.requires_grad),
        "reference": _bytes(reference) + _bytes(tensor for name, tensor in tensors if ".ref." in name),  # a frozen copy
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
        return tensor.detach()  # an output that is kept whole would keep its graph, and that it, for ever

    tokens_seen = trainer._total_train_tokens
    devices = [] if model.device.type == "cpu" else [model.device]  # whose random numbers go on as if nothing had been
    try:
        with (
            torch.enable_grad(),  # nothing is kept without
            torch.random.fork_rng(devices),
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            trainer.accelerator.autocast(),  # as in training, where accelerate puts it around the model's forward
            without_gathering(trainer.accelerator),
            in_mode(model, training=True),
        ):
            trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))
    finally:  # after running out of memory too: the caller may go on
        if checkpointing:
            model.gradient_checkpointing_disable()  # the training switches it on itself
        trainer._total_train_tokens = tokens_seen
        trainer._metrics["train"].clear()  # TRL would mix them into the first line that it logs
    return sum(kept.values())
