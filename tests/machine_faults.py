"""What the machine, another program or an earlier run does to a run: trials for bad_inputs.py.

Two runs in one folder, caches that are damaged or hold what is not theirs, terminals that lack letters or have gone, disks
that are full, checkpoints of other programs, secrets, and names that hold terminal codes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from command.test_bad_input import (
    BASIC,
    DATA,
    DEMO_MODEL,
    EVALUATION,
    LORA,
    LOSS,
    PAIRS,
    all_of,
    model,
    set_in,
    set_weights,
    write,
)  # fmt: skip
from conftest import spoil
from trials import Trial
from wrong_values import SCRIPTS, SHORT

from machinery.runs import ownership

SCRIPT_WORDS = dict(SCRIPTS.values()) | {BASIC: SHORT}
TRAINING = (BASIC, LORA, LOSS, DATA)
AGAIN = [*SHORT, "--output_dir", "again", "--reference_cache", "../caches"]
KEPT = [*SHORT, "--reference_cache", "../caches"]
HOSTILE = "\x1b[31m\x1b]0;title\x07"
SECRET = "sk-very-secret"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another run, of this process, in the folder out."""
    ownership.hold(folder / "out")
    try:
        yield
    finally:
        ownership.release(folder / "out")


def damaged(pattern: str, damage: str) -> Callable[[Path], None]:
    """Does to every file that an earlier run has kept what a disk does."""

    def do(folder: Path) -> None:
        files = [path for path in (folder.parent / "caches").glob(pattern) if path.is_file()]
        if not files:
            raise RuntimeError(f"Nothing is kept as {pattern}.")
        for path in files:
            spoil(path, damage)

    return do


def foreign_checkpoint(folder: Path) -> None:
    """What Transformers' Trainer leaves, of the demo's model: weights, states, and no manifest."""
    PAIRS(folder)
    shutil.copytree(DEMO_MODEL, folder / "checkpoint-5")
    (folder / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5, "log_history": []}')
    torch.save({"state": {}, "param_groups": []}, folder / "checkpoint-5" / "optimizer.pt")
    torch.save({}, folder / "checkpoint-5" / "scheduler.pt")


FOREIGN_LETTERS = write("pairs.jsonl", [
    {"prompt": f"¿por qué {n}? 你好", "chosen": "a cat \N{GRINNING FACE}", "rejected": "the mat ½"} for n in range(8)
])  # fmt: skip
A_LAYER_LESS = model(set_in("config.json", num_hidden_layers=3, layer_types=None))
A_NAME_THAT_PAINTS = model(set_weights(lambda w: w | {f"model.{HOSTILE}.weight": torch.ones(2)}))

FAULTS = {
    f"two runs in one folder, {how} ({script})": Trial(
        script, [*SCRIPT_WORDS[script], *words], make=PAIRS, beside=held, codes=(2,), says=("in use by another run",)
    )
    for script in (*TRAINING, EVALUATION)
    for how, words in {"the second as it is": [], "the second replacing": ["--overwrite_output_dir"],
                       "the second going on": ["--resume_from_checkpoint"]}.items()
    if script in TRAINING or how != "the second going on"
} | {
    f"kept {kind}, {damage}": Trial(
        BASIC, AGAIN, make=PAIRS, first=KEPT, between=damaged(pattern, damage), codes=(0,), says=(says,)
    )
    for kind, pattern, says in (
        ("pairs", "dpo_pairs/*.arrow", "has changed on disk since it was written. It is made anew."),
        ("log-probs of the reference", "*.safetensors", "is not what was written to it: the reference is asked anew"),
    )
    for damage in ("flipped", "cut", "empty", "garbage")
} | {
    "a cache of data that is a file": Trial(
        BASIC, SHORT, make=PAIRS, how={"caches": "/etc/hostname"}, codes=(0,), says=("cannot be kept",)
    ),
    "weights of the user's in a cache": Trial(
        BASIC, SHORT, make=all_of(PAIRS, write("kept/mine.safetensors", "mine")), codes=(0,), says=()
    ),
    "a margin without scores": Trial(
        BASIC, [*SHORT, "--min_margin", "0.5"], make=PAIRS, codes=(0,),
        says=("--min_margin 0.5 has no effect: there are no scores.",),
    ),
    "a layer fewer in config.json than in the weights": Trial(
        BASIC, [*SHORT, "--model_name_or_path", "m"], make=A_LAYER_LESS, codes=(2,), says=("model.layers.3",)
    ),
} | {
    f"a secret in a keyword ({script})": Trial(
        script, [*SCRIPT_WORDS[script], "--model_init_kwargs", json.dumps({"token": SECRET})], make=PAIRS, codes=(0,),
        says=(), hides=SECRET,
    )
    for script in (*TRAINING, EVALUATION)
} | {
    f"a secret in a recipe ({script})": Trial(
        script, [*SCRIPT_WORDS[script], "--config", "given.yaml"],
        make=all_of(PAIRS, write("given.yaml", f"env: {{HF_TOKEN: {SECRET}}}\nhub_token: {SECRET}\n")),
        codes=(0,), says=(), hides=SECRET,
    )
    for script in (*TRAINING, EVALUATION)
} | {
    "a tensor whose name paints the terminal": Trial(
        BASIC, [*SHORT, "--model_name_or_path", "m"], make=A_NAME_THAT_PAINTS, codes=(0,), says=("\\x1b]0;title",),
        hides="\x1b]0;",
    ),
} | {
    f"letters that {encoding} lacks": Trial(
        BASIC, SHORT, make=FOREIGN_LETTERS, how={"encoding": encoding}, codes=(0,), says=("\\u4f60",)
    )
    for encoding in ("ascii", "cp1252", "cp850")
} | {
    f"a reader that goes after a line ({script})": Trial(
        script, SCRIPT_WORDS[script], make=PAIRS, reader_goes=True, codes=(0,),
        says=("Standard output cannot be written: Broken pipe.",),
    )
    for script in (*TRAINING, EVALUATION)
} | {
    "a file that may grow no further, as on a full disk": Trial(
        BASIC, SHORT, make=PAIRS, how={"file_size": 200_000}, codes=(1,), says=("writing failed",)
    ),
    "a checkpoint of another program": Trial(
        BASIC, [*SHORT, "--resume_from_checkpoint", "checkpoint-5"], make=foreign_checkpoint, codes=(2,),
        says=("checkpoint-5 is no complete checkpoint",),
    ),
    "a checkpoint of another program as the model": Trial(
        BASIC, [*SHORT, "--model_name_or_path", "checkpoint-5"], make=foreign_checkpoint, codes=(2,),
        says=("checkpoint-5 is a checkpoint of a run",),
    ),
}  # fmt: skip
