"""Rebuild the demo from nothing: tokenizer, base model, preference pairs.

    python -m demo.build                      # into demo/, about half an hour
    python -m demo.build --output_dir /tmp/x  # somewhere else, to compare
    python -m demo.build --pairs_only         # new pairs from the model that is there, about three minutes
    python -m demo.build --spoilt_only        # the spoilt copy of the pairs that are there, a second
    python -m demo.build --show               # what the base earns at every temperature, as it was measured

1. A tokenizer is made of the words of the desk's conversations (byte-level, ChatML-style template).
2. A small Qwen3 is taught in two rounds. First whole conversations with the right remedy: that is its knowledge. Then
   replies in which every good quality is there or not by chance: that is its habit, which DPO is to change.
3. Pairs are sampled from that model, as in section 6 of the DPO paper (arXiv:2305.18290), and labelled by a
   Bradley-Terry coin on the true reward (its equation 1), so some labels are wrong, and it is known which.
4. A copy of the pairs is spoilt in every way that real data are, for custom_dataset_dpo.py to find.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from demo.world import (
    HABIT,
    KNOWLEDGE,
    MAX_REWARD,
    PROBLEMS,
    PRODUCTS,
    QUALITIES,
    is_well_formed,
    score_reply,
    true_reward,
    write_prompt,
    write_reply,
)
from dpo_utils import sample_completions

SEED = 0
KNOWLEDGE_ROWS, HABIT_ROWS = 30_000, 40_000
TRAIN_PAIRS, TEST_PAIRS = 2048, 256
TEMPERATURES = (0, 0.25, 0.5, 0.625, 0.75, 1)
HELD_OUT = {  # a sixth of all combinations of product and problem; no pair of the training set is about one of them
    (product, problem) for i, product in enumerate(PRODUCTS) for j, problem in enumerate(PROBLEMS) if (i + j) % 6 == 0
}
SEEN = sorted({(product, problem) for product in PRODUCTS for problem in PROBLEMS} - HELD_OUT)

# ChatML, with the line break before a turn and not behind it: so the last token of a reply is <|im_end|>, the EOS.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if not loop.first %}{{ '\\n' }}{% endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif -%}
"""


