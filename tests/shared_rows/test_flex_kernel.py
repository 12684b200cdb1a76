"""FlexAttention's own form of the rule gives what a mask gives; on a CPU, where only its uncompiled form runs."""

from types import SimpleNamespace

import pytest
import torch
from conftest import LENGTHS, batch_of, make_llama
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from trl.trainer.utils import add_fused_lm_head

from machinery.shared_rows import flex_kernel
from machinery.shared_rows.shared_masks import dense_mask, may_see
from machinery.training.shared_prompt import plan_shared_rows, planned_forward


@pytest.fixture
def trains_on_a_cpu(monkeypatch):
    """PyTorch refuses the backward pass of FlexAttention on a CPU; its uncompiled form can do it."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


@pytest.mark.parametrize("reach", [{}, {"window": 6}, {"chunk": 8}])
def test_the_blocks_are_the_mask(reach):
    rows = plan_shared_rows(*row_tensors())["rows"]
    count, width = rows.position_ids.shape
    mask = create_mask(may_see(rows, **reach), count, 1, width, width, device="cpu")
    assert torch.equal(mask, dense_mask(rows, **reach))


def row_tensors():
    batch, labels = batch_of(LENGTHS)
    return batch["input_ids"], batch["attention_mask"], labels


@pytest.mark.parametrize("heads", [4, 6])  # six are no power of two: groups of heads are taken apart
def test_log_probs_and_gradients_are_those_of_a_mask(heads, trains_on_a_cpu, monkeypatch):
    monkeypatch.setattr(flex_kernel, "compiled_flex", lambda: torch_flex.flex_attention)
    AttentionInterface.register(flex_kernel.NAME, flex_kernel.sdpa_or_flex)
    AttentionMaskInterface.register(flex_kernel.NAME, sdpa_mask)
    results = []
    for implementation in ("sdpa", flex_kernel.NAME):
        model = make_llama(
            attn_implementation="sdpa", num_key_value_heads=2, num_attention_heads=heads, hidden_size=8 * heads
        )
        model.set_attn_implementation(implementation)
        add_fused_lm_head(model)
        batch, labels = batch_of(LENGTHS)
        plan = plan_shared_rows(*row_tensors())
        log_probs = planned_forward(model, model.forward, batch, labels, plan).log_probs
        log_probs.sum().backward()
        results.append((log_probs.detach(), [weight.grad for weight in model.parameters()]))
    (by_mask, gradients), (by_blocks, others) = results
    torch.testing.assert_close(by_blocks, by_mask, rtol=1e-5, atol=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients)
    for ours, theirs in zip(others, gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * largest


def test_rows_of_one_answer_go_through_sdpa_as_before():
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    output, _ = flex_kernel.sdpa_or_flex(module, query, key, key, None, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, key, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_without_a_gpu_the_attention_stays_and_says_why():
    model = make_llama(attn_implementation="sdpa")
    assert flex_kernel.use_flex(model) == "FlexAttention has no backward pass on cpu"
    assert model.config._attn_implementation == "sdpa"
