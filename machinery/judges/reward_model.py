"""A score from a reward model: a sequence-classification model whose one logit is the reward.

    score = load_reward_model("my/reward-model", "cpu")
    ScoreJudge("my reward model", score).scores(["Why?"], ["Because."])

What it reads is what such models are trained on: the chat template's text where its tokenizer has one; else a pair of
texts, question and answer, where there is a token that separates two (BERT, DeBERTa, RoBERTa); else two lines.
"""

import copy
import math
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.bounds import ends_within
from ..common.chat import check_template, template_ids
from ..common.errors import UserError, is_out_of_memory
from ..common.safe_text import first_line
from .interface import JudgeError, Prompt
from .scores import Score

NEEDS_CODE = "trust_remote_code"  # what Transformers' refusal to run a model's code always names


def load_reward_model(name: str, device, trust_remote_code: bool = False) -> Score:
    """The score function of a reward model in a folder or on the hub. Raises JudgeError where it is none.

    trust_remote_code: run the code that the model brings, where it needs it.
    """
    trust = {"trust_remote_code": trust_remote_code}
    try:
        if Path(name).is_dir() and not trust_remote_code:
            with ends_within(30, f"Building what {name}/config.json describes"), torch.device("meta"):
                AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(name, **trust), **trust)
        tokenizer = AutoTokenizer.from_pretrained(name, **trust)
        check_template(tokenizer)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **trust
        )
    except Exception as error:  # a broken file makes the libraries fail anywhere
        if is_out_of_memory(error):
            raise
        if NEEDS_CODE in str(error) and not trust_remote_code:
            raise JudgeError(
                f"--judge_model {name} runs code that comes with it: look at that code, then add --trust_remote_code"
            ) from error
        raise JudgeError(f"--judge_model {name} cannot be loaded: {first_line(error)}") from error
    missing = report["missing_keys"]
    if missing:
        raise JudgeError(f"--judge_model {name} is no reward model: its head ({min(missing)}) is missing")
    return reward_model_score(model.to(device), tokenizer)


def reward_model_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> Score:
    """A score function from a sequence-classification model with one label.

    What is longer than the model's positions loses its start, in a pair of texts that of the question. Raises JudgeError
    for a model with several labels.
    """
    name, config = model.config.name_or_path or "the reward model", model.config.get_text_config()
    is_own_code = type(model).__module__.startswith("transformers_modules.")  # whose labels may mean something else
    if model.config.num_labels != 1 and not is_own_code:
        raise JudgeError(
            f"{name} has {model.config.num_labels} labels; a reward model has one, whose logit is the reward: name another "
            "model"
        )
    model.eval()
    encode = _encoder(tokenizer, getattr(config, "max_position_embeddings", None))

    @torch.inference_mode()
    def score(prompts: list[Prompt], answers: list[str]) -> list[float]:
        rows = [encode(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]["input_ids"]))  # too little memory shows at once
        scores, own = torch.zeros(len(rows)), getattr(config, "pad_token_id", None)
        try:
            for start in range(0, len(rows), batch_size):
                numbers = order[start : start + batch_size]
                batch = [rows[n] for n in numbers]
                # The model reads its score at the last token that is not config.pad_token_id. Where its configuration
                # has none, any token will do that ends no row: the mask hides it.
                ends = {row["input_ids"][-1] for row in batch}
                pad = own if own is not None else next(token for token in range(len(batch) + 1) if token not in ends)
                config.pad_token_id = pad
                logits = model(**_padded(batch, pad, model.device)).logits.reshape(len(batch), -1)
                if logits.shape[1] != 1:
                    raise JudgeError(f"{name} gives {logits.shape[1]} numbers an answer; a reward model gives one")
                scores[numbers] = logits[:, 0].float().cpu()
        finally:
            config.pad_token_id = own
        return scores.tolist()

    return score


def _encoder(tokenizer: PreTrainedTokenizerBase, positions: int | None):
    """A function of prompt and answer that returns what the model is given: input_ids, and token_type_ids for pairs."""
    tokenizer = copy.deepcopy(tokenizer)  # the caller's goes on cutting where it did
    tokenizer.truncation_side = "left"  # the answer stands at the end
    limit = min(tokenizer.model_max_length, positions or math.inf)
    cut = dict(truncation=True, max_length=limit) if limit < 1e9 else {}  # a tokenizer without a limit says 1e30

    def by_template(prompt: Prompt, answer: str) -> dict:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        how = getattr(prompt, "tools", None), getattr(prompt, "template_kwargs", None)
        try:
            text = template_ids(tokenizer, [*turns, {"role": "assistant", "content": answer}], *how, tokenize=False)
        except UserError:  # it does not end
            raise
        except Exception as error:  # a template is a program that came with a model
            raise JudgeError(f"the reward model's chat template refuses a prompt: {error}") from error
        return tokenizer(text, add_special_tokens=False, **cut)  # it writes special tokens itself

    def as_pair(prompt: Prompt, answer: str) -> dict:
        how = dict(cut)
        if cut:
            taken = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
            is_room = taken + tokenizer.num_special_tokens_to_add(pair=True) < limit
            how["truncation"] = "only_first" if is_room else "longest_first"
        return tokenizer(_texts_of(prompt), answer, **how)

    def as_lines(prompt: Prompt, answer: str) -> dict:
        return tokenizer(f"{_texts_of(prompt)}\n{answer}", **cut)

    if tokenizer.chat_template:
        return by_template
    return as_pair if tokenizer.sep_token is not None else as_lines


def _texts_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.get("content") or "" for turn in prompt)


def _padded(batch: list[dict], pad: int, device) -> dict[str, torch.Tensor]:
    """Rows of different lengths as tensors (B, L), and the mask over what is no padding."""
    fill = {"input_ids": pad, "token_type_ids": 0}
    made = {
        name: pad_sequence([torch.tensor(row[name]) for row in batch], batch_first=True, padding_value=fill[name])
        for name in fill
        if name in batch[0]
    }
    made["attention_mask"] = pad_sequence([torch.ones(len(row["input_ids"])).long() for row in batch], batch_first=True)
    return {name: tensor.to(device) for name, tensor in made.items()}
