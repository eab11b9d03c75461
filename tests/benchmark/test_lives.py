"""Lives on disk."""

from pathlib import Path

from personavlm_lib.benchmark.lives import read_lives, simulate_life, write_lives


def test_lives_survive_a_round_trip_and_a_move_of_their_folder(tmp_path):
    lives = [simulate_life(seed, tmp_path / "a" / "images", 20, 0.7, 8, 1) for seed in (1, 2)]
    write_lives(tmp_path / "a" / "lives.jsonl", lives)
    assert read_lives(tmp_path / "a" / "lives.jsonl") == lives
    (tmp_path / "a").rename(tmp_path / "b")
    moved = read_lives(tmp_path / "b" / "lives.jsonl")
    assert [life.questions for life in moved] == [life.questions for life in lives]
    images = [Path(image) for life in moved for turn in life.turns for image in turn.images]
    assert images
    for image in images:
        assert image.is_file() and tmp_path / "b" in image.parents
