"""Before any long work: are the log-probs that training will see the model's own, and does a step go through?

    check_head(trainer)                                 # UserError where TRL's head is not the model's
    why_not_the_same(trainer, model, forward, costs)    # None, or why a pair keeps two rows
    try_step(trainer)                                   # UserError where the libraries do not fit together

Three computations are held to each other on the model that is to be trained. Its own logits, as `model(...)` gives
them, say what its log-probs are: TRL's head leaves out what it does not know of, such as a soft cap under another name.
Two rows a pair through that head are held to the logits; one row a pair to two rows, on pairs so long that a window
counted wrong would show. Last a step forward and back is tried, and its gradients thrown away.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePath

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset

from ..common.errors import UserError, is_out_of_memory
from ..common.for_a_while import in_mode
from ..common.safe_text import first_line
from ..common.token_rows import row_lengths
from .shared_masks import layer_reaches

SHORT = 32  # tokens of a prompt and of an answer with which head and step are tried
# In float32 exact computations differ in the sixth digit. bfloat16 keeps 8 bits, a percent of a log-prob of about 10.
FINE, COARSE = 1e-3, 0.1


def check_head(trainer) -> None:
    """Hold TRL's log-probs of one pair to those of the model's own logits. Raises UserError where they differ."""
    policy = _policy(trainer)
    if policy.base_model is policy:
        raise UserError(
            f"{type(policy).__name__} cannot be trained with these versions of the libraries: TRL's head needs its "
            f'backbone, and Transformers looks for that under "{policy.base_model_prefix}", where there is none. Choose a '
            "model of another family."
        )
    batch, labels = _short_batch(trainer)
    with _in_a_sentence(trainer), _evaluating(trainer.model):
        targets = labels[:, 1:]
        logits = trainer.model(**batch).logits[:, :-1][:, -targets.shape[1] :].float()  # virtual tokens left out
        own = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        head = _log_probs(trainer.model, batch, labels)[:, -targets.shape[1] :]
    difference = ((own - head) * (targets != -100)).abs().max().item()
    if not difference < _tolerance(trainer):
        names = [name for name in policy.config.get_text_config().to_dict() if "logit" in name and "cap" in name]
        names = [
            name for name in names if "attn" not in name and name != "final_logit_softcapping"
        ]  # TRL's name for it
        cause = f", as it leaves out {names[0]}" if names else ""
        raise UserError(
            f"{type(policy).__name__} cannot be trained with this version of TRL: its head gives log-probs that differ from the "
            f"model's own by up to {difference:.1g}{cause}. Choose a model of another family."
        )


def why_not_the_same(trainer, model, forward: Callable, costs: tuple[float, float]) -> str | None:
    """Compare one row a pair with two on rows of the data; None where they agree.

    model: trainer.model, or what training has wrapped it in. forward: from `share_prompt`. costs: by which it decides
    whether one row is cheaper, see `forward_costs`.
    """
    for rows in _rows_to_compare(trainer):
        batch, labels = _collate(trainer, rows)
        if forward.plan(batch, labels, costs) is None:  # it would be two rows held to two rows
            continue
        log_probs = []
        try:
            with _evaluating(model):
                for forward.one_row in (False, True):
                    log_probs.append(_log_probs(model, batch, labels))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"this model takes no mask of our own ({first_line(error)})"
        finally:
            forward.one_row = False
        two, one = log_probs
        difference = trainer.accelerator.gather((one - two).abs().max()[None]).max().item()
        if not difference < (_tolerance(trainer) if model is trainer.model else COARSE):
            return f"this model's log-probs would differ by {difference:.1g} (the mask or the positions are ignored)"
        return None
    return "no pair would be shorter in one row"


def try_step(trainer) -> None:
    """Run one pair forward and back in training mode, in training's precision. Raises UserError where that fails."""
    batch, labels = _short_batch(trainer)
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    devices = [] if labels.device.type == "cpu" else [labels.device]

    def step(**router) -> None:
        with trainer.accelerator.autocast():
            outputs = trainer.model(**batch, labels=labels, fused_lm_head=True, **router)
            loss = outputs.log_probs.sum() + (outputs.aux_loss if router else 0.0)
        loss.backward()

    # Training draws the numbers that it would have drawn without this.
    with torch.random.fork_rng(devices), in_mode(trainer.model, training=True):
        try:
            with _in_a_sentence(trainer):
                step(**{"output_router_logits": True} if trainer.aux_loss_enabled else {})
        except UserError as error:
            if not trainer.aux_loss_enabled:
                raise
            with _in_a_sentence(trainer):
                step()
            raise UserError(
                f"TRL cannot compute the router loss of {type(_policy(trainer)).__name__} ({first_line(error.__cause__)}). "
                "--router_aux_loss_coef 0 trains without it."
            ) from error.__cause__
        finally:
            for parameter in parameters:
                parameter.grad = None


