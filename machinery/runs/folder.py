"""Where a run puts its files: folders whose names take a number, and whole checkpoints to go on from.

    claim_output_dir(training_args, "runs/basic")                   # runs/basic, or runs/basic-2 where that is taken
    folder, checkpoint, passed_over = choose_folder("out", None, "newest", False)  # the newest complete one in out, or None

A run that has written metrics.json is finished.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..common.errors import UserError
from ..common.kept_files import complete_file
from ..common.safe_text import say
from .checkpoints import checkpoints, newest_complete, why_incomplete

FINISHED = "metrics.json"  # the last file a run writes
OTHER_TRACES = ("config.json", "adapter_config.json", "trainer_state.json")
# What a run may leave besides its checkpoints; all else in the folder is somebody's own.
WRITTEN = (
    FINISHED, *OTHER_TRACES, "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_model.safetensors", "base_model.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "training_args.bin", "warnings.jsonl", "training_curves.png", "completions.md",
    "data_report.json", "data_report.png", "report.html", "generations.jsonl",
)  # fmt: skip


_made: list[Path] = []  # by `claim_output_dir` of the first process, the innermost first


def claim_output_dir(training_args, default: str) -> None:
    """Settle where the run goes and, if it goes on from a checkpoint, from which: sets both in `training_args`.

    default: the folder to take where the user names none, with a number where it is taken. training_args: TRL's, with
    is_output_dir_given (whether the user does) and overwrite_output_dir. The first process chooses for all. Raises
    UserError where the folder cannot be written.
    """
    choice = refusal = None
    if PartialState().is_main_process:
        try:
            named = training_args.output_dir if training_args.is_output_dir_given else None
            wanted = Path(named or default)
            missing = [path for path in (wanted, *wanted.parents) if not path.exists()]
            resume, replace = training_args.resume_from_checkpoint, training_args.overwrite_output_dir
            choice = choose_folder(named, default, resume, replace)
            _made[:] = missing if named else [Path(choice[0]), *missing]
        except (OSError, ValueError) as error:
            refusal = str(error)
    choice, refusal = broadcast_object_list([choice, refusal])
    if refusal is not None:
        raise UserError(f"The output folder: {refusal}.")
    training_args.output_dir, checkpoint, passed_over = choice
    if training_args.resume_from_checkpoint:
        for sentence in passed_over:
            say(sentence)
        step, start = 0, ": there is no complete checkpoint yet, so it starts from the beginning"
        if checkpoint:
            state = Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8")
            step, start = json.loads(state)["global_step"], ""
        say(f"resumed from step {step}{start}")
        training_args.resume_from_checkpoint = checkpoint


def give_up_output_dir() -> None:
    """Remove the folders that were made for this run, where nothing is in them."""
    for folder in _made:
        with suppress(OSError):
            folder.rmdir()


def choose_folder(named: str | None, default: str | None, resume: str | None, replace: bool):
    """The folder of a run, made and writable, and the checkpoint it goes on from (None: from the beginning).

    named: the user's own folder, else default is taken, with a number. resume: a checkpoint, or "newest", or None.
    replace: whether to clear what a run left in the folder. Returns (folder, checkpoint, sentences on damaged
    checkpoints that were passed over). Raises OSError and ValueError.
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
    folder.mkdir(parents=True, exist_ok=True)
    with complete_file(folder / ".writable"):
        pass  # better to fail now than after hours of training
    (folder / ".writable").unlink()
    if replace and not resume:
        clear_run(folder)
    passed_over = []
    if resume and checkpoint is None:
        checkpoint, passed_over = newest_complete(folder)
    return str(folder), str(checkpoint) if checkpoint else None, passed_over


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


def holds_run(folder: Path) -> bool:
    """Whether a run has left anything in the folder."""
    return any((folder / name).exists() for name in (FINISHED, *OTHER_TRACES)) or bool(checkpoints(folder))


def clear_run(folder: Path) -> None:
    """Remove what a run wrote into the folder, and nothing else; where there was no run, nothing."""
    if not holds_run(folder):
        return
    for path in checkpoints(folder):
        shutil.rmtree(path)
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            path.unlink()
