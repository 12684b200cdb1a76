"""Rows that nobody would write, for the property-based tests."""

from hypothesis import strategies as st

COLUMNS = (
    "prompt chosen rejected instruction input question conversations messages completions scores score label role from "
    "content value text response completion output_1 output_2 preference system tools preferred_output "
    "non_preferred_output category score_chosen chat_template_kwargs rank"
).split()

texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["42", "null", "[1]", '{"a": 1}', "\x00", " "]
)
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=4),
    max_leaves=8,
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", "Bot"])
turns = st.lists(st.fixed_dictionaries({"role": roles, "content": texts}), max_size=4)
likely_values = texts | turns | st.lists(texts, max_size=3) | st.integers(0, 3) | odd_values
likely_rows = st.dictionaries(st.sampled_from(COLUMNS), likely_values, max_size=6)
