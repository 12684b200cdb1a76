"""Weights in a model's files that its configuration leaves out are refused like those that are missing."""

import pytest
from conftest import make_llama
from transformers import AutoModelForCausalLM

from machinery.models.checks import (
    FROM_SAFETENSORS,
    check_loaded,
    check_model_folder,
    said_in_a_sentence,
    unused_weights,
)


def test_want_of_memory_on_a_cpu_stays_what_it_is():
    with pytest.raises(RuntimeError, match="alloc_cpu"), said_in_a_sentence("m"):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")


def test_a_configuration_with_fewer_layers_than_the_files_is_refused(tmp_path, base_tokenizer):
    make_llama(num_hidden_layers=3, vocab_size=len(base_tokenizer)).save_pretrained(tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, **FROM_SAFETENSORS)
    check_loaded(model, report, base_tokenizer)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, num_hidden_layers=2, **FROM_SAFETENSORS)
    with pytest.raises(ValueError, match=r"9 weights of layers that config.json leaves out \(first: model.layers.2"):
        check_loaded(model, report, base_tokenizer)


def test_another_head_and_what_is_computed_anew_do_not_count():
    names = ["v_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "visual.blocks.0.weight"]
    assert unused_weights(make_llama(), names) == []
    assert unused_weights(make_llama(), ["model.layers.0.self_attn.q_proj.bias"]) != []


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    make_llama().save_pretrained(tmp_path)
    check_model_folder(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"an adapter beside a model's config\.json"):
        check_model_folder(str(tmp_path))
