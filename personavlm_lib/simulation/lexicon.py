"""The words of the simulated world: what a life can hold, in the canonical wording that the nano model learns from.

Whoever changes a word here remakes the backbone in the same commit: its tokenizer is built from `words()`.
"""

import re

from personavlm_lib.simulation.scenes import COLORS, COUNTS, PICTURE_STYLES, SIGN_WORDS, THINGS

NAMES = (
    "bob alice kai rita marie jax moss ryker oscar colette solene cooper raj belle marnie bernie nadia viktor lena "
    "omar priya tomas yuki hana felix greta ivan noor pablo sven tara ugo vera wade zoe milo"
).split()

# Stable attributes: core memory (human: city, pet; persona: job).
CORE = {
    "job": "nurse teacher lawyer farmer pilot chemist baker writer plumber dentist tailor sailor".split(),
    "city": "rome paris tokyo lima cairo oslo berlin madrid dublin seoul delhi quito".split(),
    "pet": "dog cat parrot hamster turtle rabbit goldfish ferret gecko pony canary duck".split(),
}
PERSONA_KEYS = ("job",)

# Preferences that people state about themselves and their friends, and that shift for a cause: semantic memory.
PREFERENCES = {
    "drink": "sprite cola tea coffee juice milk water cocoa soda lemonade mate chai".split(),
    "food": "pizza sushi tacos ramen curry salad pasta burger soup falafel paella dumplings".split(),
    "sport": "running tennis surfing boxing rowing skiing golf judo cycling hiking squash rugby".split(),
    "music": "jazz rock folk blues techno opera punk soul metal indie funk disco".split(),
    "genre": "mystery fantasy poetry memoir thriller romance history science satire horror essay western".split(),
    "game": "chess poker dominoes checkers tetris solitaire bingo darts billiards mahjong scrabble bridge".split(),
}
CAUSES = "stress allergy doctor budget boredom travel weather injury sleep friends work childhood".split()

# One-off happenings with a friend: episodic memory.
EVENTS = {
    "visited": "museum lake castle zoo market theatre harbor garden library temple bakery island".split(),
    "repaired": "bicycle radio clock fence boat roof kettle tent piano camera ladder oven".split(),
    "watched": "comedy drama cartoon documentary musical parade eclipse match ballet quiz circus sunset".split(),
    "bought": "guitar carpet mirror scarf vase drone helmet blanket telescope candle backpack wallet".split(),
}

# Recurring behaviour and plans: procedural memory.
HABITS = "yoga gardening painting knitting choir swimming cooking fishing climbing pottery dancing pilates".split()
GOALS = "marathon novel diploma triathlon album degree cottage startup license exhibition garage orchard".split()
GOAL_ENDS = ("reached", "dropped")
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()

# What a user says of themselves and of others that an answer must be inferred from, by what everybody knows.
VALUES = "ecology thrift comfort speed freedom safety prestige adventure".split()
SKILLS = "latin algebra juggling origami archery sailing fencing drumming astronomy grammar geometry typing".split()
LEVELS = "novice learner skilled expert".split()  # in the order in which they are reached
RELATIONS = "boss client colleague neighbor cousin flatmate partner sister".split()
ITEMS = "ribbon lantern suitcase umbrella whistle basket compass hammer notebook cushion bucket stapler".split()
OCCASIONS = "picnic wedding interview hike birthday concert camping journey ceremony lecture reunion auction".split()
GOAL_STATES = (*GOAL_ENDS, "open", "unknown")

# Common knowledge, by the key of the fact that it is applied to: a value of that key -> what it takes.
KNOWLEDGE = {
    "value": dict(zip(VALUES, "tram scooter limousine motorcycle camper van yacht jeep".split(), strict=True)),
    "level": dict(zip(LEVELS, "simply slowly briefly deeply".split(), strict=True)),
    "relation": dict(
        zip(RELATIONS, "formal formal polite polite playful playful tender tender".split(), strict=True)
    ),
    "sport": dict(zip(
        PREFERENCES["sport"], "track court beach arena river slope course dojo velodrome trail gym pitch".split(),
        strict=True,
    )),
    "habit": dict(zip(
        HABITS, "mat spade brush yarn songbook goggles apron rod chalk clay shoes strap".split(), strict=True
    )),
}  # fmt: skip

