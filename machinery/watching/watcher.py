"""Read what a DPO training logs, and say once, in plain words, when something is wrong.

    trainer = DPOTrainer(...)                              # trl's or a subclass
    trainer.add_callback(Watcher())
    trainer.train()

Each kind of fault is warned of once, through the logger "dpo": what was seen, what it means, what to try, and the
section of docs/when_it_goes_wrong.md that says more. It reads TRL's logs, 256 numbers of each trained tensor and, where
it is given a way to sample, a few replies; it changes nothing and draws no random number. Where a log comes every
tenth step, so does its judgement: a lower `logging_steps` sees a fault sooner. With stop_on_warning the training ends
at the first warning with a checkpoint and `StoppedOnWarning`.

A log-ratio is log policy - log reference of an answer: a reward as TRL logs it, divided by beta. Distances are
log-ratios a token, in nats, because those do not depend on the answers' length or on beta.
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

from .faults import FAULTS, PAGE

logger = logging.getLogger("dpo")

# What the limits rest on: benchmarks/watcher_limits.py, healthy runs of the demo by each script, and faulty ones. The page
# has the figures on both sides of them.
WRONG_REFERENCE = (1e-3, 0.02)  # nats a token at step 0, where it is 0 but for rounding; in fp32, and in 16 bits
WRONG_LOSS = 0.05  # relative; the losses at a log-ratio of 0 are known exactly
DISPLACED = 0.3  # nats a token that the chosen answers have lost: each token a quarter less likely. Healthy: up to 0.12
RUNAWAY = 1.5  # nats a token that the rejected answers have lost. Healthy: up to 0.24
FAINT = 0.5  # both rewards together, while DISPLACED: a loss of their difference is then still near its start
IPO_TARGET = 1.5  # nats a token that IPO drives the answers apart, 1 / (2 beta). The demo's is 1
UNMOVED = 0.05  # nats an answer, both together, after STUCK_STEPS. Healthy: 1 and more
STUCK_STEPS = (20, 100)  # after warm-up: half of the training, but no less and no more than this
COIN = 0.55  # training accuracy over COIN_PAIRS pairs. Healthy: 0.72 and more; 40% of labels flipped: 0.54 to 0.57
COIN_PAIRS = 500  # standard error of a share of them: 0.022
COIN_MOVED = 0.25  # nats an answer, both together: before, nothing is learnt. Half of the labels flipped: 0.6
ALL_RIGHT = 0.99  # training accuracy of three logs in a row with ALL_RIGHT_PAIRS pairs. Healthy: single logs up to 0.84
ALL_RIGHT_PAIRS = 64
GONE = 0.001  # of the loss at step 0: nothing is left to learn from
STANDARD_ERRORS = 3  # by which a held-out accuracy must differ before it is called worse; the demo's differ by up to 1
SKIPPED = (8, 16)  # of so many steps skipped for overflow: a loss scale that settles at the start skips two or three
SAME_ANSWERS = 0.1  # share of the pairs looked at
FEW_STEPS = 12  # fewer are over before replies change, and with a large model sampling would take longer than they do
REPEATED = 0.2  # rise of the share of 4-token sequences that stood in the same reply before
SHRUNK, GROWN = 1 / 3, 3  # mean length of a reply, as multiples of that before training
ENDLESS = 0.5  # rise of the share of replies that do not come to an end
TOUCHED_VALUES, PEEKED_PAIRS = 256, 256

# Losses in which beta multiplies sums over tokens, and which flatten where the rewards pass 1.
SUMMED = set("sigmoid hinge nca_pair bco_pair aot aot_unpaired apo_zero apo_down discopop cdpo dpop".split())
NO_REFERENCE = {"sft", "simpo", "orpo"}  # losses in which none occurs


class StoppedOnWarning(Exception):
    """The training was ended at a warning, because that was asked for."""


def first_loss(loss_type: str, beta: float, label_smoothing: float = 0.0) -> float | None:
    """The loss while policy and reference are equal and all log-ratios 0; None where it depends on the pair."""
    ln2 = math.log(2)
    if loss_type == "exo_pair" and label_smoothing:
        return -ln2 - (math.log1p(-label_smoothing) + math.log(label_smoothing)) / 2
    known = dict.fromkeys(("sigmoid", "robust", "cdpo", "aot", "aot_unpaired", "sigmoid_norm", "dpop"), ln2)
    known |= dict.fromkeys(("nca_pair", "bco_pair"), 2 * ln2) | dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0)
    known |= {"ipo": 1 / (4 * beta**2), "sppo_hard": 1 / (2 * beta**2), "discopop": (ln2 + 1) / 2}
    return known.get(loss_type)


class Watcher(TrainerCallback):
    """A callback for a DPO trainer that warns of each kind of fault once, and can end the training there."""

    def __init__(
        self,
        has_reference: bool | None = None,
        stop_on_warning: bool = False,
        sample: Callable[[nn.Module], list[tuple[list[int], bool]]] | None = None,
        sample_at: tuple[float, ...] = (0.5, 1.0),
        is_the_policy: bool = True,
    ):
        """has_reference: whether the loss uses one (None: by its name); without, rewards say nothing, and held-out
        log-probs are compared.
        sample(model): a few replies, each its token ids and whether it came to an end; it must leave the random
        generators as they are. It is asked before training and at these shares of the steps, of FEW_STEPS and more.
        is_the_policy: whether the reference is meant to be the policy as training finds it.
        """
        self.has_reference, self.stop_on_warning = has_reference, stop_on_warning
        self.sample, self.sample_at, self.is_the_policy = sample, sample_at, is_the_policy
        self.said: dict[str, str] = {}  # by kind
        self.stopped_at: int | None = None
        self.args = self.state = None  # the trainer's, from where a training begins

    # --- What the trainer calls ---

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self.args, self.state = args, state
        if self.has_reference is None:
            self.has_reference = not set(args.loss_type) <= NO_REFERENCE
        self.begun_at = state.global_step  # above 0 in a resumed run
        self.warm_at = max(self.begun_at, args.get_warmup_steps(state.max_steps))  # from here the rate is the full one
        self.step_zero = self._first_loss()
        self.logs: list[dict] = []  # of training
        self.held_out: list[dict] = []
        self.skipped = deque(maxlen=SKIPPED[1])
        self.updates = 0  # at the full rate
        self.tokens: dict[str, float] = {}  # the mean lengths of chosen and rejected answers
        self._look_at_pairs(getattr(train_dataloader, "dataset", None))
        self.touched = _touch(model)
        precisions = {parameter.dtype for parameter in model.parameters()}
        is_coarse = args.bf16 or args.fp16 or args.tf32 or args.torch_compile  # which turns TF32 on
        self.is_exact = precisions == {torch.float32} and not is_coarse
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self._say("no-parameter", "Every weight of the policy is frozen.")
        is_sampled = self.sample and self.begun_at == 0 and state.max_steps >= FEW_STEPS
        self.before = _describe(self.sample(model)) if is_sampled else None

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        was_skipped = bool(getattr(optimizer, "step_was_skipped", False))
        self.skipped.append(was_skipped)
        if sum(self.skipped) >= SKIPPED[0]:
            skipped = f"{sum(self.skipped)} of the last {len(self.skipped)} steps were skipped"
            self._say("fp16-overflow", f"At step {state.global_step} {skipped} for an infinite gradient.")
        self.updates += state.global_step > self.warm_at and not was_skipped
        if self.updates == 3 and not was_skipped:
            self._compare_parameters(model)
        is_due = state.global_step in {max(1, round(share * state.max_steps)) for share in self.sample_at}
        # There is nothing to sample from NaN.
        if self.before and is_due and all(values.isfinite().all() for values in _touch(model).values()):
            self._compare_replies(_describe(self.sample(model)))
        self._stop_if_asked(control)

    def on_log(self, args, state, control, logs=None, eval_dataloader=None, **kwargs):
        if self.args is None:  # an evaluation without a training
            return
        if "loss" in logs:
            self.logs.append({"step": state.global_step} | logs)
            for check in (self._at_step_zero, self._gradient, self._stuck, self._coin, self._separated, self._distance):
                check(logs)
        if "eval_loss" in logs:
            logs = {name.removeprefix("eval_"): value for name, value in logs.items()}
            self.held_out.append({"step": state.global_step} | logs)
            self._at_step_zero(logs, held_out=True)
            self._distance(logs, held_out=True)
            self._worse_on_held_out(logs, getattr(eval_dataloader, "dataset", None))
        self._stop_if_asked(control)

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped_at is not None:
            raise StoppedOnWarning(
                f"at step {self.stopped_at} of {state.max_steps}, after a warning and as --stop_on_warning asks; "
                f"a checkpoint is in {args.output_dir}"
            )
        self.stop_on_warning = False  # what is measured afterwards is only said

    # --- Saying it ---

    def _say(self, kind: str, seen: str) -> None:
        if kind in self.said:
            return
        section, text = FAULTS[kind]
        text = text.format(beta=self.args.beta, rate=self.args.learning_rate, loss=" ".join(self.args.loss_type))
        self.said[kind] = f'{seen} {text} ({PAGE}: "{section}")'
        if self.state.is_world_process_zero:
            logger.warning(self.said[kind])

    def _stop_if_asked(self, control) -> None:
        """Let all processes stop at the same step, at which the first of them says so."""
        if not self.stop_on_warning or self.stopped_at is not None:
            return
        [must_stop] = broadcast_object_list([bool(self.said)])
        if must_stop:
            self.stopped_at = self.state.global_step
            control.should_save = control.should_training_stop = True

    # --- Before the first step ---

    def _first_loss(self) -> float | None:
        """The loss at log-ratios of 0, where the settings allow to know it."""
        args = self.args
        weights = getattr(args, "loss_weights", None) or [1.0] * len(args.loss_type)
        losses = [first_loss(name, args.beta, args.label_smoothing) for name in args.loss_type]
        if not self.has_reference or None in losses or getattr(args, "use_weighting", False):
            return None
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def _look_at_pairs(self, dataset) -> None:
        """How long the answers are, and whether there are two of them."""
        pairs, longest = [], self.args.max_length
        for row in islice(() if dataset is None else dataset, PEEKED_PAIRS):
            if not {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(row):
                return
            room = None if longest is None else max(0, longest - len(row["prompt_ids"]))
            pairs.append((list(row["chosen_ids"])[:room], list(row["rejected_ids"])[:room]))
        if not pairs:
            return
        for answer, ids in zip(("chosen", "rejected"), zip(*pairs, strict=True), strict=True):
            self.tokens[answer] = max(1.0, sum(map(len, ids)) / len(pairs))
        same = sum(chosen == rejected for chosen, rejected in pairs)
        if same > SAME_ANSWERS * len(pairs):
            have = "training pairs have the same answer twice (cut to --max_length)"
            self._say("same-answers", f"{same} of the first {len(pairs)} {have}.")

    # --- Each log of training ---

    def _at_step_zero(self, logs, held_out: bool = False) -> None:
        is_first = self.state.global_step == (0 if held_out else 1)  # the loss of step 1 was computed before its update
        if not (is_first and self.has_reference and self.is_the_policy and self.tokens):
            return
        distance = self._moved(logs) / sum(self.tokens.values())
        name, predicted = " + ".join(self.args.loss_type), self.step_zero
        if distance > WRONG_REFERENCE[not self.is_exact]:
            differ = f"already differ by {distance:.2g} nats a token"
            self._say("wrong-reference", f"Before the first update policy and reference {differ}.")
        elif predicted and "aux_loss" not in logs and not math.isclose(logs["loss"], predicted, rel_tol=WRONG_LOSS):
            seen = f"The first loss is {logs['loss']:.4g}; while policy and reference are equal, as they are here, "
            self._say("first-loss", f"{seen}{name} is {predicted:.4g}.")

    def _gradient(self, logs) -> None:
        lost = [not math.isfinite(log.get("grad_norm", 0.0)) for log in self.logs[-3:]]
        seen = f"At step {self.state.global_step} the gradient is infinite or NaN"
        if lost[-1] and not self.args.fp16:
            self._say("overflow", f"{seen}.")
        # With fp16 that step was skipped, and the loss scale halved: usual at the start, a fault where it goes on.
        elif sum(lost) == 3 and self.state.global_step > SKIPPED[1]:
            self._say("fp16-overflow", f"{seen}, for the third log in a row.")

    def _stuck(self, logs) -> None:
        step, (least, most) = self.state.global_step, STUCK_STEPS
        due = self.warm_at + max(least, min(most, (self.state.max_steps - self.warm_at) // 2))
        is_first_log = step >= due and not any(log["step"] >= due for log in self.logs[:-1])
        is_explained = {"no-parameter", "rate-zero", "rounded", "unreached", "same-answers"} & self.said.keys()
        if (
            self.has_reference
            and self.is_the_policy
            and is_first_log
            and not is_explained
            and self._moved(logs) < UNMOVED
        ):
            moved = f"policy and reference differ by {self._moved(logs):.2g} nats an answer"
            self._say("stuck", f"At step {step} the loss is {logs['loss']:.4f}, where it began: {moved}.")

    def _coin(self, logs) -> None:
        """Whether the labels can be learnt at all: the accuracy over the second half of the steps so far."""
        step = self.state.global_step
        start = max(self.warm_at, step / 2)
        if step < self.state.max_steps / 2 or not self.has_reference or self._pairs(step - start) < COIN_PAIRS:
            return
        accuracies = [log["rewards/accuracies"] for log in self.logs if log["step"] > start]
        accuracy = sum(accuracies) / len(accuracies)
        if accuracy < COIN and self._moved(logs) > COIN_MOVED:
            right = f"is right about {accuracy:.0%} of the latest training pairs"
            self._say("coin", f"At step {step} the policy has moved, and {right}.")

    def _separated(self, logs) -> None:
        last, before = self.logs[-3:], self.logs[-4:-3]
        pairs = self._pairs(self.state.global_step - (before[0]["step"] if before else self.begun_at))
        is_certain = len(last) == 3 and pairs >= ALL_RIGHT_PAIRS
        is_certain = is_certain and all(log["rewards/accuracies"] >= ALL_RIGHT for log in last)
        # Other losses have no floor at 0, or reach it where the answers are as far apart as they should be.
        is_gone = set(self.args.loss_type) <= SUMMED and logs["loss"] < GONE * (self.step_zero or 0)
        if is_certain or is_gone:
            share = f"{logs['rewards/accuracies']:.0%} of the latest training pairs"
            told = f"{share} are told apart, with a loss of {logs['loss']:.2g}"
            self._say("separated", f"At step {self.state.global_step} {told}.")

    # --- How far the policy is from the reference ---

    def _moved(self, logs) -> float:
        """The log-ratios of both answers together, in nats."""
        return (abs(logs["rewards/chosen"]) + abs(logs["rewards/rejected"])) / self.args.beta

    def _distance(self, logs, held_out: bool = False) -> None:
        seen = self.held_out[-1:] if held_out else self.logs[-2:]  # a batch may be odd: the last two must agree
        if not self.tokens or (not held_out and len(seen) < 2):
            return
        if self.has_reference and not self.is_the_policy:  # how far it has come since the start nobody knows
            return
        if self.has_reference:
            moved = {answer: max(log[f"rewards/{answer}"] for log in seen) / self.args.beta for answer in self.tokens}
        elif held_out:  # TRL's rewards are then beta * log policy, and a change is one since the first measurement
            moved = {answer: logs[f"logps/{answer}"] - self.held_out[0][f"logps/{answer}"] for answer in self.tokens}
        else:
            return
        chosen, rejected = (moved[answer] / self.tokens[answer] for answer in ("chosen", "rejected"))
        names, beta = set(self.args.loss_type), self.args.beta
        what = f"At step {self.state.global_step} the {'held-out ' if held_out else ''}"
        if chosen < -DISPLACED and not {"displaced", "beta", "ipo-beta"} & self.said.keys():  # one cause, one warning
            is_faint = self.has_reference and names <= SUMMED and beta * self._moved(logs) < FAINT
            is_ipo = "ipo" in names and 1 / (2 * beta) > IPO_TARGET
            kind = "ipo-beta" if is_ipo else "beta" if is_faint else "displaced"
            less = f"they are {1 - math.exp(chosen):.0%} less likely a token than at the start"
            self._say(kind, f"{what}chosen answers have lost {-chosen:.2f} nats a token: {less}.")
        if rejected < -RUNAWAY:
            lost = f"rejected answers have lost {-rejected:.2f} nats a token (the chosen ones: {chosen:+.2f})"
            self._say("runaway", f"{what}{lost}.")

    # --- Held-out pairs ---

    def _worse_on_held_out(self, logs, pairs) -> None:
        step, accuracy = self.state.global_step, logs["rewards/accuracies"]
        measured = [log for log in self.held_out if log["step"] > 0]  # at step 0 all margins are ties
        if not (self.has_reference and self.logs and measured and hasattr(pairs, "__len__")):
            return

        def of_training(end: int) -> float:
            latest = [log["rewards/accuracies"] for log in self.logs if log["step"] <= end][-4:]
            return sum(latest) / len(latest) if latest else 1.0

        error = STANDARD_ERRORS * math.sqrt(0.25 / len(pairs))
        best = max(measured, key=lambda log: log["rewards/accuracies"])
        training = of_training(step)
        if accuracy < 0.5 - error and training > 0.5:
            seen = f"At step {step} the policy is right about {training:.0%} of the latest training pairs and about "
            self._say("reversed", f"{seen}{accuracy:.0%} of {len(pairs)} held-out ones.")
        elif accuracy < best["rewards/accuracies"] - error and training > of_training(best["step"]):
            seen = f"At step {step} the held-out accuracy is {accuracy:.2f}, while that of training rose to {training:.2f};"
            self._say("overfit", f"{seen} at step {best['step']} it was {best['rewards/accuracies']:.2f}.")

    # --- Parameters and replies ---

    def _compare_parameters(self, model) -> None:
        """Whether three updates at the full rate have reached every trained tensor."""
        now, rate = _touch(model), self.args.learning_rate
        is_same = {name: torch.equal(values, now[name]) for name, values in self.touched.items() if name in now}
        # Adam's updates are about as large as the rate; beside a large enough number they round to nothing.
        fine = {n for n, v in self.touched.items() if rate > torch.finfo(v.dtype).eps * v.abs().max().item()}
        self.touched = {}
        shards = gather_object([is_same])  # of a sharded tensor each process holds a part, or none
        names = set().union(*shards)
        same = {name for name in names if all(shard.get(name, True) for shard in shards)}
        is_rounded = not same & fine
        if not same or (is_rounded and len(same) <= len(names) / 2):
            return
        kind = "rate-zero" if rate == 0 else "rounded" if is_rounded else "unreached"
        some = f"{len(same)} of {len(names)} trained tensors have not changed (such as {min(same)})"
        self._say(kind, f"At step {self.state.global_step}, after three updates, {some}.")

    def _compare_replies(self, now: tuple[float, float, float]) -> None:
        (repeated, length, endless), (old_repeated, old_length, old_endless) = now, self.before
        if repeated > old_repeated + REPEATED:
            what = f"repeat themselves: {repeated:.0%} of their 4-token sequences came before ({old_repeated:.0%} at "
        elif endless > old_endless + ENDLESS:
            what = f"do not end: {endless:.0%} of them ({old_endless:.0%} at "
        elif not SHRUNK * old_length < length < GROWN * old_length:
            what = f"have {length:.0f} tokens on average ({old_length:.0f} at "
        else:
            return
        self._say("replies", f"At step {self.state.global_step} sampled replies {what}the start).")

    def _pairs(self, steps: float) -> float:
        args = self.args
        return steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size


@torch.no_grad()
def _touch(model: nn.Module) -> dict[str, torch.Tensor]:
    """Some values of each trained tensor, but not of embeddings, whose rows of absent tokens never change."""
    rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    touched = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in rows:
            continue
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # this process's shard
        flat = local.detach().reshape(-1)
        if len(flat):
            touched[name] = flat[:: max(1, len(flat) // TOUCHED_VALUES)][:TOUCHED_VALUES].clone()
    return touched


def _describe(replies: list[tuple[list[int], bool]]) -> tuple[float, float, float]:
    """Of replies: the share of repeated 4-token sequences, the mean length in tokens, the share without an end."""
    grams = [[tuple(ids[at : at + 4]) for at in range(len(ids) - 3)] for ids, _ in replies]
    count = sum(map(len, grams))
    repeated = 1 - sum(len(set(one)) for one in grams) / count if count else 0.0
    length = sum(len(ids) for ids, _ in replies) / len(replies)
    return repeated, length, sum(not is_finished for _, is_finished in replies) / len(replies)
