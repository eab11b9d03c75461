"""Progress lines: their wording, and when they are printed."""

import pytest

from personavlm_lib import progress


@pytest.mark.parametrize(
    ("done", "rate", "line"),
    [
        (120, 1.4, "02_sft  step 120/450  1.4 steps/s  4 min left"),
        (440, 0.25, "02_sft  step 440/450  4.0 s/step  40 s left"),
        (450, 2.0, "02_sft  step 450/450  2.0 steps/s"),
        (0, 0.0, "02_sft  step 0/450  starting"),
    ],
)
def test_progress_line_states_count_rate_and_time_left(done, rate, line):
    assert progress.progress_line("02_sft", "step", done, 450, rate) == line


def test_with_progress_yields_every_item_and_prints_at_the_end(capsys):
    assert list(progress.with_progress("abc", "01_synthesize", "life")) == ["a", "b", "c"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("01_synthesize  life 3/3")
