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
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.utils import logging
from trl import DPOTrainer

from ..common.errors import UserError
from ..common.for_a_while import in_mode, without_gathering
from ..common.token_rows import row_lengths
from ..shared_rows import flex_kernel
from ..shared_rows.cpu_head import cpu_head
from ..shared_rows.probe import check_head, try_step, why_not_the_same
from ..shared_rows.shared_masks import SharedRows, as_scores, dense_mask, layer_masks, router_counts, why_not_one_row
from .dropout import switch_off_dropout
from .reference_cache import CachedReference
from .sealed_maps import SealedMaps
from .token_budget import TokenBudget, take_pairs
from .weighted_metrics import count, merge

logger = logging.get_logger(__name__)

PER_TOKEN_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class SharedPromptDPOTrainer(TokenBudget, CachedReference, SealedMaps, DPOTrainer):
    """TRL's DPO trainer with a forward pass that computes each prompt once. Same arguments, losses and metrics."""

    shared_prompt_refusal: str | None = "not set up yet"
    _forwards: tuple[Callable, ...] = ()  # of the policy, and of the reference if it has weights of its own
    shared_prompt_kernel: str | None = None
    _is_to_be_compared = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._share_prompts()

    def _precompute_ref_logps(self, *args, **kwargs):
        self._share_prompts()  # TRL calls this in its constructor, before ours gets to it
        with in_mode(self.ref_model or self.model, training=False):  # an adapter's dropout is still on
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
        """Put the planned forward in place of TRL's in the policy and, if it has its own weights, the reference."""
        if self.shared_prompt_refusal != "not set up yet":
            return
        self._complete_reference()  # once: TRL asks the reference after training too, for other pairs
        if self.args.disable_dropout and (there := switch_off_dropout(self.model)):
            logger.warning(f"Dropout inside the model's own code is set to 0 for this training: {', '.join(there)}.")
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        reference = None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model)
        refusal = self._why_not_at_all()
        if refusal is None:
            self._forwards = tuple(share_prompt(model, one_row=False) for model in (policy, reference) if model)
        can_be_tried = not (self.is_deepspeed_enabled or self.is_fsdp_enabled or self._is_vision_dataset)
        if can_be_tried:
            check_head(self)
        if refusal is None:
            reasons = [why_not_one_row(forward.model) for forward in self._forwards]
            if self.args.neftune_noise_alpha:
                reasons.append("the noise of --neftune_noise_alpha goes by a row's length")
            refusal = next((reason for reason in reasons if reason is not None), None)
        # Until training begins, weights that will be sharded are whole on one process's CPU: too slow to try anything.
        self._is_to_be_compared = refusal is None and not can_be_tried
        if refusal is None and can_be_tried:
            refusal = self._why_not_the_same(self.model)
        self._decide(refusal)
        if can_be_tried:
            if refusal is None and getattr(self.args, "shared_prompt_attention", None) == "flex":
                self._use_kernel()
            try_step(self)

    def _complete_reference(self) -> None:
        """Copy what an adapter that is trained on has on an embedding: TRL's frozen copy goes by names with `.default.`."""
        has_copy = "ref" in getattr(self.model, "peft_config", {})
        for name, parameter in self.model.named_parameters() if has_copy else ():
            if name.endswith(".default"):
                self.model.get_parameter(name.removesuffix("default") + "ref").data.copy_(parameter.data)

    def _use_kernel(self) -> None:
        """Compute shared rows by FlexAttention where it does the same on this device; or say why not."""
        models = [forward.model for forward in self._forwards]
        own = [model.config._attn_implementation for model in models]
        reasons = [flex_kernel.use_flex(model) for model in models]
        refusal = next((reason for reason in reasons if reason is not None), None)
        if refusal is None:
            refusal = self._why_not_the_same(self.model)
            self._decide(None)  # with masks the rows were the same
        if refusal is None:
            try:
                try_step(self)
            except UserError as error:
                refusal = str(error).rstrip(".")
        if refusal is None:
            self.shared_prompt_kernel = "flex"
            return
        for model, implementation in zip(models, own, strict=True):
            model.set_attn_implementation(implementation)
        logger.warning(f"Attention stays {own[0]}: {refusal}.")

    def compute_loss(self, model, inputs, *args, **kwargs):
        """TRL's. Before the first, rows are compared where that had to wait for the weights to be sharded."""
        if self._is_to_be_compared:
            self._is_to_be_compared = False
            self._decide(self._why_not_the_same(model))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_loss(self, model, inputs, return_outputs):
        """TRL's, which divides a mean by tokens that it cannot score: the first, where the whole prompt was cut away."""
        if "completion_mask" in inputs:
            mask = inputs["completion_mask"].clone()
            mask[:, 0] = 0  # nothing comes before it that it could be predicted from
            inputs = {**inputs, "completion_mask": mask}
        return super()._compute_loss(model, inputs, return_outputs)

    def _decide(self, refusal: str | None) -> None:
        self.shared_prompt_refusal = refusal
        for forward in self._forwards:
            forward.one_row = refusal is None
        if refusal is not None and getattr(self.args, "shared_prompt", True):
            logger.warning(f"Each prompt is computed twice, as in TRL: {refusal}.")

    def _why_not_the_same(self, model) -> str | None:
        [forward, *_] = self._forwards
        return why_not_the_same(self, model, forward, forward_costs(forward.model))

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


