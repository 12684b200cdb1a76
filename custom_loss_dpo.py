"""Twenty preference losses on one page, your own in five lines, and what another loss does to the same model.

    python custom_loss_dpo.py

trains the demo twice, with `dpop` and with `sigmoid`, and puts them side by side: two to three minutes on two CPU
cores. A preference loss is a function of a few numbers a pair: the log-probs of the two answers under policy and
reference, their lengths, and beta. You see (figures differ by seed and machine)

                            dpop                  sigmoid
      true reward           4.21 [3.96, 4.47]     5.55 [5.34, 5.77]
      KL, nats a reply      1.25 [0.91, 1.59]     3.04 [2.74, 3.33]
      chosen logp change    -0.45                 -3.25
      rejected logp change  -1.85                 -6.95

DPO lowers the chosen answers too, and the rejected ones more; dpop penalises lowering the chosen ones, and moves less.

Try next:

    python custom_loss_dpo.py --loss_type ipo                                # any formula on this page
    python custom_loss_dpo.py --loss_type your_loss                          # the last of them: edit it
    python custom_loss_dpo.py --loss_file mine.py:my_loss --beta 0.2         # a function in a file of your own
    python custom_loss_dpo.py --loss_type sigmoid sft --loss_weights 1 0.2   # a sum of two
    python custom_loss_dpo.py --compare                                      # all of them, a table and figures
    python custom_loss_dpo.py --help
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid, relu

from demo.world import known_truth
from dpo_utils import (
    TutorialArguments,
    load_model,
    load_preferences,
    parse_args,
    pick_prompts,
    report_change,
    run,
    sample_at,
    sample_completions,
    say,
    watch,
)
from machinery.command.flag_help import FEWER_FLAGS
from machinery.comparing.loss_comparison import CompareArguments, compare
from machinery.comparing.side_by_side import show_other_loss
from machinery.models.adapters import describe_base, new_adapter
from machinery.runs.folder import claim_output_dir
from machinery.runs.saving import save_run
from machinery.runs.start import check_start, show_start
from machinery.training.custom_loss import CustomLoss
from machinery.training.losses import loss_from_flags, uses_reference
from machinery.training.shared_prompt import SharedPromptDPOTrainer

# --- The formulas ----------------------------------------------------------------------------------------------------
# Keyword arguments in, the loss of each pair out: tensors of shape (B,), and beta a number. The log-probs are SUMS over
# an answer's tokens, the lengths count its tokens. In the docstrings
#   chosen, rejected   log policy - log reference of the two answers; times beta the rewards that training logs
#   |chosen|           the length of the chosen answer in tokens
#   margin             beta * (chosen - rejected), and sigmoid_loss(m) is -logsigmoid(m)
#   Sums, or Means     whether the formula compares whole answers, or averages over their tokens
#   For                what the loss was made for
# Ranges, and when each fails: docs/losses.md.


def logratios(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, **_):
    """log policy - log reference of the chosen and of the rejected answers."""
    return policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps


def sigmoid(beta, **pair):
    """DPO: -logsigmoid(beta * (chosen - rejected)); arXiv:2305.18290, Eq. 7.

    Sums. For: the default. The pull on a pair fades as its margin grows, and never quite ends.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * (chosen - rejected))


def hinge(beta, **pair):
    """max(0, 1 - beta * (chosen - rejected)); arXiv:2309.06657 (RSO), Eq. 10, there hinge-norm.

    Sums. For: stopping dead at a margin of 1. SLiC-HF (arXiv:2305.10425) has a hinge too, without the reference.
    """
    chosen, rejected = logratios(**pair)
    return relu(1 - beta * (chosen - rejected))


def ipo(beta, chosen_lengths, rejected_lengths, **pair):
    """IPO: (chosen / |chosen| - rejected / |rejected| - 1 / (2 beta))^2; arXiv:2310.12036, Eq. 17.

    Means over tokens, as in TRL, which had it confirmed by the authors; the paper's formula shows sums. For: pairs
    whose label is certain, where DPO's margin would grow without bound: here it is led to 1 / (2 beta) and no further.
    """
    chosen, rejected = logratios(**pair)
    return (chosen / chosen_lengths - rejected / rejected_lengths - 1 / (2 * beta)) ** 2


