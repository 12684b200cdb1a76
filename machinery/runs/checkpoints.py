"""Checkpoints that are known to be whole: a manifest of file hashes, written last, and the newest for which it holds.

    complete_checkpoints(trainer, run)                  # from now on each checkpoint gets a manifest; run: whose it is
    why_incomplete(Path("out/checkpoint-40"))           # None, or "model.safetensors has 4,096 bytes of 5,230,344"
    checkpoint, passed_over = newest_complete(Path("out"))

Transformers goes on from the checkpoint with the highest number, whole or not, and deletes the older ones before
anybody knows whether the new one is (its issue 35525). A process can die between any two bytes; a disk can return
others than it was given. So each checkpoint ends with a file of the names, sizes and hashes of all others, under its
final name only when it is complete, and older checkpoints go only when two newer ones hold.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from ..common.kept_files import checksum, complete_file, is_as_signed, signed
from .ownership import MANIFEST, drop_older, note_push

LEAST_KEPT = 2  # the newest, and one in case that its disk block goes bad


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")))


def write_manifest(checkpoint: Path, run: dict) -> None:
    """Declare a checkpoint complete: the names, sizes and SHA-256 of its files, and the run it belongs to."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and MANIFEST not in path.name]
    with ThreadPoolExecutor() as threads:  # hashing gives up Python's lock
        hashes = list(threads.map(partial(checksum, is_new=True), files))
    noted = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in sorted(zip(files, hashes, strict=True))
    }
    with complete_file(checkpoint / MANIFEST) as file:
        json.dump(signed({"run": run, "files": noted}), file, indent=2)


def read_manifest(checkpoint: Path) -> dict:
    """A checkpoint's manifest: {"run": ..., "files": {name: {"bytes": ..., "sha256": ...}}}. Raises ValueError."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        is_whole = "checksum" not in manifest or is_as_signed(manifest)  # the first versions did not sign
        if is_whole and manifest["files"] and all({"bytes", "sha256"} <= f.keys() for f in manifest["files"].values()):
            return manifest | {"run": dict(manifest["run"])}
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, so it was not written to its end") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(f"its {MANIFEST} is damaged")


def why_incomplete(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as half a sentence, or None. Reads all of it."""
    try:
        manifest = read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, noted in manifest["files"].items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != noted["bytes"]:
                return f"{name} has {size:,} bytes of {noted['bytes']:,}"
            if checksum(path) != noted["sha256"]:
                return f"{name} is not what was written: its hash differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    if manifest["run"].get("save_only_model"):
        return "it holds the model without its optimizer (--save_only_model)"
    return None


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose manifest holds, or None, and a sentence for each newer one that was passed over."""
    passed_over = []
    for checkpoint in reversed(checkpoints(folder)):
        reason = why_incomplete(checkpoint)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} is passed over: {reason}")
    return None, passed_over


def delete_older(folder: Path, keep: int, known: set[Path], best: str | None = None) -> None:
    """Delete the checkpoints older than the `keep` newest complete ones, but for what else somebody put into them.

    known: those that need not be read again to know that they are complete; others are added. best: the path of one
    that stays whatever its age.
    """
    complete = []
    for checkpoint in reversed(checkpoints(folder)):
        if len(complete) >= keep:
            if best is None or checkpoint.resolve() != Path(best).resolve():
                _delete(checkpoint, like=complete[0])
        elif checkpoint in known or why_incomplete(checkpoint) is None:
            known.add(checkpoint)
            complete.append(checkpoint)


def _delete(checkpoint: Path, like: Path) -> None:
    """Delete what a run wrote into a checkpoint: what its manifest names, and what it has in common with another."""
    if checkpoint.is_symlink():
        return
    names = set()
    for source in (checkpoint, like):
        with suppress(ValueError):  # an unfinished one has no manifest
            names |= read_manifest(source)["files"].keys()
    step = checkpoint.name.removeprefix("checkpoint-")
    names |= {re.sub(r"^global_step\d+", f"global_step{step}", name) for name in names}  # as DeepSpeed calls its part
    for name in (*names, MANIFEST):
        with suppress(OSError):
            (checkpoint / name).unlink()
    folders = [path for path in checkpoint.rglob("*") if path.is_dir() and not path.is_symlink()]
    for empty in (*sorted(folders, key=lambda path: len(path.parts), reverse=True), checkpoint):
        with suppress(OSError):  # or it is not
            empty.rmdir()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint inside a run rather than a model: it holds what only a trainer needs."""
    has_state = (folder / "trainer_state.json").is_file()  # as a finished run has
    return has_state and any((folder / name).exists() for name in (MANIFEST, "scheduler.pt", "optimizer.pt"))


def complete_checkpoints(trainer, run: dict) -> None:
    """Let a trainer write a manifest into each checkpoint, delete old ones safely, and stop where its steps end.

    run: what is noted with each checkpoint, to be compared when a run goes on from it.
    """
    trainer.add_callback(CompleteCheckpoints(trainer.args, run))
    # Resumed after its last step in the middle of an epoch, Transformers 5.23 would train one step more than it should.
    run_epoch = trainer._run_epoch
    trainer._run_epoch = lambda **epoch: (
        run_epoch(**epoch) if trainer.state.global_step < trainer.state.max_steps else None
    )


class CompleteCheckpoints(TrainerCallback):
    """Writes the manifest when all processes have written their part, and deletes old checkpoints only then.

    Weights that are no longer finite are never declared complete: the training ends with FloatingPointError.
    """

    def __init__(self, args, run: dict):
        """args: the trainer's; its save_total_limit is taken over, and counts complete checkpoints, at least two."""
        self.run = run | {"save_only_model": args.save_only_model}
        self.keep = max(args.save_total_limit, LEAST_KEPT) if args.save_total_limit else None
        args.save_total_limit = None
        self.known: set[Path] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)  # when to log and save is this command's, not the checkpoint's
        if state.is_world_process_zero:
            drop_older(Path(args.output_dir))  # a run that this one replaces: from here on something takes its place

    def on_push_begin(self, args, state, control, **kwargs):
        note_push(Path(args.output_dir))

    def on_save(self, args, state, control, model=None, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._stop_unless_finite(model, state, checkpoint)  # asks all processes, so all have written their part
        if state.is_world_process_zero:
            write_manifest(checkpoint, self.run)
            self.known.add(checkpoint)
            if self.keep is not None:
                delete_older(checkpoint.parent, self.keep, self.known, state.best_model_checkpoint)
        PartialState().wait_for_everyone()  # a process that ended now would take the writing one with it

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._stop_unless_finite(model, state)

    @staticmethod
    @torch.no_grad()
    def _stop_unless_finite(model, state, checkpoint: Path | None = None):
        trained = [p for p in model.parameters() if p.requires_grad]
        trained = [p.to_local() if isinstance(p, DTensor) else p for p in trained]  # under FSDP2 this process's part
        finite = [p.isfinite().all() for p in trained if p.numel()]
        is_finite = all(torch.stack(finite).tolist()) if finite else True
        if all(gather_object([is_finite])):
            return
        if checkpoint is not None and state.is_world_process_zero:
            shutil.rmtree(checkpoint, ignore_errors=True)
        raise FloatingPointError(f"the weights are no longer finite at step {state.global_step}")
