"""An adapter belongs to one base and to modules that are there; merged, it is the base with it."""

import json

import pytest
import torch
from conftest import make_llama
from lora_trainers import sft_adapter
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from trl import DPOConfig, ModelConfig

from dpo_utils import load_any, load_model, load_tokenizer
from machinery.common.errors import UserError
from machinery.models.adapters import check_targets, merge_adapter, new_adapter, noted_beside, weights_fingerprint


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(base_model_folder, tmp_path):
    adapter = sft_adapter(base_model_folder, tmp_path)

    def load(name):
        model, tokenizer = load_model(name)
        if name != str(base_model_folder):
            model.lm_head.weight.data *= 1.5
        return model, tokenizer

    tokenizer = load_tokenizer(str(base_model_folder))
    with pytest.raises(UserError, match="not the base with its adapter"):
        merge_adapter(load, str(base_model_folder), adapter, tokenizer, [[1, 2, 3]])
    assert not any("merged" in path.name for path in adapter.iterdir())


def test_the_fingerprint_of_a_base_is_the_same_with_an_adapter_on_it(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    alone = weights_fingerprint(base)
    config = LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"], use_dora=True, task_type="CAUSAL_LM")
    assert weights_fingerprint(get_peft_model(base, config)) == alone
    for config in (
        IA3Config(target_modules=["c_attn"], feedforward_modules=[], task_type="CAUSAL_LM"),
        VeraConfig(target_modules=["c_attn"], r=2, task_type="CAUSAL_LM"),
    ):
        assert weights_fingerprint(get_peft_model(load_model(str(base_model_folder))[0], config)) == alone
    other, _ = load_model(str(base_model_folder))
    other.transformer.ln_f.weight.data += 1
    assert weights_fingerprint(other) != alone
    assert weights_fingerprint(load_model(str(base_model_folder), dtype=torch.bfloat16)[0]) == alone
    assert weights_fingerprint(load_model(str(base_model_folder), dtype=torch.float16)[0]) is None  # rounded otherwise
    other.transformer.ln_f.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    assert weights_fingerprint(other) is None


def test_a_single_target_is_a_name_and_no_pattern(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    model_args = ModelConfig(use_peft=True, lora_target_modules=["c_attn"])
    config = new_adapter(base, model_args, DPOConfig(output_dir="unused", bf16=False, use_cpu=True))
    names = [name for name, _ in get_peft_model(base, config).named_parameters() if "lora_A" in name]
    assert len(names) == base.config.n_layer


def test_a_module_to_save_that_is_not_there_is_refused(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    check_targets(base, None, 8, ["wte"])
    with pytest.raises(UserError, match="--lora_modules_to_save wteX: the model has no such module"):
        check_targets(base, None, 8, ["wteX"])


def test_on_a_quantised_base_an_adapter_stays_beside_it(base_model_folder, tmp_path, monkeypatch):
    def load_quantised(name, **kwargs):
        model, tokenizer = load_model(name, **kwargs)
        model.is_quantized = True  # rounded weights are no place to add anything to
        return model, tokenizer

    monkeypatch.setattr("dpo_utils.load_model", load_quantised)
    model, _ = load_any(str(sft_adapter(base_model_folder, tmp_path)))
    assert isinstance(model, PeftModel)


def test_an_adapter_brings_the_tokenizer_it_was_trained_with_and_the_revision_of_its_base(base_model_folder, tmp_path):
    folder = sft_adapter(base_model_folder, tmp_path)
    _, tokenizer = load_any(str(folder))
    assert tokenizer.chat_template is None  # the base's
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": "v2"}))
    assert load_any(str(folder))[1].chat_template == tokenizer.chat_template
    assert noted_beside(str(folder)) == {"revision": "v2", "tokenizer_from": str(folder)}


def test_targets_that_match_nothing_are_named_with_those_there_are(base_model_folder):
    model, _ = load_model(str(base_model_folder))
    with pytest.raises(ValueError, match="q_porj matches nothing; there are c_attn, c_fc, c_proj, or all-linear"):
        check_targets(model, ["c_attn", "q_porj"], 8)
    check_targets(model, "all-linear", 8)
    widest = max(side for block in model.transformer.h for side in (block.mlp.c_fc.nx, block.mlp.c_fc.nf))
    check_targets(model, "all-linear", widest)
    with pytest.raises(UserError, match=f"longest side of the model's matrices, {widest}"):
        check_targets(model, "all-linear", widest + 1)


def lora(**options):
    return ModelConfig(use_peft=True, **options)


def tiny_mamba():
    config = Mamba2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_heads=2, head_dim=16, state_size=8, n_groups=1, expand=2
    )
    return Mamba2ForCausalLM(config)


def tiny_mixture():
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def adapted(model, capsys, **options):
    """The names that get an adapter, or are trained whole, and what was said."""
    policy = get_peft_model(model, new_adapter(model, lora(**options), DPOConfig("out", use_cpu=True, bf16=False)))
    trained = {name.split(".lora_")[0].split(".modules_to_save")[0].rsplit(".", 1)[-1] for name, p in policy.named_parameters() if p.requires_grad}  # fmt: skip
    return trained, capsys.readouterr().out


def test_embeddings_get_an_adapter_and_the_head_is_trained_whole(tiny_llama, capsys):
    assert adapted(tiny_llama, capsys, lora_target_modules=["embed_tokens"])[0] == {"embed_tokens"}
    trained, _ = adapted(make_llama(), capsys, lora_target_modules=["q_proj"], lora_modules_to_save=["lm_head"])
    assert trained == {"q_proj", "lm_head"}
    with pytest.raises(UserError, match="--lora_modules_to_save lm_head trains the head whole"):
        check_targets(make_llama(), ["lm_head"], 8)


def test_a_mamba_s_all_linear_leaves_out_what_peft_refuses(capsys):
    trained, said = adapted(tiny_mamba(), capsys, lora_target_modules=["all-linear"])
    assert trained == {"in_proj"}
    assert "out_proj" in said
    with pytest.raises(UserError, match="in_proj work, and all-linear takes those"):
        check_targets(tiny_mamba(), ["out_proj"], 8)


def tiny_gpt_oss():
    config = GptOssConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    return GptOssForCausalLM(config)


def test_experts_in_one_tensor_are_found_by_their_old_names_where_peft_knows_them(capsys):
    trained, said = adapted(tiny_mixture(), capsys, lora_target_modules=["all-linear"])
    assert "experts" in trained
    assert "leaves the experts out" not in said
    assert "experts" in adapted(tiny_mixture(), capsys, lora_target_modules=["w1", "w3"])[0]
    with pytest.raises(UserError, match="without also targeting w3"):
        adapted(tiny_mixture(), capsys, lora_target_modules=["q_proj", "w1"])


def test_experts_in_one_tensor_are_parameters_where_it_does_not(capsys):
    trained, said = adapted(tiny_gpt_oss(), capsys, lora_target_modules=["all-linear"])
    assert "experts" not in trained
    assert "--lora_target_parameters mlp.experts.gate_up_proj mlp.experts.down_proj" in said
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    trained, said = adapted(tiny_gpt_oss(), capsys, lora_target_modules=["q_proj"], lora_target_parameters=parameters)
    assert {"q_proj", "experts"} <= trained
    with pytest.raises(UserError, match=r"no modules: --lora_target_parameters mlp\.experts\.gate_up_proj"):
        check_targets(tiny_gpt_oss(), ["gate_up_proj"], 8)
    with pytest.raises(UserError, match=r"matches nothing; there are mlp\.experts\.gate_up_proj"):
        adapted(tiny_gpt_oss(), capsys, lora_target_parameters=["mlp.experts.w1"])
    with pytest.raises(UserError, match="without --use_dora"):
        adapted(tiny_gpt_oss(), capsys, lora_target_parameters=parameters, use_dora=True)


def test_a_head_that_is_the_embedding_is_said(capsys):
    model = make_llama(tie_word_embeddings=True)
    assert "one weight" in adapted(model, capsys, lora_target_modules=["embed_tokens"])[1]
