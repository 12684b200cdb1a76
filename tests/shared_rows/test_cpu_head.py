"""The head on a CPU gives TRL's numbers, whatever the vocabulary, the precision and what is asked of it."""

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from machinery.shared_rows.cpu_head import CPUHead, cpu_head

METRICS = ("log_probs", "entropy", "mean_logits", "is_top1")


def both(dtype=torch.float32, vocabulary=2500, count=700, bias=None, outputs=METRICS, **settings):
    """Results and gradients of TRL's head and of ours, on the same made-up states."""
    values = []
    for head in (ChunkedLogProbFunction, CPUHead):
        draw = torch.Generator().manual_seed(0)
        hidden = torch.randn(count, 16, generator=draw).to(dtype).requires_grad_()
        weight = torch.randn(vocabulary, 16, generator=draw).to(dtype).requires_grad_()
        targets = torch.randint(vocabulary, (count,), generator=draw)
        weights = torch.randn(count, generator=draw)
        rest = dict(temperature=1.0, softcap=None, logit_scale=1.0) | settings
        results = head.apply(
            hidden, weight, bias, targets, rest["temperature"], 32768, rest["softcap"], rest["logit_scale"], outputs
        )
        (results[0] * weights).sum().backward()
        values.append([*(r for r in results if r is not None), hidden.grad, weight.grad])
    return values


@pytest.mark.parametrize("vocabulary", [7, 1024, 2500])
def test_results_and_gradients_are_trls(vocabulary):
    stock, ours = both(vocabulary=vocabulary)
    assert len(stock) == len(ours) == 6
    for one, other in zip(stock, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_they_are_trls_within_its_eight_bits():
    stock, ours = both(torch.bfloat16)
    for one, other in zip(stock, ours, strict=True):
        torch.testing.assert_close(other.float(), one.float(), rtol=1e-2, atol=1e-2 * one.float().abs().max().item())


def test_products_are_made_in_blocks_without_a_seam(monkeypatch):
    monkeypatch.setattr("machinery.shared_rows.cpu_head.SLOPES", 2500 * 100)  # seven blocks of tokens
    for one, other in zip(*both(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_of_equal_logits_the_first_is_the_top_one():
    hidden, weight = torch.ones(3, 1), torch.zeros(2048, 1)
    weight[[5, 1500]] = 1.0  # two largest entries, in two tiles
    results = CPUHead.apply(hidden, weight, None, torch.tensor([5, 1500, 7]), 1.0, 1, None, 1.0, METRICS)
    assert results[4].tolist() == [True, False, False]


@pytest.mark.parametrize(
    "settings",
    [
        dict(outputs=("log_probs",)),
        dict(outputs=(*METRICS, "log_sum_sq_probs")),
        dict(bias=torch.linspace(-1, 1, 2500)),
        dict(softcap=3.0),
        dict(logit_scale=0.5),
        dict(temperature=2.0),
    ],
    ids=["log-probs alone", "WPO", "bias", "softcap", "scale", "temperature"],
)
def test_what_is_rare_is_trls_too(settings):
    for one, other in zip(*both(**settings), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_the_entropy_is_trls():
    grads = []
    for head in (ChunkedLogProbFunction, CPUHead):
        hidden = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
        weight = torch.linspace(-2, 1, 40).reshape(10, 4)
        head.apply(hidden, weight, None, torch.tensor([0, 3, 9]), 1.0, 1024, None, 1.0, METRICS)[1].sum().backward()
        grads.append(hidden.grad)
    torch.testing.assert_close(*grads)


def test_it_is_in_place_only_inside_the_context():
    import trl.trainer.utils as utils

    with cpu_head(torch.device("cpu")):
        assert utils._ChunkedLogProbFunction is CPUHead
    with cpu_head(torch.device("cuda")):
        assert utils._ChunkedLogProbFunction is ChunkedLogProbFunction
    assert utils._ChunkedLogProbFunction is ChunkedLogProbFunction
