"""The doctor finds every planted fault, counts it, names its rows, and drops what teaches nothing."""

import json
from collections import Counter

import pytest
from conftest import PROJECT
from transformers import AutoTokenizer

from demo.build import SPOILS
from dpo_utils import load_preferences
from machinery.common.errors import UserError
from machinery.common.intervals import wilson
from machinery.data.doctor import Checkup
from machinery.data.tokens import token_facts

PAIR = {"prompt": "Why is it so?", "chosen": "Because of the rain.", "rejected": "I do not know that."}


def examine(*pairs, **options):
    checkup = Checkup(**options)
    for number, pair in enumerate(pairs):
        checkup.see({"rows": [number], "where": f"line {number + 1}"} | pair)
    return checkup


@pytest.mark.parametrize(
    ("change", "finding", "drops"),
    [
        ({"chosen": " \n\t"}, "empty_answer", True),
        ({"rejected": "Because of the rain."}, "identical", True),
        ({"chosen": "Why is it so?"}, "answer_is_prompt", True),
        ({"chosen": "Because \ud83d"}, "invalid_unicode", True),
        ({"chosen": "nan"}, "null_word", True),
        ({"prompt": "<|im_start|>user\nWhy?<|im_end|>\n"}, "chat_marks", False),
        ({"prompt": "[INST] Why? [/INST]"}, "chat_marks", False),
        ({"prompt": "### Instruction:\nWhy?\n\n### Response:\n"}, "chat_marks", False),
        ({"chosen": "Because of the rain.\n\nHuman: And now?"}, "chat_marks", False),
        ({"prompt": ""}, "empty_prompt", False),
        ({"chosen": "Because\x00"}, "control_characters", False),
        ({"chosen": "Because\ufffd"}, "replacement_characters", False),
        ({"rejected": "Because, of the rain!"}, "nearly_alike", False),
        ({"chosen": "Because of the rain it is", "rejected": "Because of the rain I say"}, "shared_beginning", False),
    ],
)
def test_what_is_wrong_with_one_pair_is_found(change, finding, drops):
    report = examine(PAIR | change).report()
    assert report["findings"][finding]["count"] == 1
    assert report["findings"][finding]["rows"] == [0]
    assert report["pairs"] == (0 if drops else 1)


def test_a_sound_pair_has_no_finding():
    report = examine(PAIR).report()
    assert report["findings"] == {}
    assert report["verdict"][0] == "Sound."


def test_marks_are_as_they_should_be_where_no_template_is_written():
    assert examine(PAIR | {"prompt": "[INST] Why? [/INST]"}, is_plain=True).report()["findings"] == {}


def test_but_not_inside_turns_which_a_template_always_writes():
    said = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = PAIR | {"prompt": "[INST] Why? [/INST]"}
    turns = {part: [{"role": role, "content": texts[part]}] for part, role in said.items()}
    assert examine(turns, is_plain=True).report()["findings"]["chat_marks"]["count"] == 1


@pytest.mark.parametrize(("against", "is_found"), [(2, False), (4, True), (10, True)])
def test_scores_against_the_labels_are_found_where_they_are_more_than_two_judges_differ(against, is_found):
    scores = [(1.0, 2.0)] * against + [(2.0, 1.0)] * (10 - against)
    pairs = [{"prompt": f"Why {n}?", "chosen": f"Rain in {n}.", "rejected": f"I say {n} no.", "score_chosen": c,
              "score_rejected": r} for n, (c, r) in enumerate(scores)]  # fmt: skip
    report = examine(*pairs).report()
    assert report["findings"].get("scores_contradict", {"rows": []})["rows"] == list(range(against * is_found))
    assert report["verdict"][0].startswith("Usable" if is_found else "Sound")


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_few_distinct_texts_are_not_sound(part):
    pairs = [{"prompt": f"Why {n} so?", "chosen": f"Rain in {n}.", "rejected": f"I say {n} no."} | {part: "It is one text."}
             for n in range(40)]  # fmt: skip
    report = examine(*pairs).report()
    [name] = report["findings"]
    assert name == {"prompt": "few_prompts"}.get(part, f"few_{part}")
    assert report["pairs"] == 40
    assert report["verdict"][0] == "Usable, with something to look at."


