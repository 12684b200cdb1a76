"""A DPO trainer that computes each prompt once instead of twice, with the same losses and gradients.

DPO needs the log-probs of two answers to one prompt. TRL puts them in two rows, [prompt chosen] and
[prompt rejected], so every prompt goes through the model twice, and on CPU every position goes through the
language-model head although only the answers are scored. This file puts both answers in one row,

    prompt  chosen  last prompt token  rejected

where the rejected answer starts at the prompt's positions again and a mask keeps it from seeing the chosen one. The
repeated token is there to predict the first token of the rejected answer. Only positions that predict an answer's
token reach the head. The per-token results go back to the places where TRL expects them, so its losses, metrics,
reference log-probs and PEFT work on them unchanged. The idea is known as prefix sharing (arXiv:2410.20305).

Attention sees one long row instead of two short ones, so beside very long answers it costs more than the prompt saves.
Such a batch keeps its two rows, and so does a model that makes something else of the mask; the head still sees the
answers alone.

Use it without the rest of this project by putting it where `trl.DPOTrainer` was:

    trainer = SharedPromptDPOTrainer(model=policy, args=args, train_dataset=pairs, processing_class=tokenizer)

With `args.train_sampling_strategy = "group_by_length"` batches are made of rows of like length.

It keeps two rows, and says why, where the result of one would not be the same: `trainer.shared_prompt_refusal` holds
the reason or None. `args.shared_prompt = False` turns all of it off.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.utils import logging
from trl import DPOTrainer

from ..common.one_process import without_gathering
from ..common.token_rows import row_lengths
from .cpu_head import cpu_head
from .dropout import switch_off_dropout
from .few_layers import few_layers
from .reference_cache import CachedReference
from .token_budget import TokenBudget, take_pairs
from .weighted_metrics import count, merge

logger = logging.get_logger(__name__)

# The mask is made for these two; others (FlashAttention) take no mask of this form.
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
PER_TOKEN_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class SharedPromptDPOTrainer(TokenBudget, CachedReference, DPOTrainer):
    """TRL's DPO trainer with a forward pass that computes each prompt once. Same arguments, losses and metrics."""

    shared_prompt_refusal: str | None = "not set up yet"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._share_prompts()
        if self.args.disable_dropout and (there := switch_off_dropout(self.model)):
            logger.warning(f"Dropout inside the model's own code is set to 0 for this training: {', '.join(there)}.")

    def _precompute_ref_logps(self, *args, **kwargs):
        self._share_prompts()  # TRL calls this in its constructor, before ours gets to it
        return super()._precompute_ref_logps(*args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        """TRL's, with each batch's metrics noted once a pair: TRL's mean over batches counts a short last one as a whole."""
        pairs = len(inputs["input_ids"]) // 2  # two rows a pair
        if self.args.world_size > 1 and not self._is_vision_dataset:
            return self._predict_without_padding(model, inputs, pairs, *args, **kwargs)
        result = super().prediction_step(model, inputs, *args, **kwargs)
        for values in self._metrics["eval"].values():
            values += values[-1:] * (pairs - 1)
        return result

    def _predict_without_padding(self, model, inputs, pairs: int, *args, **kwargs):
        """On several processes: the last batch is filled up from the first rows, and those do not count a second time."""
        state, before, own = self.accelerator.gradient_state, self._metrics["eval"], pairs
        if (
            state.end_of_dataloader and state.remainder > 0
        ):  # so many rows of the last batch of all processes are its own
            own = min(max(state.remainder - self.accelerator.process_index * pairs, 0), pairs)
        inputs = take_pairs(inputs, list(range(max(own, 1))))  # a sharded model needs all processes
        self._metrics["eval"] = noted = defaultdict(list)
        try:
            with without_gathering(self.accelerator):
                result = super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self._metrics["eval"] = before
        noted["loss"].append(result[0].item())  # logged as eval_loss, in the place of Transformers' own mean
        counted = count(inputs) if own else dict.fromkeys(count(inputs), 0)
        together = int(self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device)))
        for name, value in merge([(noted, counted)], self.accelerator).items():
            before[name] += [value] * together
        before["num_tokens"] = [self._total_train_tokens]
        return result

    # For rows of this form Transformers wants a column of lengths for `group_by_length`; here they are counted.

    def _get_train_sampler(self, train_dataset=None):
        pairs = self.train_dataset if train_dataset is None else train_dataset
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return self._length_groups(pairs, group) or super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return self._length_groups(eval_dataset, self.args.eval_batch_size) or super()._get_eval_sampler(eval_dataset)

    def _length_groups(self, pairs, group: int) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(pairs, Dataset):
            return None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # What all processes together take for a step is one group, so their number changes no batch.
        group *= self.args.world_size
        return LengthGroups(row_lengths(pairs), group, seed, epoch=lambda: int(self.state.epoch or 0))

    def _share_prompts(self) -> None:
        """Put the shared forward in place of TRL's in the policy and, if it has its own weights, the reference."""
        if self.shared_prompt_refusal != "not set up yet":
            return
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        leave_alone = self._why_not_at_all()
        refusal = [leave_alone or self._why_not(policy)]
        if refusal == [None] and self.accelerator.is_main_process:  # the others may hold no weights yet
            refusal = [self._probe(policy)]
        self.shared_prompt_refusal = broadcast_object_list(refusal)[0]
        if leave_alone is None:
            share_prompt(policy, self.shared_prompt_refusal is None)
            if self.ref_model is not None:
                share_prompt(self.accelerator.unwrap_model(self.ref_model), self.shared_prompt_refusal is None)
        if self.shared_prompt_refusal is not None and getattr(self.args, "shared_prompt", True):
            logger.warning(f"Each prompt is computed twice, as in TRL: {self.shared_prompt_refusal}.")

    def _why_not_at_all(self) -> str | None:
        """Why TRL's own forward stays, head and all."""
        if not getattr(self.args, "shared_prompt", True):
            return "it was turned off"
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2):
            return "the weights are sharded, and not by FSDP2"
        if self._is_vision_dataset:
            return "the prompts hold images"
        if is_peft_model(self.model) and self.model.active_peft_config.is_prompt_learning:
            return "the adapter puts virtual tokens before the prompt"
        return None

    def _why_not(self, policy) -> str | None:
        """Why two answers cannot stand in one row."""
        config = policy.config.get_text_config()
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        if layer_types != {"full_attention"}:
            return f"the model has {', '.join(sorted(layer_types - {'full_attention'}))} layers"
        if "layer_types" not in config.to_dict() and getattr(config, "sliding_window", None):
            return "the model has sliding-window attention"
        if config._attn_implementation not in ATTENTION_IMPLEMENTATIONS:
            return f"attention by {config._attn_implementation} takes no mask of our own"
        if hasattr(config, "output_router_logits"):
            return "the router loss of a mixture of experts counts the tokens of both rows"
        return None

    def _probe(self, policy) -> str | None:
        """Run two pairs both ways: models differ in what they make of a mask, and some ignore positions.

        The two longest, since some attend only to what is near; where one row would not be shorter, those with the
        longest prompts.
        """
        # under FSDP the model is still whole here, on a CPU: there two layers of it must do, where they are fast
        device = self.accelerator.device if self.is_fsdp_enabled else None
        for rows in self._rows_to_probe():
            batch = self.data_collator([{k: v for k, v in row.items() if k.endswith("_ids")} for row in rows])
            batch = {name: tensor.to(device or policy.device) for name, tensor in batch.items()}
            labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
            plan = plan_shared_rows(batch["input_ids"], batch["attention_mask"], labels)
            if plan is not None:
                with few_layers(policy, device):
                    return self._compare(policy, batch, labels, plan)
        return "no pair would be shorter in one row"

    def _rows_to_probe(self) -> Iterator[list[dict]]:
        pairs = self.train_dataset
        if not isinstance(pairs, Dataset):
            yield list(islice(iter(pairs), 2))
            return
        for length_of in (row_lengths, lambda pairs: torch.tensor([len(ids) for ids in pairs["prompt_ids"]])):
            yield [pairs[number] for number in length_of(pairs).topk(min(2, len(pairs))).indices.tolist()]

    def _compare(self, policy, batch: dict, labels: torch.Tensor, plan: dict) -> str | None:
        was_training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                stock = policy(**batch, labels=labels, fused_lm_head=True).log_probs
                shared = planned_forward(policy, policy.forward, batch, labels, plan)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            return f"this model takes no mask of our own ({str(error).splitlines()[0]})"
        finally:
            policy.train(was_training)
        # bfloat16 keeps 8 bits: there two exact computations differ by a percent of a log-prob of about 10
        tolerance = 1e-3 if policy.dtype == torch.float32 and self.args.mixed_precision == "no" else 0.1
        difference = (stock - shared.log_probs).abs().max().item()
        if not difference < tolerance:
            return f"this model's log-probs would differ by {difference:.1g} (the mask or the positions are ignored)"
        return None


