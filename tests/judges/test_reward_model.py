"""Reward models: what they read, whatever the tokenizer, the padding and the length; code of their own."""

import copy

import pytest
import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from machinery.judges.interface import JudgeError
from machinery.judges.reward_model import reward_model_score

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "what is it?"}]


def reward_model(tokenizer, kind="llama", **options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), num_labels=1) | options
    if kind == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=2, n_head=2, **sizes))
    if kind == "bert":  # looks both ways, so padding that is not masked would show
        config = BertConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,
            **sizes,
        )
        return BertForSequenceClassification(config)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        **{"pad_token_id": None} | sizes,
    )
    model = LlamaForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


@torch.no_grad()
def score_alone(model, ids):
    """The referee: one text, nothing padded."""
    return model.eval()(input_ids=torch.tensor([ids])).logits.item()


ANSWERS = ["a cat", "the cat sat on the mat, and a dog ran over the hill", "no", "it is a dog.", "?"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_padding_changes_no_score(base_tokenizer, kind, batch_size):
    assert base_tokenizer.pad_token is None
    model = reward_model(base_tokenizer, kind)
    expected = [score_alone(model, base_tokenizer(f"what is it?\n{answer}")["input_ids"]) for answer in ANSWERS]
    scores = reward_model_score(model, base_tokenizer, batch_size)(["what is it?"] * 5, ANSWERS)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    assert model.config.pad_token_id == {"llama": None, "gpt2": None, "bert": 0}[kind]


@pytest.mark.parametrize("pad", [None, 0])
def test_turns_go_through_the_chat_template_and_its_end_counts_where_the_model_reads_it(base_tokenizer, pad):
    tokenizer = copy.deepcopy(base_tokenizer)  # its end of a turn is the EOS token, 0, which many models pad with
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    # The template writes all special tokens, so those that the tokenizer would add are too many.
    start = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    tokenizer.backend_tokenizer.post_processor = start
    model = reward_model(tokenizer, pad_token_id=pad)
    texts = [f"system: be kind</s>user: what is it?</s>assistant: {answer}</s>" for answer in ANSWERS]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenizer(texts[0])["input_ids"] == [0, *rows[0]]
    expected = [score_alone(model, row) for row in rows]
    score = reward_model_score(model, tokenizer)
    assert score([CHAT] * 5, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert score(["what is it?"], ["no"]) == score([CHAT[1:]], ["no"])  # a text is what the user says


def test_a_template_that_refuses_a_prompt_is_a_judge_that_failed(base_tokenizer):
    tokenizer = copy.deepcopy(base_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(JudgeError, match="template refuses a prompt: System role not supported"):
        reward_model_score(reward_model(tokenizer), tokenizer)([CHAT], ["no"])


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"])
def test_a_long_prompt_loses_its_start_and_the_answer_stays(base_tokenizer, template):
    tokenizer = copy.deepcopy(base_tokenizer)
    tokenizer.chat_template = template
    model = reward_model(tokenizer, max_position_embeddings=32)
    ids = tokenizer("the cat sat on the mat " * 20 + "\nit is a dog." + ("\n" if template else ""))["input_ids"]
    assert len(ids) > 100
    [score] = reward_model_score(model, tokenizer)(["the cat sat on the mat " * 20], ["it is a dog."])
    assert score == pytest.approx(score_alone(model, ids[-32:]), abs=1e-5)
    assert tokenizer.truncation_side == "right"


def test_a_model_with_several_labels_is_no_reward_model(base_tokenizer):
    with pytest.raises(JudgeError, match="has 3 labels; a reward model has one"):
        reward_model_score(reward_model(base_tokenizer, num_labels=3), base_tokenizer)
