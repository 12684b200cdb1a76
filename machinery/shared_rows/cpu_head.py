"""The language-model head on a CPU: TRL's per-token log-probs and gradients, in a fraction of the time.

    with cpu_head(weight.device):
        outputs = model(..., labels=labels, fused_lm_head=True)

TRL projects hidden states onto the vocabulary tile by tile, so that the logits never exist as a whole. On a GPU a kernel
makes the rest of it in one pass; on a CPU it is some thirty operations on each tile, half a gigabyte large, and the
products of the backward pass are made in float32 even under bfloat16. Here a tile fits into the cache, a pass over it is
left out where the result does not need it, and the products are made in the precision of the model. Log-probs, entropy
and metrics are TRL's; what differs is the order in which numbers are added.

What is rare goes through TRL's own code: logits that are scaled, capped or shifted by a bias, WPO's weights, a gradient
of the entropy.
"""

from contextlib import contextmanager

import torch
import trl.trainer.utils
from trl.kernels import ChunkedLogProbFunction

TOKENS, ENTRIES = 512, 1024  # a tile: tokens times entries of the vocabulary, 2 MB in float32
SLOPES = 2**24  # the gradients of so many logits at once: 64 MB in float32


@contextmanager
def cpu_head(device: torch.device):
    """A context in which TRL's fused head is the one of this file, if the device is a CPU."""
    stock = trl.trainer.utils._ChunkedLogProbFunction
    if device.type == "cpu":
        trl.trainer.utils._ChunkedLogProbFunction = CPUHead
    try:
        yield
    finally:
        trl.trainer.utils._ChunkedLogProbFunction = stock


class CPUHead(ChunkedLogProbFunction):
    """TRL's autograd function of the head, with other loops. Arguments and results are TRL's."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs):
        """hidden: (N, H). weight: (V, H). targets: (N,). Returns five tensors of shape (N,), or None for some."""
        ctx.is_plain = bias is None and softcap is None and temperature == logit_scale == 1
        ctx.is_plain = ctx.is_plain and "log_sum_sq_probs" not in outputs and hidden.is_cpu  # a model on two devices
        if not ctx.is_plain:
            rest = (temperature, ENTRIES, softcap, logit_scale, outputs)
            return ChunkedLogProbFunction.forward(ctx, hidden, weight, bias, targets, *rest)
        ctx.set_materialize_grads(False)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        states, (count, vocabulary) = hidden.to(dtype), (len(hidden), len(weight))
        most, target_logit, most_before = (torch.full((count,), -torch.inf) for _ in range(3))
        total, weighted, logit_sum = (torch.zeros(count) for _ in range(3))

        for start in range(0, vocabulary, ENTRIES):
            part = weight[start : start + ENTRIES].to(dtype).t()
            for first in range(0, count, TOKENS):
                rows = slice(first, first + TOKENS)
                logits = (states[rows] @ part).float()  # (n, c)
                largest, place = logits.amax(1), targets[rows] - start
                holds_target = (place >= 0) & (place < logits.shape[1])
                target_logit[rows][holds_target] = logits[holds_target, place[holds_target]]
                if "is_top1" in outputs:  # the first of equals is the top one, as for argmax
                    before = logits[holds_target]
                    before.masked_fill_(torch.arange(logits.shape[1]) >= place[holds_target, None], -torch.inf)
                    seen = torch.where(place < 0, -torch.inf, largest)
                    seen[holds_target] = before.amax(1)
                    most_before[rows] = torch.maximum(most_before[rows], seen)
                if "mean_logits" in outputs:
                    logit_sum[rows] += logits.sum(1)
                # a running logsumexp: what was summed shrinks when a larger logit turns up
                new_most = torch.maximum(most[rows], largest)
                shrink = torch.exp(most[rows] - new_most)
                exponentials = logits.sub_(new_most[:, None]).exp()
                part_total = exponentials.sum(1)
                total[rows] = total[rows] * shrink + part_total
                if "entropy" in outputs:
                    part_weighted = exponentials.mul_(logits).sum(1) + new_most * part_total
                    weighted[rows] = weighted[rows] * shrink + part_weighted
                most[rows] = new_most

        log_z = most + total.log()
        entropy = log_z - weighted / total if "entropy" in outputs else None
        mean_logits = logit_sum / vocabulary if "mean_logits" in outputs else None
        is_top1 = (target_logit >= most) & (target_logit > most_before) if "is_top1" in outputs else None
        # all that TRL's own backward would need is kept under its names
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, log_z if entropy is None else entropy)
        ctx.compute_dtype, ctx.chunk_size = dtype, ENTRIES
        ctx.kernel_args = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False}
        ctx.mark_non_differentiable(*(values for values in (mean_logits, is_top1) if values is not None))
        return target_logit - log_z, entropy, None, mean_logits, is_top1

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy, *others):
        """The slope of log p(target) by logit j is 1[j = target] - p_j."""
        if not ctx.is_plain or grad_entropy is not None or grad_logprobs is None:
            return ChunkedLogProbFunction.backward(ctx, grad_logprobs, grad_entropy, *others)
        hidden, weight, _, targets, log_z, _ = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        states, matrix = hidden.to(ctx.compute_dtype), weight.to(ctx.compute_dtype)
        count, vocabulary = len(hidden), len(weight)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros(weight.shape) if needs_weight else None
        at_once = max(1, min(TOKENS, count, SLOPES // vocabulary))
        slopes = torch.empty(at_once, vocabulary, dtype=ctx.compute_dtype)
        for first in range(0, count, at_once):
            rows = slice(first, first + at_once)
            scale, block = grad_logprobs[rows].float(), slopes[: len(states[rows])]
            for start in range(0, vocabulary, ENTRIES):
                tile = block[:, start : start + ENTRIES]
                torch.mm(states[rows], matrix[start : start + ENTRIES].t(), out=tile)  # the logits once more
                exact = tile.float()  # the tile itself in float32
                exact.sub_(log_z[rows, None]).exp_().mul_(-scale[:, None])
                place = targets[rows] - start
                holds_target = (place >= 0) & (place < tile.shape[1])
                exact[holds_target, place[holds_target]] += scale[holds_target]
                tile.copy_(exact)
            # Whole rows at once: a product is rounded to bfloat16 at its end, as for logits that exist as a whole.
            if needs_hidden:
                grad_hidden[rows] = block @ matrix
            if needs_weight:
                grad_weight += block.t() @ states[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), *[None] * 7
