"""The public schemas as a table: what each is called here, whose it is, its columns, and what the values of its verdict mean.

    python docs/schema_table.py

The table is machinery/readings/schemas.yaml, where each also has made-up rows that are its test.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery.readings.reading import schemas


def main() -> None:
    """Print the table as Markdown."""
    print("| `--dataset_format` | whose | columns | values |\n|---|---|---|---|")
    for name, schema in schemas().items():
        columns = ", ".join(
            part if part == path.rstrip("?") else f"{part} = {path.rstrip('?')}"
            for part, path in schema["columns"].items()
        )
        meaning = ", ".join(f"{value} = {meant}" for value, meant in schema.get("meaning", {}).items())
        whose = f"[{schema['title']}]({schema['source']})"
        whose += f"; not seen there: {schema['unseen']}" if "unseen" in schema else ""
        print(" | ".join(["", f"`{name}`", whose, cell(columns), cell(meaning), ""]).strip())


def cell(text: str) -> str:
    """A text in a cell of a table, where a bar would end it."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


if __name__ == "__main__":
    main()
