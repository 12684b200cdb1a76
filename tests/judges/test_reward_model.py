"""Reward models: what they read, whatever the tokenizer, the padding and the length; code of their own."""

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    dynamic_module_utils,
)

from machinery.judges.interface import JudgeError
from machinery.judges.reward_model import load_reward_model, reward_model_score

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


# --- Pairs of texts


@pytest.fixture
def pair_tokenizer(base_tokenizer):
    """Separates two texts as BERT's does, and says which is which by token_type_ids."""
    tokenizer = copy.deepcopy(base_tokenizer)
    tokenizer.add_special_tokens({"sep_token": "[SEP]", "cls_token": "[CLS]", "pad_token": "[PAD]"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def pair_model(tokenizer, kind):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_labels=1, initializer_range=0.3, max_position_embeddings=32)
    sizes["pad_token_id"] = tokenizer.pad_token_id
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**sizes)).eval()
    config = DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0, **sizes)
    return DebertaV2ForSequenceClassification(config).eval()


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_a_tokenizer_that_separates_two_texts_and_has_no_template_gets_two(pair_tokenizer, kind):
    model = pair_model(pair_tokenizer, kind)
    with torch.no_grad():
        alone = [
            model(**pair_tokenizer("be kind\nwhat is it?", a, return_tensors="pt")).logits.item() for a in ANSWERS[2:]
        ]
    assert reward_model_score(model, pair_tokenizer, 2)([CHAT] * 3, ANSWERS[2:]) == pytest.approx(alone, abs=1e-5)
    lines = [
        model(**pair_tokenizer(f"be kind\nwhat is it?\n{a}", return_tensors="pt")).logits.item() for a in ANSWERS[2:]
    ]
    assert alone != pytest.approx(lines, abs=1e-3)
    assert reward_model_score(model, pair_tokenizer)(["is it?"], ["no"]) == pytest.approx(
        [model(**pair_tokenizer("is it?", "no", return_tensors="pt")).logits.item()], abs=1e-5
    )


def test_of_a_pair_the_question_loses_its_start_and_only_then_the_answer(pair_tokenizer):
    model = pair_model(pair_tokenizer, "bert")
    question, answer = "the cat sat on the mat " * 20, "it is a dog."
    ids = pair_tokenizer(question, add_special_tokens=False)["input_ids"]
    kept = pair_tokenizer(answer, add_special_tokens=False)["input_ids"]
    cls, sep = pair_tokenizer.cls_token_id, pair_tokenizer.sep_token_id
    row = [cls, *ids[-(32 - 3 - len(kept)) :], sep, *kept, sep]
    types = torch.tensor([[0] * (32 - len(kept) - 1) + [1] * (len(kept) + 1)])
    expected = model(input_ids=torch.tensor([row]), token_type_ids=types).logits.item()
    score = reward_model_score(model, pair_tokenizer)
    assert score([question], [answer]) == pytest.approx([expected], abs=1e-5)
    assert score([question], ["a dog ran over the hill " * 20])[0] != 0  # longer than the model alone


# --- Code of its own

CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class OwnConfig(PreTrainedConfig):
    model_type = "own_reward"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    open({trace!r}, "w").close()

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Linear(1, {width}, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        return SequenceClassifierOutput(logits=self.scale(attention_mask.sum(1, keepdim=True).float()){shape})
"""


def own_model(folder, tokenizer, width=1, shape=""):
    """A reward model of code that comes with it: a number times the tokens. It notes that it ran."""
    tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(trace=str(folder / "trace"), width=width, shape=shape))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    config = {"model_type": "own_reward", "auto_map": classes, "architectures": ["OwnModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"scale.weight": torch.full((width, 1), 2.0)}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Where Transformers copies such code to, for one test alone."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.usefixtures("own_modules")
def test_a_model_with_code_of_its_own_needs_trust_and_then_works(tmp_path, base_tokenizer):
    name = own_model(
        tmp_path / "m", base_tokenizer, shape="[:, 0]"
    )  # and its labels are none of the library's business
    with pytest.raises(
        JudgeError, match=r"runs code that comes with it: look at that code, then add --trust_remote_code$"
    ):
        load_reward_model(name, "cpu")
    assert not (tmp_path / "m" / "trace").exists()
    score = load_reward_model(name, "cpu", trust_remote_code=True)
    tokens = [len(base_tokenizer(f"why?\n{answer}")["input_ids"]) for answer in ANSWERS]
    assert score(["why?"] * 5, ANSWERS) == [2.0 * count for count in tokens]


@pytest.mark.usefixtures("own_modules")
def test_code_that_gives_several_numbers_an_answer_is_no_reward_model(tmp_path, base_tokenizer):
    score = load_reward_model(own_model(tmp_path / "m", base_tokenizer, width=2), "cpu", trust_remote_code=True)
    with pytest.raises(JudgeError, match="gives 2 numbers an answer; a reward model gives one"):
        score(["why?"], ["so"])