def exo_pair(beta, label_smoothing, **pair):
    """EXO: KL of (q, 1 - q) from (1 - eps, eps), where q = sigmoid(beta * (chosen - rejected)); arXiv:2402.00856, Eq. 16.

    Sums. For: the KL in the direction of reinforcement learning, which settles on one good mode instead of covering all.
    eps (label_smoothing) must be above 0; TRL and this function hold it in float32.
    """
    chosen, rejected = logratios(**pair)
    margin, eps = beta * (chosen - rejected), torch.tensor(label_smoothing)
    for_chosen = torch.sigmoid(margin) * (logsigmoid(margin) - torch.log1p(-eps))
    return for_chosen + torch.sigmoid(-margin) * (logsigmoid(-margin) - torch.log(eps))


def nca_pair(beta, **pair):
    """NCA: -logsigmoid(beta chosen) - (logsigmoid(-beta chosen) + logsigmoid(-beta rejected)) / 2; arXiv:2402.05369.

    Sums. For: keeping the chosen answers likely, since each answer is pulled by its own reward and not by the margin.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * chosen) - 0.5 * (logsigmoid(-beta * chosen) + logsigmoid(-beta * rejected))


def robust(beta, label_smoothing, **pair):
    """rDPO: ((1 - eps) sigmoid_loss(margin) - eps sigmoid_loss(-margin)) / (1 - 2 eps); arXiv:2403.00409, Section 3.1.

    Sums. For: a known share eps (label_smoothing) of wrong labels. Right on average over such labels, at the price of a
    larger variance; it goes below 0 and has no floor.
    """
    chosen, rejected = logratios(**pair)
    margin, eps = beta * (chosen - rejected), label_smoothing
    return (eps * logsigmoid(-margin) - (1 - eps) * logsigmoid(margin)) / (1 - 2 * eps)


def cdpo(beta, label_smoothing, **pair):
    """cDPO: (1 - eps) sigmoid_loss(margin) + eps sigmoid_loss(-margin); Mitchell's note ericmitchell.ai/cdpo.pdf, Eq. 3.

    Sums. For: labels wrong in a share eps (label_smoothing). It ends at a margin, log((1 - eps) / eps), not at
    infinity.
    """
    chosen, rejected = logratios(**pair)
    margin, eps = beta * (chosen - rejected), label_smoothing
    return -(1 - eps) * logsigmoid(margin) - eps * logsigmoid(-margin)


def bco_pair(beta, **pair):
    """BCO: -logsigmoid(beta chosen) - logsigmoid(-beta rejected); arXiv:2404.04656v1, Eq. 8.

    Sums. For: answers judged good or bad one by one. The paper's Eq. 11 shifts the rewards by a running mean; TRL and
    this function do not.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard(beta, **pair):
    """SPPO: (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2; arXiv:2405.00675, Eq. 4.7 with sure labels.

    Sums. For: rounds of self-play, where the reference is the policy of the last round. Each answer has its own target.
    """
    chosen, rejected = logratios(**pair)
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def aot(beta, label_smoothing, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, **_):
    """AOT: cdpo on sorted logp_chosen - logp_rejected, the policy's minus the reference's; arXiv:2406.05882, Section 3.

    Sums. For: moving the whole distribution of margins. It sorts within a batch, so a pair's loss depends on the
    others.
    """
    policy = (policy_chosen_logps - policy_rejected_logps).sort().values
    margin, eps = beta * (policy - (ref_chosen_logps - ref_rejected_logps).sort().values), label_smoothing
    return -(1 - eps) * logsigmoid(margin) - eps * logsigmoid(-margin)


def aot_unpaired(beta, label_smoothing, **pair):
    """AOT unpaired: cdpo on sort(chosen) - sort(rejected); arXiv:2406.05882, Section 3.

    Sums. For: good and bad answers that do not belong together. It sorts within a batch.
    """
    chosen, rejected = (values.sort().values for values in logratios(**pair))
    margin, eps = beta * (chosen - rejected), label_smoothing
    return -(1 - eps) * logsigmoid(margin) - eps * logsigmoid(-margin)


