"""Half of a character pair in a row, which JSON can write and UTF-8 cannot."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import TINY, Run

TABLE = ["table", "2", *TINY, "--methods", "quickdrop"]


def test_a_lone_surrogate_in_any_column_breaks_neither_table_nor_report(run: Run) -> None:
    assert run(*TABLE)[0] == 0
    path = Path("results/quick/table2/rows.jsonl")
    whole = path.read_text().splitlines()
    texts = [name for name, value in json.loads(whole[-1]).items() if isinstance(value, str) and name != "spec_hash"]
    assert len(texts) > 10
    for argv in (TABLE, ["report"]):
        lines = [json.loads(line) for line in whole]
        for name in texts:
            for line in lines[:: max(len(lines) // 20, 1)]:
                line[name] = f"{line.get(name, '')}\ud800"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, _, err = run(*argv)
        assert code == 0, err
    assert "\\ud800" in path.read_text()
