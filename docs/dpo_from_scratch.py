"""All of DPO on one page: plain PyTorch, a model of Transformers, no trainer, and of this project only the demo.

    python docs/dpo_from_scratch.py

A language model is first *pretrained* to continue text, then shown good answers (supervised fine-tuning, SFT).
Finally it learns to write what people prefer, from pairs of a better and a worse answer. Reinforcement learning from
human feedback (RLHF) takes a second model for that, the reward model, which scores answers as people would; then the
language model writes, is scored, and is pushed (by proximal policy optimization, PPO) to score higher while staying
near what it was. Direct Preference Optimization (DPO; Rafailov et al., arXiv:2305.18290) reaches for the same goal by
one loss on the pairs themselves: no reward model, and no text generated while training.

    policy      the model that is trained
    reference   the same model as it was before, frozen: what the policy is measured against, so that a reward is what
                training has changed and not how likely an answer was anyway
    log-prob    the natural logarithm of an answer's probability given its prompt, a sum over its tokens; its unit is
                the nat: 1 nat more is e = 2.7 times as likely
    reward      of an answer: beta * (log-prob under the policy - log-prob under the reference); it stands where RLHF has
                the reward model's score
    margin      reward of the better answer, chosen, minus that of the worse one, rejected
    loss        -log sigmoid(margin), where sigmoid(margin) is how probable the rewards make it that the better answer is
                preferred (the Bradley-Terry model)
    accuracy    the share of pairs whose margin is above 0
    beta        the price of leaving the reference: a margin of 3 makes the loss small (0.05) and its gradient with it;
                that takes 30 nats at beta 0.1, and 3 at beta 1, so a high beta keeps the policy near
    KL          how far it went: the log-prob of the policy's own replies under itself, minus that under the reference,
                a mean; 0 is no change, and far from the reference a model may lose what it could do before

The loss sees the margin alone. It falls where chosen rises more than rejected, and also where both fall and rejected
falls further, as here in the end: a little of that is usual; where it is much, the probability they lose goes to text
that is in no pair. So look at what the policy writes.

This trains the demo in two or three minutes on two CPU cores: a model of a million parameters that answers a shop's
customers, sometimes well and sometimes badly, and 2,048 pairs of its answers, in 15% of which the worse one is called
better. The first loss is 0.6931 = ln 2: the policy still is the reference, so every margin is 0 (none above it: accuracy
0), and -log sigmoid(0) = ln 2. At the end you see replies before and after, and the KL, about 3.

Try next:

    python docs/dpo_from_scratch.py --beta 1               # stays nearer to the reference: KL about 1
    python docs/dpo_from_scratch.py --learning_rate 3e-3   # too fast: the loss falls, the replies break: KL about 20
    python basic_dpo_training.py                           # the same method with TRL, and all that a real run needs
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

logging.disable_progress_bar()  # over the loading of a model this small
DEMO = Path(__file__).resolve().parent.parent / "demo"


def read_pairs(path: Path, tokenizer) -> list[tuple[list[int], list[int], list[int]]]:
    """Each line of a file in tokens: prompt, chosen answer, rejected answer.

    A line: {"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}.
    The chat template writes turns as the model has always seen them, <|im_start|>user ... <|im_end|>. The last token of
    an answer is the one that ends it: a model that is not trained on it never learns to stop.
    """

    def tokens(turns, **options) -> list[int]:
        return tokenizer.apply_chat_template(turns, return_dict=False, **options)

    pairs = []
    for line in path.open(encoding="utf-8"):
        row = json.loads(line)
        prompt = tokens(row["prompt"], add_generation_prompt=True)  # up to where an answer begins
        chosen, rejected = (tokens(row["prompt"] + row[part])[len(prompt) :] for part in ("chosen", "rejected"))
        pairs.append((prompt, chosen, rejected))
    return pairs


def batches(pairs: list, size: int) -> list[list]:
    """Pairs of like length together, because a batch is as long as its longest row; the batches in random order."""
    pairs = sorted(pairs, key=lambda pair: sum(map(len, pair)))
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [groups[number] for number in torch.randperm(len(groups)).tolist()]


def sequence_logps(model, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """The log-prob of each row's answer given its prompt, shape (B,): the sum over the answer's tokens."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)  # (B, L); 0 pads, and counts nowhere
    is_answer, is_text = torch.zeros(2, len(rows), longest, dtype=torch.bool)
    for number, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        is_text[number, :end] = True
        is_answer[number, len(prompt) : end] = True  # not the prompt: both answers share it
    logits = model(input_ids=ids, attention_mask=is_text.long()).logits  # (B, L, V)
    logps = logits[:, :-1].log_softmax(-1)  # position t predicts token t + 1
    token_logps = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, L - 1): of the token at t + 1
    return (token_logps * is_answer[:, 1:]).sum(-1)


