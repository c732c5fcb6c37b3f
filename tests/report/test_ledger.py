"""What a fine-tuned model learned and forgot, as sections, as a verdict, and side by side with other runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivium.errors import UserError
from trivium.report.comparing import compare, comparison_table, write_comparison
from trivium.report.page import write_report
from trivium.report.run_data import read_run
from trivium.report.verdict import sentence

RECIPE = "stage: finetune\nbase: int8\npeft:\n  method: lora\ntraining:\n  steps: 20\n"


def run_with(folder: Path, name: str, lost: float = 0.25, **changes: Any) -> Path:
    """A finished run of fine-tuning."""
    run = folder / name
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    points = [
        {"step": step, "general": 1.5 + lost * step / 20, "held_out_loss": 2.0 - step / 20} for step in (0, 10, 20)
    ]
    summary = {
        "status": "finished",
        "stage": "finetune",
        "task": "instruct",
        "steps": 20,
        "final_loss": 1.1,
        "num_parameters": 1_000_000,
        "num_trainable_parameters": 10_000,
        "before": {"held_out_loss": 2.0, "held_out_rougeL": 0.1},
        "held_out": {"held_out_loss": 1.0, "held_out_rougeL": 0.4},
        "ledger": {
            "measure": "general_bits_per_byte",
            "points": points,
            "before": 1.5,
            "after": 1.5 + lost,
            "lost": lost,
            "suggested_replay_share": 0.25,
        },
        "samples": [{"prompt": "q", "text": "good <b>", "before": "bad", "truth": "best"}],
        **changes,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": p["step"], "held_out_loss": p["held_out_loss"], "general_bits_per_byte": p["general"]} for p in points
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_page_says_what_was_gained_and_lost(tmp_path: Path) -> None:
    page = write_report(run_with(tmp_path, "one")).read_text()
    for words in ("What it learned", "What it forgot", "Gained against lost", "ROUGE-L", "data.replay.share=0.25"):
        assert words in page, words
    assert "10 k of 1 M parameters" in page or "parameters were trained" in page
    assert "Before it was trained" in page and "good &lt;b&gt;" in page, "hostile text stays text"
    assert "Held-out text</h2>" not in page, "bits per byte of the task mean nothing here"


def test_the_verdict(tmp_path: Path) -> None:
    said = sentence(read_run(run_with(tmp_path, "one")))
    assert "the loss went from 2.00 to 1.00" in said and "It lost 0.25 bits per byte" in said
    assert "It won 0.5" in sentence(read_run(run_with(tmp_path, "two", lost=-0.5)))


def test_a_ledger_that_could_not_be_made_says_why(tmp_path: Path) -> None:
    run = run_with(tmp_path, "one", ledger={"not_measured": "no head <x>"})
    assert "Not measured: no head &lt;x&gt;." in write_report(run).read_text()


@pytest.mark.parametrize(
    "ledger", [{"points": 3}, {"points": [1, None, {"general": "x"}], "before": 1, "after": 2}, {"before": "1"}, [], 7]
)
def test_a_damaged_ledger_never_spoils_the_page(tmp_path: Path, ledger: Any) -> None:
    assert "</html>" in write_report(run_with(tmp_path, "one", ledger=ledger)).read_text()


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [run_with(tmp_path, "full", lost=0.5), run_with(tmp_path, "lora", lost=0.1)]
    found = compare(runs)
    assert [run["general"]["lost"] for run in found["runs"]] == [0.5, 0.1]
    assert found["runs"][0]["method"] == "lora" and found["runs"][0]["after"]["rougeL"] == 0.4
    table = comparison_table(found)
    assert table.splitlines()[0].split() == ["run", "full", "lora"]
    assert "+0.5 bits/byte" in table and "+0.1 bits/byte" in table
    write_comparison(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1 and "Gained against lost" in page and ">full<" in page
    with pytest.raises(UserError, match="not a run directory"):
        compare([tmp_path])
    with pytest.raises(UserError, match="at least one"):
        compare([])


def test_a_pretraining_run_can_stand_beside(tmp_path: Path) -> None:
    other = tmp_path / "pretrained"
    other.mkdir()
    (other / "summary.json").write_text(json.dumps({"status": "finished", "held_out": {"bits_per_byte": 1.2}}))
    found = compare([run_with(tmp_path, "one"), other])
    assert found["runs"][1]["bits_per_byte"] == 1.2 and found["runs"][1]["general"]["lost"] is None
    assert "bits per byte" in comparison_table(found)