def share_prompt(model, one_row: bool = True) -> Callable:
    """Let `model(..., labels=labels, fused_lm_head=True)` compute equal prompts once; all other calls stay as they are.

    model: a causal language model that went through TRL's `add_fused_lm_head`. one_row: False leaves each answer its
    own row, and only keeps the prompts from the head. Returns the new forward, whose attribute `one_row` may be changed.
    """
    stock_forward = model.forward
    costs = None

    def plan(inputs: dict, labels: torch.Tensor, costs: tuple[float, float]) -> dict | None:
        return plan_shared_rows(inputs["input_ids"], inputs["attention_mask"], labels, costs)

    def forward(*args, labels=None, fused_lm_head=False, **kwargs):
        nonlocal costs
        if not fused_lm_head or labels is None or args:
            return stock_forward(*args, labels=labels, fused_lm_head=fused_lm_head, **kwargs)
        shared = None
        if forward.one_row:
            costs = costs or forward_costs(model)
            shared = plan(kwargs, labels, costs)
        return planned_forward(
            model, stock_forward, kwargs, labels, shared or plan_two_rows(kwargs["input_ids"], labels)
        )

    # `generate` reads the names of the arguments a model takes from the signature of its forward
    forward.__wrapped__ = stock_forward
    forward.one_row, forward.plan, forward.model = one_row, plan, model
    model.forward = forward
    return forward


def forward_costs(model) -> tuple[float, float]:
    """Multiplications that a token costs, head aside, and those of a layer stack's attention between two positions."""
    config = model.config.get_text_config()
    embeddings = {
        id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module
    }
    blocks = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)
    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    if experts:  # of which a token meets a few
        count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        if count and chosen:
            blocks -= experts * (1 - chosen / count)
    heads, attention = config.num_attention_heads, 0.0
    for layer in config.per_layer_config:  # the configuration itself, where all layers are alike
        attention += 2.0 * heads * (getattr(layer, "head_dim", None) or config.hidden_size // heads)
    return float(blocks), attention


def planned_forward(model, stock_forward, inputs: dict, labels: torch.Tensor, plan: dict):
    """TRL's fused outputs for a batch of [chosen rows; rejected rows], computed as planned.

    inputs: `input_ids` (2B, L), `attention_mask` (2B, L), right-padded; other keys are passed on.
    labels: (2B, L), -100 on prompts and padding. plan: from `plan_shared_rows` or `plan_two_rows`.
    Returns per-token outputs of shape (2B, L - 1).
    """
    counting = nullcontext()
    if plan["rows"] is not None:
        config = model.config.get_text_config()
        has_kernel = config._attn_implementation == flex_kernel.NAME
        masks = layer_masks(config, plan["rows"], flex_kernel.block_mask if has_kernel else dense_mask)
        if config._attn_implementation == "eager":
            masks = as_scores(masks, model.dtype)
        inputs = inputs | plan["inputs"] | {"attention_mask": masks}
        counting = router_counts(plan["rows"].counts)
    with _only_states(model.base_model, plan["states"]), cpu_head(labels.device), counting:
        outputs = stock_forward(shift_labels=plan["targets"][None], fused_lm_head=True, **inputs)
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
        "rows": None,
        "states": row * input_ids.shape[1] + column,
        "targets": labels[:, 1:][is_target],
        "is_target": is_target,
    }


def plan_shared_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, costs: tuple[float, float] = (1.0, 0.0)
) -> dict | None:
    """Turn B pairs in 2B rows into B shared rows, and say which of their hidden states predict which token.

    input_ids, attention_mask, labels: (2B, L) as in `planned_forward`. costs: from `forward_costs`.
    Returns inputs: input_ids (B, N), position_ids (B, N); rows: from which their masks are made; states (T,): flat
    positions in (B, N) of the states that predict; targets (T,): the tokens they predict; is_target (2B, L - 1): their
    places in TRL's shifted layout, in the same order. None where it would cost more.
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
    in_one = is_first | (is_second & (place < row_ends))
    counts = torch.where(place < prompt_ends - 1, 2.0, in_one.float())

    is_target = is_completion[:, 1:]
    row, column = is_target.nonzero(as_tuple=True)  # (T,) row by row, as `masked_scatter` fills them
    pair = row % pairs
    shift = torch.where(row < pairs, 0, (chosen_ends - prompt_ends + 1).squeeze(1)[pair])
    return {
        "inputs": {"input_ids": shared_ids, "position_ids": position_ids},
        "rows": SharedRows(position_ids, is_first, is_second, counts),
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
