"""FlexAttention for shared rows: on a GPU a mask as a tensor is the slow way, and a mask by blocks skips what is hidden.

    why_not = use_flex(model)      # None, and from now on the model takes BlockMasks; or why it stays as it is

Not yet run on a GPU; it has to be asked for (`args.shared_prompt_attention = "flex"`). The rule that decides who sees
whom is that of shared_masks.py, handed to the kernel as it stands. All else that the model does, sampling and rows of
one answer, goes through SDPA as before: which of the two is called is decided by the mask's type.
"""

from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .shared_masks import SharedRows, may_see

NAME = "sdpa_or_flex"  # under which Transformers looks the function up


def use_flex(model: PreTrainedModel) -> str | None:
    """Let a model take BlockMasks in place of masks; returns why not, in words, where it keeps its own attention."""
    config = model.config.get_text_config()
    if model.device.type != "cuda":
        return f"FlexAttention has no backward pass on {model.device.type}"
    if config._attn_implementation != "sdpa":
        return (
            f"the model's attention is {config._attn_implementation}, which does more than FlexAttention is given here"
        )
    if getattr(config, "attention_dropout", 0.0):
        return "FlexAttention knows no dropout"
    AttentionInterface.register(NAME, sdpa_or_flex)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return None if config._attn_implementation == NAME else "the model does not let its attention be chosen"


def sdpa_or_flex(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention in the form that Transformers calls: query (B, H, N, D), key and value (B, H or fewer, N, D)."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if beyond := [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise ValueError(f"FlexAttention is not given {', '.join(beyond)} here")
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    if groups > 1 and heads & (heads - 1):  # its kernels take groups of heads in powers of two
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    query, key = query.to(value.dtype), key.to(value.dtype)  # SDPA does that itself under autocast
    attend = compiled_flex() if query.is_cuda else flex_attention
    output = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=groups > 1)
    return output.transpose(1, 2).contiguous(), None


def block_mask(rows: SharedRows, **reach) -> BlockMask:
    """The rule of `may_see` for the kernel."""
    count, width = rows.position_ids.shape
    device = rows.position_ids.device
    make = compiled_block_mask() if device.type == "cuda" else create_block_mask
    return make(may_see(rows, **reach), count, None, width, width, device=device)


@cache
def compiled_flex():
    """Compiled once, for rows of every length."""
    return torch.compile(flex_attention, dynamic=True)


@cache
def compiled_block_mask():
    """Compiled, it never holds the whole mask."""
    return torch.compile(create_block_mask, dynamic=True)
