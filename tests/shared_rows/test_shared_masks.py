"""In a shared row every layer sees what it would see in two rows, and the router's loss counts what it would count."""

import sys

import pytest
import torch
from conftest import PROJECT
from transformers import Gemma2Config, Llama4TextConfig, LlamaConfig, Qwen3NextConfig
from transformers.models.mixtral import modeling_mixtral

from machinery.shared_rows.shared_masks import SharedRows, dense_mask, layer_masks, layer_reaches, router_counts
from machinery.training.shared_prompt import plan_shared_rows

sys.path.insert(0, str(PROJECT))
from benchmarks import families

# Prompt a b c d, chosen e f g, rejected x y: places 0 1 2 3, 4 5 6, then d once more at place 7, x at 8 and y at 9.
ROWS = SharedRows(
    position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3, 4, 5]]),
    is_first=torch.tensor([[False] * 3 + [True] * 4 + [False] * 3]),
    is_second=torch.tensor([[False] * 7 + [True] * 3]),
    counts=torch.tensor([[2.0] * 3 + [1.0] * 7]),
)


def seen_by(place, **reach):
    return dense_mask(ROWS, **reach)[0, 0, place].nonzero().flatten().tolist()


def test_a_window_is_counted_on_the_way_back_to_the_prompt_not_over_the_other_answer():
    assert seen_by(9, window=3) == [7, 8, 9]  # y sees d, x and itself
    assert seen_by(8, window=4) == [1, 2, 7, 8]  # x at position 4 sees positions 1 to 4: b, c, the second d, itself
    assert seen_by(6, window=3) == [4, 5, 6]


def test_a_chunk_is_one_of_positions():
    assert seen_by(9, chunk=4) == [8, 9]  # positions 4 to 7
    assert seen_by(7, chunk=4) == [0, 1, 2, 7]  # positions 0 to 3


def test_the_way_back_is_that_of_two_rows_for_every_token_and_window():
    """Cut the row apart again: what a token sees is what it sees in a row of its own."""
    branches = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8, 9]]  # places, by position
    for window in range(1, 8):
        mask = dense_mask(ROWS, window=window)[0, 0]
        for branch in branches:
            for position, place in enumerate(branch):
                expected = branch[max(0, position - window + 1) : position + 1]
                assert mask[place].nonzero().flatten().tolist() == expected


def test_layers_that_differ_get_a_mask_each():
    config = Gemma2Config(num_hidden_layers=2, sliding_window=3)
    masks = layer_masks(config, ROWS)
    assert masks.keys() == {"sliding_attention", "full_attention"}
    assert masks["sliding_attention"].sum() < masks["full_attention"].sum()
    assert torch.equal(layer_masks(LlamaConfig(), ROWS), masks["full_attention"])


def test_reaches_come_from_the_configuration_and_what_is_more_than_a_mask_is_said():
    config = Llama4TextConfig(num_hidden_layers=4, attention_chunk_size=16)
    assert layer_reaches(config) == {"chunked_attention": {"chunk": 16}, "full_attention": {}}
    with pytest.raises(ValueError, match="linear_attention layers carry a state"):
        layer_reaches(Qwen3NextConfig(num_hidden_layers=4))


def test_every_token_counts_in_the_router_loss_as_often_as_in_two_rows():
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 3, 0]])
    seen = (ids != 0).long()
    labels = torch.where(torch.tensor([[False] * 3 + [True] * 2] * 2) & (ids != 0), ids, -100)
    plan = plan_shared_rows(ids, seen, labels)
    by_token = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))  # the same token, the same logits
    loss = modeling_mixtral.load_balancing_loss_func((by_token[ids].flatten(0, 1),), 4, 2, seen)
    with router_counts(plan["rows"].counts):
        shared_logits = by_token[plan["inputs"]["input_ids"]].flatten(0, 1)
        shared = modeling_mixtral.load_balancing_loss_func((shared_logits,), 4, 2, "a mask of another shape")
    assert shared.item() == pytest.approx(loss.item(), rel=1e-6)
    uncounted = modeling_mixtral.load_balancing_loss_func((shared_logits,), 4, 2, None)
    assert uncounted.item() != pytest.approx(loss.item(), rel=1e-3)


# A window in every other layer with soft caps; with sinks and experts; experts with a router's loss; per-layer inputs and
# heads of two widths; one window for all layers.
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mixtral", "gemma4_text", "mistral"])
def test_one_row_trains_as_two_in_trl(family):
    result = families.measure(family)
    ways = [result[way] for way in ("full", "lora", "router loss") if way in result]
    assert len(ways) == (3 if family in ("gpt_oss", "mixtral") else 2)
    for way in ways:
        assert way["rows"] == 1
        assert way["loss"] < 2e-6
        assert way["gradient"] < 1e-5


def test_a_window_counted_in_places_is_found(monkeypatch):
    """The probe's pairs are long enough to see it: with the rule wrong, the model keeps two rows."""
    wrong = lambda config, rows, make: layer_masks(config, SharedRows(  # noqa: E731
        torch.arange(rows.position_ids.shape[1]).expand_as(rows.position_ids), rows.is_first, rows.is_second, rows.counts
    ), make)  # fmt: skip
    monkeypatch.setattr("machinery.training.shared_prompt.layer_masks", wrong)
    assert "would differ" in families.measure("mistral")["full"]["why"]