# How a trait shows in a user's words: one word per trait and score; the neutral score 3 leaves no trace.
MARKERS = {
    "openness": {1: "ordinary", 2: "usual", 4: "curious", 5: "wondrous"},
    "conscientiousness": {1: "careless", 2: "loosely", 4: "orderly", 5: "precisely"},
    "extraversion": {1: "alone", 2: "quietly", 4: "lively", 5: "hooray"},
    "agreeableness": {1: "rubbish", 2: "doubtful", 4: "kindly", 5: "lovingly"},
    "neuroticism": {1: "serene", 2: "calm", 4: "uneasy", 5: "terrified"},
}
# How a reply adapts to a trait (Table 10): one word per trait and pole.
REPLY_STYLES = {
    "openness": {"low": "practical", "high": "imaginative"},
    "conscientiousness": {"low": "spontaneous", "high": "planned"},
    "extraversion": {"low": "reserved", "high": "sociable"},
    "agreeableness": {"low": "direct", "high": "warm"},
    "neuroticism": {"low": "brisk", "high": "reassuring"},
}
SMALL_TALK = (
    "hello there", "good morning", "thank you so much", "what time is it", "tell me a joke", "how are you today",
    "see you soon", "what is the weather like", "please count to ten", "that was fun", "good night", "how was today",
    "tell me something new", "good to see you", "what a day", "who is there", "sing a song please", "see you today",
)  # fmt: skip
REPLIES = ("noted", "i see", "thank you for telling me", "good to know")
EMPTY_REPLIES = ("hello", "you are welcome", "of course", "as you wish")

# The same facts in other words: a condition of its own, which nothing is trained on.
PARAPHRASES = {
    "name": ("people call {who} person {value}", "call me {value}"),
    "style": (
        "pictures that are {value} are what i like <img>",
        "i like it when a picture is {value} <img>",
    ),
    "fact": ("{value} has become {who} {key}", "when it comes to {key} {who} choice is {value}"),
    "event": ("together with {friend} i {key} {value}", "{friend} and i {key} {value}"),
    "image": ("see {who} {key} here <img>", "here comes {who} {key} <img>"),
    "habit": ("{value} is what i do every {key}", "each {key} comes with {value}"),
    "goal": ("i aim for {value}", "{value} is what i aim for"),
    "goal_end": ("my aim {value} is {key}", "{key} is my aim {value}"),
    "intent": ("for {value} i take {key}", "{key} is what i take for {value}"),
}

# Words of the prompts and of the reasoning that no list above holds.
FRAME = (
    "my i is of with what who did do does on every goal now because look at the color whose this that friend met a "
    "name look up no yes suit me reply user assistant today yesterday unknown nothing options so high low mid very "
    "moderate in image object picture left right respond profile personality recent ask found procedural semantic "
    "episodic answer infer remember summarise update core topics seen as for new preference fact small talk concept "
    "event directive caption repeat key value true false null how many and one two openness conscientiousness "
    "extraversion agreeableness neuroticism need why change became goal relation value skill level intent takes "
    "which vehicle suits how should be explained to write where go first in a new town pack today rate know "
    "many style picture morning last two weeks ago this person meet most says asked right from yesterday"
).split()


def vocabulary() -> list[str]:
    """Every word of the canonical wording, sorted, without repetition."""
    lists = [
        NAMES,
        CAUSES,
        HABITS,
        GOALS,
        GOAL_STATES,
        WEEKDAYS,
        FRAME,
        COLORS,
        THINGS,
        COUNTS,
        SIGN_WORDS,
    ]
    lists += [PICTURE_STYLES]
    lists += [
        VALUES,
        SKILLS,
        LEVELS,
        RELATIONS,
        ITEMS,
        OCCASIONS,
        *(known.values() for known in KNOWLEDGE.values()),
    ]
    lists += [
        re.findall(r"(?<![{<])\b[a-z]+\b(?![}>])", " ".join(told)) for told in PARAPHRASES.values()
    ]
    lists += [*CORE.values(), *PREFERENCES.values(), *EVENTS.values(), CORE, PREFERENCES, EVENTS]
    lists += [marker.values() for marker in MARKERS.values()] + [
        style.values() for style in REPLY_STYLES.values()
    ]
    lists += [sentence.split() for sentence in (*SMALL_TALK, *REPLIES, *EMPTY_REPLIES)]
    return sorted({str(word) for group in lists for word in group})
