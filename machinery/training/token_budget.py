"""Bound the memory of a training step by a number of tokens instead of a number of pairs.

    class MyTrainer(TokenBudget, DPOTrainer): ...        # with args.max_tokens_per_batch

A batch whose rows, with their padding, hold more tokens is split into parts that do not. Their gradients add up to that
of the whole batch, and so do the metrics: training is the same, and only its memory is another. It is not for losses
that couple the pairs of a batch: see COUPLED. The router loss of a mixture of experts is one.
"""

from collections import defaultdict
from contextlib import nullcontext

import torch
from transformers.utils import logging

from ..common.errors import UserError
from ..common.for_a_while import without_gathering
from .weighted_metrics import count, merge

logger = logging.get_logger(__name__)

COUPLED = ("aot", "aot_unpaired", "sft")  # they sort a batch, or average over its tokens


class TokenBudget:
    """Before TRL's DPOTrainer among a class's bases: `args.max_tokens_per_batch` splits what is larger."""

    _share_of_batch = 1.0

    def __init__(self, model, ref_model=None, args=None, *others, **kwargs):
        """As TRL's. UserError where the model has a router loss, which couples the pairs of a batch."""
        config = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
        weight = getattr(args, "router_aux_loss_coef", None)
        weight = getattr(config, "router_aux_loss_coef", 0.0) if weight is None else weight
        if getattr(args, "max_tokens_per_batch", None) and weight and hasattr(config, "output_router_logits"):
            raise UserError(
                "--max_tokens_per_batch splits batches, and the router loss of this mixture of experts is of a whole one: its "
                "gradient would change. --router_aux_loss_coef 0 trains without it."
            )
        super().__init__(model, ref_model, args, *others, **kwargs)

    def compute_loss(self, *args, **kwargs):
        """TRL's loss, times the share that this part is of its batch."""
        loss = super().compute_loss(*args, **kwargs)
        return loss if self._share_of_batch == 1 else loss * self._share_of_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One backward pass a part; processes are synchronised after the last."""
        budget = getattr(self.args, "max_tokens_per_batch", None)
        if not budget or self._is_vision_dataset:
            return super().training_step(model, inputs, num_items_in_batch)
        lengths = pair_lengths(inputs, is_shared=getattr(self, "shared_prompt_refusal", "as in TRL") is None)
        parts = plan_parts(lengths, budget)
        if self.args.world_size > 1:  # sharded weights are gathered part by part, so all processes need as many
            most = torch.tensor([len(parts)], device=self.accelerator.device)
            parts = split_further(parts, int(self.accelerator.gather(most).max()))
        if max(lengths) > budget:
            logger.warning_once(f"A pair of {max(lengths)} tokens is over --max_tokens_per_batch {budget} by itself.")
        if len(parts) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        loss, state = 0.0, self.accelerator.gradient_state
        is_last_of_step = state.sync_gradients
        noted, tokens_seen, measured = self._metrics["train"], self._total_train_tokens, []
        try:
            for number, part in enumerate(parts):
                self._share_of_batch = len(part) / len(lengths)
                self._metrics["train"], taken = defaultdict(list), take_pairs(inputs, part)
                is_last = number == len(parts) - 1
                if self.is_deepspeed_enabled:  # its backward pass makes the step too, where gradients are synchronised
                    state._set_sync_gradients(is_last and is_last_of_step)
                with nullcontext() if is_last else self.accelerator.no_sync(model), without_gathering(self.accelerator):
                    loss = loss + super().training_step(model, taken, num_items_in_batch)
                measured.append((self._metrics["train"], count(taken)))
        finally:
            self._share_of_batch = 1.0
            self._metrics["train"] = noted
            state._set_sync_gradients(is_last_of_step)
        for name, value in merge(measured, self.accelerator).items():
            noted[name].append(value)
        tokens = self.accelerator.gather(inputs["attention_mask"].sum().to(self.accelerator.device)).sum().item()
        self._total_train_tokens = tokens_seen + tokens // self._tp_size
        noted["num_tokens"] = [self._total_train_tokens]
        return loss


def pair_lengths(inputs: dict, is_shared: bool) -> list[int]:
    """The tokens that each pair of a batch puts through the model: its prompt once (its last token twice) or twice, and both answers."""
    rows = inputs["attention_mask"].sum(dim=1)  # (2B,)
    chosen, rejected = rows.chunk(2)
    prompts = (rows - inputs["completion_mask"].sum(dim=1)).chunk(2)[0]
    return (chosen + rejected - prompts + 1 if is_shared else 2 * torch.maximum(chosen, rejected)).tolist()


def plan_parts(lengths: list[int], budget: int) -> list[list[int]]:
    """Which pairs go together: like lengths, and in each part no more than `budget` tokens with the padding."""
    parts: list[list[int]] = []
    for pair in sorted(range(len(lengths)), key=lambda pair: -lengths[pair]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= budget:
            parts[-1].append(pair)
        else:
            parts.append([pair])
    return parts


def split_further(parts: list[list[int]], count: int) -> list[list[int]]:
    """As many parts as asked for, by halving the largest; each keeps a pair at least."""
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda number: len(parts[number]))
        whole = parts[largest]
        if len(whole) < 2:
            raise ValueError(f"{sum(map(len, parts))} pairs cannot make {count} parts")
        parts[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return parts


def take_pairs(inputs: dict, pairs: list[int]) -> dict:
    """Some pairs of a batch of [chosen rows; rejected rows], without columns that are padding in all of them."""
    count = len(inputs["input_ids"]) // 2
    rows = torch.tensor([*pairs, *(pair + count for pair in pairs)], device=inputs["input_ids"].device)
    taken = {
        name: values[rows] if len(values) == 2 * count else values[rows[: len(pairs)]]
        for name, values in inputs.items()
    }
    width = int(taken["attention_mask"].sum(dim=1).max())  # padded on the right
    return {name: values[:, :width] if values.ndim > 1 else values for name, values in taken.items()}
