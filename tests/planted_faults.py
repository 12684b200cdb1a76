"""Do the tests find what is wrong? Plants faults in a copy of the project, one at a time, and runs the quick tests.

    python tests/planted_faults.py              # all of them, each with the tests of its room: some minutes
    python tests/planted_faults.py mask margin  # those whose names have one of these words

A fault that no test finds is a gap in the tests. It ends with 1 where there is one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
from docs.build import what_is_made


class Planted(NamedTuple):
    """A fault: what is right in a file, what is wrong, and the tests that are run, a folder or a file."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "a log-prob that is a mean": Planted(
        "machinery/models/log_probs.py",
        "sums[numbers] = (values * is_completion[:, 1:].to(model.device)).sum(-1).cpu()",
        "sums[numbers] = (values * is_completion[:, 1:].to(model.device)).mean(-1).cpu()",
        "scripts/test_logps.py",
    ),
    "padding on the wrong side": Planted(
        "dpo_utils.py", 'padding_side="left"', 'padding_side="right"', "scripts/test_logps.py"
    ),
    "a formula's sign": Planted(
        "custom_loss_dpo.py",
        "return -(1 - eps) * logsigmoid(margin) - eps * logsigmoid(-margin)\n\n\ndef bco_pair",
        "return -(1 - eps) * logsigmoid(margin) + eps * logsigmoid(-margin)\n\n\ndef bco_pair",
        "scripts/test_custom_loss_dpo.py",
    ),
    "data: a line number off by one": Planted(
        "machinery/data/files.py", "enumerate(lines, start=1)", "enumerate(lines, start=0)", "data"
    ),
    "data: scored answers turned around": Planted(
        "machinery/data/pairs.py",
        "order = sorted(range(len(scores)), key=lambda number: -scores[number])",
        "order = sorted(range(len(scores)), key=lambda number: scores[number])",
        "data",
    ),
    "data: two scores turned around": Planted(
        "machinery/readings/convert.py",
        "FIRST if first > second else SECOND",
        "SECOND if first > second else FIRST",
        "readings",
    ),
    "data: labels that most scores contradict go on": Planted(
        "machinery/readings/recognise.py", "against * 2 <= checkup.scored", "against <= checkup.scored", "readings"
    ),
    "data: a guess that later numbers contradict goes on": Planted(
        "machinery/readings/reading.py",
        "is_such(value) and value not in self.meaning]",
        "is_such(value) and value in ()]",
        "readings",
    ),
    "data: identical answers kept": Planted(
        "machinery/data/doctor.py", '"identical": is_identical,', '"identical": False,', "data"
    ),
    "data: held out by pair, not by prompt": Planted(
        "machinery/data/store.py",
        "is_held = [prompt_of[number] in held for number in numbers]",
        "is_held = [place < count for place, _ in enumerate(numbers)]",
        "data",
    ),
    "data: no EOS behind plain answers": Planted(
        "machinery/data/tokens.py",
        "ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]",
        "ids[-1:] == [tokenizer.eos_token_id] else ids",
        "data",
    ),
    "models: an adapter on any base": Planted(
        "machinery/models/adapters.py",
        'if noted.get("fingerprint") not in (None, fingerprint):',
        "if False:",
        "command/test_bad_input.py",
    ),
    "models: NaN among the weights": Planted(
        "machinery/models/checks.py",
        "if not weight.sum(dtype=torch.float32).isfinite():",
        "if False:",
        "command",
    ),
    "training: the rejected answer sees the chosen one": Planted(
        "machinery/shared_rows/shared_masks.py",
        "seen = (query >= key) & ~(is_second[batch, query] & is_first[batch, key])",
        "seen = query >= key",
        "shared_rows",
    ),
    "training: lengths of the two answers changed over": Planted(
        "machinery/training/custom_loss.py",
        "chosen_lengths, rejected_lengths = is_completion",
        "rejected_lengths, chosen_lengths = is_completion",
        "scripts/test_custom_loss_dpo.py",
    ),
    "training: parts of a batch not weighted": Planted(
        "machinery/training/token_budget.py",
        "return loss if self._share_of_batch == 1 else loss * self._share_of_batch",
        "return loss",
        "training",
    ),
    "training: another length reads the same cache": Planted(
        "machinery/training/reference_cache.py", '"max_length", "truncation_mode"', '"truncation_mode"', "training"
    ),
    "hardware: one optimizer state instead of two": Planted(
        "machinery/hardware/estimate.py",
        "STATES_PER_PARAMETER.get(optimizer, 2)",
        "STATES_PER_PARAMETER.get(optimizer, 1)",
        "hardware",
    ),
    "watching: displacement unseen": Planted(
        "machinery/watching/watcher.py", "DISPLACED = 0.3", "DISPLACED = 30", "watching"
    ),
    "watching: a NaN passes": Planted(
        "machinery/watching/log_lines.py",
        "if not math.isfinite(loss):",
        "if False:",
        "watching/test_log_lines.py",
    ),
    "runs: a damaged checkpoint is whole": Planted(
        "machinery/runs/checkpoints.py", 'if checksum(path) != noted["sha256"]:', "if False:", "runs"
    ),
    "runs: another seed goes on": Planted("machinery/runs/identity.py", "    seed data_seed", "    data_seed", "runs"),
    "runs: the policy need not be the reference": Planted(
        "machinery/runs/start.py",
        "if not drift / trainer.beta < (0.01 if is_exact else 5.0):",
        "if False:",
        "scripts/test_lora_dpo_training.py",
    ),
    "comparing: a run of another command counts": Planted(
        "machinery/comparing/grid.py",
        'return json.loads(content) if noted == signed(made_by | {"metrics": noted["metrics"]}) else None',
        "return json.loads(content)",
        "comparing",
    ),
    "evaluation: margins turned around": Planted(
        "machinery/evaluation/metrics.py",
        "return beta * ((logps.policy_chosen - logps.ref_chosen) - (logps.policy_rejected - logps.ref_rejected))",
        "return beta * ((logps.policy_rejected - logps.ref_rejected) - (logps.policy_chosen - logps.ref_chosen))",
        "scripts/test_dpo_evaluation.py",
    ),
    "evaluation: sure at one in two": Planted(
        "machinery/common/intervals.py", "SURE = 1 - LEVEL", "SURE = 0.5", "scripts/test_dpo_evaluation.py"
    ),
    "evaluation: markup in an answer is obeyed": Planted(
        "machinery/evaluation/html_report.py", "autoescape=True", "autoescape=False", "evaluation"
    ),
    "evaluation: as sure a token is as sure a reply": Planted(
        "machinery/evaluation/entropy.py",
        "return max(theirs / max(ours, 1e-6)",
        "return min(theirs / max(ours, 1e-6)",
        "evaluation",
    ),
    "judges: the order decides unseen": Planted(
        "machinery/judges/endpoint.py", "if WINS[there] == 1 - WINS[back]:", "if True:", "judges"
    ),
    "judges: a cut verdict counts": Planted(
        "machinery/judges/endpoint.py",
        "if not is_cut and read_verdict(reply.text):",
        "if read_verdict(reply.text):",
        "judges",
    ),
    "answers: one seed for every batch": Planted(
        "machinery/answers/kept.py",
        "own_seed = int(digest_of(seed, number)[:8], 16)",
        "own_seed = seed",
        "answers",
    ),
    "own_pairs: an answer that was cut off is chosen": Planted(
        "machinery/own_pairs/scored.py", "min(score, min(whole) - step)", "score", "own_pairs"
    ),
    "own_pairs: every round from the first model": Planted(
        "machinery/own_pairs/rounds.py", "            last = str(out)\n", "", "own_pairs"
    ),
    "own_pairs: of two answers the loser wins": Planted(
        "machinery/own_pairs/scored.py",
        "wins[number][first].append(1 - verdict.win)",
        "wins[number][first].append(verdict.win)",
        "own_pairs",
    ),
    "command: the demo wins over the user": Planted(
        "machinery/command/command_line.py",
        "**{name: value for name, value in defaults.items() if name not in self.recipe}",
        "**defaults",
        "command",
    ),
    "command: a beta of 0": Planted(
        "machinery/command/flag_checks.py", '    "beta num_train_epochs', '    "num_train_epochs', "command"
    ),
    "common: an interval too narrow": Planted(
        "machinery/common/intervals.py",
        "half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))",
        "half = z * math.sqrt(share * (1 - share) / count)",
        "common",
    ),
    "common: a tail of 90%": Planted(
        "machinery/common/intervals.py",
        "t_quantile(count - 1, (1 + level) / 2)",
        "t_quantile(count - 1, level)",
        "common",
    ),
    "common: the slope left to the data": Planted(
        "machinery/common/intervals.py", "np.diag([1e-2, prior.sd**-2])", "np.diag([1e-2, 1e-2])", "common"
    ),
    "common: half a file under its name": Planted(
        "machinery/common/kept_files.py",
        'unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}{UNFINISHED}")',
        "unfinished = path",
        "runs/test_files.py",
    ),
    "common: a terminal obeys a text": Planted(
        "machinery/common/safe_text.py",
        'return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)',
        "return text",
        "command",
    ),
    "demo: courtesy counts twice": Planted(
        "demo/world.py", '"courtesy": 1.0', '"courtesy": 2.0', "documents/test_world.py"
    ),
}


def found_by(fault: Planted) -> str | None:
    """The test that fails with a fault in the project; None where all pass. Raises ValueError where it cannot be planted."""
    with tempfile.TemporaryDirectory(prefix="dpo-planted-") as folder:
        copy = Path(folder) / "project"
        shutil.copytree(PROJECT, copy, ignore=what_is_made)
        file = copy / fault.file
        text = file.read_text(encoding="utf-8")
        if text.count(fault.right) != 1:
            raise ValueError(f"{fault.file} has {text.count(fault.right)} times {fault.right!r}")
        file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{fault.tests}"]
        done = subprocess.run(command, cwd=copy, env=dict(os.environ), capture_output=True, text=True)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" ", 1)[1].split(" - ")[0] if failed else None


def main() -> int:
    words = sys.argv[1:]
    missed = 0
    for name, fault in FAULTS.items():
        if words and not any(word in name for word in words):
            continue
        started = time.time()
        test = found_by(fault)
        missed += test is None
        print(f"{name:<52}{time.time() - started:5.0f} s  {test or 'NOT FOUND'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
