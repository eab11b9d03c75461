"""The explorer on a memory of two sessions whose content is known at every moment."""

import re
from datetime import datetime, timedelta
from html.parser import HTMLParser

import pytest
from PIL import Image

from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    Episode,
    PersonalityState,
    ProceduralMemory,
    SemanticMemory,
    Turn,
    VisualConcept,
)
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.study.explorer import explorer, snapshot, thumbnail

MARCH, APRIL = datetime(2024, 3, 5, 9), datetime(2024, 4, 2, 20)
HOUR = timedelta(hours=1)


class Tags(HTMLParser):
    """The tags of a page with their attributes, those left open, and those closed out of order."""

    def __init__(self, text: str):
        super().__init__()
        self.all, self.open, self.crossed = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.all.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.crossed.append(tag)


@pytest.fixture
def folder(tmp_path, memory_of_two_sessions):
    return memory_of_two_sessions(tmp_path / "memory" / "nora")


@pytest.fixture
def memory_of_two_sessions(tmp_path):
    def make(folder):
        picture = tmp_path / "photo.png"
        Image.new("RGB", (400, 200), "orange").save(picture)
        with MemoryStore(folder) as store:
            store.add_turn(Turn(MARCH, "I live in Rome. <script>alert(1)</script>", "Noted & kept"))
            store.add_semantic(
                SemanticMemory("She lives in <b>Rome</b>", "city", MARCH, MARCH, MARCH)
            )
            store.add_personality(PersonalityState(BigFive(2, 3, 3, 3, 4.5), None, 0, 1, MARCH))
            store.set_core(
                CoreMemory({"name": "Nora", "city": "Rome"}, {"job": "baker"}, MARCH + HOUR)
            )
            store.set_procedural(ProceduralMemory({"run": "She runs on Mondays"}, MARCH + HOUR))
            store.add_episode(
                Episode("They talked about Rome", "Rome", (0,), MARCH, MARCH, MARCH + HOUR)
            )
            store.add_turn(
                Turn(APRIL, "My cat <img> moved to Oslo with me", "Lovely", (str(picture),))
            )
            cat = VisualConcept("her cat", "cat", str(picture))
            store.add_semantic(
                SemanticMemory("her cat", "cat", APRIL, APRIL, APRIL, "concept", cat)
            )
            store.set_core(
                CoreMemory({"name": "Nora", "city": "Oslo"}, {"job": "baker"}, APRIL + HOUR)
            )
        return folder

    return make


def test_page_shows_everything_known_at_the_end(folder):
    page = snapshot(folder)
    for text in (
        "nora",
        "at the end",
        "Oslo",
        "baker",
        "She runs on Mondays",
        "They talked about Rome",
        "her cat",
    ):
        assert text in page
    assert re.search(r"<del[^>]*>Rome</del>\s*Oslo", page)  # the second session changed core memory
    assert '<span class="number">4.50</span> <span class="soft">very high' in page
    assert page.count("data:image/png;base64,") == 2  # the crop and the turn's photo


def test_page_shows_nothing_before_it_was_known(folder):
    page = snapshot(folder, MARCH)
    assert "She lives in" in page and "on 2024-03-05 at 09:00" in page
    for later in (
        "Oslo",
        "Nora",
        "baker",
        "She runs on Mondays",
        "They talked about Rome",
        "cat",
        "data:image",
    ):
        assert later not in page.split("</style>")[-1]
    assert "They talked about Rome" in snapshot(folder, MARCH + HOUR)


def test_trait_bars_span_the_scale_from_1_to_5(folder):
    widths = [
        float(width)
        for width in re.findall(r"<i style=\"width: ([\d.]+)%", snapshot(folder, MARCH))
    ]
    assert widths == [25.0, 50.0, 50.0, 50.0, 87.5]  # 1 is an empty bar, 5 a full one


def test_page_is_well_formed_escaped_and_self_contained(folder):
    page = snapshot(folder)
    tags = Tags(page)
    assert tags.crossed == [] and tags.open == []
    assert {name for name, _ in tags.all} & {"script", "b", "link", "iframe"} == set()
    assert "&lt;script&gt;alert(1)" in page and "Noted &amp; kept" in page
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert all(
        attributes["src"].startswith("data:") for name, attributes in tags.all if name == "img"
    )


def test_missing_image_is_reported(folder):
    for image in (folder / "images").iterdir():
        image.unlink()
    thumbnail.cache_clear()
    assert snapshot(folder).count("[image not found]") == 2


def test_empty_memory_has_a_page(tmp_path):
    MemoryStore(tmp_path / "new").close()
    page = snapshot(tmp_path / "new")
    assert "Nothing yet." in page and "the neutral start" in page
    _, time_slider, display = explorer([tmp_path / "new"]).children
    assert len(time_slider.options) == 1 and "Nothing yet." in display.value


def test_folder_without_memory_is_an_error_and_stays_untouched(tmp_path):
    with pytest.raises(FileNotFoundError, match="no memory.db in .*empty: run"):
        snapshot(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        explorer([])


def test_slider_moves_through_time_and_menu_changes_the_user(folder, memory_of_two_sessions):
    other = memory_of_two_sessions(folder.parent / "olaf")
    with MemoryStore(other) as store:
        store.add_turn(Turn(APRIL + 2 * HOUR, "Good night"))
    user_menu, time_slider, display = explorer([folder, other], first=0).children
    assert [time for _, time in time_slider.options] == [MARCH, APRIL, datetime.max]
    assert time_slider.value == datetime.max
    assert "Oslo" in display.value
    time_slider.value = MARCH
    assert "Oslo" not in display.value and "She lives in" in display.value
    user_menu.value = other
    assert len(time_slider.options) == 4 and time_slider.value == datetime.max
    assert "olaf" in display.value and "Good night" in display.value
    time_slider.value = APRIL
    assert "Good night" not in display.value and "her cat" in display.value