@contextmanager
def _in_a_sentence(trainer) -> Iterator[None]:
    """Whatever the libraries raise inside becomes a UserError that says where; want of memory stays what it is."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file = "/".join(PurePath(frame.filename).parts[-3:])
        if is_peft_model(trainer.model):
            subject, way_out = "This adapter on ", "Other --lora_target_modules may work."
        else:
            subject, way_out = "", "--traceback shows the way there."
        raise UserError(
            f"{subject}{type(_policy(trainer)).__name__} cannot be trained with these versions of the libraries: "
            f"{type(error).__name__} in {file}, line {frame.lineno}: {first_line(error)}. {way_out}"
        ) from error


@contextmanager
def _evaluating(model) -> Iterator[None]:
    """No gradients, no dropout; outside autocast, so that float32 weights are compared in float32."""
    with torch.no_grad(), in_mode(model, training=False):
        yield


def _log_probs(model, batch: dict, labels: torch.Tensor) -> torch.Tensor:
    return model(**batch, labels=labels, fused_lm_head=True).log_probs


def _tolerance(trainer) -> float:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # where TF32 is on, products are coarse
    is_full = all(backend.fp32_precision in ("none", "ieee") for backend in backends)
    return FINE if _policy(trainer).dtype == torch.float32 and is_full else COARSE


def _policy(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if is_peft_model(model) else model


def _short_batch(trainer) -> tuple[dict, torch.Tensor]:
    """The first pair, cut to a few tokens."""
    [row] = _first_rows(trainer.train_dataset, 1)
    prompt = {"prompt_ids": row["prompt_ids"][-SHORT:]}
    return _collate(trainer, [prompt | {name: row[name][:SHORT] for name in ("chosen_ids", "rejected_ids")}])


def _collate(trainer, rows: list[dict]) -> tuple[dict, torch.Tensor]:
    """The batch that training would make of these rows, without columns beside the tokens, and its labels."""
    batch = trainer.data_collator([{name: ids for name, ids in row.items() if name.endswith("_ids")} for row in rows])
    batch = {name: tensor.to(_policy(trainer).device) for name, tensor in batch.items()}
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    return batch | {"use_cache": False}, labels


def _first_rows(pairs, count: int) -> list[dict]:
    return (
        [pairs[n] for n in range(min(count, len(pairs)))] if isinstance(pairs, Dataset) else list(islice(pairs, count))
    )


def _rows_to_compare(trainer) -> Iterator[list[dict]]:
    """The two longest pairs; then, as one row of those may not be cheaper, the two of the longest prompts; then these with
    short answers, as one row of some batch may be cheaper all the same.

    Where other pairs reach further back than these, and further than a window of the model, the prompts are lengthened.
    """
    pairs = trainer.train_dataset
    config = _policy(trainer).config.get_text_config()
    windows = [width for reach in layer_reaches(config).values() for width in reach.values()]
    beyond = max(windows, default=0) * 2  # so far that chunks and windows show wherever they begin
    limit = trainer.args.max_length or beyond
    if not isinstance(pairs, Dataset):  # a stream: nobody knows its longest pair
        rows = [_lengthened(row, min(beyond, limit)) for row in _first_rows(pairs, 2)]
        yield rows
        yield _with_short_answers(rows)
        return
    sets = [pairs, *(held for held in _held_out(trainer) if isinstance(held, Dataset))]
    need = min(beyond, limit, max(int(row_lengths(rows).max()) for rows in sets if len(rows)))
    for count in (row_lengths, lambda pairs: torch.tensor([len(ids) for ids in pairs["prompt_ids"]])):
        rows = [_lengthened(pairs[n], need) for n in count(pairs).topk(min(2, len(pairs))).indices.tolist()]
        yield rows
    yield _with_short_answers(rows)


def _with_short_answers(rows: list[dict]) -> list[dict]:
    """The same prompts, of some length, before the beginnings of the answers: cheaper in one row for every model."""
    cut = [row | {name: row[name][: SHORT // 2] for name in ("chosen_ids", "rejected_ids")} for row in rows]
    return [_lengthened(row, 4 * SHORT) for row in cut]


def _held_out(trainer) -> list:
    held = trainer.eval_dataset
    return list(held.values()) if isinstance(held, dict) else [held]


def _lengthened(row: dict, need: int) -> dict:
    """A row whose prompt, repeated from its end, makes its shorter form in TRL at least `need` tokens long."""
    prompt = row["prompt_ids"]
    lacking = need - len(prompt) - min(len(row["chosen_ids"]), len(row["rejected_ids"]))
    if lacking <= 0 or not prompt:
        return row
    return row | {"prompt_ids": (prompt * (lacking // len(prompt) + 1))[-lacking:] + prompt}
