"""After the last step: the run's files, each whole or not there, with metrics.json as the last.

about = dict(script="basic", model="demo/model", reference="demo/model", dataset="demo")
save_run(trainer, about, outcome, replies=(prompts, before, after))
"""

import json
import math
import shutil
from pathlib import Path

from datasets import Dataset

from ..common.kept_files import UNFINISHED, complete_file, complete_files, dispensable
from ..common.masking import masked
from ..common.safe_text import completions_page
from ..hardware.memory import peak_memory_bytes
from ..models.adapters import Base, note_base
from ..watching.curves import plot_training
from ..watching.warning_list import heard_warnings
from .interrupts import finished_first
from .ownership import FINISHED


def save_run(
    trainer, about: dict[str, str], outcome: dict, replies: tuple[list, list, list], base: Base | None = None
) -> dict:
    """Write the run's files into the trainer's output folder, each complete or not at all; metrics.json is the last.

    about: the names of script, model, reference and dataset. outcome: what `report_change` measured, added to what the
    trainer knows. replies: prompts, replies before training, replies after it. base: what an adapter belongs to, noted
    beside it. Returns the metrics. Measures the held-out pairs once more where that was not done at the last step.
    """
    last_measured = max((logs["step"] for logs in trainer.state.log_history if "eval_loss" in logs), default=None)
    is_other_model = last_measured != trainer.state.global_step or trainer.args.load_best_model_at_end
    if trainer.eval_dataset is not None and is_other_model:
        trainer.evaluate()
    folder = Path(trainer.args.output_dir)
    about = {name: text and masked(text) for name, text in about.items()}  # an address may hold a password
    metrics = about | _facts_of_training(trainer) | outcome
    metrics = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    with finished_first(f"The run is finished, and its files are in {folder}."):
        _write(trainer, folder, metrics, replies, base)
    if trainer.args.push_to_hub:
        trainer.save_model = lambda *_, **__: None  # it would write all anew first, without what was put right above
        trainer.push_to_hub(dataset_name=about["dataset"])  # by all processes
    return metrics


def _write(trainer, folder: Path, metrics: dict, replies: tuple[list, list, list], base: Base | None) -> None:
    """The files; only the model, the trainer's state and the metrics are worth an error where the disk is full."""
    if trainer.args.should_save:
        with complete_files(folder) as unfinished:
            trainer.save_model(str(unfinished), _internal_call=True)  # else it would push what is unfinished
            shutil.rmtree(unfinished / "ref", ignore_errors=True)  # TRL's frozen copy of an adapter that was trained on
            if base is not None:
                note_base(unfinished, base)
            trainer.state.save_to_json(str(unfinished / "trainer_state.json"))
            with dispensable(unfinished / "training_curves.png") as path:
                plot_training(trainer.state.log_history, path)
            with dispensable(unfinished / "completions.md") as path:
                path.write_text(completions_page(*replies), encoding="utf-8")
            if heard_warnings():
                with dispensable(unfinished / "warnings.jsonl") as path:
                    lines = [json.dumps({"warning": text}) + "\n" for text in heard_warnings()]
                    path.write_text("".join(lines), encoding="utf-8")
        with complete_file(folder / FINISHED) as file:
            json.dump(metrics, file, indent=2, allow_nan=False)
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # one of the other processes
        trainer.save_model(str(folder / UNFINISHED), _internal_call=True)  # its share of the weights is needed


def _facts_of_training(trainer) -> dict:
    """What metrics.json has of settings, size, time, memory and the last measurement of the held-out pairs."""
    logged = list(reversed(trainer.state.log_history))
    held_out = next((logs for logs in logged if "eval_loss" in logs), {})
    summary = next((logs for logs in logged if "train_runtime" in logs), {})
    estimated = getattr(trainer, "estimated_peak_bytes", None)  # where checkpointing was to be chosen
    return {
        "beta": trainer.args.beta,
        "loss_type": " + ".join(trainer.args.loss_type),
        "seed": trainer.args.seed,
        "max_length": trainer.args.max_length,
        "warnings": len(heard_warnings()),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "pairs_train": _length(trainer.train_dataset),
        "pairs_eval": _length(trainer.eval_dataset),
        "train_seconds": summary.get("train_runtime"),
        "train_pairs_per_second": summary.get("train_samples_per_second"),
        "peak_memory_bytes": peak_memory_bytes(),
        **({"peak_memory_bytes_estimated": estimated} if estimated else {}),
        "eval_loss": held_out.get("eval_loss"),
        "reward_accuracy": held_out.get("eval_rewards/accuracies"),
        "reward_margin": held_out.get("eval_rewards/margins"),
        "chosen_logp_change": _logp_change(trainer, held_out, "chosen"),
        "rejected_logp_change": _logp_change(trainer, held_out, "rejected"),
    }


def _length(pairs) -> int | None:
    return len(pairs) if isinstance(pairs, Dataset) else None


def _logp_change(trainer, held_out: dict, answer: str) -> float | None:
    """The mean of log policy - log reference of the held-out answers, in nats."""
    if not held_out:
        return None
    if getattr(trainer, "needs_reference", True):
        return held_out[f"eval_rewards/{answer}"] / trainer.args.beta  # a reward is beta times the log-ratio
    first = next(logs for logs in trainer.state.log_history if "eval_loss" in logs)
    return held_out[f"eval_logps/{answer}"] - first[f"eval_logps/{answer}"] if first["step"] == 0 else None
