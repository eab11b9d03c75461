"""Looking into a memory: what the assistant knew at any moment, as a widget with a time slider and as a page.

Both are drawn by `panel` from `MemoryStore.as_of`, so they show exactly what the agent would have been given then
(Appendix A). Everything shown is escaped: memories are a user's words.
"""

import base64
import io
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import ipywidgets
from jinja2 import Environment, PackageLoader
from PIL import Image

from personavlm_lib.memory.personality import summarize_profile
from personavlm_lib.memory.records import TRAITS, BigFive, CoreMemory, ProceduralMemory
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.study.figures import TRAIT_COLORS

THUMBNAIL = 128  # pixels of the longer side: twice what is shown, for dense screens
Change = tuple[
    str, str | None, str | None
]  # (key, its words before, its words after); None: not there


def explorer(users: list[Path], first: int = 0) -> ipywidgets.VBox:
    """A user menu, a slider over the turns of that user's life, and the memory as it was known at each.

    `users` are folders of MemoryStores; `first` is the position of the one shown first. FileNotFoundError for a folder
    without a memory, and if there are none.
    """
    if not users:
        raise FileNotFoundError("no memories to explore: run 'make reproduce' first")
    who = ipywidgets.Dropdown(
        options=[(path.name, path) for path in users], value=users[first], description="user"
    )
    when = ipywidgets.SelectionSlider(
        options=[("end", datetime.max)], description="time", layout={"width": "95%"}
    )
    shown = ipywidgets.HTML()
    views: dict[datetime, MemoryView] = {}

    def choose_user(_: object = None) -> None:
        views.clear()
        with _open(
            who.value
        ) as store:  # a view keeps what it needs, so that no database stays open
            # of several turns in one minute the last stands for all
            moments = {f"{turn.time:%Y-%m-%d %H:%M}": turn.time for turn in store.as_of().turns} | {
                "end": datetime.max
            }
            views.update({time: store.as_of(time) for time in moments.values()})
        when.options = list(moments.items())
        when.value = datetime.max
        show()

    def show(_: object = None) -> None:
        if when.value in views:
            shown.value = panel(views[when.value], who.value.name)

    who.observe(choose_user, "value")
    when.observe(show, "value")
    choose_user()
    return ipywidgets.VBox([who, when, shown])


def snapshot(folder: Path, time: datetime | None = None) -> str:
    """The memory in `folder` as known at `time` (None: at its end), as one HTML page that needs nothing from outside.

    FileNotFoundError if no memory lies there.
    """
    with _open(folder) as store:
        return panel(store.as_of(time), Path(folder).name, page=True)


def panel(view: MemoryView, user: str, page: bool = False) -> str:
    """The view as HTML: a fragment for a notebook, or a whole `page`."""
    profile = view.personality.profile if view.personality else BigFive.neutral()
    words = dict(line.split(": ") for line in summarize_profile(profile).splitlines())
    loader = PackageLoader("personavlm_lib.study", ".")
    template = Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(
        "explorer.html.j2"
    )
    return template.render(
        view=view,
        user=user,
        page=page,
        moment="at the end"
        if view.time == datetime.max
        else f"on {view.time:%Y-%m-%d} at {view.time:%H:%M}",
        traits=[(trait, getattr(profile, trait), words[trait]) for trait in TRAITS],
        colours=TRAIT_COLORS,
        days=[
            (day, list(part))
            for day, part in groupby(_learned(view), lambda entry: entry[1].date())
        ],
        thumbnail=thumbnail,
    ).strip()


def _open(folder: Path) -> MemoryStore:
    """The store of a folder that has one; MemoryStore itself would make a new one."""
    if not (Path(folder) / "memory.db").is_file():
        raise FileNotFoundError(f"{folder} holds no memory.db: run 'make reproduce' first")
    return MemoryStore(folder)


def _learned(view: MemoryView) -> list[tuple[str, datetime, object]]:
    """(kind, since when it is known, what) of all that was learned, newest first: the order of the timeline."""
    found = [("semantic", memory.known_from, memory) for memory in view.semantic]
    found += [("episode", episode.known_from, episode) for episode in view.episodes]
    found += [
        ("change core", when, what)
        for when, what in _changes(view, "core", lambda v: {**v.human, **v.persona})
    ]
    found += [
        ("change procedural", when, what)
        for when, what in _changes(view, "procedural", lambda v: v.entries)
    ]
    return sorted(found, key=lambda entry: entry[1])[
        ::-1
    ]  # of the same moment, too, the later written comes first


def _changes(
    view: MemoryView, kind: str, entries: Callable[[CoreMemory | ProceduralMemory], dict[str, str]]
) -> Iterator[tuple[datetime, list[Change]]]:
    """What each version known by then changed against the one before; versions that changed nothing are left out."""
    before: dict[str, str] = {}
    for version in view.table(kind).records:
        if version.known_from <= view.time:
            after = entries(version)
            changed = [key for key in before | after if before.get(key) != after.get(key)]
            if changed:
                yield (
                    version.known_from,
                    [(key, before.get(key), after.get(key)) for key in changed],
                )
            before = after


@lru_cache(maxsize=1024)
def thumbnail(path: str) -> str | None:
    """The image at `path` as a small PNG in a data URI; None if no image can be read there."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:  # a conversation may name images that nobody handed over
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
