"""Write what a script of this folder has measured."""

import csv
import json
from pathlib import Path


def write_results(file: Path, about: dict, rows: list[dict]) -> None:
    """Write the rows as JSON, and as CSV next to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "rows": rows}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    with file.with_suffix(".csv").open("w", newline="", encoding="utf-8") as output:
        table = csv.DictWriter(output, columns)
        table.writeheader()
        table.writerows(rows)
