"""Reference log-probs are asked for once, and asked for again whenever anything that decides them has changed."""

import errno

import pytest
import torch
from conftest import make_llama, spoil
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM
from trl import DPOConfig, DPOTrainer

from machinery.common import kept_files
from machinery.common.token_rows import TOKEN_COLUMNS
from machinery.training import reference_cache
from machinery.training.reference_cache import load_logps, reference_key, save_logps
from machinery.training.shared_prompt import SharedPromptDPOTrainer

ROWS = [
    {"prompt": f"what is {n}?", "chosen": " a cat" * (1 + n % 4), "rejected": " a dog" * (1 + n % 3)} for n in range(11)
]


def trainer_for(
    model_folder, tmp_path, rows=ROWS, seed=0, kind=SharedPromptDPOTrainer, peft_config=None, model=None, **options
):
    torch.manual_seed(seed)
    settings = dict(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], precompute_ref_log_probs=True,
        per_device_train_batch_size=4, gradient_checkpointing=False, disable_tqdm=True, max_length=64,
    )  # fmt: skip
    args = DPOConfig(**settings | options)
    args.reference_cache = str(tmp_path / "cache")
    return kind(
        model or AutoModelForCausalLM.from_pretrained(model_folder),
        args=args,
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        peft_config=peft_config,
    )


def columns(trainer):
    return [torch.tensor(trainer.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]


@pytest.fixture
def asked(monkeypatch):
    """How many batches the reference was asked about."""
    calls = []
    stock = DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda *args: calls.append(1) or stock(*args))
    return calls


@pytest.mark.parametrize("disable_dropout", [True, False])
def test_no_dropout_is_in_what_an_adapters_reference_says(disable_dropout, base_tokenizer, tmp_path):
    """OPT keeps its dropout as a number; PEFT leaves a new adapter in training mode, on a base that is not."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16)
    OPTForCausalLM(OPTConfig(vocab_size=len(base_tokenizer), dropout=0.5, **sizes)).save_pretrained(tmp_path / "opt")
    base_tokenizer.save_pretrained(tmp_path / "opt")
    adapter = LoraConfig(target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM")
    trainer = trainer_for(tmp_path / "opt", tmp_path, peft_config=adapter, disable_dropout=disable_dropout)
    alone = trainer_for(tmp_path / "opt", tmp_path / "alone", kind=DPOTrainer)
    for mine, expected in zip(columns(trainer), columns(alone), strict=True):
        assert torch.allclose(mine, expected, atol=1e-4)
    assert not trainer.model.get_base_model().model.decoder.training  # as PEFT had left it


def test_they_are_trls_row_by_row(base_model_folder, tmp_path):
    ours = columns(trainer_for(base_model_folder, tmp_path))
    trls = columns(trainer_for(base_model_folder, tmp_path, kind=DPOTrainer))
    for mine, theirs in zip(ours, trls, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_the_second_run_asks_nothing_and_has_the_same_numbers(base_model_folder, tmp_path, asked):
    first = columns(trainer_for(base_model_folder, tmp_path))
    count = len(asked)
    assert count == 3
    second = columns(trainer_for(base_model_folder, tmp_path))
    assert len(asked) == count
    assert all(map(torch.equal, first, second))


def test_log_probs_that_trl_has_kept_are_not_those_of_other_settings(base_model_folder, tmp_path, asked):
    options = dict(truncation_mode="keep_end", loss_type=["sigmoid"])
    first = columns(trainer_for(base_model_folder, tmp_path / "a", **options))
    count = len(asked)
    second = columns(trainer_for(base_model_folder, tmp_path / "b", ld_alpha=0.5, **options))
    assert len(asked) == 2 * count
    assert not all(map(torch.equal, first, second))


def test_a_changed_row_weight_or_length_is_asked_again(base_model_folder, tmp_path, asked):
    trainer_for(base_model_folder, tmp_path)
    for change in ("row", "order", "weight", "max_length"):
        asked.clear()
        rows, model, options = ROWS, AutoModelForCausalLM.from_pretrained(base_model_folder), {}
        if change == "row":
            rows = [*ROWS[:-1], ROWS[-1] | {"chosen": " a cow"}]
        if change == "order":
            rows = [*ROWS[1:], ROWS[0]]
        if change == "weight":
            next(model.parameters()).data[0, 0] += 1e-3
        if change == "max_length":
            options = {"max_length": 12}
        trainer_for(base_model_folder, tmp_path, rows=rows, model=model, **options)
        assert asked, change


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage"])
def test_damage_is_said_and_rebuilt(damage, base_model_folder, tmp_path, asked, caplog):
    first = columns(trainer_for(base_model_folder, tmp_path))
    [path] = (tmp_path / "cache").glob("*.safetensors")
    whole = path.read_bytes()
    spoil(path, damage)
    asked.clear()
    again = columns(trainer_for(base_model_folder, tmp_path))
    assert asked
    assert all(map(torch.equal, first, again))
    assert path.read_bytes() == whole
    assert caplog.text.count("is not what was written to it: the reference is asked anew") == 1


def test_no_flipped_bit_is_ever_taken_for_a_log_prob(tmp_path):
    logps = torch.tensor([-1.5, -2.25, torch.nan]), torch.tensor([-3.0, -4.0, torch.nan])
    save_logps(tmp_path, "key", *logps)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = load_logps(tmp_path, "key", 3)
        if found is not None:
            assert all(
                torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(found, logps, strict=True)
            )


@pytest.mark.parametrize("place", ["a file", "a folder under the name", "missing", "full"])
def test_a_cache_that_cannot_be_written_is_said_once_and_ends_no_training(
    place, base_model_folder, tmp_path, monkeypatch, caplog
):
    expected = columns(trainer_for(base_model_folder, tmp_path))
    [path] = (tmp_path / "cache").glob("*.safetensors")
    folder = tmp_path / "cache"
    if place == "a folder under the name":
        spoil(path, "a folder")
    else:
        path.unlink()
    if place == "a file":
        folder.rmdir()
        folder.write_text("")
    if place == "missing":
        folder.rmdir()
        folder.symlink_to("/proc/nowhere")
    if place == "full":
        monkeypatch.setattr(kept_files.os, "fsync", no_room)
    caplog.clear()
    monkeypatch.setattr(kept_files, "_said", set())
    for _ in range(2):
        assert all(map(torch.equal, expected, columns(trainer_for(base_model_folder, tmp_path))))
    assert caplog.text.count("The reference's log-probs cannot be kept in") == 1


def no_room(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_signal_keeps_what_was_answered_and_the_rest_comes_out_the_same(base_model_folder, tmp_path, monkeypatch):
    expected = columns(trainer_for(base_model_folder, tmp_path / "whole"))
    stock, calls = DPOTrainer.compute_ref_log_probs, []

    def stopped_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise SystemExit(143)
        return stock(*args)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", stopped_at_the_third)
    with pytest.raises(SystemExit):
        trainer_for(base_model_folder, tmp_path)
    again = columns(trainer_for(base_model_folder, tmp_path))
    assert len(calls) == 4  # of three batches the last alone was asked again
    assert all(map(torch.equal, expected, again))


@pytest.fixture
def mapped(tmp_path):
    """A data set on disk, beside whose file TRL keeps its tokens."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data")
    return lambda: load_from_disk(tmp_path / "data")


