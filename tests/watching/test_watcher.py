"""The watcher: each rule on both sides of its limit, and on runs that really have the fault.

fp16 cannot overflow on a CPU, where it is not used: there the logs and the skipped steps are made up. Nor does the demo
learn its pairs by heart so fast that a test could wait for it: the held-out accuracy that falls is made up too.
"""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT, SHORT
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from custom_loss_dpo import LOSSES
from machinery.watching.faults import FAULTS, PAGE
from machinery.watching.watcher import Watcher, first_loss

TOKENS = 10  # of each made-up answer


# --- The rules, on made-up logs ---


class Made:
    """A watched training of 100 steps that exists in its logs only. Distances are given in nats a token."""

    def __init__(self, tmp_path, beta=0.1, pairs=None, made=None, model=None, steps=100, **settings):
        self.args = DPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            beta=beta,
            per_device_train_batch_size=32,
            report_to="none",
            **settings,
        )
        row = {"prompt_ids": [1], "chosen_ids": [2] * TOKENS, "rejected_ids": [3] * TOKENS}
        self.state, self.control = TrainerState(max_steps=steps, is_world_process_zero=True), TrainerControl()
        self.model = nn.Linear(4, 4) if model is None else model
        self.watcher = made or Watcher()
        self.watcher.on_train_begin(
            self.args, self.state, self.control, model=self.model,
            train_dataloader=SimpleNamespace(dataset=pairs or [row]),
        )  # fmt: skip

    def log(self, step, chosen=0.0, rejected=-0.01, accuracy=0.7, loss=0.69, held_out=False, epoch=0.5, **more):
        self.state.global_step, self.state.epoch = step, epoch
        scale = self.args.beta * TOKENS
        logs = {"loss": loss, "rewards/chosen": scale * chosen, "rewards/rejected": scale * rejected, "grad_norm": 1.0,
                "rewards/accuracies": accuracy, "rewards/margins": scale * (chosen - rejected)} | more  # fmt: skip
        logs = {f"eval_{name}": value for name, value in logs.items()} if held_out else logs
        pairs = SimpleNamespace(dataset=range(400))  # held-out: three standard errors are 0.075
        self.watcher.on_log(self.args, self.state, self.control, logs=logs, eval_dataloader=pairs)
        return self

    def step(self, number, change=True, skipped=False):
        self.state.global_step = number
        if change:
            for parameter in self.model.parameters():
                parameter.data += 1
        optimizer = SimpleNamespace(step_was_skipped=skipped)
        self.watcher.on_step_end(self.args, self.state, self.control, model=self.model, optimizer=optimizer)
        return self

    @property
    def kinds(self):
        return set(self.watcher.said)