def share_prompt(model, one_row: bool = True) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` compute equal prompts once; all other calls stay as they are.

    model: a causal language model that went through TRL's `add_fused_lm_head`. one_row: False leaves each answer its
    own row, and only keeps the prompts from the head.
    """
    stock_forward = model.forward
    costs = forward_costs(model) if one_row else None

    def forward(*args, labels=None, fused_lm_head=False, **kwargs):
        if not fused_lm_head or labels is None or args:
            return stock_forward(*args, labels=labels, fused_lm_head=fused_lm_head, **kwargs)
        plan = None
        if one_row:
            plan = plan_shared_rows(kwargs["input_ids"], kwargs["attention_mask"], labels, costs)
        return planned_forward(model, stock_forward, kwargs, labels, plan or plan_two_rows(kwargs["input_ids"], labels))

    # `generate` reads the names of the arguments a model takes from the signature of its forward
    forward.__wrapped__ = stock_forward
    model.forward = forward


def forward_costs(model) -> tuple[float, float]:
    """Multiplications that a token costs, head aside, and those of a layer stack's attention between two positions."""
    config = model.config.get_text_config()
    embeddings = {
        id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module
    }
    blocks = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(blocks), 2.0 * config.num_hidden_layers * heads * head_dim


def planned_forward(model, stock_forward, inputs: dict, labels: torch.Tensor, plan: dict):
    """TRL's fused outputs for a batch of [chosen rows; rejected rows], computed as planned.

    inputs: `input_ids` (2B, L), `attention_mask` (2B, L), right-padded; other keys are passed on.
    labels: (2B, L), -100 on prompts and padding. plan: from `plan_shared_rows` or `plan_two_rows`.
    Returns per-token outputs of shape (2B, L - 1).
    """
    mask = plan["inputs"].get("attention_mask")
    if mask is not None and model.config._attn_implementation != "sdpa":  # eager attention adds the mask to its scores
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
        plan["inputs"]["attention_mask"] = mask
    with _only_states(model.base_model, plan["states"]), cpu_head(labels.device):
        outputs = stock_forward(shift_labels=plan["targets"][None], fused_lm_head=True, **(inputs | plan["inputs"]))
    for name in PER_TOKEN_OUTPUTS:
        per_target = getattr(outputs, name)  # (1, T)
        if per_target is not None:
            per_token = per_target.new_zeros(labels[:, 1:].shape)
            is_target = plan["is_target"].to(per_token.device)
            setattr(outputs, name, per_token.masked_scatter(is_target, per_target[0]))  # (2B, L - 1)
    outputs.label_mask = plan["is_target"]
    return outputs


def plan_two_rows(input_ids: torch.Tensor, labels: torch.Tensor) -> dict:
    """The rows as they are, and which hidden states predict an answer's token; see `plan_shared_rows`."""
    is_target = labels[:, 1:] != -100
    row, column = is_target.nonzero(as_tuple=True)
    return {
        "inputs": {},
        "states": row * input_ids.shape[1] + column,
        "targets": labels[:, 1:][is_target],
        "is_target": is_target,
    }


def plan_shared_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, costs: tuple[float, float] = (1.0, 0.0)
) -> dict | None:
    """Turn B pairs in 2B rows into B shared rows, and say which of their hidden states predict which token.

    input_ids, attention_mask, labels: (2B, L) as in `planned_forward`. costs: from `forward_costs`.
    Returns inputs: input_ids (B, N), position_ids (B, N), attention_mask (B, 1, N, N) with True where attention is
    allowed; states (T,): flat positions in (B, N) of the states that predict; targets (T,): the tokens they predict;
    is_target (2B, L - 1): their places in TRL's shifted layout, in the same order. None where it would cost more.
    """
    rows, length = input_ids.shape
    pairs = rows // 2
    device = input_ids.device
    is_completion = labels != -100
    ends = attention_mask.sum(dim=1)  # (2B,)
    starts = is_completion.int().argmax(dim=1)  # (2B,) the prompt's length, where there is a completion
    prompt_ends, chosen_ends = starts[:pairs, None], ends[:pairs, None]  # (B, 1)
    row_ends = chosen_ends + 1 + (ends - starts)[pairs:, None]

    position = torch.arange(length, device=device)
    in_prompt = position < prompt_ends  # (B, L)
    same_prompt = ((input_ids[:pairs] == input_ids[pairs:]) | ~in_prompt).all() & (
        starts[:pairs] == starts[pairs:]
    ).all()
    usable = same_prompt & is_completion.any(dim=1).all() & (starts > 0).all()
    padded = (ends < length).any()
    # one wait for the device, not three
    width, is_usable, is_padded = torch.stack([row_ends.max(), usable.long(), padded.long()]).tolist()
    token, attention = costs
    one_row = token * width + attention * width**2
    # Without padding the two rows need no mask, and a causal kernel computes half of the pairs of positions.
    two_rows = 2 * (token * length + attention * length**2 * (1 if is_padded else 0.5))
    if not is_usable or one_row >= two_rows:
        return None

    place = torch.arange(width, device=device)
    is_second = place >= chosen_ends  # (B, N) the repeated token and all behind it
    position_ids = torch.where(is_second, prompt_ends - 1 + place - chosen_ends, place)
    source = position_ids.clamp(max=length - 1)
    shared_ids = torch.where(is_second, input_ids[pairs:].gather(1, source), input_ids[:pairs].gather(1, source))
    position_ids = torch.where(place < row_ends, position_ids, 0)  # padding: any position the model knows

    is_first = (place >= prompt_ends - 1) & ~is_second  # the last prompt token and the chosen answer
    causal = place[:, None] >= place[None, :]  # (N, N)
    mask = causal & ~(is_second[:, :, None] & is_first[:, None, :])  # (B, N, N)

    is_target = is_completion[:, 1:]
    row, column = is_target.nonzero(as_tuple=True)  # (T,) row by row, as `masked_scatter` fills them
    pair = row % pairs
    shift = torch.where(row < pairs, 0, (chosen_ends - prompt_ends + 1).squeeze(1)[pair])
    return {
        "inputs": {"input_ids": shared_ids, "position_ids": position_ids, "attention_mask": mask[:, None]},
        "states": pair * width + column + shift,
        "targets": labels[:, 1:][is_target],
        "is_target": is_target,
    }


@contextmanager
def _only_states(backbone, states: torch.Tensor):
    """Let the backbone return the given hidden states alone, so that the head projects no others."""

    def select(module, args, output):
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.flatten(0, 1)[states.to(hidden.device)][None]  # (1, T, H)
        return output

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


class LengthGroups(Sampler):
    """Batches of rows of like length, still in random order: less padding.

    Shuffles, sorts by length within stretches of several batches, then shuffles the batches of a stretch. The order is
    a function of the seed and the epoch alone: the same on every process and after a resume.
    """

    is_reproducible = True  # so that what a training will draw can be told before it begins

    def __init__(self, lengths: torch.Tensor, group: int, seed: int, epoch: Callable[[], int], batches: int = 16):
        """lengths: one a row, (rows,). group: rows that belong together. batches: how many make a stretch."""
        self.lengths = lengths
        self.group, self.seed, self.epoch, self.batches = group, seed, epoch, batches

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator)
        for stretch in order.split(self.group * self.batches):
            stretch = stretch[self.lengths[stretch].argsort(stable=True)]
            groups = list(stretch.split(self.group))
            # Only whole groups change places: a shorter one in the middle would shift all batches behind it.
            whole = [group for group in groups if len(group) == self.group]
            for number in torch.randperm(len(whole), generator=generator).tolist():
                yield from whole[number].tolist()
            yield from (row for group in groups[len(whole) :] for row in group.tolist())