def apo_zero(beta, **pair):
    """APO-zero: 1 - sigmoid(beta chosen) + sigmoid(beta rejected); arXiv:2408.06266, Eq. 7 (plus 1).

    Sums. For: chosen answers better than what the model says by itself: their log-prob is to rise.
    """
    chosen, rejected = logratios(**pair)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(beta, **pair):
    """APO-down: sigmoid(beta chosen) + 1 - sigmoid(beta (chosen - rejected)); arXiv:2408.06266, Eq. 8 (plus 1).

    Sums. For: chosen answers worse than what the model says by itself: both are to fall, the rejected one faster.
    """
    chosen, rejected = logratios(**pair)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(beta * (rejected - chosen))


def discopop(beta, discopop_tau, **pair):
    """DiscoPOP: (1 - s) * -logsigmoid(m) + s * exp(-m), m = the margin, s = sigmoid(m / tau); arXiv:2406.08414, Eq. 5.

    Sums. For: a loss that was found by search and not by argument. Between margins of about -0.12 and 0.07 its slope
    turns round: it is not convex. Exponents are added up before `exp`, so that large margins overflow nothing.
    """
    chosen, rejected = logratios(**pair)
    margin = beta * (chosen - rejected)
    mix = margin / discopop_tau
    return -logsigmoid(margin) * torch.sigmoid(-mix) + torch.exp(logsigmoid(mix) - margin)


def sft(policy_chosen_logps, chosen_lengths, **_):
    """Supervised fine-tuning: -log policy(chosen) per token of the batch; a term of iterative RPO, arXiv:2404.19733, Eq. 1.

    Means over all tokens of the batch, as in TRL; in the paper over those of each answer. No reference. For: holding
    the chosen answers up beside another loss, and alone as the baseline that DPO has to beat.
    """
    return -policy_chosen_logps / chosen_lengths.float().mean()


def sigmoid_norm(beta, chosen_lengths, rejected_lengths, **pair):
    """-logsigmoid(beta * (chosen / |chosen| - rejected / |rejected|)); Tulu 3, arXiv:2411.15124, Eq. 6.

    Means over tokens, so beta is large (Tulu 3's is 5). An ablation of SimPO's authors. For: answers of unlike length.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * (chosen / chosen_lengths - rejected / rejected_lengths))


def simpo(beta, policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, gamma=0.5, **_):
    """SimPO: -logsigmoid(beta * (logp_chosen / |chosen| - logp_rejected / |rejected|) - gamma); arXiv:2405.14734, Eq. 6.

    Means over tokens, so beta is large (the preprint's are 2 and 2.5). No reference: nothing but a low rate keeps
    the model where it was. For: training what sampling follows, the mean log-prob, to rank answers.
    """
    chosen, rejected = policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, lambda_=0.1, **_):
    """ORPO: -mean logp_chosen - lambda logsigmoid(log odds(chosen) - log odds(rejected)); arXiv:2403.07691, Eqs. 6 and 7.

    Means over tokens; odds(p) = p / (1 - p) of the mean's exponential. No reference and no beta. For: a base model in
    one stage, SFT and preferences together. The first term covers the completion; in TRL's ORPO trainer the prompt too.
    """
    chosen, rejected = policy_chosen_logps / chosen_lengths, policy_rejected_logps / rejected_lengths

    def log_odds(logp):
        logp = logp.clamp(max=-1e-6)  # a certain answer has infinite odds
        return logp - torch.log(-torch.expm1(logp))

    return -chosen - lambda_ * logsigmoid(log_odds(chosen) - log_odds(rejected))


def dpop(beta, lambda_=50.0, **pair):
    """DPO-Positive: -logsigmoid(beta * (chosen - rejected - lambda * max(0, -chosen))); arXiv:2402.13228v2, Eq. 3.

    Sums. For: pairs that are much alike, where DPO lowers the chosen answer too. A chosen answer less likely than under
    the reference counts 1 + lambda times; lambda is 50 in the paper, and 1 in the demo.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * (chosen - rejected - lambda_ * relu(-chosen)))


