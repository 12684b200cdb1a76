"""How large a row may be: a hundred kilobytes can unpack to a line of a hundred gigabytes.

    for line in Lines(path, file):            # ValueError: "pairs.jsonl.gz, line 3: a row of more than 64 MiB is no pair"
    content = whole(path, file)               # ValueError where the machine could not hold its rows
    if widest_row(parquet_file) < 1000: ...   # the most bytes of a row, in the mean of its group

Files are read row by row, so what they hold in all does not count. It does where a format has to be read as a whole.
"""

from pathlib import Path

import psutil
import pyarrow.parquet

MOST_OF_A_ROW = 2**26  # bytes or characters: some hundred times the longest context there is
MOST_BLANK_LINES = 1_000_000  # one behind the other


class Lines:
    """The lines of a file, one at a time. Raises ValueError where a row is so long that it is none.

    A line is read to MOST_OF_A_ROW and not further. What stands over several lines is one row until `taken` is set back.
    """

    def __init__(self, path: Path, file):
        self.path, self.file, self.number, self.taken = path, file, 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        line = self.file.readline(MOST_OF_A_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken += len(line)
        if self.taken > MOST_OF_A_ROW:
            raise ValueError(
                f"{self.path}, line {self.number}: a row of more than {MOST_OF_A_ROW / 2**20:.0f} MiB is no pair"
            )
        return line


def whole(path: Path, file) -> bytes:
    """All bytes of a file that has to be read as a whole. Raises ValueError where the machine could not hold its rows."""
    most = psutil.virtual_memory().available // 10  # rows take several times their bytes
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(
            f"{path} is one document of more than {most / 2**30:.1f} GiB, too large to be read as a whole here: write one row "
            "a line (.jsonl), or Parquet, which are read row by row"
        )
    return content


def half_of_memory() -> int:
    """Half of the bytes that are free."""
    return psutil.virtual_memory().available // 2


def widest_row(table: pyarrow.parquet.ParquetFile) -> float:
    """The most bytes that a row has in the mean of its group, as the file says."""
    groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
    return max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
