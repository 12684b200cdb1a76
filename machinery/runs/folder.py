"""Where a run puts its files: folders whose names take a number, and whole checkpoints to go on from.

    claim_output_dir(training_args, "runs/basic")                   # runs/basic, or runs/basic-2 where that is taken
    close_output_dir(is_finished=True)                              # at its end: others may use the folder
    folder, checkpoint, passed_over = choose_folder("out", None, "newest", False)  # the newest complete one in out, or None

A run that has written metrics.json is finished. What in the folder is a run's, and what is not: see ownership.py.
"""

import json
import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..common.errors import UserError
from ..common.safe_text import say
from . import ownership
from .checkpoints import newest_complete, why_incomplete
from .ownership import FINISHED

_claimed: Path | None = None  # by `claim_output_dir`, in the first process
_made: list[Path] = []  # the folders that were made for it, the innermost first


def claim_output_dir(training_args, default: str) -> None:
    """Settle where the run goes and, if it goes on from a checkpoint, from which: sets both in `training_args`.

    default: the folder to take where the user names none, with a number where it is taken. training_args: TRL's, with
    is_output_dir_given (whether the user does), overwrite_output_dir, and reads, what the
    run reads. The first process chooses for all, and keeps others out of the folder. Raises UserError where the folder
    cannot be written, is in use, or holds what is not to be written over. A second call does nothing.
    """
    global _claimed
    if getattr(training_args, "is_output_dir_claimed", False):
        return
    choice = refusal = None
    if PartialState().is_main_process:
        try:
            named = training_args.output_dir if training_args.is_output_dir_given else None
            wanted = Path(named or default)
            missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
            resume, replace = training_args.resume_from_checkpoint, training_args.overwrite_output_dir
            choice = choose_folder(named, default, resume, replace, training_args.reads)
            _claimed, _made[:] = Path(choice[0]), missing if named else [Path(choice[0]), *missing]
        except OSError as error:
            refusal = f"{error.filename or wanted} cannot be written: {error.strerror or error}"
        except ValueError as error:
            refusal = str(error)
    choice, refusal = broadcast_object_list([choice, refusal])
    if refusal is not None:
        raise UserError(f"{refusal}." if refusal.startswith("--") else f"The output folder: {refusal}.")
    training_args.output_dir, checkpoint, passed_over = choice
    training_args.is_output_dir_claimed = True
    if checkpoint and training_args.sync_ref_model:
        raise UserError(
            "--resume_from_checkpoint: under --sync_ref_model the reference moves too, and no checkpoint holds it. Begin "
            "anew with another --output_dir, or with --overwrite_output_dir."
        )
    if training_args.resume_from_checkpoint:
        for sentence in passed_over:
            say(sentence)
        step, start = 0, ": there is no complete checkpoint yet, so it starts from the beginning"
        if checkpoint:
            state = Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8")
            step, start = json.loads(state)["global_step"], ""
        say(f"resumed from step {step}{start}")
        training_args.resume_from_checkpoint = checkpoint


def close_output_dir(is_finished: bool) -> None:
    """Let others use the folder again; without a word on it where nothing was written, and without the folder then."""
    global _claimed
    if _claimed is not None:
        with suppress(OSError):  # gone, or on a disk that is full
            ownership.let_go(_claimed, is_finished or (_claimed / FINISHED).exists())  # stopped behind its last file
    _claimed = None
    for folder in _made:
        with suppress(OSError):
            folder.rmdir()  # an empty one only
    _made.clear()