def rdpo(beta, chosen_lengths, rejected_lengths, alpha=0.01, **pair):
    """R-DPO: -logsigmoid(beta * (chosen - rejected) + alpha * (|chosen| - |rejected|)); arXiv:2403.19159, Eq. 9.

    Sums. For: labels that favour length. A pair whose chosen answer is longer counts as partly explained by that. (The
    rDPO of arXiv:2403.00409 is another: `robust`.)
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * (chosen - rejected) + alpha * (chosen_lengths - rejected_lengths))


def your_loss(beta, margin=1.0, **pair):
    """Edit me: DPO that is not content before the chosen answer is ahead by `margin`.

    --loss_kwargs margin=0.5 sets it; whatever you add with a default can be set so.
    """
    chosen, rejected = logratios(**pair)
    return -logsigmoid(beta * (chosen - rejected) - margin)


FORMULAS = (
    sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop,
    sft, sigmoid_norm, cdpo, simpo, orpo, dpop, rdpo, your_loss,
)  # fmt: skip
LOSSES = {formula.__name__: formula for formula in FORMULAS}
# for each hyperparameter: the lowest value allowed, and a value it must stay below
LIMITS = dict(label_smoothing=(0, 0.5), discopop_tau=(0, None), gamma=(0, None), lambda_=(0, None), alpha=(0, None))


# --- The plug --------------------------------------------------------------------------------------------------------


class CustomLossDPOTrainer(CustomLoss, SharedPromptDPOTrainer):
    """The basic script's trainer with any such function: forward pass, reference and metrics stay as they are."""


# --- The run ---------------------------------------------------------------------------------------------------------
# From here on it is basic_dpo_training.py; NEW marks what that does not have.

DEMO = dict(
    dataset_name="demo",
    loss_type=["dpop"],  # NEW
    beside="sigmoid",  # NEW
    beta=0.1,  # means something else in each loss: BY_LOSS has the demo's
    learning_rate=1e-3,  # a thousand times what a model of a billion parameters bears
    adam_epsilon=1e-3,  # at the usual 1e-8 Adam takes full steps even where a gradient is almost 0
    warmup_steps=0.1,  # a tenth of all steps
    per_device_train_batch_size=32,  # 2048 pairs / 32 = 64 steps
    per_device_eval_batch_size=64,
    num_train_epochs=1,
    train_sampling_strategy="group_by_length",  # batches of rows of like length: less padding
    max_length=512,  # the demo's longest row has 237 tokens: nothing is cut
    gradient_checkpointing=False,  # the activations of so small a model fit anywhere
    bf16=False,  # in so small a model casting costs what faster matrix products save
    logging_steps=4,
    eval_strategy="steps",
    eval_steps=16,
    save_steps=32,
    num_eval_prompts=200,
    max_new_tokens=96,
)
# NEW: what differs from DEMO with each loss. Again no advice for other models; docs/losses.md has the papers' values.
BY_LOSS = {
    "ipo": dict(beta=0.5),
    "exo_pair": dict(label_smoothing=0.001),
    "robust": dict(label_smoothing=0.1),
    "cdpo": dict(label_smoothing=0.1),
    "aot": dict(beta=0.3),
    "aot_unpaired": dict(beta=0.3),
    "apo_zero": dict(beta=0.3),
    "apo_down": dict(beta=1.0, learning_rate=1e-4),  # low, because it lowers chosen answers, and here they are good
    "discopop": dict(beta=1.0),
    "sigmoid_norm": dict(beta=5.0),
    "simpo": dict(beta=5.0),
    "orpo": dict(loss_kwargs=["lambda_=1"]),
    "dpop": dict(loss_kwargs=["lambda_=1"]),  # the paper's 50 keeps so small a model where it is
}
ADAPTERS = dict(lora_target_modules=["all-linear"])  # with --use_peft; see lora_dpo_training.py


@dataclass
class LossArguments(CompareArguments, TutorialArguments):  # NEW: and those of --compare and --beside
    loss_file: str | None = field(default=None, metadata={"help": "train with your own function: my_losses.py:my_loss"})
    loss_kwargs: list[str] = field(
        default_factory=list, metadata={"help": "hyperparameters of the loss, as in lambda_=5 or gamma=0.5"}
    )