def tokens(trainer):
    return [trainer.train_dataset[name] for name in TOKEN_COLUMNS]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage"])
def test_tokens_that_trl_has_kept_are_compared_with_their_seal(damage, mapped, base_model_folder, tmp_path, caplog):
    expected = tokens(trainer_for(base_model_folder, tmp_path, rows=mapped()))
    before = set((tmp_path / "data").glob("cache-*.arrow"))
    assert before
    assert tokens(trainer_for(base_model_folder, tmp_path, rows=mapped())) == expected
    assert "has changed on disk" not in caplog.text
    for file in before:
        spoil(file, damage)
    assert tokens(trainer_for(base_model_folder, tmp_path, rows=mapped())) == expected
    assert caplog.text.count("has changed on disk since it was written. It is made anew.") == len(before)
    assert set((tmp_path / "data").glob("cache-*.arrow")) == before


def test_tokens_that_cannot_be_kept_go_elsewhere(mapped, base_model_folder, tmp_path, caplog, monkeypatch):
    expected = tokens(trainer_for(base_model_folder, tmp_path, rows=mapped()))
    for file in (tmp_path / "data").glob("cache-*"):
        spoil(file, "a folder") if file.suffix == ".arrow" else file.unlink()
    monkeypatch.setattr(kept_files, "_said", set())
    assert tokens(trainer_for(base_model_folder, tmp_path, rows=mapped())) == expected
    assert caplog.text.count("Tokens cannot be kept in") == 1


