"""Dropout that is a number in a model's code, and no module, is switched off too."""

import torch
from transformers import OPTConfig, OPTForCausalLM

from machinery.training.dropout import switch_off_dropout


def test_a_model_in_training_mode_computes_what_it_does_otherwise():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=64, dropout=0.3, attention_dropout=0.2, layerdrop=0.1,
    )  # fmt: skip
    model, ids = OPTForCausalLM(config).eval(), torch.arange(4, 20)[None]
    expected = model(ids).logits
    model.train()
    assert not torch.allclose(model(ids).logits, expected)
    there = switch_off_dropout(model)
    assert {"OPTDecoderLayer.dropout 0.3", "OPTDecoder.layerdrop 0.1"} <= set(there)
    assert torch.equal(model(ids).logits, expected)
    assert model.config.dropout == 0.3  # what is saved is the model that was given
    assert switch_off_dropout(model) == []
