"""Every formula against TRL's trainer, published values and hand arithmetic; the plug; bad input; the comparisons."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, PROJECT, SHORT, run_forked, run_script
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from custom_loss_dpo import LIMITS, LOSSES, CustomLossDPOTrainer
from machinery.common.errors import UserError, function_from
from machinery.training.custom_loss import CustomLoss
from machinery.training.losses import (
    TRL_LOSSES,
    check_loss,
    choose_loss,
    loss_from_flags,
    made_up_pairs,
    name_of,
    uses_reference,
)
from machinery.watching.watcher import Watcher

SMOOTHING = dict.fromkeys(("exo_pair", "robust", "cdpo", "aot", "aot_unpaired"), 0.1)
SETTINGS = {"label_smoothing": 0.1, "discopop_tau": 0.05}


def loss_named(name, **settings):
    return choose_loss([name], LOSSES, settings=SETTINGS | settings)


# --- The formulas ---


def trls_loss(name, log_probs, mask, ref_logps, beta=0.1):
    """TRL's own code on given per-token log-probs (2B, L - 1), whatever their dtype; no model is involved."""
    gathered = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    args = SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=gathered, args=args, beta=beta, label_smoothing=0.1, ld_alpha=None,
        aux_loss_enabled=False, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[name],
        loss_weights=[1.0], use_weighting=False, _total_train_tokens=0, _tp_size=1, _metrics={"train": _Metrics()},
    )  # fmt: skip
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=log_probs, mean_logits=log_probs, is_top1=log_probs > 0, aux_loss=None
    )
    rows, width = mask.shape
    inputs = {
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1),
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask], dim=1),
        "ref_chosen_logps": ref_logps[: rows // 2],
        "ref_rejected_logps": ref_logps[rows // 2 :],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


class _Metrics(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


def pairs_of_tokens(scale, dtype, pairs=32, width=12):
    """Per-token log-probs, a mask of answers of 1 to `width` tokens, and reference sums at log-ratios up to `scale`."""
    generator = torch.Generator().manual_seed(round(scale))
    lengths = torch.randint(1, width + 1, (2 * pairs, 1), generator=generator)
    mask = (torch.arange(width) < lengths).long()
    log_probs = -3 * torch.rand(2 * pairs, width, generator=generator, dtype=torch.float64) * mask
    ratios = scale * (2 * torch.rand(2 * pairs, generator=generator, dtype=torch.float64) - 1)
    return log_probs.to(dtype).requires_grad_(), mask, (log_probs.sum(1) - ratios).to(dtype)


def ours_on_tokens(name, log_probs, mask, ref_logps, beta=0.1):
    (chosen, rejected), (ref_chosen, ref_rejected) = log_probs.sum(1).chunk(2), ref_logps.chunk(2)
    chosen_lengths, rejected_lengths = mask.sum(1).chunk(2)
    return loss_named(name)(
        beta=beta, policy_chosen_logps=chosen, policy_rejected_logps=rejected, ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths,
    ).mean()  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 100.0, 10_000.0])
@pytest.mark.parametrize("name", TRL_LOSSES)
def test_value_and_gradient_are_trls_wherever_trl_is_finite(name, scale, dtype):
    batch = pairs_of_tokens(scale, dtype)
    theirs = trls_loss(name, *batch)
    [their_slope] = torch.autograd.grad(theirs, batch[0])
    ours = ours_on_tokens(name, *batch)
    [our_slope] = torch.autograd.grad(ours, batch[0])
    assert ours.isfinite()
    assert our_slope.isfinite().all()
    tolerance = 1e-10 if dtype == torch.float64 and name != "exo_pair" else 1e-6
    if theirs.isfinite():
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance, abs=tolerance)
    if their_slope.isfinite().all():
        size = max(1.0, their_slope.abs().max().item())
        # what is no answer's token has a constant log-prob of 0 in a model, so its slope goes nowhere
        assert ((our_slope - their_slope) * batch[1]).abs().max() <= tolerance * size


def test_where_trls_discopop_is_not_finite_ours_is():
    batch = pairs_of_tokens(10_000.0, torch.float64)
    assert trls_loss("discopop", *batch).isnan()
    assert ours_on_tokens("discopop", *batch).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_in_value_and_gradient_for_log_ratios_of_ten_thousand(name, dtype):
    corners = torch.tensor([(c, r) for c in (-1e4, 0.0, 1e4) for r in (-1e4, 0.0, 1e4)], dtype=dtype)
    policy = torch.full((9,), -1e4, dtype=dtype)
    chosen, rejected = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    lengths = torch.full((9,), 7)
    losses = loss_named(name)(
        beta=0.1, policy_chosen_logps=chosen, policy_rejected_logps=rejected, ref_chosen_logps=policy - corners[:, 0],
        ref_rejected_logps=policy - corners[:, 1], chosen_lengths=lengths, rejected_lengths=lengths,
    )  # fmt: skip
    assert losses.shape == (9,)
    assert losses.isfinite().all()
    slopes = torch.autograd.grad(losses.sum(), [chosen, rejected], allow_unused=True)
    assert all(slope is None or slope.isfinite().all() for slope in slopes)


