"""Whose files are in an output folder: a run replaces what a run has left, and all else is somebody's own and stays.

    hold(folder)                       # locked while this process lives; ValueError where another run is in it
    in_the_way(folder)                 # ["README.md"]: under names that a run writes, and left by none
    begin(folder)                      # what an older run has left goes aside
    drop_older(folder)                 # and is gone once the new one trains
    let_go(folder, is_finished=True)   # what is there now under a run's names is noted as the run's

A folder that a run has claimed carries `.run/`: a lock, which the system takes back with the process, and a note of what
a finished run has left, with sizes and times. Before a run writes, nothing of anybody else's is there under the names
that it writes, or it is refused. A run that did not come to its end has no such note: what it writes before its end, as
its checkpoints list it, is then its own, and all else was put there since.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from ..common.kept_files import UNFINISHED, complete_file

OWN = ".run"
FINISHED = "metrics.json"  # the last file a run writes
REPORT = "data_report.*"
# The names that a run writes: files, and folders of which all is the run's.
FILES = (
    FINISHED, "trainer_state.json", "training_args.bin", "*config.json", "*.safetensors", "*.safetensors.index.json",
    "base_model.json", "README.md", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*",
    "*.model", "*.tiktoken", "*.jinja", "warnings.jsonl", "training_curves.png", "completions.md", REPORT,
    "report.*", "generations.*", "metrics.csv", "blind.csv", "blind_key.json",
)  # fmt: skip
# What it writes before its last files.
EARLY = (REPORT, "blind.csv", "blind_key.json", "answers/train.jsonl", "answers/test.jsonl")
PUSHED = "pushed"
MANIFEST = "manifest.json"  # in each checkpoint: the files that it has
CHECKPOINT = re.compile(r"checkpoint-\d+")  # one of another name was made by hand
FOLDERS = ("base", "merged", "answers", "additional_chat_templates", UNFINISHED)

_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Keep other runs out of a folder for as long as this process lives. Raises ValueError where one is in it.

    Brings back what a run set aside that ended before it trained.
    """
    own = folder / OWN
    own.mkdir(parents=True, exist_ok=True)
    lock = FileLock(own / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder} is in use by another run that has not ended: name another folder") from None
    except NotImplementedError:  # a file system without locks
        pass
    _held[folder.resolve()] = lock
    _bring_back(folder)


def release(folder: Path) -> None:
    """Let others in again, and nothing else."""
    _held.pop(folder.resolve()).release()


def is_held(folder: Path) -> bool:
    """Whether another process holds a folder; makes nothing."""
    lock = folder / OWN / "lock"
    if not lock.exists() or folder.resolve() in _held:
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def begin(folder: Path) -> None:
    """Put aside what an older run has left in a held folder, where `in_the_way` is empty, and note that a run has begun."""
    note, older = _note_in(folder), aside(folder)
    (folder / OWN / PUSHED).unlink(missing_ok=True)
    if note.exists():
        older.mkdir(exist_ok=True)
        for path in (*_entries(folder), note):  # the note last: it says that all of it is there
            path.rename(older / path.name)
    go_on(folder)


def go_on(folder: Path) -> None:
    """Note that a run has begun, or goes on, in a held folder."""
    with complete_file(_note_in(folder)) as file:
        json.dump(None, file)


def drop_older(folder: Path) -> None:
    """Delete what `begin` has put aside."""
    if aside(folder).is_dir():
        dropped = aside(folder).rename(folder / OWN / "dropped")  # at once, so that no part of it is ever brought back
        shutil.rmtree(dropped, ignore_errors=True)


def let_go(folder: Path, is_finished: bool) -> None:
    """Let others in again. A finished run's files are noted; one that never trained leaves what was there before it."""
    if folder.resolve() not in _held:
        return
    if is_finished:
        drop_older(folder)
        with complete_file(_note_in(folder)) as file:
            json.dump({path.relative_to(folder).as_posix(): _facts(path) for path in _files(folder)}, file, indent=1)
    else:
        _bring_back(folder)
    release(folder)
    if not is_finished and not _entries(folder):  # nothing was written
        with suppress(OSError):
            for path in (_note_in(folder), folder / OWN / "lock", folder / OWN / PUSHED):
                path.unlink(missing_ok=True)
            (folder / OWN).rmdir()


def note_push(folder: Path) -> None:
    """Note that Transformers copies files of a checkpoint into the folder itself, from where they go to the hub."""
    (folder / OWN / PUSHED).touch()


def has_begun(folder: Path) -> bool:
    """Whether a run has begun in the folder."""
    return _note_in(folder).exists()


