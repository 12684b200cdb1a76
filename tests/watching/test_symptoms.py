"""What users of DPO report most, and the test that holds the guard against each of it: none may lose its guard."""

import re

import pytest
from conftest import PROJECT

# symptom, where it was reported: tests of its guard, "file: test", with [the case] where a test has many
SYMPTOMS = {
    "loss stuck at 0.693, rewards 0 (trl #1311 #1962 #1107 #2423)": [
        "watcher: test_a_run_with_the_fault_is_told_so[rate zero]",
        "watcher: test_a_run_with_the_fault_is_told_so[rate too low]",
        "watcher: test_a_run_with_the_fault_is_told_so[adapter frozen in one layer]",
        "watcher: test_a_run_with_the_fault_is_told_so[answers that are the same]",
        "watcher: test_a_run_with_the_fault_is_told_so[weights in bfloat16]",
    ],
    "chosen reward falls (official repository #8 #36, trl #800, LLaMA-Factory #6153 #7643)": [
        "watcher: test_a_run_with_the_fault_is_told_so[rate too high]",
        "watcher: test_a_run_with_the_fault_is_told_so[rate far too high]",
        "watcher: test_a_run_with_the_fault_is_told_so[beta tiny]",
    ],
    "gibberish after training (trl #2382, LLaMA-Factory #1347 #7734)": [
        "watcher: test_sampled_replies_are_held_against_those_before_training",
        "dpo_evaluation: test_repetition_and_variety_by_hand",
    ],
    "NaN, or 0.0 within a few steps (trl #1371 #2907 #1236, LLaMA-Factory #2819)": [
        "basic_dpo_training: test_a_loss_that_is_no_number_ends_with_1_and_a_remedy",
        "faults: test_weights_that_are_no_numbers_never_become_a_complete_checkpoint",
        "watcher: test_fp16_steps_skipped_for_overflow",
        "watcher: test_a_run_with_the_fault_is_told_so[rate without end]",
        "watcher: test_a_run_with_the_fault_is_told_so[a marker in the chosen answers]",
    ],
    "never stops generating (trl #734 #1025 #1623 #2059)": [
        "doctor: test_template_problems_are_found[no_eos]",
        "formatting: test_the_plain_template_ends_a_reply_with_the_eos_and_keeps_the_prompt_a_prefix",
        "watcher: test_sampled_replies_are_held_against_those_before_training",
    ],
    "doubled BOS or EOS (trl #4481 #1591 #1885)": [
        "doctor: test_template_problems_are_found[doubled_bos]",
        "doctor: test_template_problems_are_found[doubled_eos]",
    ],
    "prompt is no prefix of prompt and completion (trl #5213 #6105 #6433)": [
        "doctor: test_template_problems_are_found[prompt_not_prefix]",
    ],
    "prompt split inside a word (trl #1858)": [
        "recognise: test_texts_that_begin_alike_are_not_split_there",
    ],
    "max_prompt_length is a TypeError (trl #2853 #4969 #5018)": [
        "formatting: test_the_oldest_exchanges_go_first_and_the_system_turn_stays",
        "formatting: test_a_prompt_that_cannot_be_shortened_is_refused",
    ],
    "completion cut (trl #6321 #3398 #2538)": [
        "doctor: test_what_max_length_does_is_found",
    ],
    "out of memory (trl #3168 #2452 #1667)": [
        "faults: test_out_of_memory_names_the_need_and_what_is_left_to_do",
        "estimate: test_the_parts_that_can_be_counted_are_estimated_exactly",
        "token_budget: test_activations_shrink_with_the_budget",
    ],
    "wrong loss with a DPO adapter on an SFT adapter (LLaMA-Factory #8974 #3198, torchtune #2272, trl #1193)": [
        "lora_dpo_training: test_a_reference_that_has_lost_the_sft_adapter_is_refused",
        "lora_dpo_training: test_an_adapter_that_is_trained_on_has_its_frozen_copy_as_reference",
        "lora_dpo_training: test_an_adapter_that_is_merged_first_is_part_of_the_reference",
        "watcher: test_a_run_with_the_fault_is_told_so[wrong reference]",
    ],
    "merged model is bad (alignment-handbook #99 #188, peft #2368)": [
        "lora_dpo_training: test_the_merged_model_is_the_base_with_its_adapter",
        "adapters: test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing",
    ],
    "loss jumps on resume (transformers #33336)": [
        "faults: test_a_checkpoint_as_the_model_is_refused_and_a_finished_run_is_not",
        "faults: test_going_on_with_another_model_is_refused",
    ],
    "IPO does not work (trl #1265 #1677, official repository #40 #48)": [
        "custom_loss_dpo: test_every_formula_says_where_it_is_from_and_whether_it_sums",
        "watcher: test_a_run_with_the_fault_is_told_so[ipo with a beta for sums]",
    ],
    "beta explained backwards (smol-course #307, LLMs-from-scratch #818)": [
        "exact_optimum: test_higher_beta_keeps_the_policy_closer_to_the_reference",
    ],
    "which checkpoint is best (alignment-handbook #45 #124): the loss does not say, replies do": [
        "dpo_evaluation: test_several_models_are_put_against_each_other",
    ],
    "length bias (trl #2003 #789)": [
        "doctor: test_the_length_judge_counts_ties_half",
        "intervals: test_a_planted_liking_for_length_is_taken_out",
    ],
}


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_the_guard_against_it_is_tested(symptom):
    for guard in SYMPTOMS[symptom]:
        file, name, case = re.fullmatch(r"(\w+): (\w+)(?:\[(.*)\])?", guard).groups()
        [found] = (PROJECT / "tests").rglob(f"test_{file}.py")
        code = found.read_text(encoding="utf-8")
        assert f"def {name}(" in code, guard
        decorators = code.partition(f"def {name}(")[0].rpartition("\n\n\n")[2]
        assert not re.search(r"mark\.(skip|xfail)", decorators), guard
        assert case is None or f'"{case}"' in code, guard