def test_a_new_adapter_has_the_base_s_whatever_it_was_drawn_from(base_model_folder, tmp_path, asked):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer_for(base_model_folder, tmp_path, peft_config=lora, seed=0)
    asked.clear()
    trainer_for(base_model_folder, tmp_path, peft_config=lora, seed=1)
    trainer_for(base_model_folder, tmp_path)  # nor does full training ask for anything else
    assert not asked


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_only_what_will_be_drawn_is_asked_and_a_longer_run_asks_for_the_rest(
    strategy, base_model_folder, tmp_path, monkeypatch
):
    rows_asked, drawn = [], []
    stock = DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        DPOTrainer,
        "compute_ref_log_probs",
        lambda self, model, inputs: rows_asked.append(len(inputs["input_ids"]) // 2) or stock(self, model, inputs),
    )
    step = SharedPromptDPOTrainer.training_step
    monkeypatch.setattr(
        SharedPromptDPOTrainer,
        "training_step",
        lambda self, model, inputs, *rest: drawn.extend(inputs["ref_chosen_logps"].tolist()) or step(self, model, inputs, *rest),
    )  # fmt: skip
    options = dict(max_steps=3, per_device_train_batch_size=2, train_sampling_strategy=strategy, save_strategy="no")
    few = trainer_for(base_model_folder, tmp_path, **options)
    few.train()
    assert sum(rows_asked) == len(drawn) == 6
    kept = columns(few)[0]
    assert sorted(kept[~kept.isnan()].tolist()) == pytest.approx(sorted(drawn))
    rows_asked.clear()
    every = columns(trainer_for(base_model_folder, tmp_path, **options | {"max_steps": 6}))[0]
    assert sum(rows_asked) == len(ROWS) - 6
    assert every.isfinite().all()
    assert torch.equal(every[~kept.isnan()], kept[~kept.isnan()])


def test_a_part_of_an_epoch_asks_for_that_part(base_model_folder, tmp_path):
    options = dict(num_train_epochs=0.5, per_device_train_batch_size=2)
    trainer = trainer_for(base_model_folder, tmp_path, **options)
    assert columns(trainer)[0].isfinite().sum() == 6  # 3 of 6 steps


def test_another_order_than_was_foreseen_is_no_silent_nan(base_model_folder, tmp_path):
    options = dict(max_steps=1, per_device_train_batch_size=2, save_strategy="no")
    trainer = trainer_for(base_model_folder, tmp_path, **options)
    torch.manual_seed(99)
    with pytest.raises(RuntimeError, match="data_seed"):
        trainer.train()


def test_an_adapter_that_belongs_to_the_reference_counts():
    rows = Dataset.from_dict({name: [[1, 2]] for name in TOKEN_COLUMNS})
    model = make_llama()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "ref")
    keys = {reference_key(model, rows, {}, "ref"), reference_key(model, rows, {}, None)}
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data += 1
    keys |= {reference_key(model, rows, {}, "ref")}
    model.peft_config["ref"].lora_alpha = 64  # another scale of the same weights
    keys |= {reference_key(model, rows, {}, "ref")}
    assert len(keys) == 4
    assert reference_key(model, rows, {}, None) in keys


def test_where_tokens_are_cut_matters_though_they_are_the_same():
    model, keys = make_llama(), set()
    for chosen in ([[1, 2], [3]], [[1], [2, 3]]):
        keys.add(
            reference_key(
                model,
                Dataset.from_dict({"prompt_ids": [[5], [5]], "chosen_ids": chosen, "rejected_ids": [[7], [8]]}),
                {},
            )
        )
    assert len(keys) == 2


def test_old_files_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "MOST_BYTES", 2000)
    values = torch.zeros(100)
    for number in range(4):
        save_logps(tmp_path, f"{number:032x}", values, values.clone())
    assert load_logps(tmp_path, f"{3:032x}", 100) is not None
    assert len(list(tmp_path.glob("*.safetensors"))) < 4


def test_files_of_other_names_are_nobodys_to_delete(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cache, "MOST_BYTES", 0)
    for name in ("model.safetensors", "dpo-logps-mine.safetensors"):
        (tmp_path / name).write_bytes(b"0" * 1000)
    for number in range(2):
        save_logps(tmp_path, f"{number:032x}", torch.zeros(100), torch.zeros(100))
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors", "dpo-logps-mine.safetensors", f"dpo-logps-{1:032x}.safetensors"
    }  # fmt: skip


def test_another_number_of_rows_is_no_hit(tmp_path):
    save_logps(tmp_path, "key", torch.zeros(3), torch.zeros(3))
    assert load_logps(tmp_path, "key", 4) is None
    assert load_logps(tmp_path, "nothing", 3) is None
