"""Before the first step: what the model will see, who the reference is, and whether the policy still equals it.

    check_start(training_args, policy, train_pairs, eval_pairs)
    show_start(trainer, "a frozen copy of demo/model")

Then every margin is 0 and the loss ln 2. Where it is not, the policy and its reference are two models, and DPO would
measure the one from another than it starts from.
"""

import logging
import math
from itertools import islice

import torch

from ..common.errors import UserError
from ..common.for_a_while import in_mode
from ..common.safe_text import say, visible
from ..hardware.estimate import choose_checkpointing
from .room import check_room

logger = logging.getLogger("dpo")


def check_start(training_args, policy, train_pairs, eval_pairs, peft_config=None, whole_models: int = 0) -> None:
    """Before the trainer is built: weights fit the precision, nothing is evaluated where nothing is held out, and what will be
    written has room.

    eval_pairs: None where nothing is held out. The rest is as `check_room` takes it. Raises UserError.
    """
    trained = [] if peft_config else [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if training_args.fp16 and any(parameter.dtype == torch.float16 for parameter in trained):
        raise UserError("--fp16 trains weights in float32, and these are in float16: --dtype float32.")
    if eval_pairs is None:
        never_evaluate(training_args)
    check_room(training_args, policy, train_pairs, peft_config, whole_models)


def never_evaluate(training_args) -> None:
    """Switch the evaluation during training off, as nothing is held out, and name what does nothing without it."""
    training_args.eval_strategy, training_args.eval_on_start = "no", False
    idle = ["--load_best_model_at_end"] * training_args.load_best_model_at_end
    for flag in ("save_strategy", "lr_scheduler_type"):
        name = getattr(getattr(training_args, flag), "value", getattr(training_args, flag))
        idle += [f"--{flag} {name}"] * (name in ("best", "reduce_lr_on_plateau", "greedy"))
    if idle:
        say(f"{' and '.join(idle)} does nothing here: no pairs are held out to measure on (--held_out_share 0.1).")


@torch.no_grad()
def show_start(trainer, reference: str, is_the_policy: bool = True) -> None:
    """Show one pair as the model sees it, say who the reference is, and check that the policy still equals it.

    reference: a description of the reference, for the reader. is_the_policy: whether it is meant to be the policy as it
    is now. Raises UserError where it is, and they differ.
    """
    rows = [*islice((row for row in trainer.train_dataset if not math.isnan(row.get("ref_chosen_logps", 0.0))), 4)]
    batch = trainer.data_collator(rows)
    _show_pair(batch, trainer.processing_class, rejected=len(rows))  # the batch is [chosen rows; rejected rows]
    say(f"\nReference: {reference}")
    if trainer.args.sync_ref_model:
        say(
            f"Every {trainer.args.ref_model_sync_steps} steps it goes {trainer.args.ref_model_mixup_alpha:g} of the way to the "
            "policy. Rewards, margins and accuracy are measured from where it is; the KL at the end from where it was."
        )
    precision = trainer.args.mixed_precision.replace("no", "fp32")
    say(f"Precision: {precision} on {trainer.accelerator.device.type}. {choose_checkpointing(trainer)}")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.logging_first_step = True
        say("The weights are sharded, so the first loss that is logged must tell: it should be ln 2 = 0.6931.")
        return
    inputs = trainer._prepare_inputs(batch)
    loss, metrics = _measure(trainer, inputs, "eval")
    _, in_training = _measure(trainer, inputs, "train")
    if not getattr(trainer, "needs_reference", True):
        say(f"Loss before training: {loss:.4f}. It has no reference, so nothing but the rate holds the policy back.\n")
        return
    if not is_the_policy:
        say(f"Loss before training: {loss:.4f}, not ln 2: the policy starts from another model than its reference.\n")
        return
    drift = abs(metrics["rewards/chosen"]) + abs(metrics["rewards/rejected"])
    args = trainer.args
    is_coarse = args.bf16 or args.fp16 or args.tf32 or args.torch_compile  # which turns TF32 on
    is_exact = trainer.model.dtype == torch.float32 and not is_coarse
    if not drift / trainer.beta < (0.01 if is_exact else 5.0):  # in nats a completion
        raise UserError(
            f"The policy is not the reference: before training their log-probs already differ by {drift / trainer.beta:.3g} nats. "
            "A checkpoint or an adapter was loaded into one of them only."
        )
    names = ("logps/chosen", "logps/rejected")
    noise = sum(abs(in_training[name] - metrics[name]) for name in names)
    if trainer.args.disable_dropout and not noise < (0.01 if is_exact else 0.5):
        logger.warning(
            f"In training mode the policy's log-probs differ by {noise:.2g} nats from those it has otherwise: something in "
            "its code is random or switched there (dropout, noise of experts), and every margin will carry that noise."
        )
    meaning, off = ", because the policy still is the reference and every margin is 0", abs(loss - math.log(2))
    if trainer.args.loss_type == ["sigmoid"] and off < 0.05:
        rounded = "" if off < 5e-5 else f", but for what {trainer.args.mixed_precision} rounds off"
        meaning = f" = ln 2{rounded}{meaning}"
    elif "sft" in trainer.args.loss_type:
        meaning = f" on the first {len(rows)} pairs. Every margin is 0; what SFT adds differs from pair to pair"
    say(
        f"Loss before training: {loss:.4f}{meaning}.\n"
        "A margin of 0 counts as wrong, so the accuracy begins low. A line of training is a mean over the steps since the last.\n"
    )


def _measure(trainer, inputs: dict, mode: str) -> tuple[float, dict[str, float]]:
    """The loss and TRL's metrics of a batch, in the precision of the training; no random number of it is drawn."""
    model, tokens_seen = trainer.model, trainer._total_train_tokens
    try:
        with (
            in_mode(model, training=mode == "train"),
            torch.random.fork_rng([] if model.device.type == "cpu" else [model.device]),
            trainer.accelerator.autocast(),
        ):
            loss = trainer.compute_loss(model, inputs).item()
    finally:
        trainer._total_train_tokens = tokens_seen
        metrics = {name: values[-1] for name, values in trainer._metrics[mode].items()}
        trainer._metrics[mode].clear()  # TRL would mix them into the first line that it logs
    return loss, metrics


def _show_pair(batch: dict, tokenizer, rejected: int) -> None:
    """The first pair of a batch, decoded; `rejected` is the row of its rejected answer."""
    say("\nOne pair as the model sees it; what is trained on stands between > and <")
    for name, row in (("chosen", 0), ("rejected", rejected)):
        ids, mask = batch["input_ids"][row], batch["completion_mask"][row].bool()
        if name == "chosen":
            say(f"  {'prompt':<9}{visible(tokenizer.decode(ids[: mask.int().argmax()]))}")
        say(f"  {name:<9}>{visible(tokenizer.decode(ids[mask]))}<")