# From loss_values.json, a table of per-pair losses by independent implementations: sigmoid and hinge are torchtune's
# published unit test, cdpo and ipo the official DPO repository's `preference_loss`, the rest TRL's before 1.0. Beta 0.1.
PUBLISHED_PAIRS = {
    "policy_chosen_logps": [-0.5, -10.0, -1.0],
    "policy_rejected_logps": [-0.1, -30.0, -21.0],
    "ref_chosen_logps": [-0.5, -10.1, -0.1],
    "ref_rejected_logps": [-0.1, -20.1, -0.1],
}
PUBLISHED = {
    "sigmoid": [0.6931471805599453, 0.31326168751822286, 0.1269280110429725],
    "cdpo": [0.6931471805599453, 0.4132616875182229, 0.32692801104297253],
    "ipo": [25.0, 24.999999999999982, 225.0],  # on sums: with lengths of 1 ours is the same
    "hinge": [1.0, 1.1102230246251565e-16, 0.0],
    "exo_pair": [0.5108256237659905, 0.11408210766749785, 0.0019422505279081924],
    "nca_pair": [1.3862943611198906, 1.1952199944901538, 1.1220466904426123],
    "robust": [0.6931471805599452, 0.1882616875182229, -0.12307198895702753],
    "sppo_hard": [50.0, 48.019999999999996, 287.61999999999995],
    "apo_zero": [1.0, 0.7684120984838185, 0.6325573991543032],
    "apo_down": [1.0, 0.77144140053687, 0.5967180972303177],
    "discopop": [0.8465735902799727, 0.36787944105886683, 0.1353352832366127],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_values(name):
    pair = {key: torch.tensor(values, dtype=torch.float64) for key, values in PUBLISHED_PAIRS.items()}
    lengths = torch.ones(3, dtype=torch.long)
    losses = loss_named(name)(beta=0.1, **pair, chosen_lengths=lengths, rejected_lengths=lengths)
    tolerance = 1e-6 if name == "exo_pair" else 1e-10  # its eps is held in float32
    assert losses.tolist() == pytest.approx(PUBLISHED[name], rel=tolerance, abs=tolerance)


# One pair by hand: chosen 10 tokens from -12 to -10 (ratio +2), rejected 20 tokens from -21 to -25 (ratio -4); beta 0.5.
HAND_PAIR = {
    "policy_chosen_logps": -10.0, "policy_rejected_logps": -25.0, "ref_chosen_logps": -12.0, "ref_rejected_logps": -21.0,
    "chosen_lengths": 10, "rejected_lengths": 20,
}  # fmt: skip


def ls(x):
    return -math.log1p(math.exp(-x))


def odds(p):
    return math.log(p / (1 - p))


BY_HAND = {
    "ipo": (2 / 10 + 4 / 20 - 1 / (2 * 0.5)) ** 2,  # (0.4 - 1)^2 = 0.36
    "sigmoid_norm": -ls(0.5 * (2 / 10 + 4 / 20)),
    "bco_pair": -ls(1.0) - ls(2.0),
    "cdpo": -0.9 * ls(3.0) - 0.1 * ls(-3.0),
    "aot": -0.9 * ls(3.0) - 0.1 * ls(-3.0),  # a batch of one has nothing to sort
    "aot_unpaired": -0.9 * ls(3.0) - 0.1 * ls(-3.0),
    "sft": 10 / 10,
    "simpo": -ls(0.5 * (-10 / 10 + 25 / 20) - 0.5),  # gamma 0.5
    "orpo": 1.0 - 0.1 * ls(odds(math.exp(-1.0)) - odds(math.exp(-1.25))),  # lambda 0.1
    "dpop": -ls(3.0),  # the chosen answer gained: no penalty
    "rdpo": -ls(3.0 + 0.01 * (10 - 20)),  # alpha 0.01
    "your_loss": -ls(3.0 - 1.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    pair = {key: torch.tensor([value]) for key, value in HAND_PAIR.items()}
    assert loss_named(name)(beta=0.5, **pair).item() == pytest.approx(BY_HAND[name], abs=1e-6)


def test_dpop_charges_lambda_times_what_the_chosen_answer_lost():
    pair = {key: torch.tensor([value]) for key, value in HAND_PAIR.items()}
    pair["policy_chosen_logps"] = torch.tensor([-13.0])  # it lost 1 nat; ratio difference -1 + 4 = 3
    assert loss_named("dpop")(beta=0.5, **pair).item() == pytest.approx(-ls(0.5 * (3 - 50 * 1)), abs=1e-5)


def test_aot_compares_sorted_quantiles():
    pair = {
        "policy_chosen_logps": torch.tensor([-1.0, -5.0]), "policy_rejected_logps": torch.tensor([-4.0, -4.0]),  # 3, -1
        "ref_chosen_logps": torch.tensor([-4.0, -2.0]), "ref_rejected_logps": torch.tensor([-2.0, -2.0]),  # -2, 0
        "chosen_lengths": torch.ones(2), "rejected_lengths": torch.ones(2),
    }  # fmt: skip
    margins = torch.tensor([-1.0 - -2.0, 3.0 - 0.0])  # lowest with lowest, highest with highest
    expected = -0.9 * logsigmoid(margins) - 0.1 * logsigmoid(-margins)
    assert torch.allclose(loss_named("aot")(beta=1.0, **pair), expected)


def test_every_formula_says_where_it_is_from_and_whether_it_sums():
    assert set(TRL_LOSSES) <= set(LOSSES)
    for name, formula in LOSSES.items():
        if name != "your_loss":
            assert any(word in formula.__doc__ for word in ("arXiv:", "cdpo.pdf")), name
            assert "\n    Sums." in formula.__doc__ or "\n    Means over" in formula.__doc__, name
            assert "For: " in formula.__doc__, name


def test_which_losses_need_no_reference_is_found_out():
    free = {name for name in LOSSES if not uses_reference(loss_named(name))}
    assert free == {"sft", "simpo", "orpo"}


# --- The plug ---

ROWS = [
    {"prompt": f"what is {n}?", "chosen": f" it is a cat, {'no, ' * (n % 3)}a dog", "rejected": " a hill" * (1 + n % 2)}
    for n in range(12)
]


def trainer_for(model_folder, tmp_path, loss=None, kind=CustomLossDPOTrainer, peft_config=None, **options):
    settings = dict(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, max_steps=3, per_device_train_batch_size=4,
        learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to=[], gradient_checkpointing=False,
        disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:6]),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        peft_config=peft_config,
        **({"loss": loss} if kind is CustomLossDPOTrainer else {}),
    )


def history(trainer, *names):
    trainer.train()
    trainer.evaluate()
    names = {*names, *(f"eval_{name}" for name in names)}
    return [value for logs in trainer.state.log_history for name, value in sorted(logs.items()) if name in names]


METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected", "entropy",
           "logits/chosen", "mean_token_accuracy", "grad_norm")  # fmt: skip


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sft", "aot", "sppo_hard", "discopop"])
@pytest.mark.parametrize(
    "how",
    [
        "full",
        *(pytest.param(how, marks=pytest.mark.thorough) for how in ("lora", "precomputed", "accumulated", "two_rows")),
    ],
)
def test_training_with_a_formula_is_training_with_trls(name, how, base_model_folder, tmp_path):
    options = {
        "precomputed": dict(precompute_ref_log_probs=True),
        "accumulated": dict(gradient_accumulation_steps=2, per_device_train_batch_size=2),
    }.get(how, {})
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if how == "lora" else None
    # the adapter is drawn from the same seed; the stock trainer of TRL knows nothing of shared prompts or of us
    stock = trainer_for(base_model_folder, tmp_path, kind=DPOTrainer, peft_config=lora, loss_type=[name], **options)
    # without a reference the rewards that are logged are another quantity
    metrics = [metric for metric in METRICS if name != "sft" or "rewards" not in metric]
    expected = history(stock, *metrics)
    ours = trainer_for(base_model_folder, tmp_path, loss_named(name, label_smoothing=0.0), peft_config=lora, **options)
    if how == "two_rows":
        ours.args.shared_prompt = False
    assert history(ours, *metrics) == pytest.approx(expected, abs=5e-4, rel=1e-3)


