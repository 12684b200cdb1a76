"""A model's log-probabilities over many completions of any length, in batches that memory holds.

def of_the_tokens(logps, batch):  # (B, L-1, V): after each token but the last, of every token of the vocabulary
    return logps.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)

logps = sum_over_completions(model, rows, pad_token_id, of_the_tokens)

with at_hand(reference, policy) as of_reference:
    logps = of_reference(batch)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter

from ..common.for_a_while import in_mode
from ..common.safe_text import progress_bar
from .generation import own_precision
from .sharded_weights import on_whole_weights

MOST_LOGITS = 2**26  # of a batch: a quarter of a gigabyte in float32, of which a comparison of two models holds three


@torch.no_grad()
@on_whole_weights
def sum_over_completions(
    model: PreTrainedModel,
    rows: list[tuple[list[int], list[int]]],
    pad_token_id: int,
    value: Callable[[torch.Tensor, dict], torch.Tensor],
    batch_size: int = 32,
    progress: str | None = None,
) -> torch.Tensor:
    """A sum over each completion's tokens, (len(rows),), float32, on the CPU.

    rows: pairs of token lists (prompt, completion). value(logps, batch): (B, L-1), a number for each predicted token;
    logps are those of the whole vocabulary, (B, L-1, V), and batch is what the model was given.
    """
    sums = torch.zeros(len(rows))
    batches = batches_by_length(rows, batch_size, MOST_LOGITS // model.config.get_text_config().vocab_size)
    with in_mode(model, training=False):
        for numbers in progress_bar(batches, desc=progress, disable=progress is None or len(batches) == 1):
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
            batch = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
            values = value(next_token_logps(model, batch), batch)
            sums[numbers] = (values * is_completion[:, 1:].to(model.device)).sum(-1).cpu()
    return sums


def next_token_logps(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """After each token but the last, the log-probability of every token of the vocabulary: (B, L-1, V), float32."""
    with own_precision(model):
        return model(**batch).logits[:, :-1].float().log_softmax(-1)


def batches_by_length(rows: list[tuple[list[int], list[int]]], most_rows: int, most_tokens: int) -> list[list[int]]:
    """The numbers of rows, batch by batch: like lengths together, and no more tokens in one, padding included."""
    batches = []
    for number in sorted(range(len(rows)), key=lambda number: sum(map(len, rows[number]))):
        width = sum(map(len, rows[number]))  # of the batch that ends with this row
        if not batches or len(batches[-1]) == most_rows or (len(batches[-1]) + 1) * width > most_tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


@contextmanager
def at_hand(reference: PreTrainedModel | None, policy: PreTrainedModel) -> Iterator[Callable[[dict], torch.Tensor]]:
    """For a block: the reference's `next_token_logps` of a batch, wherever the batch lies.

    reference: None where the policy is an adapter and its reference lies underneath: the model with the adapter off, or
    the frozen copy that TRL keeps as "ref".
    """

    @on_whole_weights
    def logps(model, batch):
        return next_token_logps(model, {name: tensor.to(model.device) for name, tensor in batch.items()})

    def of_reference(batch):
        underneath = nullcontext()
        if reference is None:
            underneath = use_adapter(policy, "ref" if "ref" in policy.peft_config else None)
        with underneath:
            return logps(reference or policy, batch)

    if reference is None:
        yield of_reference
        return
    try:
        reference.to(policy.device)
    except torch.OutOfMemoryError:  # beside the optimizer: then slowly, where it was
        reference.to("cpu")
    with in_mode(reference, training=False):
        yield of_reference
