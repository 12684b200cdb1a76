"""What is trained on, and how likely it is: against hand arithmetic, never against the code itself."""

import math

import pytest
import torch
from conftest import make_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2LMHeadModel, LlamaConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_utils import Completion, sample_completions, sequence_kl, sequence_kls, sequence_logps
from machinery.models import log_probs


class FixedModel(torch.nn.Module):
    """Predicts the same distribution at every position: token 0 with 1/2, 1 with 1/4, 2 and 3 with 1/8."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log())
        self.device, self.config = torch.device("cpu"), LlamaConfig(vocab_size=4)

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, 4)})()


def test_logps_are_sums_not_means():
    # 0, 1, 2 after any prompt: log 1/2 + log 1/4 + log 1/8 = log 1/64
    [logp] = sequence_logps(FixedModel(), [([3], [0, 1, 2])], pad_token_id=0)
    assert logp.item() == pytest.approx(math.log(1 / 64))


def test_prompt_tokens_do_not_count():
    short, long = sequence_logps(FixedModel(), [([3], [1]), ([2, 2, 2, 2], [1])], pad_token_id=0)
    assert short.item() == long.item() == pytest.approx(math.log(1 / 4))


def test_padding_changes_nothing(tiny_llama):
    rows = [([5, 6, 7], [8, 9]), ([5] * 20, [8] * 15), ([4], [9])]
    together = sequence_logps(tiny_llama, rows, pad_token_id=0, batch_size=3)
    alone = torch.cat([sequence_logps(tiny_llama, [row], pad_token_id=0) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_long_rows_come_in_small_batches(tiny_llama, monkeypatch):
    rows = [([5] * length, [8] * length) for length in (2, 3, 20, 4, 90)]
    whole = sequence_logps(tiny_llama, rows, pad_token_id=0)
    widest = []
    forward = tiny_llama.forward
    monkeypatch.setattr(
        tiny_llama, "forward", lambda **inputs: widest.append(inputs["input_ids"].numel()) or forward(**inputs)
    )
    monkeypatch.setattr(log_probs, "MOST_LOGITS", 50 * tiny_llama.config.vocab_size)
    in_parts = sequence_logps(tiny_llama, rows, pad_token_id=0)
    assert widest == [24, 40, 180]  # three rows of up to 8 tokens; the longest alone, although it is too long
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=1e-5)


def test_logps_equal_a_loop_over_the_tokens(tiny_llama):
    prompt, completion = [5, 6, 7], [8, 9, 4]
    expected = 0.0
    for position, token in enumerate(completion):
        so_far = torch.tensor([prompt + completion[:position]])
        expected += tiny_llama(so_far).logits[0, -1].log_softmax(-1)[token].item()
    [logp] = sequence_logps(tiny_llama, [(prompt, completion)], pad_token_id=0)
    assert logp.item() == pytest.approx(expected, abs=1e-4)


def test_kl_of_a_model_from_itself_is_zero(tiny_llama):
    completions = [Completion("", [5, 6], [7, 8], False), Completion("", [9], [4, 4, 4], False)]
    assert sequence_kl(tiny_llama, tiny_llama, completions, pad_token_id=0)[0] == 0.0


def test_the_completion_mask_starts_behind_the_prompt_and_covers_the_eos():
    rows = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]}]
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


@pytest.fixture
def trainer(base_model_folder, base_tokenizer, tmp_path):
    pairs = [{"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran"}] * 4
    return DPOTrainer(
        model=GPT2LMHeadModel.from_pretrained(base_model_folder),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=1, save_strategy="no"),
        train_dataset=Dataset.from_list(pairs),
        processing_class=base_tokenizer,
    )


def test_trl_trains_on_what_we_think_it_trains_on(trainer, base_tokenizer):
    row = trainer.train_dataset[0]
    assert base_tokenizer.decode(row["prompt_ids"]) == "the cat"
    assert base_tokenizer.decode(row["chosen_ids"]) == " sat on the mat</s>"
    assert row["rejected_ids"][-1] == base_tokenizer.eos_token_id


def test_trls_logps_are_ours(trainer):
    row = trainer.train_dataset[0]
    ours = sequence_logps(
        trainer.model, [(row["prompt_ids"], row["chosen_ids"]), (row["prompt_ids"], row["rejected_ids"])], 0
    )
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator([row])))
    theirs = [trainer._metrics["eval"][f"logps/{name}"][-1] for name in ("chosen", "rejected")]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-4)


def test_loss_is_ln2_while_policy_equals_reference(trainer):
    # every log-ratio is 0, so the loss is -log sigmoid(0) = log 2
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-6)


def test_sampling_leaves_the_random_generators_as_they_were(tiny_llama, base_model_folder, base_tokenizer):
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    base_tokenizer.pad_token = base_tokenizer.eos_token
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = sample_completions(model, base_tokenizer, ["the cat", "a dog ran over"], max_new_tokens=5)
    assert torch.equal(torch.rand(3), expected)
    again = sample_completions(model, base_tokenizer, ["the cat", "a dog ran over"], max_new_tokens=5)
    assert first == again


def test_replies_are_the_model_s_own_whatever_its_generation_config_asks_for(base_model_folder, base_tokenizer):
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    base_tokenizer.pad_token = base_tokenizer.eos_token
    plain = sample_completions(model, base_tokenizer, ["the cat"] * 8, max_new_tokens=20)
    asked = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=plain[0].ids[:1], top_k=2)
    model.generation_config = asked
    assert sample_completions(model, base_tokenizer, ["the cat"] * 8, max_new_tokens=20) == plain
    assert model.generation_config is asked  # it is the user's, and goes into what is saved
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sample_completions(adapted, base_tokenizer, ["the cat"] * 8, max_new_tokens=20) == plain
    assert adapted.get_base_model().generation_config is asked


def test_greedy_sampling_takes_the_most_likely_token(base_model_folder, base_tokenizer):
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    base_tokenizer.pad_token = base_tokenizer.eos_token
    [completion] = sample_completions(model, base_tokenizer, ["the cat"], temperature=0, max_new_tokens=1)
    prompt = torch.tensor([base_tokenizer("the cat")["input_ids"]])
    assert completion.ids == [model(prompt).logits[0, -1].argmax().item()]


def test_a_reply_does_not_depend_on_the_others_of_its_batch(base_model_folder, base_tokenizer):
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # so that what comes before a token decides about it
    base_tokenizer.pad_token = base_tokenizer.eos_token
    prompts = ["a dog ran over the hill", "the cat", "what is it?"]
    together = sample_completions(model, base_tokenizer, prompts, temperature=0, max_new_tokens=8)
    alone = [
        sample_completions(model, base_tokenizer, [prompt], temperature=0, max_new_tokens=8)[0] for prompt in prompts
    ]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]


def test_kl_of_each_step_is_exact_and_less_noisy_than_the_drawn_token():
    """Both estimates have one mean; the exact one spreads less, and is never below 0."""
    policy, reference = make_llama(seed=0), make_llama(seed=1)
    rows = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        ids = [3, 7]
        for _ in range(6):
            chances = policy(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
            ids.append(int(torch.multinomial(chances, 1, generator=generator)))
        rows.append((ids[:2], ids[2:]))
    exact = sequence_kls(policy, reference, rows, pad_token_id=0)
    drawn = sequence_logps(policy, rows, pad_token_id=0) - sequence_logps(reference, rows, pad_token_id=0)
    error = (exact - drawn).std() / len(rows) ** 0.5
    assert abs(exact.mean() - drawn.mean()) < 3 * error
    assert exact.std() < 0.5 * drawn.std()
    assert exact.min() >= 0


def test_a_token_that_neither_can_write_makes_no_kl():
    policy, reference = make_llama(seed=0), make_llama(seed=1)
    for model in (policy, reference):
        model.lm_head.register_forward_hook(
            lambda module, args, logits: logits.index_fill(-1, torch.tensor([9]), -torch.inf)
        )
    assert sequence_kls(policy, reference, [([3, 7], [4, 5])], pad_token_id=0).isfinite().all()


def test_embeddings_that_pad_a_vocabulary_make_no_kl():
    """Models of one family share a tokenizer, and some have more rows of embeddings than it has tokens."""
    policy, padded = make_llama(seed=0), make_llama(seed=0)
    padded.resize_token_embeddings(policy.config.vocab_size + 24)
    padded.lm_head.weight.data[policy.config.vocab_size :] = 0.0
    for one, other in ((policy, padded), (padded, policy)):
        assert sequence_kls(one, other, [([3, 7], [4, 5])], pad_token_id=0).abs().max() < 1.0