class OnPlainTRL(CustomLoss, DPOTrainer): ...


@pytest.mark.parametrize("name", ["ipo", "simpo"])
def test_on_trls_own_trainer_the_watcher_learns_the_loss_by_its_name(name, base_model_folder, tmp_path):
    args = trainer_for(base_model_folder, tmp_path, loss_named(name)).args
    args.loss_type, args.precompute_ref_log_probs = ["sigmoid"], False  # as in a config that says nothing of the loss
    rows, model = Dataset.from_list(ROWS), AutoModelForCausalLM.from_pretrained(base_model_folder)
    trainer = OnPlainTRL(model, None, args, train_dataset=rows, loss=LOSSES[name],
                         processing_class=AutoTokenizer.from_pretrained(base_model_folder))  # fmt: skip
    trainer.add_callback(watcher := Watcher())
    trainer.train()
    assert args.loss_type == [name] and not watcher.said
    assert watcher.has_reference == (name != "simpo")


def test_what_only_trls_losses_follow_is_refused_beside_another(base_model_folder, tmp_path):
    with pytest.raises(UserError, match="--ld_alpha is TRL's, for its own losses, and ipo would not follow it"):
        trainer_for(base_model_folder, tmp_path, LOSSES["ipo"], ld_alpha=0.5)


