"""The skill suite: right replies earn everything, wrong ones nothing; what is shown is what the name says."""

import pandas as pd
import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.evaluation import skills
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.study import figures


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return skills.skill_suite(tmp_path_factory.mktemp("lives"), 8, 5)


def named(item, script, lines):
    """The scores of what a model that says `lines` makes of the item, and what it was told."""
    model = script(lines)
    (result,) = run_trajectories([item.trajectory], model)
    return item.score(item.gold, result), [ask.text for ask in model.asks]


def test_right_replies_earn_everything_and_each_skill_is_asked(items, script):
    counted = dict.fromkeys(skills.SKILLS, 0)
    for item in items:
        judged = item.trajectory.gi_code.co_name == "respond"
        lines = (
            [write_retrieve("so", "it"), write_answer("so", item.gold)] if judged else [item.gold]
        )
        scores, told = named(item, script, lines)
        for skill, values in scores.items():
            counted[skill] += 1
            assert set(values) <= {0.0 if "error" in skill else 1.0}, (skill, told, item.gold)
        if judged:
            (skill,) = scores
            want = {
                "option from value": 1,
                "newest of several": 8,
                **{f"{s} in a scene": 0 for s in skills.IN_SCENES},
            }
            facts = told[1].split("semantic\n")[1].split("episodic")[0].splitlines()
            assert len(facts) == want.get(
                skill, int("0" + skill.split("among ")[-1]) if "among" in skill else None
            )
            assert told[1].count("<img>") == ("scene" in skill)
            assert "scene" in skill or any(item.gold in fact.split() for fact in facts)
    assert {skill for skill, n in counted.items() if n < 4} <= {
        "thing in a scene",
        "word in a scene",
        "thing seen again",
    }


def test_without_retrieval_the_turns_stand_in_the_first_prompt_and_no_answer_is_right_by_chance(
    tmp_path, script
):
    for item in skills.skill_suite(tmp_path, 4, 6, retrieving=False):
        scores, told = named(item, script, ["<think>hm</think><answer>nothing</answer>"])
        right = {skill for skill, values in scores.items() if "error" not in skill and any(values)}
        # what cannot be read counts as a neutral reading, and some turns are neutral
        assert right <= {"answer or retrieve, F1", "Big Five of a turn"}
        if "among 8" in str(scores):
            assert (
                told[0].split("recent\n")[1].count(" assistant ") == 8 and "answer now" in told[0]
            )


def test_of_a_picture_nothing_is_asked_twice(tmp_path):
    asked = [
        (i.user, i.asked.split(" options ")[0])
        for i in skills.skill_suite(tmp_path, 16, 7)
        if "<img>" in i.asked
    ]
    asked = [(user, text) for user, text in asked if "options" not in text and "ask" not in text]
    assert len(asked) == len(set(asked)) > 16


def test_lives_are_those_of_the_seed(tmp_path):
    one, same, other = (
        skills.skill_suite(tmp_path / str(i), 4, seed) for i, seed in enumerate((1, 1, 2))
    )
    assert [(item.asked, item.gold) for item in one] == [(item.asked, item.gold) for item in same]
    assert {item.user for item in one}.isdisjoint(item.user for item in other)


def rows(skill, values, user="a"):
    return [
        dict(skill=skill, user=user, item=f"{user}{i}", value=value)
        for i, value in enumerate(values)
    ]


def test_the_table_gives_f1_errors_and_an_honest_interval_where_all_is_right():
    f1 = [
        v
        for pair in ((1, 1), (1, 1), (1, 0), (0, 1))
        for v in skills._f1(*({1} if x else set() for x in pair))
    ]
    frame = pd.DataFrame(rows("answer or retrieve, F1", f1) + rows("keywords", [1.0] * 20, "a") +
                         rows("keywords", [1.0] * 20, "b") + rows("Big Five, error", [0.5, 1.5]))  # fmt: skip
    found = skills.skill_table(frame).set_index("skill")
    assert found.loc["answer or retrieve, F1", "score"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found.loc["keywords", "n"] == 40 and 0.9 < found.loc["keywords", "low"] < 0.95
    assert found.loc["Big Five, error", ["score", "target"]].tolist() == [1.0, 0.5]
    assert list(found.index) == ["answer or retrieve, F1", "keywords", "Big Five, error"]


def test_the_command_measures_a_folder_and_draws_it(checkpoint, tmp_path, capsys):
    out = tmp_path / "skills.json"
    arguments = [
        "skills",
        "--model",
        str(checkpoint),
        "--questions",
        "1",
        "--json",
        str(out),
        "--plot",
        str(tmp_path),
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    found = pd.read_json(out)
    assert {"look up among 8", "thing seen again", "core update"} <= set(found["skill"])
    assert found.loc[found["skill"] == "thing seen again", "score"].item() >= 0.9
    assert (
        tmp_path / "skills.png"
    ).stat().st_size > 10_000 and "look up among 8" in capsys.readouterr().out
    assert (
        main(["skills", "--model", "nowhere/02_sft"]) == 1
        and "reproduce" in capsys.readouterr().err
    )


def test_the_radar_has_a_line_for_each_model():
    frame = skills.skill_table(
        pd.DataFrame(rows("keywords", [1.0]) + rows("topics", [0.0]) + rows("core update", [1.0]))
    )
    figure = figures.skills_radar(
        pd.concat([frame.assign(model=name) for name in ("backbone", "sft")])
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["backbone", "sft", "aim"]
