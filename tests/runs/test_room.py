"""What a run will write is held against the disk before any work: hand arithmetic, on a disk of any size."""

import logging
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from machinery.common.errors import UserError
from machinery.models.adapters import adapter_bytes
from machinery.runs.ownership import aside
from machinery.runs.room import check_room, count_checkpoints

PAIRS = Dataset.from_dict({"prompt": ["why?"] * 96})  # 12 steps of 8
Disk = namedtuple("Disk", "total used free")
MB = 1_000_000


def settings(tmp_path, **more):
    plain = dict(
        output_dir=str(tmp_path), save_strategy="steps", save_steps=4, save_total_limit=None, save_only_model=False,
        optim="adamw_torch", max_steps=-1, num_train_epochs=1, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, world_size=1,
    )  # fmt: skip
    return SimpleNamespace(**plain | more)


@pytest.fixture
def disk(monkeypatch):
    """Sets how many MB are free, and keeps which folder was asked about."""
    asked = []

    def set_free(megabytes: float) -> list:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Disk(0, 0, int(megabytes * MB)))
        return asked

    return set_free


@pytest.fixture
def policy() -> nn.Module:
    """1 MB of weights: 250,000 in float32."""
    return nn.Linear(500, 500, bias=False)


def test_three_checkpoints_of_weights_and_two_states_and_the_model_are_ten_times_the_weights(tmp_path, policy, disk):
    asked = disk(9.9)
    with pytest.raises(
        UserError, match=r"about 10\.0 MB \(3 checkpoints of 3\.0 MB, the model 1\.0 MB\), and 9\.9 MB are free"
    ):
        check_room(settings(tmp_path), policy, PAIRS)
    assert asked == [tmp_path.resolve()]  # the disk of the output folder


def test_a_disk_that_is_nearly_too_small_is_a_warning(tmp_path, policy, disk, caplog):
    disk(10.5)
    with caplog.at_level(logging.WARNING, "dpo"):
        check_room(settings(tmp_path), policy, PAIRS)
    assert "about 10.0 MB" in caplog.text
    caplog.clear()
    disk(12)
    check_room(settings(tmp_path), policy, PAIRS)
    assert not caplog.text


def test_of_a_stream_nobody_knows_so_it_is_a_warning(tmp_path, policy, disk, caplog):
    disk(0.5)
    check_room(settings(tmp_path), policy, None)
    assert "1 checkpoint of 3.0 MB" in caplog.text


def test_checkpoints_that_are_there_are_not_written_again(tmp_path, policy, disk):
    disk(9.9)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(bytes(3 * MB))
    check_room(settings(tmp_path), policy, PAIRS)


@pytest.mark.parametrize("targets", [["q_proj"], "q_proj", ".*q_proj|other"])  # a text is a pattern to PEFT
def test_an_adapter_is_small_and_a_merged_model_is_not(targets, tmp_path, policy, disk):
    model = nn.ModuleDict({"q_proj": policy})
    config = LoraConfig(r=2, target_modules=targets)  # 2 x (500 + 500) numbers of 4 bytes: 8,000
    assert adapter_bytes(model, config) == 8_000
    disk(0.1)
    check_room(settings(tmp_path), model, PAIRS, config)
    with pytest.raises(UserError, match=r"the adapter 0\.0 MB, 1 full model of 1\.0 MB"):
        check_room(settings(tmp_path), model, PAIRS, config, whole_models=1)


def test_a_run_that_is_replaced_makes_room(tmp_path, policy, disk):
    disk(9.9)
    with pytest.raises(UserError):
        check_room(settings(tmp_path), policy, PAIRS)
    aside(tmp_path).mkdir(parents=True)
    (aside(tmp_path) / "model.safetensors").write_bytes(bytes(3 * MB))
    check_room(settings(tmp_path), policy, PAIRS)


def test_a_linear_layer_of_gpt_2_counts_as_one():
    config = LoraConfig(r=2, target_modules="all-linear")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8))
    sides = (4 + 12) + (4 + 4) + (4 + 16) + (16 + 4)  # attention's two, the feed-forward's two
    assert adapter_bytes(model, config) == 4 * 2 * sides


@pytest.mark.parametrize(
    ("more", "count"),
    [
        (dict(), 3),  # after steps 4, 8 and 12
        (dict(save_steps=5), 3),  # 5, 10 and the last
        (dict(save_steps=0.5), 2),
        (dict(save_steps=500), 1),
        (dict(save_total_limit=1), 3),  # 1 counts as 2, and a third is whole before the first goes
        (dict(save_steps=1, save_total_limit=2), 3),
        (dict(save_strategy="no"), 0),
        (dict(save_strategy="epoch", num_train_epochs=2), 2),
        (dict(max_steps=40), 10),
        (dict(world_size=2), 2),
    ],
)
def test_how_many_checkpoints_there_will_be_at_once(more, count, tmp_path):
    assert count_checkpoints(settings(tmp_path, **more), PAIRS) == (count, True)


def test_an_optimizer_without_states_writes_none(tmp_path, policy, disk):
    disk(4.5)
    check_room(settings(tmp_path, optim="sgd"), policy, PAIRS)
    with pytest.raises(UserError):
        check_room(settings(tmp_path), policy, PAIRS)
