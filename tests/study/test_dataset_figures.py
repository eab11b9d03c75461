"""Tables and figures about a data set, beside the paper's numbers."""

import base64
from collections import Counter

import pandas as pd
import pytest

from personavlm_lib.benchmark.lives import simulate_life
from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.simulation.lexicon import MARKERS
from personavlm_lib.study import dataset_figures, dataset_tables, figures

SFT = ["respond"] * 4 + ["personality"] + ["semantic", "core", "episodic"]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    lives = [simulate_life(seed, images, 28, 0.8, 26, 2) for seed in range(4)]
    return {"train": lives[:1], "short": lives[1:3], "long": lives[3:]}


@pytest.fixture(scope="module")
def written(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, dataset_tables.write_world(
        folder, groups, SFT, ["choice", "open", "binary", "choice"]
    )


def test_files_restore_the_tables(written):
    folder, world = written
    read = dataset_tables.read_world(folder)
    for name, table in world.items():
        pd.testing.assert_frame_equal(read[name], table.reset_index(drop=True), check_dtype=False)
    assert (
        dataset_tables.read_world(folder / "nowhere")
        == {}
        == dataset_figures.draw({})
        == dataset_tables.tables({})
    )


def test_table_6_counts_the_lives(groups, written):
    table = dataset_tables.tables(written[1])["Table 6"].set_index("statistic")
    test = groups["short"] + groups["long"]
    turns = [turn for life in test for turn in life.turns]
    choice = [(life, q) for life in test for q in life.questions if q.kind == "choice"]
    seen = [q for life, q in choice if any(life.turns[i].images for i in q.evidence)]
    assert table.ours["turns per dialogue"] == round(len(turns) / 3, 2)
    assert table.ours["turns with a picture (%)"] == round(
        100 * sum(bool(t.images) for t in turns) / len(turns), 2
    )
    assert (
        table.ours["questions that need a picture (%)"]
        == round(100 * len(seen) / len(choice), 2)
        > 0
    )
    assert table.ours["interactions in training"] == len(groups["train"][0].turns)
    assert (
        table.paper["interactions in training"] == ">30000"
        and table.paper["turns per dialogue"] == "142.9"
    )
    assert table.difference["test cases"] == len(choice) - 2034


def test_tables_5_and_7_compare_ours_with_the_paper(groups, written):
    tables = dataset_tables.tables(written[1])
    asked = Counter(q.task for life in groups["short"] + groups["long"] for q in life.questions)
    ours = tables["Table 5"].set_index("task").ours
    assert len(ours) == 14 and set(ASPECTS) <= set(ours.index) and dict(ours[ours > 0]) == asked
    assert tables["Table 5"].paper_128k.sum() == 1265
    theirs, mine = (
        tables["Table 7"].set_index("benchmark").loc[name, "modality":]
        for name in ("Persona-MME", "ours")
    )
    assert list(theirs) == list(mine)


def test_mixture_counts_samples_by_part(written):
    mixture = written[1]["mixture"].set_index(["stage", "part"]).samples
    assert mixture["SFT"].to_dict() == {
        "question answering": 4,
        "personality": 1,
        "four memory types": 3,
    }
    assert mixture["RL"].to_dict() == {"multiple choice": 2, "open-ended": 1, "yes or no": 1}


def test_cases_cover_every_task_with_pictures(groups, written):
    cases = written[1]["cases"].set_index("task")
    asked = {q.task for life in groups["short"] + groups["long"] for q in life.questions}
    assert set(cases.index) == asked and all(
        c.answer in c.options.split("\n") for c in cases.itertuples()
    )
    assert base64.b64decode(cases.picture["Visual Detail Recall"]).startswith(b"\x89PNG")
    assert "picture" not in cases.evidence.iloc[0] and not cases.picture["Personality Alignment"]
    html = dataset_tables.cases_html(written[1]["cases"])
    assert html.count("<b>") == len(cases) and html.count("<img") == (cases.picture != "").sum()


def test_keywords_exclude_names_and_moods(groups, written):
    words = set(written[1]["keywords"].word)
    people = {event.who for life in groups["short"] for event in life.plan.events}
    assert len(words) > 30 and not words & (
        people | {w for marks in MARKERS.values() for w in marks.values()}
    )


def test_data_set_figures_are_byte_reproducible(written, tmp_path):
    for attempt in ("one", "two"):
        for name, figure in dataset_figures.draw(dataset_tables.read_world(written[0])).items():
            figures.save(figure, tmp_path / attempt, name)
    drawn = sorted((tmp_path / "one").iterdir())
    assert len(drawn) == 12
    assert [
        path.name
        for path in drawn
        if path.read_bytes() != (tmp_path / "two" / path.name).read_bytes()
    ] == []