def test_names_in_the_place_of_answers_are_not_sound():
    pairs = [{"prompt": f"Why {n}?", "chosen": "large", "rejected": "small"} for n in range(4)]
    assert {"few_chosen", "few_rejected"} <= examine(*pairs).report()["findings"].keys()


def test_columns_that_look_as_if_they_belonged_are_not_passed_over():
    report = examine(PAIR).report({"columns_that_may_belong": ["images", "context"]})
    assert report["verdict"][:2] == [
        "Usable, with something to look at.",
        "Not read, though the names look as if they belonged to the pairs: images, context.",
    ]


def test_line_breaks_and_tabs_are_no_control_characters():
    assert examine(PAIR | {"chosen": "Because:\r\n\t- of the rain\n"}).report()["findings"] == {}


def test_the_second_of_two_copies_goes_and_a_copy_in_other_letters_stays():
    shouted = PAIR | {"chosen": "BECAUSE, of the rain..."}
    checkup = examine(PAIR, PAIR, shouted)
    assert checkup.sound() == [0, 2]
    assert {name: f["rows"] for name, f in checkup.report()["findings"].items()} == {
        "duplicate": [1],
        "near_duplicate": [2],
    }


def test_opposite_labels_drop_both_rows():
    swapped = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    checkup = examine(PAIR, PAIR | {"prompt": "Who?"}, swapped)
    assert checkup.sound() == [1]
    assert checkup.report()["findings"]["opposite_label"]["rows"] == [0, 2]


def test_a_prompt_of_the_test_split_is_not_trained_on():
    """Nor where it is a text here and a turn there, with space around it in either."""
    forms = [PAIR | {"prompt": " why IS it so?\n"}]
    forms += [
        {name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in form.items()}
        for form in (PAIR, *forms)
    ]
    for form in forms:
        held_out = examine(form).prompts
        assert examine(PAIR, PAIR | {"prompt": "Who?"}, *forms, elsewhere=held_out).sound() == [1]


def test_what_differs_in_a_sign_is_not_the_same():
    """Nothing may be dropped for being equal without its punctuation: 2+3 is not 2-3, and C is not C++."""
    plus = {"prompt": "What is 2+3?", "chosen": "It is 5", "rejected": "It is -1"}
    minus = {"prompt": "What is 2-3?", "chosen": "It is -1", "rejected": "It is 5"}
    assert examine(plus, minus).sound() == [0, 1]
    assert examine(minus, elsewhere=examine(plus).prompts).sound() == [0]
    vowels = [PAIR | {"prompt": text} for text in ("\u0926\u093f\u0928", "\u0926\u0940\u0928")]
    assert examine(*vowels).report()["findings"] == {}


def test_pairs_that_differ_in_a_tool_call_only_are_no_duplicates():
    def call(city):
        return [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"c": city}}}]}
        ]

    prompt = [{"role": "user", "content": "And the weather?"}]
    pairs = [
        {"prompt": prompt, "chosen": call(a), "rejected": call(b)} for a, b in (("Paris", "Rome"), ("Oslo", "Bern"))
    ]
    assert examine(*pairs).report()["findings"] == {}
    opposite = {"prompt": prompt, "chosen": call("Rome"), "rejected": call("Paris")}
    assert examine(*pairs, opposite).sound() == [1]


def test_answers_that_are_tool_calls_are_counted_by_what_they_call():
    def call(city):
        return [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"c": city}}}]}
        ]

    pairs = [
        {
            "prompt": [{"role": "user", "content": f"Weather {n}?"}],
            "chosen": call(f"Paris {n}"),
            "rejected": call(f"Rome {n}"),
        }
        for n in range(40)
    ]
    assert examine(*pairs).report()["findings"] == {}
    refusal = [{"role": "assistant", "content": "I cannot."}]
    assert examine(*(pair | {"rejected": refusal} for pair in pairs)).report()["longer_is_chosen"]["accuracy"] == 1.0