@pytest.mark.parametrize("name", ["sft", "simpo", "orpo"])
def test_reference_free_losses_load_no_reference_and_ask_none(name, base_model_folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(CustomLossDPOTrainer, "compute_ref_log_probs", refuse)
    trainer = trainer_for(base_model_folder, tmp_path, loss_named(name))
    losses = history(trainer, "loss")
    assert trainer.ref_model is None
    assert len(losses) == 4
    assert losses[2] < losses[0]


def test_a_sum_of_losses_is_trls_sum(base_model_folder, tmp_path):
    sum_of_two = choose_loss(["sigmoid", "sft"], LOSSES, weights=[1.0, 0.2])
    assert name_of(sum_of_two) == "sigmoid + sft"
    stock = trainer_for(
        base_model_folder, tmp_path, kind=DPOTrainer, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]
    )
    expected = history(stock, "loss")
    assert history(trainer_for(base_model_folder, tmp_path, sum_of_two), "loss") == pytest.approx(expected, abs=1e-4)


# --- The script ---


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dpop"
    return folder, run_script("custom_loss_dpo.py", *SHORT, "--output_dir", folder)


def test_a_run_without_arguments_puts_dpop_beside_sigmoid(short_run):
    folder, done = short_run
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("trained parameters") - 200 :]
    assert "dpop" in table
    assert "sigmoid" in table
    dpop, sigmoid = (json.loads((folder / name / "metrics.json").read_text()) for name in (".", "beside-sigmoid"))
    assert dpop["script"] == sigmoid["script"] == "custom_loss"
    assert math.isfinite(dpop["true_reward_after"])
    assert dpop["reply_tokens_after"] > 0
    first = [
        next(logs["loss"] for logs in json.loads((folder / name / "trainer_state.json").read_text())["log_history"])
        for name in (".", "beside-sigmoid")
    ]
    assert first == pytest.approx([math.log(2)] * 2, abs=1e-3)  # both start at margin 0, on the same batch


@pytest.mark.thorough
def test_the_sigmoid_beside_is_the_basic_script_s_run(short_run, tmp_path):
    done = run_forked("basic_dpo_training.py", *SHORT, "--output_dir", tmp_path / "basic")
    assert done.returncode == 0, done.stderr
    basic, beside = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "basic", short_run[0] / "beside-sigmoid")
    )
    for name in ("eval_loss", "chosen_logp_change", "true_reward_after", "kl"):
        assert basic[name] == pytest.approx(beside[name], abs=1e-5), name


@pytest.mark.thorough
def test_a_reference_free_run_reports_the_change_since_the_start(call, tmp_path):
    code, output, error = call(
        "custom_loss_dpo", "--loss_type", "simpo", "--beside", "none", *SHORT, "--output_dir", tmp_path
    )
    assert code == 0, error
    assert "has no reference" in output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["reference"] == "none"
    assert 0 < abs(metrics["chosen_logp_change"]) < 5  # not the log-prob itself, which is about -40


@pytest.mark.thorough
def test_an_adapter_trains_with_a_formula_of_one_s_own(call, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    code, _, error = call(
        "custom_loss_dpo", "--loss_file", f"{tmp_path}/mine.py:good", "--use_peft", "--beside", "none", *SHORT,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, error
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "base_model.json").read_text())["name"] == str(PROJECT / "demo" / "model")