def holds_run(folder: Path) -> bool:
    """Whether one has left more than a report on the data, which is made anew in a moment."""
    return has_begun(folder) and any(not fnmatchcase(path.name, REPORT) for path in _entries(folder))


def in_the_way(folder: Path) -> list[str]:
    """The files under names that a run writes that are not as a run has left them."""
    try:
        left = json.loads(_note_in(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no run has begun here
        left = {}
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if left is None:  # one has, and did not come to its end; or it was killed while it wrote its last files
        is_at_its_end = (folder / UNFINISHED).exists() or (folder / FINISHED).exists()
        return [] if is_at_its_end else sorted(set(files) - _left_unfinished(folder, files))
    return sorted(name for name, path in files.items() if left.get(name) != _facts(path))


def holds(folder: Path, given: Path) -> bool:
    """Whether a run that goes to a folder would write over what it was given, a file or a folder, or clear it.

    Links are followed, also those from a folder that was given to files elsewhere, as in the hub's cache.
    """
    if not os.path.exists(given):  # a name on the hub
        return False
    if given.is_dir() and folder.exists() and given.samefile(folder):
        return True
    parts = [given, *(path for path in given.iterdir() if path.is_symlink())] if given.is_dir() else [given]
    return any(is_written(folder, path) for path in parts)


def is_written(folder: Path, path: Path) -> bool:
    """Whether a path is among those that a run in this folder writes."""
    folder, path = folder.resolve(), path.resolve()
    if not path.is_relative_to(folder):
        return False
    first, *rest = path.relative_to(folder).parts or (OWN,)
    return first == OWN or _is_own_folder(first) or (_is_any_of(first, FILES) and not rest)


def _left_unfinished(folder: Path, files: dict[str, Path]) -> set[str]:
    """Of these files by name those that a run writes before it comes to its end."""
    own, is_pushed = set(), (folder / OWN / PUSHED).exists()
    for name, path in files.items():
        first, *rest = Path(name).parts
        is_made = (is_pushed and not rest) or _is_any_of(name, EARLY) or _is_any_of(path.name, (f".*{UNFINISHED}",))
        if CHECKPOINT.fullmatch(first):
            noted = _noted_in(folder / first)
            is_made |= noted is None or "/".join(rest) in {*noted, MANIFEST}
        elif first == "base" and rest:
            is_made |= _is_any_of(rest[0], FILES if len(rest) == 1 else FOLDERS)
        elif name == "README.md":  # TRL writes one with each checkpoint
            with suppress(OSError, ValueError):
                is_made |= not path.is_symlink() and "trained using [TRL]" in path.read_text(encoding="utf-8")
        own |= {name} if is_made else set()
    return own


def _noted_in(checkpoint: Path) -> set[str] | None:
    """The files that a checkpoint's manifest names; None where it was not written to its end, and all may be its own."""
    try:
        return set(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _bring_back(folder: Path) -> None:
    """Undo `begin` where its run ended before it trained, and what was left half done by a kill."""
    shutil.rmtree(folder / OWN / "dropped", ignore_errors=True)
    note, older = _note_in(folder), aside(folder)
    if not older.is_dir():
        return
    if (older / note.name).exists():
        for path in _entries(folder):  # what the run that ended so early had written
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (older / note.name).replace(note)
    for path in older.iterdir():
        path.rename(folder / path.name)
    older.rmdir()


def aside(folder: Path) -> Path:
    """Where a run that is to be replaced waits until the new one trains."""
    return folder / OWN / "older"


def _note_in(folder: Path) -> Path:
    """By file, its size and time; null until the run has come to its end."""
    return folder / OWN / "left.json"


def _entries(folder: Path) -> list[Path]:
    """What is in the folder under the names that a run writes."""
    is_folder = {path: path.is_dir() and not path.is_symlink() for path in folder.iterdir()} if folder.is_dir() else {}
    return [
        path
        for path, is_one in is_folder.items()
        if _is_own_folder(path.name) or (not is_one and _is_any_of(path.name, FILES))
    ]


def _files(folder: Path) -> list[Path]:
    """The same, with each file in the place of its folder; links are not followed."""
    inside = (path.rglob("*") if path.is_dir() and not path.is_symlink() else [path] for path in _entries(folder))
    return [path for paths in inside for path in paths if path.is_symlink() or not path.is_dir()]


def _is_own_folder(name: str) -> bool:
    return bool(CHECKPOINT.fullmatch(name)) or _is_any_of(name, FOLDERS)


def _is_any_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _facts(path: Path) -> list[int]:
    """What tells a file from another that took its place: its size, and its time in nanoseconds."""
    facts = os.lstat(path)
    return [facts.st_size, facts.st_mtime_ns]