def test_a_row_of_many_pairs_counts_once():
    checkup = Checkup()
    for row in range(100):
        for number in range(28):
            pair = {
                "prompt": f"Why {row} so?",
                "chosen": f"Rain {row} {number}.",
                "rejected": f"I say {row} {number} no.",
            }
            spoilt = {"chosen": f"Rain\ufffd {number}."} if row == 7 else {}
            checkup.see(pair | spoilt | {"rows": [row], "where": f"line {row}"})
    findings = checkup.report()["findings"]
    assert list(findings) == ["replacement_characters"]
    assert (findings["replacement_characters"]["count"], findings["replacement_characters"]["share"]) == (28, 0.01)


def test_all_copies_of_a_pair_that_is_contradicted_are_dropped():
    against = {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    for pairs in ([PAIR, PAIR, PAIR, PAIR | against], [PAIR | against, PAIR, PAIR, PAIR]):
        assert examine(*pairs, keep=("duplicate",)).fate == ["opposite_label"] * 4


def test_an_answer_may_repeat_what_a_tool_said():
    prompt = [
        {"role": "user", "content": "Capital?"},
        {"role": "assistant", "content": "I look."},
        {"role": "tool", "content": "Paris"},
    ]
    pair = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "Paris"}],
        "rejected": [{"role": "assistant", "content": "Rome"}],
    }
    assert examine(pair).report()["findings"] == {}


def test_answers_that_begin_with_the_prompt_are_found():
    prompt = "What is the sum of two and two?"
    pair = {"prompt": prompt, "chosen": f"{prompt} It is 4.", "rejected": f"{prompt} Five."}
    assert "prompt_repeated" in examine(pair).report()["findings"]


def test_findings_can_be_kept():
    checkup = examine(PAIR, PAIR, keep=("duplicate",))
    assert checkup.sound() == [0, 1]
    assert checkup.report()["findings"]["duplicate"]["drops"] is False


def test_a_call_of_a_tool_is_no_empty_answer():
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]
    answer = [{"role": "assistant", "content": "I do not know that."}]
    prompt = [{"role": "user", "content": "Why is it so?"}]
    assert examine({"prompt": prompt, "chosen": call, "rejected": answer}).report()["findings"] == {}


def test_a_row_of_several_pairs_is_used_if_one_of_them_is():
    checkup = Checkup()
    checkup.see({"rows": [0, 1], "where": "", **PAIR})
    checkup.see({"rows": [1, 2], "where": "", **PAIR, "chosen": ""})
    report = checkup.report()
    assert (report["rows_read"], report["rows_used"], report["rows_dropped"]) == (3, 2, 1)
    assert checkup.dropped_rows() == {2: "empty_answer"}


def test_the_length_judge_counts_ties_half():
    pairs = [PAIR | {"prompt": str(n), "chosen": "a" * n, "rejected": "b" * 3} for n in range(1, 6)]
    assert examine(*pairs).report()["longer_is_chosen"]["accuracy"] == 0.5  # 2 shorter, 1 tie, 2 longer


def test_wilsons_interval_by_hand():
    # Half of 100, z = 2: middle (0.5 + 0.02) / 1.04 = 0.5, half width 2 * sqrt(0.0025 + 0.0001) / 1.04 = 0.09806
    low, high = wilson(0.5, 100, z=2.0)
    assert low == pytest.approx(0.5 - 0.0980581, abs=1e-6)
    assert high == pytest.approx(0.5 + 0.0980581, abs=1e-6)