@pytest.mark.thorough
def test_two_processes_train_as_one(tmp_path):
    """Where data sets cannot be kept, too: each process then has its own, and still reads the same log-probs."""
    options = [
        *SHORT,
        "--beside",
        "none",
        "--loss_type",
        "ipo",
        "--beta",
        "1",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2]
    unkept = {"HF_DATASETS_CACHE": __file__}
    histories = []
    for start, size, name, more in (
        ([sys.executable], 4, "one", {}),
        (launch, 2, "two", {}),
        (launch, 2, "un", unkept),
    ):
        command = [
            *start,
            "custom_loss_dpo.py",
            *options,
            "--per_device_train_batch_size",
            size,
            "--output_dir",
            tmp_path / name,
            "--reference_cache",
            tmp_path / f"cache of {name}",
        ]
        done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"} | more, timeout=PATIENCE)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("Formatted pairs cannot be kept" in done.stderr) == bool(more), done.stderr
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        histories.append([logs["loss"] for logs in state["log_history"] if "loss" in logs])
    kept = Path(os.environ["HF_DATASETS_CACHE"]) / "dpo_pairs"
    assert all(Path(f"{file}.sum").exists() for file in kept.glob("*.arrow"))  # no run's own file is left
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
    assert histories[0] == pytest.approx(histories[2], rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    [
        "--f_divergence_type js_divergence --loss_type sigmoid",
        "--ld_alpha 0.5 --loss_type sigmoid",
        "--use_weighting --loss_type ipo",
    ],
)
def test_trls_own_variants_go_through_trl(words, call, tmp_path):
    code, _, error = call("custom_loss_dpo", *words.split(), "--beside", "none", *SHORT, "--output_dir", tmp_path)
    assert code == 0, error


# --- Bad input ---

OWN = """
import torch
from torch.nn.functional import logsigmoid

def good(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, **others):
    return -logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps - ref_chosen_logps + ref_rejected_logps))

def mean(**pair):
    return good(**pair).mean()

def wrong_name(beta, chosen):
    return beta * chosen

def turned(**pair):
    return -good(**pair)

def detached(**pair):
    return good(**pair).detach()

def chosen_only(policy_chosen_logps, **others):
    return -policy_chosen_logps

def infinite(policy_chosen_logps, policy_rejected_logps, **others):
    return torch.log(policy_chosen_logps) + policy_rejected_logps

def number(**pair):
    return 1.0

def margin(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, **others):
    return policy_chosen_logps - ref_chosen_logps - policy_rejected_logps + ref_rejected_logps

def kink(**pair):
    return -margin(**pair).sign() * margin(**pair).abs().sqrt()

def flat(**pair):
    return -margin(**pair) ** 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"returns shape \(\) for 64 pairs: one number a pair"),
        ("wrong_name", "cannot be called: TypeError.*is given beta, policy_chosen_logps"),
        ("turned", "pulls the wrong way"),
        ("detached", "has no gradient"),
        ("chosen_only", "does not depend on the rejected answer"),
        ("infinite", "is not finite"),
        ("number", "returns float"),
        ("kink", "no finite gradient where policy and reference are equal"),
        ("flat", "training would never begin"),
        ("missing", "has no function missing: it has good, mean"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_in_one_sentence(name, message, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(UserError, match=message):
        check_loss(function_from(f"{tmp_path}/mine.py:{name}", "--loss_file"), name, 0.1)


def test_a_good_one_is_taken(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    own = function_from(f"{tmp_path}/mine.py:good", "--loss_file")
    check_loss(own, "good", 0.1)
    pair = made_up_pairs()
    assert torch.allclose(own(beta=0.3, **pair), loss_named("sigmoid")(beta=0.3, **pair))


def test_a_smoothing_given_as_a_hyperparameter_is_the_flag():
    """TRL's constructor and the watcher look at the arguments, and would refuse or warn of the 0 there."""
    args = SimpleNamespace(loss_file=None, loss_kwargs=["label_smoothing=0.2"], beside=None)
    training_args = SimpleNamespace(
        loss_type=["exo_pair"], loss_weights=None, label_smoothing=0.0, discopop_tau=0.05, max_tokens_per_batch=None
    )
    loss = loss_from_flags(args, training_args, LOSSES, LIMITS)
    assert loss.keywords["label_smoothing"] == training_args.label_smoothing == 0.2


def test_limits_name_hyperparameters_that_exist():
    from machinery.training.losses import hyperparameters

    assert set(LIMITS) <= {parameter for formula in LOSSES.values() for parameter in hyperparameters(formula)}


@pytest.mark.thorough
def test_the_script_runs_from_elsewhere(tmp_path):
    done = run_forked(
        Path(PROJECT, "custom_loss_dpo.py"), *SHORT, "--beside", "none", "--loss_type", "your_loss", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "custom_loss" / "metrics.json").exists()
