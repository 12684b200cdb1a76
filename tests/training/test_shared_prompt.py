"""The shared-prompt forward gives TRL's numbers, and steps aside where it would not."""

import os
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from conftest import LENGTHS, batch_of, make_llama
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from machinery.runs import checkpoints
from machinery.runs.checkpoints import CompleteCheckpoints
from machinery.shared_rows.shared_masks import dense_mask
from machinery.training import shared_prompt
from machinery.training.losses import TRL_LOSSES
from machinery.training.shared_prompt import (
    LengthGroups,
    SharedPromptDPOTrainer,
    forward_costs,
    plan_shared_rows,
    plan_two_rows,
    planned_forward,
    share_prompt,
)


def test_the_shared_row_is_prompt_chosen_last_prompt_token_rejected():
    # One pair: prompt 5 6 7, chosen 8 9, rejected 3. TRL's two rows are [5 6 7 8 9] and [5 6 7 3 pad].
    input_ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 3, 0]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, -100, 8, 9], [-100, -100, -100, 3, -100]])
    plan = plan_shared_rows(input_ids, attention_mask, labels)
    assert plan["inputs"]["input_ids"].tolist() == [[5, 6, 7, 8, 9, 7, 3]]
    assert plan["inputs"]["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert plan["targets"].tolist() == [8, 9, 3]
    assert plan["states"].tolist() == [2, 3, 5]  # 7 predicts 8, 8 predicts 9, the repeated 7 predicts 3
    seen = dense_mask(plan["rows"])[0, 0, 6].tolist()  # by the rejected token: 5 6, the repeated 7, itself
    assert seen == [True, True, False, False, False, True, True]
    assert plan["rows"].counts.tolist() == [[2, 2, 1, 1, 1, 1, 1]]  # in how many of the two rows each token stands


@pytest.mark.parametrize("rows", ["one row", "two rows"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_probs_and_gradients_equal_the_stock_forward(kind, attention, rows):
    if kind == "llama":
        model = make_llama(attn_implementation=attention, num_key_value_heads=2)
    else:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        config._attn_implementation = attention
        model = GPT2LMHeadModel(config).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    batch, labels = batch_of(LENGTHS)
    weights = torch.randn(labels[:, 1:].shape, generator=torch.Generator().manual_seed(2))
    if rows == "one row":
        plan = plan_shared_rows(batch["input_ids"], batch["attention_mask"], labels)
    else:
        plan = plan_two_rows(batch["input_ids"], labels)
    results = []
    for forward in (
        lambda: model(**batch, labels=labels, fused_lm_head=True),
        lambda: planned_forward(model, model.forward, batch, labels, plan),
    ):
        model.zero_grad()
        outputs = forward()
        (outputs.log_probs * weights).sum().backward()
        results.append((outputs, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (stock, stock_gradients), (shared, shared_gradients) = results
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(shared, name), getattr(stock, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(shared.is_top1, stock.is_top1)
    assert len(stock_gradients) == len(shared_gradients)
    for ours, theirs in zip(shared_gradients, stock_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("lengths", [[(0, 3, 4)], [(1, 30, 30)]], ids=["no prompt", "nothing to gain"])
def test_two_rows_stay_where_they_are_no_more_work(lengths):
    batch, labels = batch_of(lengths, max_length=None)
    assert plan_shared_rows(batch["input_ids"], batch["attention_mask"], labels) is None


def test_long_answers_keep_two_rows_because_attention_would_cost_more():
    costs = forward_costs(make_llama())
    for answer, gains in ((10, True), (2_000, False)):
        batch, labels = batch_of([(60, answer, answer)], max_length=None)
        assert (plan_shared_rows(batch["input_ids"], batch["attention_mask"], labels, costs) is not None) == gains


def pairs_dataset():
    """Prompts and answers of all lengths, an empty prompt and answers of one token among them; some are cut."""
    rows = [
        {"prompt": "the cat " * n, "chosen": "sat on the mat", "rejected": "ran over the hill and " + "on " * n}
        for n in range(2, 8)
    ]
    rows += [
        {"prompt": "", "chosen": "the cat sat", "rejected": "on"},
        {"prompt": "the", "chosen": "", "rejected": "a"},
    ]
    return Dataset.from_list(rows)


def config_for(tmp_path, **options):
    settings = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=3, learning_rate=1e-2)
    settings |= dict(per_device_train_batch_size=4, logging_steps=1, save_strategy="no", disable_tqdm=True)
    return DPOConfig(**settings | options)


def history_of(trainer_class, model, tokenizer, tmp_path, adapter=None, **options):
    pairs = pairs_dataset()
    if {"ipo", "sigmoid_norm"} & set(options.get("loss_type", ())):
        # of answers behind an empty prompt TRL counts a token that it does not score: see test_public_reports.py
        pairs = pairs.filter(lambda row: row["prompt"] != "")
    trainer = trainer_class(
        model=model,
        args=config_for(tmp_path, **options),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    return trainer, [logs for logs in trainer.state.log_history if "loss" in logs]


@pytest.mark.parametrize("loss_type", TRL_LOSSES)
def test_training_has_the_losses_and_gradients_of_trls_trainer(loss_type, base_model_folder, base_tokenizer, tmp_path):
    """Whole models ask the reference at every step; adapters, tried with two losses, beforehand."""
    adapters = {None: None}
    if loss_type in ("sigmoid", "ipo"):
        adapters["lora"] = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    for name, adapter in adapters.items():
        histories = []
        for trainer_class in (DPOTrainer, SharedPromptDPOTrainer):
            model = GPT2LMHeadModel.from_pretrained(base_model_folder)
            options = dict(loss_type=[loss_type], max_length=24, precompute_ref_log_probs=name is not None)
            if loss_type in ("exo_pair", "robust"):
                options["label_smoothing"] = 0.1
            trainer, logs = history_of(trainer_class, model, base_tokenizer, tmp_path, adapter, **options)
            histories.append(torch.tensor([[entry["loss"], entry["grad_norm"]] for entry in logs]))
        assert trainer.shared_prompt_refusal is None
        torch.testing.assert_close(*histories, rtol=1e-5, atol=1e-6)


def train_sharded(rank, folder):
    """One of two processes: three steps with fully_shard and one row a pair, against whole weights and two rows."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    batch, labels = batch_of(LENGTHS[2 * rank :][:2])
    losses = {}
    for kind in ("whole", "sharded"):
        model = make_llama(attn_implementation="sdpa").train()
        add_fused_lm_head(model)
        if kind == "sharded":
            share_prompt(model)
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
            assert isinstance(model, FSDPModule)
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses[kind] = []
        for _ in range(3):
            loss = -model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(dim=1).mean()
            loss.backward()
            if kind == "whole":
                for parameter in model.parameters():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= 2
            optimizer.step()
            optimizer.zero_grad()
            losses[kind].append(loss.item())
    checkpoints.gather_object = lambda values: values  # asks accelerate, which does not know of these processes
    CompleteCheckpoints._stop_unless_finite(model, None)  # FSDP2's weights are of a type of their own
    torch.save(losses, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads live on after destroy_process_group, and may abort an interpreter that shuts down


@pytest.mark.thorough
def test_it_trains_the_same_under_fully_shard(tmp_path):
    torch.multiprocessing.spawn(train_sharded, (tmp_path,), nprocs=2)
    for rank in range(2):
        losses = torch.load(tmp_path / f"{rank}.pt")
        assert losses["sharded"] == pytest.approx(losses["whole"], rel=1e-5)
        assert losses["whole"][2] < losses["whole"][0]


def test_a_short_last_batch_counts_by_its_pairs(base_model_folder, base_tokenizer, tmp_path):
    trainer, _ = history_of(
        SharedPromptDPOTrainer, GPT2LMHeadModel.from_pretrained(base_model_folder), base_tokenizer, tmp_path
    )
    measured = []
    for size in (7, 8):  # the second batch of one pair; all in one
        trainer.args.per_device_eval_batch_size = size
        measured.append(trainer.evaluate(trainer.train_dataset))
    for name in ("rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/rejected"):
        assert measured[0][f"eval_{name}"] == pytest.approx(measured[1][f"eval_{name}"], rel=1e-5), name
    assert measured[0]["eval_rewards/margins"] != 0


def reloaded(model, folder):
    """A model as it comes from disk: with a name, from which TRL finds its reference."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def test_a_model_that_ignores_the_mask_is_found_by_the_probe(base_tokenizer, tmp_path, caplog):
    torch.manual_seed(0)
    model = MptForCausalLM(MptConfig(vocab_size=len(base_tokenizer), d_model=32, n_heads=4, n_layers=2))
    model = reloaded(model, tmp_path / "mpt")
    trainer, logs = history_of(SharedPromptDPOTrainer, model, base_tokenizer, tmp_path)
    assert "would differ" in trainer.shared_prompt_refusal
    assert logs[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_probe_holds_one_row_to_two_also_where_the_longest_pairs_keep_two(base_tokenizer, tmp_path):
    """Long answers are no cheaper behind one prompt, so these pairs alone would be two rows held to two rows."""
    torch.manual_seed(0)
    model = MptForCausalLM(MptConfig(vocab_size=len(base_tokenizer), d_model=32, n_heads=4, n_layers=2))
    model = reloaded(model, tmp_path / "mpt")
    pairs = Dataset.from_list([{"prompt": "the cat", "chosen": "sat " * 300, "rejected": "ran " * 300}] * 4)
    trainer = SharedPromptDPOTrainer(
        model=model, args=config_for(tmp_path, max_length=None), train_dataset=pairs, processing_class=base_tokenizer
    )
    assert "would differ" in trainer.shared_prompt_refusal


def test_attention_to_what_is_near_is_found_by_the_longest_pairs(base_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = GPTNeoConfig(vocab_size=len(base_tokenizer), hidden_size=32, num_layers=2, num_heads=2, window_size=6,
                          attention_types=[[["global", "local"], 1]])  # fmt: skip
    model = reloaded(GPTNeoForCausalLM(config), tmp_path / "neo")
    trainer, _ = history_of(SharedPromptDPOTrainer, model, base_tokenizer, tmp_path)
    assert "would differ" in trainer.shared_prompt_refusal


def test_a_model_that_takes_no_such_mask_trains_as_in_trl(base_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(base_tokenizer), hidden_size=32, n_layer=2, n_head=2)
    model = reloaded(BloomForCausalLM(config), tmp_path / "bloom")
    trainer, logs = history_of(SharedPromptDPOTrainer, model, base_tokenizer, tmp_path)
    assert "takes no mask" in trainer.shared_prompt_refusal
    assert logs[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


class WaitsForShards(SharedPromptDPOTrainer):
    """Up to its training this trainer takes its weights for ones that FSDP2 will cut up; a CPU has no FSDP to be had."""

    def _share_prompts(self):
        with patch.object(Accelerator, "is_fsdp2", True):
            self.is_fsdp_enabled = True
            super()._share_prompts()
            self.is_fsdp_enabled = False


@pytest.mark.parametrize("is_wrong", [False, True])
def test_where_weights_will_be_sharded_rows_are_compared_at_the_first_step_and_not_before(
    is_wrong, base_model_folder, base_tokenizer, tmp_path, monkeypatch
):
    if is_wrong:  # a second answer that sees the first: only the comparison can find out
        monkeypatch.setattr(shared_prompt, "layer_masks", lambda *_: None)
    args = config_for(tmp_path, max_steps=2)
    passes = []
    model = GPT2LMHeadModel.from_pretrained(base_model_folder, attn_implementation="sdpa")
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    given = dict(args=args, train_dataset=pairs_dataset(), processing_class=base_tokenizer)
    trainer = WaitsForShards(model=model, **given)
    assert passes == []
    trainer.train()
    assert ("would differ" in (trainer.shared_prompt_refusal or "")) == is_wrong
    stock = DPOTrainer(model=GPT2LMHeadModel.from_pretrained(base_model_folder), **given)
    stock.train()
    ours, theirs = ([log["loss"] for log in t.state.log_history if "loss" in log] for t in (trainer, stock))
    assert ours == pytest.approx(theirs, abs=2e-6)


def test_turned_off_means_trls_own_forward(base_model_folder, base_tokenizer, tmp_path):
    args = config_for(tmp_path)
    args.shared_prompt = False
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    trainer = SharedPromptDPOTrainer(
        model=model, args=args, train_dataset=pairs_dataset(), processing_class=base_tokenizer
    )
    assert trainer.shared_prompt_refusal == "it was turned off"


def test_length_groups_hold_every_row_once_and_like_lengths_together():
    lengths = torch.randint(10, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LengthGroups(torch.tensor(lengths), group=8, seed=1, epoch=lambda: 0))
    assert sorted(order) == list(range(1000))
    batches = [order[start : start + 8] for start in range(0, 1000, 8)]
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches)
    assert spread < 25  # at random it would be about 150


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(LengthGroups(torch.arange(50), group=4, seed=seed, epoch=lambda epoch=epoch: epoch))
        for seed, epoch in [(1, 0), (1, 1), (2, 5)]
    }
    assert len(set(orders.values())) == 3
    assert orders[1, 0] == tuple(LengthGroups(torch.arange(50), group=4, seed=1, epoch=lambda: 0))
