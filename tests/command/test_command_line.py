"""Flags, recipes and their order of precedence; what the user gets wrong is one sentence."""

from types import SimpleNamespace

import pytest
import torch
from conftest import SCRIPTS_ON_DEMO

import basic_dpo_training
from dpo_utils import parse_args
from machinery.command import settings
from machinery.common.errors import UserError
from machinery.comparing.side_by_side import beside_full_run
from machinery.runs import ownership
from machinery.runs.folder import choose_folder
from machinery.runs.start import check_start

DEMO = basic_dpo_training.DEMO


def parsed(*words, demo=DEMO):
    return parse_args("A script.", demo, list(words))


def test_one_process_uses_one_of_several_gpus_and_says_how_to_use_all(capsys):
    training_args = SimpleNamespace(n_gpu=4, _n_gpu=4)
    settings._use_one_gpu(training_args)
    assert training_args._n_gpu == 1
    assert "accelerate launch" in capsys.readouterr().out


def test_streamed_rows_are_not_handed_to_workers_that_are_not_forked(monkeypatch):
    words = ("--dataset_streaming", "--dataloader_num_workers", "2", "--max_steps", "2")
    monkeypatch.setattr(settings, "get_start_method", lambda: "spawn")
    with pytest.raises(UserError, match="--dataloader_num_workers"):
        parsed(*words)
    monkeypatch.setattr(settings, "get_start_method", lambda: "fork")
    parsed(*words)


def test_without_arguments_the_demo_is_trained():
    args, training_args, model_args = parsed()
    assert (model_args.model_name_or_path, args.dataset_name) == ("demo/model", "demo")
    assert training_args.learning_rate == DEMO["learning_rate"]
    assert training_args.gradient_checkpointing is False


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_demo(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("beta: 0.3\nlearning_rate: 1.0e-5\n")
    _, training_args, _ = parsed("--config", str(recipe), "--beta", "0.5")
    assert training_args.beta == 0.5
    assert training_args.learning_rate == 1e-5
    assert training_args.num_train_epochs == DEMO["num_train_epochs"]


def test_for_another_model_the_defaults_are_trls():
    _, training_args, _ = parsed("--model_name_or_path", "some/model", "--dataset_name", "some/data")
    assert training_args.learning_rate == 1e-6
    assert training_args.max_length == 1024
    assert training_args.checkpointing_if_needed


def test_the_users_value_wins_over_the_demo_under_either_name_of_a_flag():
    for words in (["--gradient_checkpointing"], ["--activation_checkpointing", "true"]):
        _, training_args, _ = parsed(*words)
        assert training_args.activation_checkpointing is True


def test_resume_needs_no_value():
    _, training_args, _ = parsed("--resume_from_checkpoint", "--beta", "0.2")
    assert training_args.resume_from_checkpoint == "newest"
    assert training_args.beta == 0.2


def test_every_setting_of_the_demo_is_a_flag():
    parsed(*(word for name, value in DEMO.items() for word in (f"--{name}", str(value))))


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(tmp_path):
    choose_folder(str(tmp_path), None, None, False)
    (tmp_path / "metrics.json").write_text("{}")
    ownership.let_go(tmp_path, is_finished=True)
    with pytest.raises(UserError, match="already holds a run"):
        parsed("--output_dir", str(tmp_path))
    parsed("--output_dir", str(tmp_path), "--overwrite_output_dir")
    parsed("--output_dir", str(tmp_path), "--resume_from_checkpoint")


@pytest.mark.parametrize("script", SCRIPTS_ON_DEMO)
def test_help_fits_on_a_page_or_two(script, call):
    code, output, _ = call(script, "--help")
    assert code == 0 and len(output.splitlines()) <= 66


def test_help_says_what_the_flags_do(capsys):
    for word, expected in (("--help", "stays CLOSER"), ("--help_all", "--adam_beta2")):
        with pytest.raises(SystemExit) as stop:
            parsed(word)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_what_would_round_the_policy_for_good_is_off():
    _, training_args, _ = parse_args("", DEMO, ["--bf16_full_eval"])
    assert not training_args.bf16_full_eval


def test_under_fsdp_a_reference_that_trl_would_load_without_the_revision_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    parse_args("", DEMO, ["--model_revision", "step1000"])
    with pytest.raises(UserError, match="--precompute_ref_log_probs: under FSDP TRL loads the reference itself"):
        parse_args("", DEMO, ["--model_revision", "step1000", "--precompute_ref_log_probs"])


def test_a_mixture_of_data_sets_aside_the_demos_own(tmp_path):
    (tmp_path / "recipe.yaml").write_text("datasets: [{path: my_pairs}, {path: others}]\n")
    args, *_ = parse_args("", DEMO, ["--config", str(tmp_path / "recipe.yaml")])
    assert args.dataset_name is None
    assert [dataset.path for dataset in args.source.datasets] == ["my_pairs", "others"]
    metrics = {"model": "demo/model", "dataset": None, "beta": 0.1, "seed": 42}
    assert beside_full_run(metrics, tmp_path, make_it=False).startswith("Not compared")


def test_a_flag_is_given_whole():
    """What hides a token where a command is shown, and what hands flags on, know whole names."""
    with pytest.raises(UserError, match="There is no flag --hub_tok: did you mean --hub_token"):
        parsed("--hub_tok", "hf_secret")


def test_weights_in_float16_are_refused_under_fp16():
    """Its gradients cannot be unscaled; an adapter on them is in float32."""
    policy = torch.nn.Linear(2, 2, dtype=torch.float16)
    with pytest.raises(UserError, match="--dtype float32"):
        check_start(SimpleNamespace(fp16=True), policy, [], [])