def main():
    how = dict(defaults=ADAPTERS, takes_adapters=True, losses=LOSSES, by_loss=BY_LOSS)
    args, training_args, model_args = parse_args(__doc__, DEMO, arguments=LossArguments, flags=FEWER_FLAGS, **how)
    if args.compare:  # NEW
        return compare_losses(args, training_args, model_args)

    # Loss, NEW: a formula above, one from a file of the user's, or a sum. None leaves it to TRL's own code.
    loss = loss_from_flags(args, training_args, LOSSES, LIMITS)
    needs_reference = uses_reference(loss)
    # Without a reference nothing else says where log-probs began, so the held-out pairs are measured at step 0 too.
    training_args.eval_on_start |= not needs_reference

    # Model: the policy is trained; the reference is the same model, frozen, that DPO measures the policy against.
    name = model_args.model_name_or_path
    policy, tokenizer = load_model(name, **args.model_kwargs)
    # The reference never changes, so its log-probs of all pairs are computed once, before training, when the policy
    # still equals it, and kept on disk. Only --no_precompute_ref_log_probs runs a second model beside the policy.
    is_asked_once = training_args.precompute_ref_log_probs or model_args.use_peft or not needs_reference  # NEW
    reference = None if is_asked_once else load_model(name, **args.model_kwargs)[0]

    # Data: every row becomes a prompt, a chosen and a rejected completion; what teaches nothing is left out, and said.
    train_pairs, eval_pairs, _ = load_preferences(args.source, tokenizer, **args.data_kwargs)
    prompts = pick_prompts(eval_pairs or train_pairs, args.num_eval_prompts)

    # Trainer: the basic script's, with the loss plugged in. NEW: with --use_peft an adapter, as in lora_dpo_training.py.
    peft_config = new_adapter(policy, model_args, training_args)
    base = describe_base(policy, name, model_args.model_revision) if peft_config else None
    claim_output_dir(training_args, "runs/custom_loss")
    check_start(training_args, policy, train_pairs, eval_pairs, peft_config)  # held out? room on the disk?
    trainer = CustomLossDPOTrainer(
        model=policy,
        ref_model=reference,
        args=training_args,
        train_dataset=train_pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
        peft_config=peft_config,  # NEW
        loss=loss,  # NEW
    )
    policy = trainer.model  # NEW: with its adapter, where there is one

    # Training, NEW: whatever the loss is, what is logged as a reward is beta * (log policy - log reference); without a
    # reference it is beta * log policy, and the accuracy says how often the chosen answer is the likelier one.
    frozen = "the base, which is the policy with its adapter off" if peft_config else f"a frozen copy of {name}"
    show_start(trainer, frozen if needs_reference else "none")
    watch(trainer, tokenizer, prompts[0])  # warnings, a reply now and then, checkpoints that survive a kill
    truth = known_truth(prompts)  # in the demo's world the true reward of any reply is known; elsewhere this is None
    temperatures = (1, 0) if truth else (1,)  # sampled; greedily, which sharper sampling does not change
    sampling = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed)
    before = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies before")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = sample_at(temperatures, policy, tokenizer, prompts, **sampling, progress="replies after")

    # Result: the same held-out prompts before and after.
    if peft_config is None and (reference is None or training_args.sync_ref_model):  # NEW: under an adapter it is there
        reference = load_model(name, **args.model_kwargs)[0]  # for the KL
    outcome = report_change(policy, reference, tokenizer, prompts, before, after, truth)
    about = dict(script="custom_loss", model=name, reference=name, dataset=args.dataset_name)
    about["reference"] = name if needs_reference else "none"  # NEW
    metrics = save_run(trainer, about, outcome, replies=(prompts, before[1], after[1]), base=base)
    folder = Path(training_args.output_dir)
    show_other_loss(args.beside, metrics, __file__, folder)  # NEW: the same once more with another loss
    say(f"""
What to look at   {folder}/training_curves.png, completions.md, metrics.json
What to try next  another --loss_type, your_loss among them; --compare for all of them at once
The model is in   {folder}""")


def compare_losses(args, training_args, model_args):  # NEW
    """Train with many losses, each in a process of its own, beside the best of n replies of the untrained model."""
    policy, tokenizer = load_model(model_args.model_name_or_path, **args.model_kwargs)
    _, held_out, _ = load_preferences(args.source, tokenizer, **args.data_kwargs)
    prompts = pick_prompts(held_out or [], args.num_eval_prompts)

    def reply(seed: int) -> list[str]:
        replies = sample_completions(policy, tokenizer, prompts, max_new_tokens=args.max_new_tokens, seed=seed)
        return [reply.text for reply in replies]

    own = {name: DEMO | BY_LOSS.get(name, {}) for name in LOSSES}
    folder = Path(training_args.output_dir if training_args.is_output_dir_given else f"runs/compare/{args.compare}")
    compare(args, __file__, LOSSES, own, prompts, reply, folder)


if __name__ == "__main__":
    run(main)
