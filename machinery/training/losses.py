"""Find a preference loss by name or in the user's own file, fill in its hyperparameters, and try it before training.

    loss = choose_loss(["dpop", "sft"], LOSSES, weights=[1.0, 0.2], loss_kwargs=["lambda_=5"])
    loss(beta=0.1, **pair)          # (B,), pair: the four log-probs and two lengths below, each of shape (B,)
    uses_reference(loss)            # True

A loss is any function that takes these by name, or takes `**others`, and returns one number a pair. What it has with a
default besides is a hyperparameter. Everything a user can get wrong is a UserError.
"""

import difflib
import inspect
import logging
import math
from collections.abc import Callable
from functools import partial

import torch

from ..common.errors import UserError, function_from, in_one_line

logger = logging.getLogger("dpo")

TRL_LOSSES = (  # that TRL's own trainer computes
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")
GIVEN = ("beta", *LOGPS, *LENGTHS)


def choose_loss(
    names: list[str],
    known: dict[str, Callable],
    *,
    weights: list[float] | None = None,
    loss_kwargs: list[str] = (),
    settings: dict[str, float] | None = None,
    limits: dict[str, tuple[float | None, float | None]] | None = None,
) -> Callable:
    """The weighted sum of the named losses, as one function of beta and a pair.

    loss_kwargs: "name=value", for each of the losses that has such a hyperparameter. settings: values for those that
    are named so, besides. limits: for each hyperparameter its lowest value, and one it must stay below (None: any).
    """
    check_names(names, known)
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UserError(f"--loss_weights has {len(weights)} numbers for the {len(names)} names of --loss_type")
    given, settings, limits = _parse(loss_kwargs), settings or {}, limits or {}
    taken = {name: hyperparameters(known[name]) for name in names}
    if unused := set(given).difference(*taken.values()):
        own = sorted({parameter for parameters in taken.values() for parameter in parameters} - set(settings))
        has = f"has {', '.join(own)}" if own else "has no hyperparameters of its own"
        raise UserError(f"--loss_kwargs {min(unused)}: {' + '.join(names)} {has}")
    filled = []
    for name in names:
        values = {parameter: value for parameter, value in (settings | given).items() if parameter in taken[name]}
        for parameter, value in values.items():
            low, below = limits.get(parameter, (None, None))
            if (low is not None and value < low) or (below is not None and value >= below):
                text = f"at least {low}" + (f" and below {below}" if below is not None else "")
                raise UserError(f"{parameter} of {name} must be {text}, and is {value:g}")
        filled.append(partial(known[name], **values))
    return filled[0] if weights == [1.0] else partial(_weighted_sum, filled, weights)


def loss_from_flags(args, training_args, known: dict[str, Callable], limits: dict) -> Callable | None:
    """The loss that the flags ask for; None where they ask for what only TRL's own code does.

    args: loss_file, loss_kwargs and beside. training_args: TRL's; its loss_type becomes the name of a loss from a file.
    """
    if args.loss_file:
        name = args.loss_file.rpartition(":")[2]
        known, training_args.loss_type = known | {name: function_from(args.loss_file, "--loss_file")}, [name]
    names = training_args.loss_type
    settings = {"label_smoothing": training_args.label_smoothing, "discopop_tau": training_args.discopop_tau}
    for name, value in _parse(args.loss_kwargs).items():
        if name in settings:  # TRL and the watcher look for it there
            setattr(training_args, name, value)
    loss = choose_loss(
        names, known, weights=training_args.loss_weights, loss_kwargs=args.loss_kwargs, settings=settings, limits=limits
    )
    if args.beside not in (None, "none"):
        check_names([args.beside], known, "--beside")
    if args.loss_file or names == ["your_loss"]:
        check_loss(loss, names[0], training_args.beta)
    if training_args.max_tokens_per_batch and couples_pairs(loss):
        raise UserError(f"--max_tokens_per_batch splits batches, and the loss {names[0]} couples the pairs of one")
    if training_args.label_smoothing == 0 and {"cdpo", "robust"} & set(names):
        logger.warning("--label_smoothing is 0, with which cdpo and robust are sigmoid.")
    if options := only_in_trl(training_args):
        if not set(names) <= set(TRL_LOSSES):
            raise UserError(f"--{options[0]} is TRL's, for its own losses: {', '.join(TRL_LOSSES)}")
        return None
    return loss


def only_in_trl(training_args) -> list[str]:
    """The options set to what only TRL's own code of its losses follows."""
    options = ("f_divergence_type", "ld_alpha", "use_weighting")
    return [name for name in options if getattr(training_args, name, None) not in ("reverse_kl", None, False)]


def check_names(names: list[str], known, flag: str = "--loss_type") -> None:
    """Refuse a loss that is not known, with those it may have been meant to be."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{flag} {name} is not known: {hint}")


def _weighted_sum(losses: list[Callable], weights: list[float], **pair) -> torch.Tensor:
    return sum(weight * loss(**pair) for loss, weight in zip(losses, weights, strict=True))


def hyperparameters(loss: Callable) -> list[str]:
    """The names a loss takes besides beta and the pair."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name not in GIVEN]


def _parse(words: list[str]) -> dict[str, float]:
    values = {}
    for word in filter(None, words):
        name, _, value = word.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            raise UserError(f"--loss_kwargs {word}: it is written name=number, as in lambda_=5")
    return values


# --- The user's own --------------------------------------------------------------------------------------------------


def check_loss(loss: Callable, name: str, beta: float) -> None:
    """Try a loss on made-up pairs, and refuse one that could not train a model."""
    pair = made_up_pairs()
    policy_logps = [pair[logps].requires_grad_() for logps in LOGPS[:2]]
    try:
        losses = loss(beta=beta, **pair)
    except Exception as error:
        raise UserError(
            f"The loss {name} cannot be called: {in_one_line(error)}. It is given {', '.join(GIVEN)} by name; what it does "
            "not need goes into **others"
        ) from error
    count = len(pair["chosen_lengths"])
    if not isinstance(losses, torch.Tensor) or losses.shape != (count,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise UserError(f"The loss {name} returns {got} for {count} pairs: one number a pair is wanted")
    if not losses.isfinite().all():
        raise UserError(f"The loss {name} is not finite for log-ratios between -20 and 20")
    if not losses.requires_grad:
        raise UserError(f"The loss {name} has no gradient: .item(), .detach(), no_grad or a comparison cut it off")
    slopes = torch.autograd.grad(losses.mean(), policy_logps, allow_unused=True)
    for answer, slope in zip(("chosen", "rejected"), slopes, strict=True):
        if slope is None or not slope.any():
            raise UserError(f"The loss {name} does not depend on the {answer} answer's log-prob under the policy")
        if not slope.isfinite().all():
            raise UserError(f"The loss {name} is finite, but its gradient is not")
    _check_start(loss, name, beta)
    for_chosen, for_rejected = (slope.sum() for slope in slopes)
    if not for_chosen < for_rejected:
        raise UserError(
            f"The loss {name} pulls the wrong way: it falls when the rejected answer gains on the chosen one. Is a sign turned?"
        )


def _check_start(loss: Callable, name: str, beta: float) -> None:
    """Refuse a loss that gets nowhere from where every training starts: policy and reference are equal."""
    pair = made_up_pairs()
    for answer in ("chosen", "rejected"):
        pair[f"policy_{answer}_logps"] = pair[f"ref_{answer}_logps"].clone().requires_grad_(True)
    slopes = torch.autograd.grad(loss(beta=beta, **pair).sum(), [pair[logps] for logps in LOGPS[:2]])
    if not all(slope.isfinite().all() for slope in slopes):
        raise UserError(f"The loss {name} has no finite gradient where policy and reference are equal, as at the start")
    if not any(slope.any() for slope in slopes):
        raise UserError(f"The loss {name} is flat where policy and reference are equal: training would never begin")


def name_of(loss: Callable) -> str:
    """What a loss is called, with its hyperparameters filled in or not; a weighted sum by its losses."""
    if getattr(loss, "func", None) is _weighted_sum:
        return " + ".join(map(name_of, loss.args[0]))
    return getattr(getattr(loss, "func", loss), "__name__", "your_loss")


def uses_reference(loss: Callable | None) -> bool:
    """Whether a loss depends on the reference's log-probs: found out by changing them. None is TRL's own, which do."""
    if loss is None:
        return True
    pair = made_up_pairs()
    moved = pair | {name: pair[name] * 1.7 - 3.1 for name in LOGPS[2:]}
    return not torch.equal(loss(beta=0.1, **pair), loss(beta=0.1, **moved))


def couples_pairs(loss: Callable) -> bool:
    """Whether a pair's loss depends on the other pairs of its batch: found out by leaving half of them away."""
    pair = made_up_pairs()
    half = {name: values[::2] for name, values in pair.items()}
    return not torch.allclose(loss(beta=0.1, **pair)[::2], loss(beta=0.1, **half), equal_nan=True)


def made_up_pairs(count: int = 64) -> dict[str, torch.Tensor]:
    """Pairs such as come up in training, the same each time: log-probs of answers of 5 to 60 tokens, ratios to 20."""
    generator = torch.Generator().manual_seed(0)
    pair = {name: torch.randint(5, 60, (count,), generator=generator) for name in LENGTHS}
    for answer in ("chosen", "rejected"):
        pair[f"ref_{answer}_logps"] = -(0.5 + torch.rand(count, generator=generator)) * pair[f"{answer}_lengths"]
        scale = torch.logspace(-2, math.log10(20), count)
        ratio = scale * (2 * torch.rand(count, generator=generator) - 1)
        pair[f"policy_{answer}_logps"] = (pair[f"ref_{answer}_logps"] + ratio).clamp(max=-0.1)
    return pair