def test_the_spoilt_demo_is_found_out_to_the_row():
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    rows = [json.loads(line) for line in (PROJECT / "demo/spoilt/train.jsonl").read_text().splitlines()]
    pairs, held_out, reports = load_preferences("demo/spoilt", tokenizer, max_length=512)
    report = reports["train"]
    planted = Counter(row["spoilt"] for row in rows if "spoilt" in row)
    assert planted == Counter({name: count for name, (count, _) in SPOILS.items()}) + Counter(opposite_label=6)
    _, _, clean = load_preferences("demo", tokenizer, max_length=512)
    already = {name: finding["count"] for name, finding in clean["train"]["findings"].items()}
    for name, count in planted.items():
        assert report["findings"][name]["count"] == count + already.get(name, 0), name
        spoilt_here = {number for number, row in enumerate(rows) if row.get("spoilt") == name}
        assert {n for n in report["findings"][name]["rows"] if "spoilt" in rows[n]} <= spoilt_here, name
    dropped = sum(count for name, count in planted.items() if report["findings"][name]["drops"])
    assert report["dropped_by_reason"].keys() == {name for name in planted if report["findings"][name]["drops"]}
    assert (report["rows_dropped"], len(pairs), len(held_out)) == (dropped, len(rows) - dropped, 256)
    for pair in pairs:
        [number] = pair["rows"]
        assert (pair["prompt"], pair["chosen"]) == (rows[number]["prompt"], rows[number]["chosen"])


def test_the_clean_demo_is_sound(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    pairs, held_out, reports = load_preferences("demo", tokenizer, max_length=512)
    assert (len(pairs), len(held_out)) == (2048, 256)
    assert {report["rows_dropped"] for report in reports.values()} == {0}


TURNS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "assistant", "content": "Yes"}],
    [{"role": "assistant", "content": "No"}],
)


def with_template(tokenizer, template):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "flag"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no_eos"),
        ("{{ raise_exception('no system turn, please') }}", "template_error"),
        ("{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}!{% endif %}",
         "prompt_not_prefix"),
        ("{{ '</s></s>' }}{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}", "doubled_bos"),
        ("{% for m in messages %}{{ m['content'] + '</s></s>' }}{% endfor %}", "doubled_eos"),
    ],
)  # fmt: skip
def test_template_problems_are_found(template, flag, base_tokenizer):
    tokenizer = with_template(base_tokenizer, template)
    tokenizer.bos_token = "</s>"
    facts = token_facts(*TURNS, tokenizer)
    assert flag in facts["flags"]
    if flag == "template_error":
        assert facts["text"] == "no system turn, please"
    if flag == "prompt_not_prefix":
        assert facts["text"] == "left out of the prompt: '!'"


def test_what_max_length_does_is_found(base_tokenizer):
    lengths = token_facts("the cat sat", " on the mat", " on", base_tokenizer)["lengths"]
    assert token_facts("the cat sat", " on the mat", " on", base_tokenizer, max_length=sum(lengths[:2]))["flags"] == []
    cut = token_facts("the cat sat", " on the mat", " on", base_tokenizer, max_length=sum(lengths[:2]) - 1)
    assert cut["flags"] == ["answer_cut"]
    assert token_facts("the cat sat", " on", " a", base_tokenizer, max_length=lengths[0])["flags"] == [
        "fills_max_length"
    ]


def test_lengths_in_tokens_are_those_that_trl_trains_on(base_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from dpo_utils import load_tokenizer

    tokenizer = load_tokenizer(str(base_model_folder))
    path = tmp_path / "pairs.jsonl"
    rows = [PAIR, {"prompt": "the cat", "chosen": "sat on", "rejected": " ran"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, _, _ = load_preferences(str(path), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base_model_folder)
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = DPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)
    for pair, row in zip(pairs, trainer.train_dataset, strict=True):
        facts = token_facts(pair["prompt"], pair["chosen"], pair["rejected"], tokenizer)
        assert facts["lengths"] == [len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")]


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR | {"rejected": PAIR["chosen"]}) + "\n")
    with pytest.raises(UserError, match=r"no pair can be used. 1 x chosen and rejected are identical"):
        load_preferences(str(path), None)
