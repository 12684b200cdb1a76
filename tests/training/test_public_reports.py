"""Faults that others' DPO trainings had in 2025 and 2026, each rebuilt small, and what becomes of it here.

A test's docstring has the public report and in a sentence what went wrong there. Most are right in TRL as it is pinned,
and must stay so under what is put over it; `ipo` and `sigmoid_norm` behind a prompt that was cut away are mended here.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SHORT
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import DPOConfig

from dpo_utils import load_preferences, pair_ids
from machinery.training.shared_prompt import SharedPromptDPOTrainer
from machinery.training.token_budget import pair_lengths, plan_parts

ROWS = [
    {"prompt": "what is it? " * (1 + n % 3), "chosen": " a cat" * (1 + n % 4), "rejected": " a dog" * (1 + n % 2)}
    for n in range(8)
]
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trainer_for(tmp_path, rows=ROWS, model="demo/model", held_out=None, peft_config=None, **options):
    settings = dict(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], max_steps=2, logging_steps=1,
        per_device_train_batch_size=4, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", seed=3,
        learning_rate=1e-3, max_length=64, precompute_ref_log_probs=True,
    )  # fmt: skip
    args = DPOConfig(**settings | options)
    args.reference_cache = None
    torch.manual_seed(0)
    return SharedPromptDPOTrainer(
        AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str) else model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=AutoTokenizer.from_pretrained("demo/model"),
        peft_config=peft_config,
    )


def logged(trainer, name: str) -> list[float]:
    return [logs[name] for logs in trainer.state.log_history if name in logs]


def drawn(trainer, monkeypatch) -> list[list[int]]:
    """The tokens of every batch that a training draws."""
    seen, step = [], SharedPromptDPOTrainer.training_step
    monkeypatch.setattr(
        SharedPromptDPOTrainer,
        "training_step",
        lambda self, model, inputs, *rest: (
            seen.append(inputs["input_ids"].tolist()) or step(self, model, inputs, *rest)
        ),
    )
    trainer.train()
    monkeypatch.undo()
    return seen


def test_every_pair_weighs_the_same_in_whatever_parts_a_batch_is_computed(tmp_path):
    """https://github.com/modelscope/ms-swift/pull/10144 (2026)

    Packs of one and of three pairs were averaged each by itself, so the lone pair had half of the gradient.
    """
    rows = [ROWS[0] | {"chosen": " a cat" * 20}, *ROWS[:3]]
    trainer = trainer_for(tmp_path, rows, max_length=None)
    trainer.optimizer, trainer.current_gradient_accumulation_steps = None, 1
    inputs = next(iter(trainer.get_train_dataloader()))
    lengths = pair_lengths(inputs, is_shared=trainer.shared_prompt_refusal is None)
    three = 3 * sorted(lengths)[-2]
    assert sorted(map(len, plan_parts(lengths, three))) == [1, 3]
    gradients = []
    for budget in (None, three):
        trainer.args.max_tokens_per_batch = budget
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, inputs)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    assert gradients[0].any()
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_asking_the_reference_beforehand_changes_no_order(tmp_path, monkeypatch):
    """https://github.com/huggingface/trl/issues/7083 (2026)

    The data loader of the precomputation drew random numbers, after which the training saw the pairs in another order.
    """
    orders = [
        drawn(trainer_for(tmp_path, precompute_ref_log_probs=is_asked), monkeypatch) for is_asked in (True, False)
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 2


def test_the_loss_is_that_of_the_batch_however_it_is_accumulated(tmp_path):
    """https://github.com/huggingface/transformers/issues/35856 (2025)

    With LoRA and gradient accumulation the loss that was logged was not that of the batch.
    """
    losses = []
    for steps in (1, 4):
        options = dict(per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps)
        trainer = trainer_for(tmp_path, peft_config=LORA, **options)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("loss_type", ["ipo", "sigmoid_norm"])
def test_a_mean_over_an_answer_is_over_the_tokens_that_are_scored(loss_type, tmp_path):
    """https://github.com/huggingface/trl/issues/6879 (2026)

    Where the whole prompt was cut away, the answer's first token has no log-prob, and was counted all the same.
    """
    rows = [{"prompt": "what", "chosen": " a cat a cat a cat", "rejected": " a dog a dog a dog"}]
    trainer = trainer_for(
        tmp_path, rows, loss_type=[loss_type], beta=0.5, max_length=3, truncation_mode="keep_end",
        precompute_ref_log_probs=False,
    )  # fmt: skip
    trainer.precompute_ref_logps = True  # from the batch, so that log-ratios are what is set here
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["completion_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]  # the prompt is gone, two tokens are scored
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        scored = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).sum((1, 2))
        batch |= {"ref_chosen_logps": scored[:1] - 1.0, "ref_rejected_logps": scored[1:] + 1.0}
        loss = trainer.compute_loss(model, batch).item()
    margin = (1.0 - -1.0) / 2  # log-ratios of 1 and -1, over two tokens each
    expected = {"ipo": (margin - 1) ** 2, "sigmoid_norm": math.log1p(math.exp(-0.5 * margin))}
    assert loss == pytest.approx(expected[loss_type], abs=1e-4)


def test_a_divergence_that_a_loss_cannot_follow_is_refused(call, tmp_path):
    """https://github.com/huggingface/trl/issues/6441 (2026)

    In apo_down one of the two terms followed f_divergence_type and the other did not.
    """
    words = ("--loss_type", "apo_down", "--f_divergence_type", "js_divergence", "--output_dir", tmp_path / "out")
    code, _, error = call("basic_dpo_training", *SHORT, *words)
    assert code == 2
    assert "f_divergence_type" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_the_router_loss_is_in_the_loss_and_in_the_logs(coefficient, tmp_path):
    """https://github.com/huggingface/trl/pull/6208 (2026)

    A rewrite of the trainer had lost the load-balancing loss of mixtures of experts, unsaid.
    """
    vocabulary = AutoModelForCausalLM.from_pretrained("demo/model").config.vocab_size
    config = MixtralConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config)
    trainer = trainer_for(tmp_path, model=model, max_steps=1, router_aux_loss_coef=coefficient)
    trainer.train()
    [loss], routers = logged(trainer, "loss"), logged(trainer, "aux_loss")
    assert len(routers) == bool(coefficient)
    assert loss == pytest.approx(math.log(2) + sum(coefficient * router for router in routers), abs=1e-4)


@pytest.mark.parametrize("empty", [[], "[]"])
def test_no_tools_are_not_an_empty_list_of_tools(empty, tmp_path):
    """https://github.com/huggingface/trl/issues/5379 (2026)

    An empty list of tools went into the template, and some write another system turn for it than for none.
    """
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    tokenizer.chat_template = "{% if tools is not none %}Environment: ipython\n{% endif %}" + tokenizer.chat_template
    turns = {"prompt": [{"role": "user", "content": "Hello"}]} | {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", "Good day."), ("rejected", "What?"))
    }
    tokens = []
    for extra in ({}, {"tools": empty}):
        path = tmp_path / f"{len(tokens)}.jsonl"
        path.write_text(json.dumps(turns | extra) + "\n")
        pairs, _, _ = load_preferences(str(path), tokenizer)
        tokens.append(pair_ids(pairs[0], tokenizer))
    assert tokens[0] == tokens[1]
    assert "ipython" not in tokenizer.decode(tokens[0][0])


def test_the_magnitudes_of_dora_move_beside_a_base_in_bfloat16(tmp_path):
    """https://github.com/huggingface/trl/pull/7273 (2026)

    In bfloat16 their updates round to nothing: an adapter that was half frozen, with no error.
    """
    model = AutoModelForCausalLM.from_pretrained("demo/model", dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    trainer = trainer_for(tmp_path, model=model, peft_config=config, learning_rate=1e-4)
    magnitudes = {n: p for n, p in trainer.model.named_parameters() if "magnitude" in n}
    before = {name: parameter.detach().clone() for name, parameter in magnitudes.items()}
    trainer.train()
    assert magnitudes
    for name, parameter in magnitudes.items():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, before[name])


@pytest.mark.parametrize("batch_size", [2, 8])
def test_held_out_pairs_need_not_fill_their_batches(batch_size, tmp_path):
    """https://github.com/NVIDIA-NeMo/RL/issues/355 (2025)

    Pairs that were no multiple of the batch size ended the run.
    """
    names = ("eval_loss", "eval_logps/chosen", "eval_rewards/chosen")
    one_by_one, in_batches = (
        trainer_for(tmp_path, held_out=ROWS[:3], per_device_eval_batch_size=size).evaluate() for size in (1, batch_size)
    )
    assert [in_batches[n] for n in names] == pytest.approx([one_by_one[n] for n in names], abs=1e-4)


def test_every_held_out_pair_counts_once_on_several_processes(tmp_path, monkeypatch):
    """https://github.com/NVIDIA-NeMo/RL/pull/1029 (2025)

    The last, incomplete batch of a validation was left out; where it is filled up instead, what fills it must not count.
    """
    trainer = trainer_for(tmp_path, held_out=ROWS[:4])
    rows = [trainer.eval_dataset[number] for number in range(4)]
    model = trainer.model.eval()
    trainer.compute_loss(model, trainer.data_collator(rows[:2]))
    expected = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    # the last batch of this process: two pairs of its own, and two that fill it up
    monkeypatch.setattr(
        trainer.accelerator, "gradient_state", SimpleNamespace(end_of_dataloader=True, remainder=2), raising=False
    )
    trainer._predict_without_padding(model, trainer.data_collator(rows), 4, True)
    for name in ("logps/chosen", "logps/rejected", "entropy"):
        values = trainer._metrics["eval"][name]
        assert len(values) == 2
        assert values == pytest.approx([expected[name]] * 2, abs=1e-5)


def test_a_pair_of_which_nothing_can_be_scored_is_left_out(tmp_path):
    """https://github.com/modelscope/ms-swift/issues/3276 (2025)

    All labels of such a row are masked, and the likelihood term beside DPO, a mean over no token, was NaN throughout.
    """
    long = {"prompt": "what is it? " * 40, "chosen": " a cat", "rejected": " a dog"}
    options = dict(max_length=24, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], per_device_train_batch_size=1)
    trainer = trainer_for(tmp_path, [long, ROWS[0], long, ROWS[3]], **options)
    assert len(trainer.train_dataset) == 2
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


def test_pairs_that_are_no_file_can_be_asked_about_beforehand(tmp_path):
    """https://github.com/huggingface/trl/issues/6291 (2026)

    Log-probs of a dataset made in memory were looked for in a cache file that nothing had written.
    """
    assert not Dataset.from_list(ROWS).cache_files
    trainer = trainer_for(tmp_path, max_steps=-1, num_train_epochs=1)
    assert torch.tensor(trainer.train_dataset["ref_chosen_logps"]).isfinite().all()
