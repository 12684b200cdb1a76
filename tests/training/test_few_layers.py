"""A large model's first layers can be run by themselves, and the model is as it was afterwards."""

import pytest
import torch
from conftest import make_llama

import dpo_utils
from machinery.models import sharded_weights
from machinery.training.few_layers import few_layers

IDS = torch.arange(5, 12)[None]


def test_two_layers_run_and_all_come_back():
    model = make_llama(num_hidden_layers=5)
    ran = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        whole = model(IDS).logits
        ran.clear()
        with few_layers(model, torch.device("cpu")):
            assert not torch.equal(model(IDS).logits, whole)
        assert ran == [0, 1]
        assert torch.equal(model(IDS).logits, whole)
    assert model.config.num_hidden_layers == len(model.model.layers) == 5


def test_they_come_back_after_an_error_too():
    model = make_llama(num_hidden_layers=5)
    with pytest.raises(ZeroDivisionError), few_layers(model, torch.device("cpu")):
        raise ZeroDivisionError
    assert len(model.model.layers) == 5


def test_nothing_is_sampled_from_a_model_that_waits_to_be_sharded(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(sharded_weights.torch.accelerator, "is_available", lambda: True)
    replies = dpo_utils.sample_at((1, 0), make_llama(), None, ["a", "b"])
    assert [reply.text for reply in replies[0]] == ["(not sampled)"] * 2
    assert "until FSDP shards it" in capsys.readouterr().out
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert not sharded_weights.waits_for_shards(make_llama())
