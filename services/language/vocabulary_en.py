"""English words that facts need: what changes nothing, what denies, what names jobs and habits."""

import re

CONTRACTIONS = (
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"\b(i|we|you|they)'ve\b"), r"\1 have"),
    (re.compile(r"\b(i|we|you|they)'d\b"), r"\1 would"),
    (re.compile(r"\b(i|we|you|they)'ll\b"), r"\1 will"),
    (re.compile(r"\b(we|you|they)'re\b"), r"\1 are"),
    (re.compile(r"\b(it|that|he|she|there|name)'s\b"), r"\1 is"),
    (re.compile(r"\bfavourite\b"), "favorite"),
    (re.compile(r"\bcolour\b"), "color"),
)
FILLER = re.compile(
    r"\b(?:now|currently|actually|really|just|these days|nowadays|at the moment|from now on"
    r"|as of (?:today|now)"
    r"|recently|finally|still|right now|for now|instead|generally|usually|normally|definitely"
    r"|absolutely|truly"
    r"|very much|so much|a lot|quite|rather(?! than| have| not| use)|much|strongly|mostly"
    r"|mainly|typically"
    r"|officially|again|after all|in fact|personally|too|as well|of course|by the way"
    r"|since (?:last )?\w+"
    r"|anymore|any more|any longer|already|also|simply|tend to|happen to|i think|all the time"
    r"|every day"
    r"|last (?:week|month|year|summer|winter|spring|fall|autumn|\w+day)|yesterday|this (?:week"
    r"|month|year)"
    r"|in (?:19|20)\d\d|for (?:\w+ )?(?:years?|months?|weeks?)|with my \w+|a few \w+ ago"
    r"|\w+ (?:years?|months?|weeks?) ago"
    r"|most of the time)\b"
)
NEGATION = re.compile(
    r"\b(?:do not|does not|did not|am not|is not|are not|was not|will not|would not|can not"
    r"|have not|never|no longer"
    r"|not|stopped|quit|gave up|given up|left|used to)\b"
)
# Words that look like a denial and are none.
NO_NEGATION = re.compile(
    r"\b(?:not only|why not)\b|\brather than\b|\b(?:left|right)[- ]handed\b"
    r"|\bcan not (?:stand|bear)\b"
)
AUXILIARY_NOT = re.compile(r"\b(?:do|did|am|is|are|will|would|can|have) not")
PROFESSION = re.compile(
    r"\b(?:\w{2,}(?:er|or|ist|ian|eer|yst|ant|ect|man|woman|wright|smith)|nurse|chef|cook|coach"
    r"|judge|pilot|guide|clerk"
    r"|student|professor|intern|freelancer|ceo|cto|cfo|founder|vet|dentist|architect|consultant"
    r"|accountant|dba|sre"
    r"|scientist|surgeon|athlete|artist|model|poet|soldier|data analyst|product owner|mechanic"
    r"|dean|nurse practitioner"
    r"|lead)$"
)
NOT_PROFESSION = frozenset(
    [
        "father",
        "mother",
        "brother",
        "sister",
        "daughter",
        "number",
        "member",
        "user",
        "beginner",
        "owner",
        "fan",
        "better",
        "later",
        "never",
        "other",
        "over",
        "letter",
        "together",
        "partner",
        "lover",
        "computer",
        "error",
        "reader",
        "winner",
        "starter",
        "newcomer",
        "human",
        "woman",
        "man",
        "clever",
        "sober",
        "monster",
        "killer",
        "loser",
        "bigger",
        "tester?",
        "another",
        "either",
        "neither",
        "vegetarian",
        "christian",
        "under",
        "after",
        "ever",
        "stranger",
        "foreigner",
        "teenager",
        "german",
        "roman",
    ]
)
HABITS = (
    ("smok", "smoke"),
    ("exercis", "exercise"),
    ("meditat", "meditate"),
    ("driv", "drive"),
    ("danc", "dance"),
    ("drink", "drink"),
    ("eat", "eat"),
    ("play", "play"),
    ("read", "read"),
    ("watch", "watch"),
    ("jog", "jog"),
    ("run", "run"),
    ("swim", "swim"),
    ("cook", "cook"),
    ("sing", "sing"),
    ("paint", "paint"),
    ("vap", "vape"),
    ("gam", "game"),
)
# "I have a question" is no possession.
NO_POSSESSION = re.compile(
    r"(?:to|been|not|just|never|a |an |question|problem|issue|idea|no idea|time|error|bug|meeting"
    r"|doubt|look)\b"
)
NO_POSSESSIONS = frozenset(
    {"question", "questions", "problem", "problems", "issue", "error", "errors", "idea", "bug"}
    | {"time", "trouble"}
)
SINGULAR = {"children": "child", "kids": "child", "kid": "child"}
PLACE_OF_USE = re.compile(r" (?:at|in) ((?:work|home|school|the office))$")