RULES = {
    "wrong-reference": (dict(), [dict(step=1, chosen=0.0, rejected=-0.001)], [dict(step=1, chosen=0.002, rejected=-0.002)]),
    "first-loss": (dict(loss_type="hinge"), [dict(step=1, rejected=0, loss=1.0)], [dict(step=1, rejected=0, loss=0.69)]),
    "stuck": (dict(), [dict(step=60, rejected=-0.006)], [dict(step=60, rejected=-0.004)]),
    "coin": (dict(), [dict(step=s, rejected=-0.2, accuracy=0.56) for s in range(10, 61, 10)],
             [dict(step=s, rejected=-0.2, accuracy=0.54) for s in range(10, 61, 10)]),
    "separated": (dict(), [dict(step=s, accuracy=a) for s, a in ((10, 1), (20, 0.98), (30, 1))], [dict(step=s, accuracy=1.0) for s in (10, 20, 30)]),
    "displaced": (dict(), [dict(step=s, chosen=c, rejected=-0.5) for s, c in ((10, -0.35), (20, -0.29), (30, -0.35))],
                  [dict(step=s, chosen=-0.35, rejected=-0.5) for s in (10, 20)]),
    "beta": (dict(beta=0.01), [dict(step=10, chosen=-0.29, rejected=-0.5, held_out=True)], [dict(step=10, chosen=-0.31, rejected=-0.5, held_out=True)]),
    "runaway": (dict(), [dict(step=s, rejected=-1.4) for s in (10, 20)], [dict(step=s, rejected=-1.6) for s in (10, 20)]),
    "overflow": (dict(), [dict(step=10, grad_norm=1e6)], [dict(step=10, grad_norm=float("nan"))]),
    "reversed": (dict(), [dict(step=10), dict(step=10, accuracy=0.44, held_out=True)], [dict(step=10), dict(step=10, accuracy=0.42, held_out=True)]),
    "overfit": (dict(), [dict(step=10), dict(step=10, accuracy=0.75, held_out=True), dict(step=20, accuracy=0.9), dict(step=20, accuracy=0.69, held_out=True)],
                [dict(step=10), dict(step=10, accuracy=0.75, held_out=True), dict(step=20, accuracy=0.9), dict(step=20, accuracy=0.67, held_out=True)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", RULES)
def test_it_speaks_beyond_a_limit_and_not_before(kind, tmp_path):
    settings, healthy, faulty = RULES[kind]
    for logs, kinds in ((healthy, set()), (faulty, {kind})):
        made = Made(tmp_path, **settings)
        for log in logs:
            made.log(**log)
        assert made.kinds == kinds


def test_the_loss_of_0_and_the_two_faults_of_ipo_and_of_no_reference(tmp_path):
    assert Made(tmp_path).log(5, rejected=-0.5, loss=0.0006, accuracy=0.9).kinds == {"separated"}
    far = dict(step=10, chosen=-0.4, rejected=-0.5, held_out=True)
    assert Made(tmp_path, loss_type="ipo", beta=0.1).log(**far).kinds == {"ipo-beta"}  # 5 nats a token
    assert Made(tmp_path, loss_type="ipo", beta=0.5).log(**far).kinds == {"displaced"}  # 1 nat
    # Without a reference TRL's rewards are beta * log policy: far from 0 at all times, so that a change is what counts.
    for change, kinds in ((-2.9, set()), (-3.1, {"displaced"})):  # nats an answer of ten tokens
        made = Made(tmp_path, made=Watcher(has_reference=False))
        for step, logp in ((0, -40.0), (10, -40.0 + change)):
            made.log(
                step,
                chosen=-4.0,
                rejected=-4.0,
                accuracy=0.3,
                held_out=True,
                **{"logps/chosen": logp, "logps/rejected": -40.0},
            )
        assert made.kinds == kinds


def test_a_reference_that_is_meant_to_be_another_model_is_no_fault(tmp_path):
    far = dict(chosen=-0.5, rejected=-0.4, loss=0.5)
    assert Made(tmp_path).log(1, **far).log(2, **far).kinds == {"wrong-reference", "displaced"}
    assert Made(tmp_path, made=Watcher(is_the_policy=False)).log(1, **far).log(2, **far).kinds == set()


def test_each_kind_is_said_once_with_the_step_and_a_section_that_is_there(tmp_path, caplog):
    made = Made(tmp_path)
    with caplog.at_level(logging.WARNING, "dpo"):
        for step in (10, 20, 30):
            made.log(step, chosen=-0.4, rejected=-0.5, held_out=True)
    [record] = caplog.records
    assert "step 10" in record.message and "0.40 nats" in record.message
    headings = [line.lstrip("# ") for line in (PROJECT / PAGE).read_text().splitlines() if line.startswith("#")]
    assert {fault.section for fault in FAULTS.values()} <= set(headings)


def test_parameters_that_do_not_change_in_three_updates(tmp_path):
    frozen, healthy = (Made(tmp_path, model=nn.Linear(4, 4)) for _ in range(2))
    healthy.step(1, change=False)  # as half of LoRA's tensors at step 1
    for number in (1, 2):
        frozen.step(number, change=False)
        healthy.step(number + 1)
    assert not frozen.kinds and not healthy.kinds
    frozen.step(3, change=False)
    assert frozen.kinds == {"unreached"} and "2 of 2 trained tensors" in frozen.watcher.said["unreached"]
    assert Made(tmp_path, model=nn.Linear(4, 4).requires_grad_(False)).kinds == {"no-parameter"}
    warming = Made(tmp_path, model=nn.Linear(4, 4), warmup_steps=10)  # the rate of step 1 is 0
    for number in range(1, 13):
        assert not warming.step(number, change=False).kinds
    assert warming.step(13, change=False).kinds == {"unreached"}


@pytest.mark.parametrize(("in_a_row", "kinds"), [(3, set()), (8, {"fp16-overflow"})])
def test_fp16_steps_skipped_for_overflow(in_a_row, kinds, tmp_path):
    made = Made(tmp_path)
    made.args.fp16 = True
    for number in range(1, 30):
        is_skipped = number <= in_a_row
        made.step(number, change=not is_skipped, skipped=is_skipped)
        made.log(number, rejected=0.0, grad_norm=float("inf") if is_skipped else 1.0)
    assert made.kinds == kinds
    if kinds:
        assert "loss scale" in made.watcher.said["fp16-overflow"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([([1, 2, 3, 4, 5, 6, 7, 8], True)], [([1, 2, 3, 4, 5, 6, 7, 8], False)], "do not end"),
        ([([1, 2, 3, 4, 5, 6, 7, 8], True)], [([1, 2, 1, 2, 1, 2, 1, 2], True)], "repeat themselves"),
        ([([1, 2, 3, 4, 5, 6, 7, 8], True)], [([1, 2], True)], "have 2 tokens"),
        ([([1, 2, 1, 2, 1, 2, 1, 2], False)], [([1, 2, 1, 2, 1, 2, 1, 2], False)], None),  # it always was so
    ],
)
def test_sampled_replies_are_held_against_those_before_training(before, after, words, tmp_path):
    replies = iter((before, after))
    made = Made(tmp_path, made=Watcher(sample=lambda model: next(replies), sample_at=(0.5,)))
    made.step(50)
    assert made.kinds == ({"replies"} if words else set())
    assert words is None or words in made.watcher.said["replies"]


@pytest.mark.parametrize(("steps", "times"), [(10, 0), (11, 0), (12, 2)])
def test_a_run_of_a_few_steps_is_not_sampled(steps, times, tmp_path):
    """On a model of 135 million parameters it would take twice as long as ten steps."""
    sampled = []
    watcher = Watcher(sample=lambda model: sampled.append(1) or [([1, 2, 3, 4, 5], True)], sample_at=(0.5,))
    made = Made(tmp_path, made=watcher, steps=steps)
    made.step(steps // 2)
    assert len(sampled) == times


def test_the_loss_at_step_0_is_what_the_formulas_give():
    zeros, tokens = torch.zeros(2), torch.full((2,), 10)
    pair = dict.fromkeys(
        ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps"), zeros
    )
    pair |= dict(chosen_lengths=tokens, rejected_lengths=tokens)
    own = {"exo_pair": dict(label_smoothing=0.01), "discopop": dict(discopop_tau=0.05)}
    own |= {name: dict(label_smoothing=0.1) for name in ("robust", "cdpo", "aot", "aot_unpaired")}
    known = [name for name in LOSSES if first_loss(name, 0.2, 0.01) is not None]
    assert len(known) == 16
    for name in known:
        smoothing = own.get(name, {}).get("label_smoothing", 0.0)
        actual = LOSSES[name](beta=0.2, **own.get(name, {}), **pair).mean().item()
        assert first_loss(name, 0.2, smoothing) == pytest.approx(actual, rel=1e-5), name


# --- Runs that really have the fault ---

DEMO = PROJECT / "demo"


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    """The demo's shortest pairs, so that a step takes a tenth of a second."""
    rows = load_dataset("json", data_files=str(DEMO / "train.jsonl"), split="train")
    return rows.select(sorted(range(len(rows)), key=lambda number: len(str(rows[number])))[:256])


def flipped(split: Dataset) -> Dataset:
    return split.map(lambda row: {"chosen": row["rejected"], "rejected": row["chosen"]})


def load():
    return AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)


def train(
    tmp_path, train_pairs, eval_pairs=None, model=None, reference=None, callback=None, trainer=DPOTrainer, **settings
) -> set[str]:
    """Train the demo's model by TRL's own trainer, and return the kinds of fault that its watcher named."""
    defaults = dict(
        learning_rate=4e-4, max_steps=8, logging_steps=1, per_device_train_batch_size=8, use_cpu=True, bf16=False, seed=0,
        gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    args = DPOConfig(str(tmp_path), **defaults | settings)
    watcher = Watcher()
    trainer = trainer(
        load() if model is None else model, reference, args, train_dataset=train_pairs, eval_dataset=eval_pairs,
        processing_class=AutoTokenizer.from_pretrained(DEMO / "model"), callbacks=[c for c in (callback, watcher) if c],
    )  # fmt: skip
    trainer.train()
    return set(watcher.said)


class SwitchedOff(TrainerCallback):
    """Lets the answers go around the adapter of one layer, whose tensors stay trainable."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for name, module in model.named_modules():
            if "layers.1." in name and hasattr(module, "_disable_adapters"):
                module._disable_adapters = True


class OtherFormula(DPOTrainer):
    """Twice the loss that its name promises."""

    def _compute_loss(self, *args, **kwargs):
        result = super()._compute_loss(*args, **kwargs)
        return (2 * result[0], result[1]) if isinstance(result, tuple) else 2 * result


def other_model():
    """The demo's model after a little training of another kind, as after SFT."""
    model = load()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * parameter.data.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    return model


RUNS = {
    "rate too high": ({"displaced"}, dict(learning_rate=3e-3)),
    "rate far too high": ({"runaway"}, dict(learning_rate=1e-2, max_steps=12)),
    "rate without end": ({"overflow"}, dict(learning_rate=1e30, max_grad_norm=0.0, max_steps=4)),
    "another formula than is named": ({"first-loss"}, dict(trainer=OtherFormula, max_steps=2)),
    "rate zero": ({"rate-zero"}, dict(learning_rate=0.0, max_steps=4)),
    "rate too low": ({"stuck"}, dict(learning_rate=1e-7, max_steps=20)),
    "adapter frozen in one layer": ({"unreached"}, dict(peft=True, callback=SwitchedOff(), max_steps=4)),
    "wrong reference": ({"wrong-reference"}, dict(make_reference=other_model, max_steps=2)),
    "labels flipped in one split": ({"reversed"}, dict(flip=True, max_steps=20, per_device_train_batch_size=16, learning_rate=1e-3, eval_strategy="steps", eval_steps=20)),
    "answers that are the same": ({"same-answers"}, dict(same=True, max_steps=2)),
    "beta tiny": ({"beta"}, dict(beta=1e-3, learning_rate=5e-3, max_steps=12)),
    "ipo with a beta for sums": ({"ipo-beta"}, dict(loss_type="ipo", beta=0.1, learning_rate=3e-3, max_steps=20)),
    "a marker in the chosen answers": ({"separated"}, dict(marker=True, max_steps=12, logging_steps=3)),
    "weights in bfloat16": ({"rounded"}, dict(make_model=lambda: load().bfloat16(), learning_rate=1e-7, max_steps=4)),
    "none: all weights": (set(), dict(max_steps=10)),
    "none: an adapter": (set(), dict(peft=True, max_steps=10)),
}  # fmt: skip


QUICK = ("none: all weights", "rate zero", "rate far too high")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in RUNS]
)
def test_a_run_with_the_fault_is_told_so(name, pairs, tmp_path):
    kinds, settings = RUNS[name]
    train_pairs, eval_pairs, settings = pairs, None, dict(settings)
    if settings.pop("flip", False):  # few pairs, so that it learns them within seconds
        eval_pairs = train_pairs.select(range(64))
        train_pairs = flipped(eval_pairs)
    if settings.pop("same", False):
        train_pairs = train_pairs.map(lambda row: {"rejected": row["chosen"]})
    if settings.pop("marker", False):
        train_pairs = train_pairs.map(lambda row: {"chosen": [{"role": "assistant", "content": "Sure! Sure!"}]})
    if settings.pop("peft", False):
        settings["make_model"] = lambda: get_peft_model(
            load(), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    made = {name: settings.pop(f"make_{name}")() for name in ("model", "reference") if f"make_{name}" in settings}
    said = train(tmp_path, train_pairs, eval_pairs, **made, **settings)
    assert kinds <= said if kinds else not said  # a bad run may have more than one thing said of it


def test_stop_on_warning_ends_with_1_one_sentence_and_a_checkpoint(tmp_path, call, caplog):
    folder = tmp_path / "out"
    code, _, error = call(
        "basic_dpo_training",
        *SHORT,
        "--max_steps",
        40,
        "--learning_rate",
        0,
        "--stop_on_warning",
        "--output_dir",
        folder,
    )
    assert code == 1
    [checkpoint] = folder.glob("checkpoint-*")
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert step < 10
    assert f"training stopped at step {step} of 40" in error.splitlines()[-1]
    assert "--learning_rate is 0" in caplog.text
    assert not (folder / "metrics.json").exists()


def test_without_it_a_run_goes_on_and_its_metrics_count_the_warnings(tmp_path, call):
    folder = tmp_path / "out"
    code, _, _ = call("basic_dpo_training", *SHORT, "--learning_rate", 0, "--warmup_steps", 0, "--output_dir", folder)
    assert code == 0
    texts = [json.loads(line)["warning"] for line in (folder / "warnings.jsonl").read_text().splitlines()]
    assert any("--learning_rate is 0" in text for text in texts)
    assert json.loads((folder / "metrics.json").read_text())["warnings"] == len(texts)
