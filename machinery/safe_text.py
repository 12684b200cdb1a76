"""Show text that a model or a data file wrote, so that nothing in it is obeyed by a terminal or a Markdown reader.

print(visible(reply))                                   # one line, control characters as \\n, \\x1b
page = completions_page(prompts, replies_before, replies_after)
"""


def visible(text: str) -> str:
    """A text on one line, with what does not print written as Python writes it."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def completions_page(prompts: list, before: list, after: list) -> str:
    """The same prompts with the reply before and after training, as Markdown.

    prompts: texts or lists of turns; before, after: replies with a `text`. Every text is indented by four spaces, which
    makes it a block of code: no markup in it counts.
    """
    page = ["# Replies to the same prompts, before and after training\n"]
    for number, (prompt, old, new) in enumerate(zip(prompts, before, after, strict=True), start=1):
        turns = [{"role": "prompt", "content": prompt}] if isinstance(prompt, str) else prompt
        labelled = [(turn["role"], turn.get("content")) for turn in turns]
        page.append(f"## {number}\n")
        for label, text in [*labelled, ("before", old.text), ("after", new.text)]:
            lines = (visible(line) for line in str(text).split("\n"))
            page.append(f"{label}\n\n" + "\n".join(f"    {line}" for line in lines) + "\n")
    return "\n".join(page)