def choose_folder(
    named: str | None, default: str | None, resume: str | None, replace: bool, reads: dict[str, str] | None = None
):
    """The folder of a run, made, writable and held, and the checkpoint it goes on from (None: from the beginning).

    named: the user's own folder, else default is taken, with a number. resume: a checkpoint, or "newest", or None.
    replace: whether to replace what a run has left in the folder. reads: see `why_not`. Returns (folder,
    checkpoint, sentences on damaged checkpoints that were passed over). Raises OSError and ValueError.
    """
    checkpoint = Path(resume) if resume and resume.lower() not in ("newest", "true") else None
    if checkpoint is not None and not checkpoint.is_dir():
        raise ValueError(f"--resume_from_checkpoint {resume} is no folder")
    if checkpoint is not None and (reason := why_incomplete(checkpoint)):
        raise ValueError(
            f"--resume_from_checkpoint {resume} is no complete checkpoint: {reason}. Without a folder, the newest complete "
            "one in --output_dir is taken"
        )
    if named is not None:
        folder = Path(named)
        make_parents(folder / "any")
    elif checkpoint is not None:
        folder = checkpoint.parent
    else:
        folder = (newest_unfinished(default) if resume else None) or free_folder(default)
    goes_on = is_to_go_on(folder, resume)
    if refusal := why_not(folder, replace, goes_on, reads or {}):
        raise ValueError(refusal)
    ownership.hold(folder)  # which is written at once: better to fail now than after hours of training
    (ownership.go_on if goes_on else ownership.begin)(folder)
    passed_over = []
    if resume and checkpoint is None:
        checkpoint, passed_over = newest_complete(folder)
    return str(folder), str(checkpoint) if checkpoint else None, passed_over


def is_to_go_on(folder: Path, resume: str | None) -> bool:
    """Whether a run goes on with what is in its folder, rather than from a checkpoint that another folder has."""
    if not resume:
        return False
    return resume.lower() in ("newest", "true") or Path(resume).resolve().parent == folder.resolve()


def why_not(folder: Path, replace: bool, goes_on: bool, reads: dict[str, str]) -> str | None:
    """Why a run must not go to a folder, or None: what it reads is there, another run is, or files of somebody's own are.

    replace, goes_on: what the run is to do with what an older one has left there. reads: what the run reads, as the
    user calls it, and the name of each; what is not on this disk is passed over.
    """
    for what, name in reads.items():
        if ownership.holds(folder, Path(name)):
            return f"{folder} is where {what} is, which this run reads and would write over: name another folder"
    if ownership.is_held(folder):
        return f"{folder} is in use by another run that has not ended: name another folder"
    others = ownership.in_the_way(folder)
    if goes_on:  # what is in the checkpoints is looked at by their own manifests
        is_of_before = not ownership.has_begun(folder) and newest_complete(folder)[0]  # there were notes
        others = [] if is_of_before else [name for name in others if "checkpoint-" not in name]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return (
            f"{folder} holds {', '.join(others[:3])}{more}, under names that a run writes and not as a run has left them: "
            "move them away, or name another folder"
        )
    if ownership.holds_run(folder) and not (replace or goes_on):
        return (
            f"{folder} already holds a run: name another folder, go on with it by --resume_from_checkpoint, or replace it "
            "by --overwrite_output_dir"
        )
    return None


def free_folder(default: str) -> Path:
    """`default`, or `default-2`, `default-3`, ... where there is one already. The folder is made, so it is ours."""
    make_parents(Path(default))
    for number in count(1):
        folder = Path(default if number == 1 else f"{default}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def make_parents(folder: Path) -> None:
    """Make the folders around one. Raises ValueError for a file or a link in their place, where no number would help."""
    for path in folder.parents:
        if os.path.lexists(path) and not path.is_dir():
            leads = f" to {os.readlink(path)}, where there is none" if path.is_symlink() else ""
            raise ValueError(f"{path} is no folder, but a {'link' if leads else 'file'}{leads}")
    folder.parent.mkdir(parents=True, exist_ok=True)


def newest_unfinished(default: str) -> Path | None:
    """The newest of `default`, `default-2`, ... in which a run began and did not end."""
    numbered = re.compile(re.escape(Path(default).name) + r"(-\d+)?")
    folders = [f for f in Path(default).parent.glob("*") if f.is_dir() and numbered.fullmatch(f.name)]
    unfinished = [folder for folder in folders if not (folder / FINISHED).exists()]
    return max(unfinished, key=lambda folder: folder.stat().st_mtime, default=None)