def dpo_loss(policy, reference, batch: list, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a batch of pairs, a number, and the rewards of chosen and of rejected, (B,) each."""
    rows = [(prompt, chosen) for prompt, chosen, _ in batch] + [(prompt, rejected) for prompt, _, rejected in batch]
    policy_chosen_logps, policy_rejected_logps = sequence_logps(policy, rows).chunk(2)  # the first half is chosen
    with torch.no_grad():
        ref_chosen_logps, ref_rejected_logps = sequence_logps(reference, rows).chunk(2)

    # Eq. 7, arXiv:2305.18290
    chosen_reward = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_reward = beta * (policy_rejected_logps - ref_rejected_logps)
    margin = chosen_reward - rejected_reward
    return -F.logsigmoid(margin).mean(), chosen_reward.detach(), rejected_reward.detach()


def train(policy, reference, groups: list[list], beta: float, learning_rate: float):
    """One step a batch; yields each batch's loss, mean rewards and accuracy before its step, so of pairs not yet seen."""
    # eps is the demo's: with the usual 1e-8 Adam takes full steps even where this small model's gradient is almost 0.
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, eps=1e-3, weight_decay=0)
    # The rate rises for a tenth of the steps and then falls, as TRL's does: it is 0 at step 0, which moves no weight.
    warmup = math.ceil(len(groups) / 10)
    for step, batch in enumerate(groups):
        share = min(step / warmup, (len(groups) - step) / max(1, len(groups) - warmup))
        optimizer.param_groups[0]["lr"] = learning_rate * share
        loss, chosen, rejected = dpo_loss(policy, reference, batch, beta)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item(), chosen.mean().item(), rejected.mean().item(), (chosen > rejected).float().mean().item()


@torch.no_grad()
def sample(model, prompts: list[list[int]], tokenizer) -> list[tuple[list[int], list[int]]]:
    """One reply to each prompt, as rows (prompt, answer): each token drawn with the model's own probability.

    top_k=0: generate() would draw from the 50 likeliest tokens only, and the KL below is of the whole distribution.
    """
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        limits = dict(max_new_tokens=96, pad_token_id=tokenizer.pad_token_id)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, **limits)
        rows.append((prompt, written[0, len(prompt) :].tolist()))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="a thousand times that of a real model")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    # eval(), while training too: without dropout policy and reference agree exactly at the start.
    policy, reference = (AutoModelForCausalLM.from_pretrained(DEMO / "model").eval() for _ in range(2))
    pairs, held_out = (read_pairs(DEMO / name, tokenizer) for name in ("train.jsonl", "test.jsonl"))
    prompts = sorted((prompt for prompt, _, _ in held_out), key=len)[:48]  # the shortest, to read; the KL is of these

    torch.manual_seed(args.seed)
    before = sample(policy, prompts, tokenizer)
    print("step    loss  chosen  rejected  accuracy   (chosen, rejected: mean rewards)", flush=True)
    groups = batches(pairs, args.batch_size)
    for step, numbers in enumerate(train(policy, reference, groups, args.beta, args.learning_rate)):
        if step % 8 == 0 or step == len(groups) - 1:
            print("{:4}  {:.4f}  {:+.3f}    {:+.3f}      {:.2f}".format(step, *numbers), flush=True)
    after = sample(policy, prompts, tokenizer)

    for (prompt, old), (_, new) in list(zip(before, after, strict=True))[:4]:
        print()
        for name, ids in (("prompt", prompt), ("before", old), ("after", new)):
            print(f"{name:<8}{tokenizer.decode(ids)!r}")
    with torch.no_grad():
        kl = (sequence_logps(policy, after) - sequence_logps(reference, after)).mean()
    print(f"\nKL from the reference, estimated from these replies: {kl:.1f} nats a reply")


if __name__ == "__main__":
    main()
