"""Which tokens of a shared row may see which, for every kind of attention that a model's layers have.

A shared row is `prompt chosen last-prompt-token rejected`, and the rejected answer goes on at the prompt's positions.
So the way from a token back to the start of its own answer is counted in position ids, never in places: a window of 4
reaches from the second token of the rejected answer over the first to two tokens of the prompt, whatever the chosen
answer's length.

    why_not_one_row(model)                    # None, or what in the model's layers forbids it, in words
    layer_masks(config, row)                  # one mask, or a mask by type of layer, as Transformers' models take it
    with router_counts(row.counts): ...       # a mixture of experts' loss counts each token as two rows would
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.mixtral import modeling_mixtral

# Masks are made for these two; others (FlashAttention) take no mask of this form.
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
# How far back a type of layer sees, and the field of the configuration that says it.
REACHES = {
    "full_attention": {},
    "sliding_attention": {"window": "sliding_window"},
    "chunked_attention": {"chunk": "attention_chunk_size"},
}
BEYOND_A_MASK = {
    "linear_attention": "carry a state from token to token, from the first answer into the second",
    "conv": "mix neighbouring tokens, the end of the first answer into the second",
    "hybrid": "carry a state from token to token beside their attention, from the first answer into the second",
    "hybrid_sliding": "mix neighbouring tokens beside their attention, the end of the first answer into the second",
    "indexed_attention": "choose for themselves what they see",
    "compressed_sparse_attention": "see blocks of neighbouring tokens as one",
    "heavily_compressed_attention": "see blocks of neighbouring tokens as one",
    "minimax_m3_sparse": "choose for themselves what they see",
}
JITTER = ("router_jitter_noise", "input_jitter_noise", "moe_jitter_eps")  # of Mixtral, PhiMoE and DBRX among others


@dataclass
class SharedRows:
    """What the masks of B shared rows of N tokens are made from."""

    position_ids: torch.Tensor  # (B, N)
    is_first: torch.Tensor  # (B, N) bool: the last prompt token and the chosen answer
    is_second: torch.Tensor  # (B, N) bool: the repeated token, the rejected answer and the padding
    counts: torch.Tensor  # (B, N) in how many of the pair's two rows a token stands: the prompt in 2, padding in 0


def layer_reaches(config: PreTrainedConfig) -> dict[str, dict[str, int]]:
    """How far back each type of layer sees: {type: {}}, {type: {"window": w}} or {type: {"chunk": c}}.

    Raises ValueError, in words, for layers that no mask describes.
    """
    types = getattr(config, "layer_types", None)
    layers = config.per_layer_config  # the configuration itself, where all layers are alike
    if not types:
        window = getattr(layers[0], "sliding_window", None)
        return {"all": {"window": window} if window else {}}
    reaches = {}
    for number, name in enumerate(types[: config.num_hidden_layers]):
        if name in BEYOND_A_MASK:
            raise ValueError(f"the model's {name} layers {BEYOND_A_MASK[name]}")
        if name not in REACHES:
            raise ValueError(f"the model has {name} layers, for which no mask of two answers is known here")
        reach = {key: getattr(layers[number], field, None) for key, field in REACHES[name].items()}
        if any(type(value) is not int for value in reach.values()) or reaches.setdefault(name, reach) != reach:
            raise ValueError(f"the {name} layers have windows of several widths")
    return reaches


def why_not_one_row(model: PreTrainedModel) -> str | None:
    """What in a model's layers keeps two answers from standing in one row; None where nothing does."""
    config = model.config.get_text_config()
    try:
        layer_reaches(config)
    except ValueError as error:
        return str(error)
    if getattr(model, "_is_stateful", False):
        return "the model's layers carry a state from token to token, which no mask can part"
    if config._attn_implementation not in ATTENTION_IMPLEMENTATIONS:
        return f"attention by {config._attn_implementation} takes no mask of our own"
    for name in JITTER:
        if noise := getattr(config, name, None):
            return f"the model chooses its experts with noise of its own for each row ({name} {noise})"
    return None


def may_see(rows: SharedRows, window: int | None = None, chunk: int | None = None) -> Callable:
    """The rule in the form of FlexAttention's mask_mod: (batch, head, query, key) to whether the query sees the key."""
    positions, is_first, is_second = rows.position_ids, rows.is_first, rows.is_second

    def rule(batch, head, query, key):
        seen = (query >= key) & ~(is_second[batch, query] & is_first[batch, key])
        if window is not None:
            seen = seen & (positions[batch, query] - positions[batch, key] < window)
        if chunk is not None:
            seen = seen & (positions[batch, query] // chunk == positions[batch, key] // chunk)
        return seen

    return rule


def dense_mask(rows: SharedRows, **reach) -> torch.Tensor:
    """The rule of `may_see` as a tensor (B, 1, N, N), True where attention is allowed."""
    count, width = rows.position_ids.shape
    device = rows.position_ids.device
    batch = torch.arange(count, device=device)[:, None, None]
    place = torch.arange(width, device=device)
    return may_see(rows, **reach)(batch, None, place[None, :, None], place[None, None, :])[:, None]


def layer_masks(config: PreTrainedConfig, rows: SharedRows, make: Callable = dense_mask):
    """The mask that all layers share, or {type: mask} where they differ; models take either in place of their own.

    make: (rows, **reach) to a mask.
    """
    masks = {name: make(rows, **reach) for name, reach in layer_reaches(config).items()}
    return next(iter(masks.values())) if len(masks) == 1 else masks


def as_scores(masks, dtype: torch.dtype):
    """Boolean masks in the form of eager attention, which adds them to its scores."""
    if isinstance(masks, dict):
        return {name: as_scores(mask, dtype) for name, mask in masks.items()}
    return torch.zeros(masks.shape, dtype=dtype, device=masks.device).masked_fill(~masks, torch.finfo(dtype).min)


@contextmanager
def router_counts(counts: torch.Tensor):
    """A context in which the load-balancing loss, which TRL takes from Mixtral, weighs every token of a shared row.

    counts: (B, N). The loss sums over tokens that the attention mask weighs by 0 or 1, so weights of 2 count twice.
    """
    stock = modeling_mixtral.load_balancing_loss_func
    modeling_mixtral.load_balancing_loss_func = lambda logits, experts, top_k, mask: stock(
        logits, experts, top_k, counts
    )
    try:
        yield
    finally:
        modeling_mixtral.load_balancing_loss_func = stock
