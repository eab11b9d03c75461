"""The vocabulary of the simulated world, in the canonical wording that the nano model learns from.

The nano model's tokenizer is built from `vocabulary()`: after changing a word here, rebuild the
backbone in the same commit.
"""

import re

from personavlm_lib.simulation.scenes import COLORS, COUNTS, PICTURE_STYLES, SIGN_WORDS, THINGS

NAMES = (
    "bob alice kai rita marie jax moss ryker oscar colette solene cooper raj belle marnie bernie "
    "nadia viktor lena omar priya tomas yuki hana felix greta ivan noor pablo sven tara ugo vera "
    "wade zoe milo"
).split()

# Stable attributes. Core memory (human: city, pet; persona: job).
CORE = {
    "job": (
        "nurse teacher lawyer farmer pilot chemist baker writer plumber dentist tailor sailor"
    ).split(),
    "city": "rome paris tokyo lima cairo oslo berlin madrid dublin seoul delhi quito".split(),
    "pet": "dog cat parrot hamster turtle rabbit goldfish ferret gecko pony canary duck".split(),
}
PERSONA_KEYS = ("job",)

# Preferences of the user and of friends; the user's may change, for a cause. Semantic memory.
PREFERENCES = {
    "drink": "sprite cola tea coffee juice milk water cocoa soda lemonade mate chai".split(),
    "food": (
        "pizza sushi tacos ramen curry salad pasta burger soup falafel paella dumplings"
    ).split(),
    "sport": (
        "running tennis surfing boxing rowing skiing golf judo cycling hiking squash rugby"
    ).split(),
    "music": "jazz rock folk blues techno opera punk soul metal indie funk disco".split(),
    "genre": (
        "mystery fantasy poetry memoir thriller romance history science satire horror essay western"
    ).split(),
    "game": (
        "chess poker dominoes checkers tetris solitaire bingo darts billiards mahjong scrabble "
        "bridge"
    ).split(),
}
CAUSES = (
    "stress allergy doctor budget boredom travel weather injury sleep friends work childhood"
).split()

# One-off outings with a friend. Episodic memory.
EVENTS = {
    "visited": (
        "museum lake castle zoo market theatre harbor garden library temple bakery island"
    ).split(),
    "repaired": "bicycle radio clock fence boat roof kettle tent piano camera ladder oven".split(),
    "watched": (
        "comedy drama cartoon documentary musical parade eclipse match ballet quiz circus sunset"
    ).split(),
    "bought": (
        "guitar carpet mirror scarf vase drone helmet blanket telescope candle backpack wallet"
    ).split(),
}

# Recurring behavior and plans. Procedural memory.
HABITS = (
    "yoga gardening painting knitting choir swimming cooking fishing climbing pottery dancing "
    "pilates"
).split()
GOALS = (
    "marathon novel diploma triathlon album degree cottage startup license exhibition garage "
    "orchard"
).split()
GOAL_ENDS = ("reached", "dropped")
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()

# Facts that an answer must be inferred from, together with common knowledge (KNOWLEDGE).
VALUES = "ecology thrift comfort speed freedom safety prestige adventure".split()
SKILLS = (
    "latin algebra juggling origami archery sailing fencing drumming astronomy grammar geometry "
    "typing"
).split()
LEVELS = "novice learner skilled expert".split()  # in the order in which they are reached
RELATIONS = "boss client colleague neighbor cousin flatmate partner sister".split()
ITEMS = (
    "ribbon lantern suitcase umbrella whistle basket compass hammer notebook cushion bucket stapler"
).split()
OCCASIONS = (
    "picnic wedding interview hike birthday concert camping journey ceremony lecture reunion "
    "auction"
).split()
GOAL_STATES = (*GOAL_ENDS, "open", "unknown")

# Common knowledge: key of a fact -> {value of the fact: the value that it implies}.
KNOWLEDGE = {
    "value": {
        "ecology": "tram", "thrift": "scooter", "comfort": "limousine", "speed": "motorcycle",
        "freedom": "camper", "safety": "van", "prestige": "yacht", "adventure": "jeep",
    },
    "level": {
        "novice": "simply", "learner": "slowly", "skilled": "briefly", "expert": "deeply",
    },
    "relation": {
        "boss": "formal", "client": "formal", "colleague": "polite", "neighbor": "polite",
        "cousin": "playful", "flatmate": "playful", "partner": "tender", "sister": "tender",
    },
    "sport": {
        "running": "track", "tennis": "court", "surfing": "beach", "boxing": "arena",
        "rowing": "river", "skiing": "slope", "golf": "course", "judo": "dojo",
        "cycling": "velodrome", "hiking": "trail", "squash": "gym", "rugby": "pitch",
    },
    "habit": {
        "yoga": "mat", "gardening": "spade", "painting": "brush", "knitting": "yarn",
        "choir": "songbook", "swimming": "goggles", "cooking": "apron", "fishing": "rod",
        "climbing": "chalk", "pottery": "clay", "dancing": "shoes", "pilates": "strap",
    },
}  # fmt: skip

# How a trait shows in a user's words: one word per trait and score, none for the neutral score 3.
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
    "hello there", "good morning", "thank you so much", "what time is it", "tell me a joke",
    "how are you today", "see you soon", "what is the weather like", "please count to ten",
    "that was fun", "good night", "how was today", "tell me something new", "good to see you",
    "what a day", "who is there", "sing a song please", "see you today",
)  # fmt: skip
REPLIES = ("noted", "i see", "thank you for telling me", "good to know")
EMPTY_REPLIES = ("hello", "you are welcome", "of course", "as you wish")

# The same facts in other words, for a separate test condition; no model is trained on them.
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

# Words of the prompts and of the reasoning that appear in no other list.
FRAME = (
    "my i is of with what who did do does on every goal now because look at the color whose this "
    "that friend met a name look up no yes suit me reply user assistant today yesterday unknown "
    "nothing options so high low mid very moderate in image object picture left right respond "
    "profile personality recent ask found procedural semantic episodic answer infer remember "
    "summarise update core topics seen as for new preference fact small talk concept event "
    "directive caption repeat key value true false null how many and one two openness "
    "conscientiousness extraversion agreeableness neuroticism need why change became goal relation "
    "value skill level intent takes which vehicle suits how should be explained to write where go "
    "first in a new town pack today rate know many style picture morning last two weeks ago this "
    "person meet most says asked right from yesterday"
).split()


def vocabulary() -> list[str]:
    """Every word of the canonical wording, sorted, without repetition."""
    words: set[str] = set()
    facts = (
        CAUSES,
        HABITS,
        GOALS,
        GOAL_STATES,
        VALUES,
        SKILLS,
        LEVELS,
        RELATIONS,
        ITEMS,
        OCCASIONS,
    )
    pictures = (COLORS, THINGS, COUNTS, SIGN_WORDS, PICTURE_STYLES)
    for word_list in (NAMES, WEEKDAYS, FRAME, *facts, *pictures):
        words.update(word_list)
    for values_by_key in (CORE, PREFERENCES, EVENTS):
        words.update(values_by_key)
        for values in values_by_key.values():
            words.update(values)
    tables: list[dict] = [*KNOWLEDGE.values(), *MARKERS.values(), *REPLY_STYLES.values()]
    for table in tables:
        words.update(table.values())
    for templates in PARAPHRASES.values():
        for template in templates:
            words.update(re.findall(r"(?<![{<])\b[a-z]+\b(?![}>])", template))
    for sentence in (*SMALL_TALK, *REPLIES, *EMPTY_REPLIES):
        words.update(sentence.split())
    return sorted(words)