def main() -> None:
    """Build everything and say how it came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--pairs_only", action="store_true", help="keep the model, sample the pairs anew")
    parser.add_argument("--spoilt_only", action="store_true", help="keep model and pairs, spoil a copy anew")
    parser.add_argument("--show", action="store_true", help="build nothing, show what temperatures.json has")
    options = parser.parse_args()
    if options.show:
        show_temperatures(options.output_dir)
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.spoilt_only:
        spoil(options.output_dir)
        return
    disable_progress_bars()
    torch.set_num_threads(1)  # sums over several threads are taken in another order, and differ in their last digits
    rng = random.Random(SEED)
    knowledge = [conversation(rng, KNOWLEDGE) for _ in range(KNOWLEDGE_ROWS)]
    habit = [conversation(rng, HABIT) for _ in range(HABIT_ROWS)]
    if not options.pairs_only:
        build_model(options.output_dir / "model", knowledge, habit)
        measure_temperatures(options.output_dir, random.Random(SEED))
    build_pairs(options.output_dir, rng)
    spoil(options.output_dir)


def build_model(folder: Path, knowledge: list[dict], habit: list[dict]) -> None:
    """Train the tokenizer and the base model.

    Qwen3 normalises queries and keys, and weights decay while it is taught. In a Llama taught without decay attention
    became so sharp that a small change of the weights turned it over: in one run of five DPO broke every reply within
    eight steps.
    """
    tokenizer = build_tokenizer([turn["content"] for row in habit for turn in row["prompt"] + row["completion"]])
    set_seed(SEED)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.08,  # the usual 0.02 suits models ten times as wide; this one learns nothing for long
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"Base model: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    teach(model, tokenizer, knowledge, learning_rate=4e-3, completion_only_loss=False)
    teach(model, tokenizer, habit, learning_rate=1e-3, completion_only_loss=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure_temperatures(output_dir: Path, rng: random.Random, prompts: int = 512) -> None:
    """What the base earns without training, at every temperature: one reply to each of some held-out prompts.

    A model that is only sharper, its final norm times 1.6 say, is the base at temperature 1 / 1.6 = 0.625.
    """
    model, tokenizer = load(output_dir)
    asked = [write_prompt(rng, *combination) for combination in rng.choices(sorted(HELD_OUT), k=prompts)]
    earned = {}
    for t in TEMPERATURES:
        replies = sample_completions(
            model, tokenizer, asked, max_new_tokens=128, temperature=t, batch_size=128, seed=SEED
        )
        texts = [reply.text for reply in replies]
        earned[f"{t:g}"] = sum(map(true_reward, asked, texts)) / prompts
        well_formed = sum(map(is_well_formed, texts)) / prompts
        print(f"temperature {t}: true reward {earned[f'{t:g}']:.2f}, {well_formed:.1%} well formed")
    (output_dir / "model" / "temperatures.json").write_text(json.dumps(earned, indent=1) + "\n")


def show_temperatures(output_dir: Path) -> None:
    """Print the table of the card."""
    print(f"| temperature | true reward, of {MAX_REWARD:.0f} |\n|---|---|")
    for temperature, earned in json.loads((output_dir / "model" / "temperatures.json").read_text()).items():
        print(f"| {temperature} | {earned:.2f} |")


def load(output_dir: Path):
    """The base model and its tokenizer from disk."""
    folder = output_dir / "model"
    return Qwen3ForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def build_pairs(output_dir: Path, rng: random.Random) -> None:
    """Sample and label the pairs from the model on disk."""
    model, tokenizer = load(output_dir)
    for split, combinations, count in (("train", SEEN, TRAIN_PAIRS), ("test", sorted(HELD_OUT), TEST_PAIRS)):
        pairs, replies = sample_pairs(model, tokenizer, rng, combinations, count, split)
        if split == "train":  # the scripts print its first pair: it should be one that a reader agrees with at a glance
            clear = next(number for number, pair in enumerate(pairs) if is_clear(pair))
            pairs = pairs[clear:] + pairs[:clear]
        lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
        (output_dir / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        describe(split, pairs, replies)


def conversation(rng: random.Random, habit: dict) -> dict:
    """A prompt about one of the seen combinations, and a reply to it."""
    combination = rng.choice(SEEN)
    reply = write_reply(rng, *combination, habit)
    return {"prompt": write_prompt(rng, *combination), "completion": [{"role": "assistant", "content": reply}]}


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the desk's, and the bytes for all else.

    A vocabulary that BPE learns has hundreds of halves of words that no text ever holds. The model is not taught what
    comes after those, and under DPO, which takes probability from rejected words and says not where it goes, they turn
    up.
    """
    into_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*texts, "system", "user", "assistant"]
    words = {word for text in texts for word, _ in into_words.pre_tokenize_str(text)}
    special, alphabet = ["<|pad|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    tokens = [*special, *sorted(alphabet), *sorted(words - set(alphabet))]
    whole_words = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges=[], ignore_merges=True))
    whole_words.pre_tokenizer, whole_words.decoder = into_words, decoders.ByteLevel()
    whole_words.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole_words, pad_token="<|pad|>", eos_token="<|im_end|>", model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def teach(model, tokenizer, rows: list[dict], **options) -> None:
    """Supervised fine-tuning, one pass over the rows."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.1,
            adam_beta2=0.99,
            train_sampling_strategy="group_by_length",
            logging_steps=250,
            save_strategy="no",
            seed=SEED,
            **options,
        )
        SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()


def sample_pairs(model, tokenizer, rng: random.Random, combinations: list, count: int, split: str):
    """Two sampled replies a prompt; ties in the true reward are dropped, the rest labelled by a Bradley-Terry coin.

    Returns the pairs, and all replies with their prompts, ties included.
    """
    prompts = [(write_prompt(rng, *c), c[1]) for c in rng.choices(combinations, k=count + count // 2)]
    texts = []
    for seed in (1, 2):
        label = f"sampling {split}, {seed} of 2"
        seeded = seed if split == "train" else 10 + seed
        completions = sample_completions(
            model, tokenizer, [p for p, _ in prompts], max_new_tokens=128, batch_size=128, seed=seeded, progress=label
        )
        texts.append([completion.text for completion in completions])
    pairs = []
    for (prompt, problem), *answers in zip(prompts, *texts, strict=True):
        first, second = sorted(((true_reward(prompt, text), text) for text in answers), reverse=True)
        if first[0] == second[0] or len(pairs) == count:
            continue
        is_right = rng.random() < 1 / (1 + math.exp(second[0] - first[0]))  # Eq. 1, arXiv:2305.18290
        chosen, rejected = (first, second) if is_right else (second, first)
        pairs.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": chosen[1]}],
                "rejected": [{"role": "assistant", "content": rejected[1]}],
                "score_chosen": chosen[0],
                "score_rejected": rejected[0],
                "category": problem,
            }
        )
    if len(pairs) < count:
        raise RuntimeError(f"{split}: only {len(pairs)} pairs of {count}: too many ties")
    return pairs, [(prompt, text) for column in texts for (prompt, _), text in zip(prompts, column, strict=True)]


def is_clear(pair: dict) -> bool:
    """Whether a pair is a short question with a perfect chosen reply and a poor rejected one."""
    return len(pair["prompt"]) == 1 and pair["score_chosen"] == MAX_REWARD and pair["score_rejected"] <= 2


def _reply(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def _longer(question: dict) -> dict:
    return question | {"content": "My order is late. " * 150 + question["content"]}


# What is done to a row, and to how many. Each function takes the row, another row and a held-out row, and returns the
# rows that stand in its place. The names are those of the findings in machinery/data/doctor.py.
SPOILS = {
    "identical": (12, lambda row, other, held_out: [row | {"rejected": row["chosen"]}]),
    "empty_answer": (9, lambda row, other, held_out: [row | {"rejected": _reply(" \n")}]),
    "missing_field": (7, lambda row, other, held_out: [row | {"chosen": None}]),
    "wrong_type": (4, lambda row, other, held_out: [row | {"rejected": 3}]),
    "duplicate": (11, lambda row, other, held_out: [other]),
    "near_duplicate": (
        8,
        lambda row, other, held_out: [other | {"chosen": _reply(other["chosen"][0]["content"].upper() + " ")}],
    ),
    "opposite_label": (
        6,
        lambda row, other, held_out: [row, row | {"chosen": row["rejected"], "rejected": row["chosen"]}],
    ),
    "in_test_split": (10, lambda row, other, held_out: [held_out]),
    "different_prompts": (
        5,
        lambda row, other, held_out: [
            {"chosen": row["prompt"] + row["chosen"], "rejected": other["prompt"] + other["rejected"], "prompt": None}
        ],
    ),
    "answer_is_prompt": (6, lambda row, other, held_out: [row | {"chosen": _reply(row["prompt"][-1]["content"])}]),
    "roles": (6, lambda row, other, held_out: [row | {"prompt": row["prompt"] + row["chosen"]}]),
    "invalid_unicode": (3, lambda row, other, held_out: [row | {"chosen": _reply("\ud83d We are sorry.")}]),
    "control_characters": (
        7,
        lambda row, other, held_out: [row | {"rejected": _reply(row["rejected"][0]["content"] + "\x00")}],
    ),
    "replacement_characters": (
        7,
        lambda row, other, held_out: [
            row | {"rejected": _reply(row["rejected"][0]["content"].replace("e", "\ufffd", 1))}
        ],
    ),
    "fills_max_length": (
        4,
        lambda row, other, held_out: [row | {"prompt": [*row["prompt"][:-1], _longer(row["prompt"][-1])]}],
    ),
    "answer_cut": (3, lambda row, other, held_out: [row | {"rejected": _reply("Please wait for our answer. " * 90)}]),
}


def spoil(folder: Path) -> None:
    """Write a copy of the pairs in which a number of rows, chosen by chance, is spoilt; `spoilt` says in which way."""
    train, test = (
        [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    )
    rng = random.Random(SEED)
    victims = rng.sample(range(len(train) // 2, len(train)), sum(count for count, _ in SPOILS.values()))
    others = iter(rng.sample(range(len(train) // 2), len(victims)))  # the first half stays whole, to be copied from
    held_out = iter(rng.sample(test, len(test)))
    spoilt = {}
    for name, (count, change) in SPOILS.items():
        for _ in range(count):
            number = victims.pop()
            spoilt[number] = [
                row | {"spoilt": name} for row in change(train[number], train[next(others)], next(held_out))
            ]
    rows = [row for number, row in enumerate(train) for row in spoilt.get(number, [row])]
    (folder / "spoilt").mkdir(exist_ok=True)
    for split, lines in (("train", rows), ("test", test)):
        text = "".join(json.dumps(row, ensure_ascii="invalid_unicode" in row.get("spoilt", "")) + "\n" for row in lines)
        (folder / "spoilt" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    print(f"spoilt: {len(rows)} rows, of which " + ", ".join(f"{count} {name}" for name, (count, _) in SPOILS.items()))


def describe(split: str, pairs: list[dict], replies: list[tuple]) -> None:
    """Print the figures that the card quotes."""
    wrong = sum(pair["score_chosen"] < pair["score_rejected"] for pair in pairs)
    scores = [score_reply(prompt, text) for prompt, text in replies]
    parts = ", ".join(f"{part} {sum(s[part] for s in scores) / len(scores):.2f}" for part in QUALITIES)
    longer = sum(len(p["chosen"][0]["content"]) > len(p["rejected"][0]["content"]) for p in pairs)
    print(f"{split}: {len(pairs)} pairs, {wrong} labels wrong ({wrong / len(pairs):.1%}); chosen longer in {longer}")
    print(f"  {len({json.dumps(pair['prompt']) for pair in pairs})} distinct prompts")
    print(f"  base model: {sum(is_well_formed(text) for _, text in replies) / len(replies):.1%} well-formed replies")
    print(
        f"  true reward {sum(sum(s.values()) for s in scores) / len(scores):.2f} of {sum(QUALITIES.values()):.0f} ({parts})"
    )


if __name__ == "__main__":
    main()
