"""Read what a DPO training logs, and say once, in plain words, when something is wrong.

    trainer = DPOTrainer(...)                              # trl's or a subclass
    trainer.add_callback(Watcher())
    trainer.train()

Each kind of fault is warned of once, through the logger "dpo": what was seen, what it means, what to try, and the section
of docs/when_it_goes_wrong.md that says more. It reads TRL's logs, 256 numbers of each trained tensor, and, where it is
given a way to sample, a few replies; it changes nothing and draws no random number. Where a log comes every tenth step,
so does its judgement: a lower `logging_steps` sees a fault sooner. With stop_on_warning the training ends at the
first warning with a checkpoint and `StoppedOnWarning`.

A log-ratio is log policy - log reference of an answer, a TRL reward divided by beta. Distances are log-ratios a token, in
nats, because those mean the same for short and long answers, for every beta and for every size of model.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from itertools import islice

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import TrainerCallback

logger = logging.getLogger("dpo")
PAGE = "docs/when_it_goes_wrong.md"
# What is warned of, and the section of PAGE that says more.
SECTIONS = {
    "wrong-reference": "The first loss is not ln 2",
    "first-loss": "The first loss is not ln 2",
    "frozen": "The loss stays at 0.693",
    "stuck": "The loss stays at 0.693",
    "same-answers": "The loss stays at 0.693",
    "coin": "The accuracy stays near 0.5",
    "reversed": "The held-out accuracy is below 0.5",
    "overfit": "The held-out accuracy falls while that of training rises",
    "separated": "The accuracy is 1.0, the loss goes to 0",
    "displaced": "The chosen reward falls",
    "beta": "The chosen reward falls",
    "runaway": "The margin runs away",
    "overflow": "NaN, or a gradient without end",
    "replies": "Gibberish, and replies that do not end",
}

# Where the limits come from: about 190 runs of the demo (21 losses, betas, rates, ranks, shares of wrong labels, up to five
# seeds). The page has the figures on both sides of each.
WRONG_REFERENCE = (1e-3, 0.02)  # nats a token at step 0, where it is 0 but for rounding; in fp32, and in 16 bits
WRONG_LOSS = 0.05  # relative; the losses at a log-ratio of 0 are known exactly
DISPLACED = 0.3  # nats a token that the chosen answers have lost: each token a quarter less likely. Healthy: up to 0.2
RUNAWAY = 1.5  # nats a token that the rejected answers have lost. Healthy: up to 0.4
FAINT = 0.5  # both rewards together, while DISPLACED: so small that a loss of their difference is still near its start
IPO_TARGET = 1.5  # nats a token that IPO drives the answers apart, 1 / (2 beta). The demo's is 1
UNMOVED = 0.05  # nats an answer, both together, after STUCK_STEPS. Healthy: 0.2 and more
STUCK_STEPS = (20, 100)  # after warm-up: half of the training, but no less and no more than this
COIN = 0.55  # training accuracy over COIN_PAIRS pairs. Healthy: 0.62 and more; 40% of wrong labels: 0.53
COIN_PAIRS = 500  # standard error of a share of them: 0.022
ALL_RIGHT = 0.99  # training accuracy of three logs in a row with ALL_RIGHT_PAIRS pairs. Healthy: single logs up to 0.86
ALL_RIGHT_PAIRS = 64
GONE = 0.001  # of the loss at step 0: nothing is left to learn from
STANDARD_ERRORS = 3  # by which a held-out accuracy must differ before it is called worse; the demo's differ by up to 1
SKIPPED = (8, 16)  # of so many steps skipped for overflow: a loss scale that settles at the start skips two or three
SAME_ANSWERS = 0.1  # share of the pairs looked at
REPEATED = 0.2  # rise of the share of 4-token sequences that stood in the same reply before
SHRUNK, GROWN = 1 / 3, 3  # mean length of a reply, as multiples of that before training
ENDLESS = 0.5  # rise of the share of replies that do not come to an end
TOUCHED_VALUES, PEEKED_PAIRS = 256, 256

SUMMED = {"sigmoid", "hinge", "exo_pair", "nca_pair", "robust", "bco_pair", "aot", "aot_unpaired", "apo_zero", "apo_down",
          "discopop", "cdpo", "dpop"}  # fmt: skip  (beta times sums over tokens, and a loss that flattens beyond 1)


class StoppedOnWarning(Exception):
    """The training was ended at a warning, because that was asked for."""


def first_loss(loss_type: str, beta: float, label_smoothing: float = 0.0) -> float | None:
    """The loss while policy and reference are equal, so that all log-ratios are 0; None where it depends on the pair."""
    ln2, half = math.log(2), 0.5
    if loss_type == "exo_pair":
        return half * (math.log(half) - math.log1p(-label_smoothing)) + half * (math.log(half) - math.log(label_smoothing))
    known = dict.fromkeys(("sigmoid", "robust", "cdpo", "aot", "aot_unpaired", "sigmoid_norm", "dpop"), ln2)
    known |= dict.fromkeys(("nca_pair", "bco_pair"), 2 * ln2) | dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0)
    known |= {"ipo": 1 / (4 * beta**2), "sppo_hard": 1 / (2 * beta**2), "discopop": half * ln2 + half}
    return known.get(loss_type)


class Watcher(TrainerCallback):
    """A callback for a DPO trainer that warns of each kind of fault once, and can end the training there."""

    def __init__(
        self,
        has_reference: bool = True,
        stop_on_warning: bool = False,
        sample: Callable[[nn.Module], list[tuple[list[int], bool]]] | None = None,
        sample_at: tuple[float, ...] = (0.5, 1.0),
    ):
        """has_reference: whether the loss uses one; without, rewards say nothing, and held-out log-probs are compared.
        sample(model): a few replies, each its token ids and whether it came to an end; it must leave the random
        generators as they are. It is asked before training and at these shares of the steps.
        """
        self.has_reference, self.stop_on_warning, self.sample, self.sample_at = (
            has_reference, stop_on_warning, sample, sample_at,
        )  # fmt: skip
        self.said: dict[str, str] = {}  # by kind
        self.stopped_at: int | None = None

    # --- What the trainer calls ---

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, eval_dataloader=None, **kwargs):
        self.args, self.begun_at = args, state.global_step
        self.warm_at = max(self.begun_at, args.get_warmup_steps(state.max_steps))  # from here the rate is the full one
        self.step_zero = self._first_loss()
        self.held_out_pairs = _length(getattr(eval_dataloader, "dataset", None))
        self.logs: list[dict] = []  # of training
        self.held_out: list[dict] = []
        self.skipped = deque(maxlen=SKIPPED[1])
        self.updates = 0
        self.chosen_tokens = self.rejected_tokens = None
        self._look_at_pairs(state, getattr(train_dataloader, "dataset", None))
        self.touched = _touch(model)
        precisions = {parameter.dtype for parameter in model.parameters()}
        self.is_exact = precisions == {torch.float32} and not (args.bf16 or args.fp16)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self._say(
                state, "frozen", "No parameter is trainable: every weight is frozen, and the training will change nothing. "
                "An adapter has to be loaded with is_trainable=True.",
            )  # fmt: skip
        if self.sample is not None and self.begun_at == 0:
            self.before = _describe(self.sample(model))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        was_skipped = bool(getattr(optimizer, "step_was_skipped", False))
        self.skipped.append(was_skipped)
        if sum(self.skipped) >= SKIPPED[0]:
            self._overflow(state, f"By step {state.global_step} {sum(self.skipped)} of the last {len(self.skipped)} steps were skipped:")
        self.updates += state.global_step > self.warm_at and not was_skipped
        if self.updates == 3 and not was_skipped:
            self._compare_parameters(state, model)
        at = {max(1, round(share * state.max_steps)) for share in self.sample_at}
        if self.sample is not None and hasattr(self, "before") and state.global_step in at:
            self._compare_replies(state, _describe(self.sample(model)))
        self._stop_if_asked(state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append({"step": state.global_step, "epoch": state.epoch or 0} | logs)
            for check in (self._at_step_zero, self._gradient, self._stuck, self._coin, self._separated, self._distance):
                check(state, logs)
        if "eval_loss" in logs:
            logs = {name.removeprefix("eval_"): value for name, value in logs.items()}
            if not self.has_reference and self.held_out:  # a change since the first measurement, in nats
                logs["logp_change"] = logs["logps/chosen"] - self.held_out[0]["logps/chosen"]
            self.held_out.append({"step": state.global_step} | logs)
            for check in (self._at_step_zero, self._distance, self._worse_on_held_out):
                check(state, logs, held_out=True)
        if hasattr(self, "args"):
            self._stop_if_asked(state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped_at is not None:
            raise StoppedOnWarning(
                f"at step {self.stopped_at} of {state.max_steps}, after a warning and as --stop_on_warning asks; a checkpoint is "
                f"in {args.output_dir}"
            )

    # --- Saying it ---

    def _say(self, state, kind: str, text: str) -> None:
        if kind in self.said:
            return
        self.said[kind] = text = f'{text} ({PAGE}: "{SECTIONS[kind]}")'
        if state.is_world_process_zero:
            logger.warning(text)

    def _stop_if_asked(self, state, control) -> None:
        """Let all processes stop at the same step, at which the first of them says so."""
        if not self.stop_on_warning or self.stopped_at is not None:
            return
        [must_stop] = broadcast_object_list([bool(self.said)])
        if must_stop:
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    # --- Before the first step ---

    def _first_loss(self) -> float | None:
        """The loss at a log-ratio of 0, where the settings allow to know it."""
        args = self.args
        names, beta, smoothing = args.loss_type, args.beta, args.label_smoothing
        weights = getattr(args, "loss_weights", None) or [1.0] * len(names)
        losses = [first_loss(name, beta, smoothing) for name in names]
        if not self.has_reference or None in losses or getattr(args, "use_weighting", False):
            return None
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def _look_at_pairs(self, state, dataset) -> None:
        """The mean lengths of the answers, and whether there are two of them."""
        rows = [] if dataset is None else islice(iter(dataset), PEEKED_PAIRS)
        pairs = []
        for row in rows:
            if not {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(row):
                return
            room = None if self.args.max_length is None else max(0, self.args.max_length - len(row["prompt_ids"]))
            pairs.append((list(row["chosen_ids"])[:room], list(row["rejected_ids"])[:room]))
        if not pairs:
            return
        self.chosen_tokens = max(1.0, sum(len(chosen) for chosen, _ in pairs) / len(pairs))
        self.rejected_tokens = max(1.0, sum(len(rejected) for _, rejected in pairs) / len(pairs))
        same = sum(chosen == rejected for chosen, rejected in pairs)
        if same > SAME_ANSWERS * len(pairs):
            self._say(
                state, "same-answers", f"{same} of the first {len(pairs)} pairs have the same answer twice, cut to --max_length. Such "
                "a pair teaches nothing: its margin is always 0. Look for answers that differ only beyond --max_length, or a "
                "column that was named twice; leave out the rest.",
            )  # fmt: skip

    # --- Each log of training ---

    def _at_step_zero(self, state, logs, held_out: bool = False) -> None:
        is_first = state.global_step == (0 if held_out else 1)  # the loss of step 1 was computed before its update
        if not is_first or not self.has_reference or "rewards/chosen" not in logs or not self.chosen_tokens:
            return
        ratios = abs(logs["rewards/chosen"]) + abs(logs["rewards/rejected"])
        distance = ratios / self.args.beta / (self.chosen_tokens + self.rejected_tokens)
        if distance > WRONG_REFERENCE[not self.is_exact]:
            self._say(
                state, "wrong-reference", f"Before the first update policy and reference differ by {distance:.2g} nats a token; "
                "they should be the same model. DPO would hold the policy to a model that it did not start from. Load the "
                "weights, and an adapter from SFT, into both, or merge the adapter first.",
            )  # fmt: skip
        elif self.step_zero is not None and "aux_loss" not in logs and not math.isclose(
            logs["loss"], self.step_zero, rel_tol=WRONG_LOSS
        ):  # fmt: skip
            self._say(
                state, "first-loss", f"The first loss is {logs['loss']:.4g}, and {' + '.join(self.args.loss_type)} is {self.step_zero:.4g} while "
                "policy and reference are equal, as they are. The loss does not compute what its name says: look at "
                "its formula and weights.",
            )  # fmt: skip

    def _gradient(self, state, logs) -> None:
        norms = [log.get("grad_norm", 0.0) for log in self.logs]
        lost = [not math.isfinite(norm) for norm in norms]
        # With fp16 a step is skipped now and then, and the loss scale halved: only what goes on is a fault.
        if lost[-1] and (not self.args.fp16 or (all(lost[-3:]) and len(lost) >= 3 and state.global_step > SKIPPED[0])):
            self._overflow(state, f"At step {state.global_step}")

    def _overflow(self, state, how: str) -> None:
        if self.args.fp16:
            cure = "fp16 ends at 65504, and the loss scale, halved each time, finds no place: use --bf16, or fp32."
        else:
            cure = "The next update makes every weight NaN: go back to the last checkpoint, with a lower --learning_rate."
        self._say(state, "overflow", f"{how} the gradient is infinite or NaN. {cure}")

    def _stuck(self, state, logs) -> None:
        least, most = STUCK_STEPS
        due = self.warm_at + max(least, min(most, (state.max_steps - self.warm_at) // 2))
        if state.global_step < due or "frozen" in self.said or "same-answers" in self.said or not self.has_reference:
            return
        moved = (abs(logs["rewards/chosen"]) + abs(logs["rewards/rejected"])) / self.args.beta
        if moved < UNMOVED and not any(log["step"] >= due for log in self.logs[:-1]):
            self._say(
                state, "stuck", f"At step {state.global_step} the loss is {logs['loss']:.4f}, where it began: the policy has moved {moved:.2g} nats an "
                f"answer from the reference. --learning_rate {self.args.learning_rate:g} is too low for this model and batch: try ten times "
                "that. (An adapter takes about ten times the rate of full training.)",
            )  # fmt: skip

    def _coin(self, state, logs) -> None:
        """Whether the labels can be learnt at all: the accuracy of the second half of the steps so far."""
        if state.global_step < state.max_steps / 2 or not self.has_reference or "frozen" in self.said:
            return
        start = max(self.warm_at, state.global_step / 2)
        recent = [log for log in self.logs if log["step"] > start]
        moved = (abs(logs["rewards/chosen"]) + abs(logs["rewards/rejected"])) / self.args.beta
        if not recent or self._pairs(state.global_step - start) < COIN_PAIRS or moved < 1:
            return
        accuracy = sum(log["rewards/accuracies"] for log in recent) / len(recent)
        if accuracy < COIN:
            self._say(
                state, "coin", f"At step {state.global_step} the policy has moved, and is right about {accuracy:.0%} of the latest training pairs: hardly "
                "more than a coin. The labels are near chance, or say the opposite of each other. Read twenty pairs yourself; "
                "run custom_dataset_dpo.py on them; keep those with a clear preference (--min_margin).",
            )  # fmt: skip

    def _separated(self, state, logs) -> None:
        last = self.logs[-3:]
        steps = last[-1]["step"] - (self.logs[-4]["step"] if len(self.logs) > 3 else self.begun_at)
        is_certain = len(last) == 3 and self._pairs(steps) >= ALL_RIGHT_PAIRS
        is_certain = is_certain and all(log.get("rewards/accuracies", 0) >= ALL_RIGHT for log in last)
        # the other losses have no floor at 0, or reach it where the answers are as far apart as they should be
        is_gone = set(self.args.loss_type) <= SUMMED - {"exo_pair", "robust"} and logs["loss"] < GONE * (self.step_zero or 0)
        if not (is_certain or is_gone):
            return
        early = last[-1]["epoch"] <= 1
        cause = (
            "In the first pass over the data that is no skill: something trivial tells chosen from rejected (an empty or cut "
            "answer, a marker, its length, another author)."
            if early
            else "After several passes the pairs are known by heart."
        )
        cure = "Look at pairs by custom_dataset_dpo.py" if early else "Stop earlier (--num_train_epochs 1)"
        self._say(
            state, "separated", f"At step {state.global_step} {logs['rewards/accuracies']:.0%} of the training pairs are told apart, with a loss of "
            f"{logs['loss']:.2g}. {cause} What is left is to drive the answers further apart. {cure}, or use a "
            "loss with an end: ipo, or cdpo with --label_smoothing 0.1 (custom_loss_dpo.py).",
        )  # fmt: skip

    # --- How far the policy is from the reference ---

    def _distance(self, state, logs, held_out: bool = False) -> None:
        if not self.chosen_tokens or "rewards/chosen" not in logs:
            return
        beta, where = self.args.beta, "held-out " if held_out else ""
        if self.has_reference:
            # A batch may be odd, so of training the last two logs must agree.
            seen = [logs] if held_out else self.logs[-2:]
            if len(seen) == 1 and not held_out:
                return
            chosen = max(log["rewards/chosen"] for log in seen) / beta / self.chosen_tokens
            rejected = max(log["rewards/rejected"] for log in seen) / beta / self.rejected_tokens
        elif "logp_change" in logs:
            chosen, rejected = logs["logp_change"] / self.chosen_tokens, 0.0
        else:
            return
        seen = f"At step {state.global_step} the {where}chosen answers have lost {-chosen:.2f} nats a token against where they began"
        if chosen < -DISPLACED and not {"displaced", "beta"} & self.said.keys():  # one cause, one warning
            self._displaced(state, logs, seen, chosen)
        elif rejected < -RUNAWAY:
            self._say(
                state, "runaway", f"At step {state.global_step} the {where}rejected answers have lost {-rejected:.2f} nats a token (the chosen ones: "
                f"{chosen:+.2f}): the policy is running away from the reference, and replies break next. {self._cure()}",
            )  # fmt: skip

    def _displaced(self, state, logs, seen: str, chosen: float) -> None:
        args, kinds = self.args, set(self.args.loss_type)
        rewards = abs(logs["rewards/chosen"]) + abs(logs["rewards/rejected"])
        if "ipo" in kinds and 1 / (2 * args.beta) > IPO_TARGET:
            self._say(
                state, "beta", f"{seen}, and --beta {args.beta:g} asks ipo to drive the answers {1 / (2 * args.beta):.3g} nats a TOKEN apart, which no text "
                "survives. IPO's beta is no DPO beta: it counts means over tokens. Try 0.5 to 1.5.",
            )  # fmt: skip
        elif kinds <= SUMMED and self.has_reference and rewards < FAINT:
            self._say(
                state, "beta", f"{seen}, and with --beta {args.beta:g} the loss hardly notices: the rewards are {logs['rewards/chosen']:+.2g} and "
                f"{logs['rewards/rejected']:+.2g}. Nothing holds the policy to its reference. A higher beta does: 0.1 is usual.",
            )  # fmt: skip
        else:
            falls = "" if self.has_reference else " It has no reference to hold it."
            self._say(
                state, "displaced", f"{seen}: a token is {1 - math.exp(chosen):.0%} less likely. Training lowers both answers and only minds "
                f"their difference; what gains is text that nobody wrote (likelihood displacement, arXiv:2410.08847).{falls} {self._cure()}",
            )  # fmt: skip

    def _cure(self) -> str:
        higher = "a higher --beta, " if self.has_reference else ""
        return f"Try a third of --learning_rate {self.args.learning_rate:g}, {higher}--loss_type {self.args.loss_type[0]} sft, or fewer steps."

    # --- Held-out pairs ---

    def _worse_on_held_out(self, state, logs, held_out: bool = True) -> None:
        if not self.has_reference or not self.held_out_pairs or not self.logs:
            return
        error = STANDARD_ERRORS * math.sqrt(0.25 / self.held_out_pairs)
        accuracy, step = logs["rewards/accuracies"], state.global_step
        training = [log["rewards/accuracies"] for log in self.logs[-4:]]
        training = sum(training) / len(training)
        # The accuracy at step 0 is that of ties, and no measure.
        best = max((log for log in self.held_out if log["step"] > 0), key=lambda log: log["rewards/accuracies"])
        before = [log["rewards/accuracies"] for log in self.logs if log["step"] <= best["step"]][-4:]
        if step > 0 and accuracy < 0.5 - error and training > 0.5:
            self._say(
                state, "reversed", f"At step {step} the policy is right about {training:.0%} of the latest training pairs and {accuracy:.0%} of {self.held_out_pairs} held-out ones: "
                "it learns the opposite of what it is held to. In one of the two splits chosen and rejected are the wrong way "
                "round: compare a few pairs of both (--columns chosen=...,rejected=... sets the names).",
            )  # fmt: skip
        elif accuracy < best["rewards/accuracies"] - error and before and training > sum(before) / len(before):
            self._say(
                state, "overfit", f"At step {step} the held-out accuracy is {accuracy:.2f}, down from {best['rewards/accuracies']:.2f} at step {best['step']}, while that of training rose to {training:.2f}: "
                "the policy learns its pairs by heart. The checkpoint of that step was better; train for fewer steps, on more "
                "pairs, or with a higher --beta.",
            )  # fmt: skip

    # --- Parameters and replies ---

    def _compare_parameters(self, state, model) -> None:
        """Whether three updates at the full rate have reached every trained tensor."""
        now = _touch(model)
        is_same = {name: torch.equal(values, now[name]) for name, values in self.touched.items() if name in now}
        # Adam's updates are about as large as the rate; beside a large enough number they round to nothing.
        rate = self.args.learning_rate
        fine = {n for n, v in self.touched.items() if rate > torch.finfo(v.dtype).eps * v.abs().max().item()}
        self.touched = {}
        shards = gather_object([is_same])  # of a sharded tensor each process holds a part, or none
        same = {name for shard in shards for name in shard if all(other.get(name, True) for other in shards)}
        total, some = len(set().union(*shards)), ", ".join(sorted(same)[:2])
        is_rounded = not same & fine
        if not same or (is_rounded and len(same) <= total / 2):
            return
        if rate == 0:
            cause = "--learning_rate is 0."
        elif is_rounded:
            cause = (
                f"Updates of {rate:g} are lost in rounding. Weights stored in 16 bits need --dtype float32 (--bf16 still computes "
                "in 16 bits) or an adapter; otherwise raise the rate."
            )
        else:
            cause = (
                "They get no gradient, or the optimizer does not know them: an adapter that is switched off or was added after "
                "the trainer was made, or layers that the answers do not go through."
            )
        self._say(
            state, "frozen", f"At step {state.global_step}, after three updates, {len(same)} of {total} trained tensors have not changed (such as {some}). {cause}",
        )  # fmt: skip

    def _compare_replies(self, state, now: tuple[float, float, float]) -> None:
        (repeated, length, endless), (old_repeated, old_length, old_endless) = now, self.before
        what = None
        if repeated > old_repeated + REPEATED:
            what = f"repeat themselves: {repeated:.0%} of their 4-token sequences stood there before, {old_repeated:.0%} at the start"
        elif endless > old_endless + ENDLESS:
            what = f"do not end: {endless:.0%} of them, {old_endless:.0%} at the start"
        elif not SHRUNK * old_length < length < GROWN * old_length:
            what = f"have {length:.0f} tokens on average, and {old_length:.0f} at the start"
        if what is not None:
            self._say(
                state, "replies", f"At step {state.global_step} sampled replies {what}. The accuracy does not see this. Compare completions; try a "
                f"third of --learning_rate {self.args.learning_rate:g} or a higher --beta; for lengths, see the pairs' lengths (custom_dataset_dpo.py) "
                "and that the chosen answers end with the EOS token.",
            )  # fmt: skip

    def _pairs(self, steps: float) -> float:
        args = self.args
        return steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _length(dataset) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None


@torch.no_grad()
def _touch(model: nn.Module) -> dict[str, torch.Tensor]:
    """Some values of each trained tensor, spread over it. Embeddings are left out: rows of absent tokens never change."""
    rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    touched = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in rows:
            continue
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # of a sharded one this process's
        flat = local.detach().reshape(-1)
        if len(flat):
            touched[name] = flat[:: max(1, len(flat) // TOUCHED_VALUES)][:TOUCHED_VALUES].clone()
    return touched


def _describe(replies: list[tuple[list[int], bool]]) -> tuple[float, float, float]:
    """Of sampled replies: the share of repeated 4-token sequences, the mean length in tokens, the share without an end."""
    grams = [[tuple(ids[at : at + 4]) for at in range(len(ids) - 3)] for ids, _ in replies]
    count = sum(map(len, grams))
    repeated = 1 - sum(len(set(one)) for one in grams) / count if count else 0.0
    length = sum(len(ids) for ids, _ in replies) / len(replies)
    return repeated, length, sum(not is_finished for _, is_finished in replies) / len(replies)
