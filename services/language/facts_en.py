"""Facts in English sentences."""

import re

from services.language import lexicon
from services.language.fact import Fact, attribute, choice, is_functional

_CONTRACTIONS = (
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
_FILLER = re.compile(
    r"\b(?:now|currently|actually|really|just|these days|nowadays|at the moment|from now on|as of (?:today|now)"
    r"|recently|finally|still|right now|for now|instead|generally|usually|normally|definitely|absolutely|truly"
    r"|very much|so much|a lot|quite|rather(?! than| have| not| use)|much|strongly|mostly|mainly|typically"
    r"|officially|again|after all|in fact|personally|too|as well|of course|by the way|since (?:last )?\w+"
    r"|anymore|any more|any longer|already|also|simply|tend to|happen to|i think|all the time|every day"
    r"|last (?:week|month|year|summer|winter|spring|fall|autumn|\w+day)|yesterday|this (?:week|month|year)"
    r"|in (?:19|20)\d\d|for (?:\w+ )?(?:years?|months?|weeks?)|with my \w+|a few \w+ ago|\w+ (?:years?|months?|weeks?) ago"
    r"|most of the time)\b"
)
NEGATION = re.compile(
    r"\b(?:do not|does not|did not|am not|is not|are not|was not|will not|would not|can not|have not|never|no longer"
    r"|not|stopped|quit|gave up|given up|left|used to)\b"
)
_PROFESSION = re.compile(
    r"\b(?:\w{2,}(?:er|or|ist|ian|eer|yst|ant|ect|man|woman|wright|smith)|nurse|chef|cook|coach|judge|pilot|guide|clerk"
    r"|student|professor|intern|freelancer|ceo|cto|cfo|founder|vet|dentist|architect|consultant|accountant|dba|sre"
    r"|scientist|surgeon|athlete|artist|model|poet|soldier|data analyst|product owner|mechanic|dean|nurse practitioner"
    r"|lead)$"
)
_NOT_PROFESSION = frozenset(
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
_V = r"(?P<v>.+)"
_WORK = r"(?:software |senior |junior |lead )?"


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"^{pattern}$")


_NOT = r"(?:(?:do|did|am|will|would|can|have)? ?not |never )?"
_BE = (
    r"(?:is|are|was changed to|changed to|has changed to|is changed to|will be|has moved to|moved to|is set to|has been moved to|(?:was|were|got|has been|have been) (?:moved|changed|rescheduled|pushed|postponed|set|switched)"
    r"(?: back| forward)?(?: from .+?)? to)"
)
_I = r"(?:i|we)"

# (key, single, rule); a key ending in ":" takes the kind of its value.
_RULES: tuple[tuple[str, bool, re.Pattern[str]], ...] = (
    (
        "name",
        True,
        _rule(
            r"(?:my (?:full |real |first |new )?name (?:is|changed to|was changed to)(?: not)?|i am(?: not)? called"
            r"|i changed my name to|i am named) (?P<v>.+?)"
        ),
    ),
    (
        "nickname",
        True,
        _rule(
            r"(?:please )?(?:do not )?(?:call me|you can call me|people call me|friends call me|i go by"
            r"(?: the name)?|i (?:would )?(?:like|prefer|want) to be called|address me as) (?P<v>.+?)"
        ),
    ),
    (
        "residence",
        True,
        _rule(
            r"(?:i|we) (?:do not |no longer |not )?(?:live|living|reside|am living|am based|am staying|am residing|settled(?: down)?)"
            r"(?: not)? (?:in|at|near) (?P<v>.+?)"
        ),
    ),
    (
        "residence",
        True,
        _rule(
            r"(?:i|we) (?:am |have |am not )?(?:moved?|moving|relocated?|relocating|emigrated|immigrated)(?: house| away| over)?"
            r"(?: here)?(?: from (?P<w>.+?))? (?:to|into) (?P<v>.+?)(?: from (?P<u>.+))?"
        ),
    ),
    (
        "residence",
        True,
        _rule(r"(?:my home|home|my house|my apartment|my place) is (?:not )?in (?P<v>.+)"),
    ),
    ("birthplace", True, _rule(r"i (?:was|am) (?:not )?born in (?P<v>[a-z ]+)")),
    ("birthplace", True, _rule(r"i (?:am|come) (?:not )?(?:originally )?from (?P<v>.+)")),
    ("birthday", True, _rule(r"(?:my birthday is(?: not)?(?: on)?|i was born on) (?P<v>.+)")),
    (
        "age",
        True,
        _rule(r"(?:i am|i turned|my age is|i have turned) (?P<v>\d+)(?: years?)?(?: old| of age)?"),
    ),
    (
        "marital",
        True,
        _rule(
            r"(?:i|we) (?:am|are|got|have got|became|am getting)(?: not)? (?P<v>married|single|divorced|engaged|widowed)(?: to .+)?"
        ),
    ),
    ("hand", True, _rule(r"i am(?: not)? (?P<v>(?:left|right)[- ]handed|ambidextrous)")),
    (
        "diet",
        True,
        _rule(
            r"i (?:am|became|have become|turned|went|have gone)(?: not)?(?: an?)? (?P<v>vegetarian|vegan|pescatarian|omnivore|carnivore|keto)"
        ),
    ),
    (
        "diet",
        True,
        _rule(
            r"i (?:do not |never |not |am not )?(?:eat|eating)(?: not)? (?P<v>meat|halal|kosher)"
        ),
    ),
    ("allergy", False, _rule(r"i (?:am|have been|became)(?: not)? allergic to (?P<v>.+)")),
    (
        "allergy",
        False,
        _rule(r"i (?:do not )?have (?:an? |no )?(?P<v>.+?) (?:allergy|intolerance)"),
    ),
    (
        "workplace",
        True,
        _rule(
            r"i (?:do not )?work (?P<v>from home|remotely|remote|in the office|from the office|in an office|hybrid|on[- ]site)"
        ),
    ),
    (
        "job",
        True,
        _rule(
            r"i (?:do not |not )?(?:work|working|am working|worked|started working|got hired|was hired|started)(?: not)? as (?:an? |the )?"
            r"(?P<v>.+?)(?: (?:at|for|with) (?P<employer>.+))?"
        ),
    ),
    (
        "job",
        True,
        _rule(
            r"(?:my (?:job|occupation|profession|job title|position|role) (?:is|changed to)|i (?:became|have become|got promoted to"
            r"|was promoted to|am employed as|trained as|switched (?:jobs|careers) to(?: be)?))(?: not)? (?:an? |the |being an? )?"
            r"(?P<v>.+?)(?: (?:at|for|with) (?P<employer>.+))?"
        ),
    ),
    (
        "employment",
        True,
        _rule(r"i (?:am|became|got)(?: not)? (?P<v>retired|unemployed|self-employed|between jobs)"),
    ),
    (
        "job",
        True,
        _rule(
            r"i am(?: not)?(?: an?| the)? (?P<profession>[a-z][a-z /-]{2,40}?)(?: (?:at|for|with|of|by profession|by trade)(?: (?P<employer>.+))?)?"
        ),
    ),
    (
        "employer",
        True,
        _rule(
            r"i (?:do not |no longer |not |have )?(?:work|working|am working|am employed|joined|started(?: working)?|moved over|switched jobs|changed jobs"
            r"|got a job|took a job|got hired)(?: not)? (?:at|for|by|to|with) (?P<v>.+)"
        ),
    ),
    ("employer", True, _rule(r"i (?:have )?joined (?P<v>.+)")),
    (
        "employer",
        True,
        _rule(
            r"i (?:have )?(?:left|quit|resigned from)(?: my job at| my position at| from)? (?P<v>(?!smoking|drinking|sugar|coffee).+)"
        ),
    ),
    (
        "study",
        True,
        _rule(
            r"i (?:am |do not )?(?:stud(?:y|ying|ied)|majoring|major|switched my major|changed my major)(?: not)?(?: in| to)? (?P<v>(?!at ).+?)(?: at (?P<school>.+))?"
        ),
    ),
    (
        "school",
        True,
        _rule(
            r"i (?:am |do not )?(?:stud(?:y|ying)|go to school|go to college|transferred)(?: not)? (?:at|to) (?P<v>.+)"
        ),
    ),
    (
        "native language",
        True,
        _rule(r"my (?:native language|mother tongue|first language) is(?: not)? (?P<v>.+)"),
    ),
    (
        "speak",
        False,
        _rule(
            r"i (?:can |do not |can not |could )?speak(?: not)?(?: fluent| some| a little)? (?P<v>.+?)(?: fluently)?"
        ),
    ),
    ("drive", True, _rule(r"i (?:do not )?drive (?:an? )(?P<v>.+)")),
    (
        "commute",
        True,
        _rule(
            r"i (?:do not )?(?:commute|go|get|travel|drive|cycle|walk|bike)(?: to (?:work|school|the office))? (?:by|on|with)(?: an?| the)? (?P<v>.+?)"
            r"(?: to (?:work|school|the office))?"
        ),
    ),
    (
        "commute",
        True,
        _rule(r"i (?:take|ride)(?: an?| the| my)? (?P<v>\w+) to (?:work|school|the office)"),
    ),
    (
        "favorite",
        True,
        _rule(
            r"my (?:all[- ]time |most )?favorite (?P<x>[a-z ]+?) (?:is|are|is now|changed to|became|has become)(?: not)? (?P<v>.+)"
        ),
    ),
    (
        "favorite",
        True,
        _rule(
            r"(?P<v>.+?) (?:is|are|became|has become) (?:not )?my (?:all[- ]time )?(?:new )?favorite (?P<x>[a-z ]+)"
        ),
    ),
    (
        "favorite:",
        True,
        _rule(r"i (?:like|love|enjoy) (?P<v>.+?) (?:the )?(?:best|most)(?: of all)?"),
    ),
    (
        "prefer:",
        True,
        _rule(
            rf"{_I} (?:would |do )?(?:not )?(?:prefer(?:red|s)?|favor|would rather(?: have| use)?|rather have|rather use)(?: (?:using|to use|having|to have|to drink|drinking|to get"
            r"|getting|to be given|to see|seeing|to work with|working with|to write in|writing in|to code in|coding in|to program in))? (?P<v>.+?)"
            r"(?: (?:over|to|instead of|rather than|than|not) (?P<w>(?!work|use|be\b|the office).+))?"
        ),
    ),
    ("prefer:", True, _rule(r"i (?:like|love|enjoy) (?P<v>.+?) (?:better|more) than (?P<w>.+)")),
    ("prefer:", True, _rule(r"my preference is(?: for)? (?P<v>.+)")),
    ("prefer:", True, _rule(r"(?:i|my) preferred (?P<x>[a-z ]+?) (?:is|are) (?:not )?(?P<v>.+)")),
    (
        "take",
        True,
        _rule(r"i (?:take|drink|eat|like) my (?P<x>coffee|tea|eggs|steak|toast) (?P<v>.+)"),
    ),
    (
        "like",
        False,
        _rule(
            r"i (?:do not |never |not |would )?(?:like|liked|love|enjoy|enjoyed|adore|liking|enjoying)(?: not)?(?: to)? (?P<v>.+)"
        ),
    ),
    (
        "like",
        False,
        _rule(
            r"i am(?: not)? (?:fond of|an? (?:big |huge )?fan of|into|interested in|keen on|crazy about) (?P<v>.+)"
        ),
    ),
    (
        "dislike",
        False,
        _rule(
            r"i (?:do not |not )?(?:hate|dislike|despise|detest|can not stand|can not bear|am tired of|am sick of|loathe|hated)(?: not)?(?: to)? (?P<v>.+)"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{_I} (?:have )?(?:switch(?:ed)?|migrated|moved|changed|converted|upgraded)(?: over)?(?: from (?P<w>.+?))? to (?:using )?(?P<v>.+?)(?: for (?P<x>.+))?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{_I} (?:always |do not |not |started )?(?:use|used|using)(?: not)? (?P<v>.+?)(?: (?:for|as (?:my|our|the|an?)) (?P<x>.+))?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{_I} (?:do not |mostly )?(?:write (?:my |our )?code|code|program|develop|deploy|host|run everything)(?: \w+)? (?:in|on|with|to) (?P<v>.+)"
        ),
    ),
    (
        "decision",
        True,
        _rule(
            r"(?:we|i|the team|our team) (?:have |had )?(?:decided|agreed|chose|chosen|settled|opted|picked|selected|are going|will go|went|changed (?:our|my) minds? and chose)"
            r"(?: not)?(?: (?:to (?:use|go with|choose|adopt|pick|deploy (?:on|to)|switch to)|on(?: using)?|with|for using))? (?P<v>.+?)(?: (?:for|as) (?:the |our |my |a )?(?P<x>.+))?"
        ),
    ),
    (
        "have",
        True,
        _rule(
            r"i (?:do not |not )?(?:have|have got|own|keep)(?: not)?(?: any)? (?P<n>an?|no|one|two|three|four|five|six|seven|eight|nine|ten|\d+)? ?(?P<noun>[a-z][a-z -]{1,30}?)"
            r"(?: (?:named|called) .+)?"
        ),
    ),
    ("wear", True, _rule(r"i (?:do not )?wear(?: a| an)? size (?P<v>.+)")),
    (
        "routine",
        True,
        _rule(
            rf"{_I} (?:do not )?(?P<x>(?:get|wake) up|go to (?:bed|sleep|the gym)|sleep|have (?:lunch|dinner|breakfast)|eat (?:lunch|dinner|breakfast)|exercise|work out|start work"
            r"|finish work|meet|work best|study)(?: not)?(?: at| in| on| around| by| from)+(?: the)? (?P<v>.+)"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            rf"(?P<owner>my|our|the) (?P<x>(?!favorite|preferred|birthday)[a-z][a-z' -]{{1,40}}?) (?:{_BE})(?: not)?(?: (?:on|at|in|called|named|due|due on|due by|scheduled for|set for|from|located in))? (?P<v>.+)"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            r"(?P<v>[a-z][\w .-]{0,40}?) is (?:not )?(?P<owner>my|our) (?P<x>(?!favorite)[a-z][a-z' -]{1,30})"
        ),
    ),
    (
        "habit",
        False,
        _rule(
            r"i (?:do not |never |not |will |can not )?(?:(?:stopped|quit|gave up|given up|have stopped|have quit|started|began) )?"
            r"(?P<verb>smok\w*|drink\w*|eat\w*|play\w*|read\w*|watch\w*|exercis\w*|meditat\w*|jog\w*|run|running|swim\w*|cook\w*|driv\w*|danc\w*|sing\w*|paint\w*|gam\w*|vap\w*)(?: not)? ?(?P<v>.*)"
        ),
    ),
)
_STEM = (
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


def words(text: str) -> str:
    """The sentence in lower case without contractions, final marks and double spaces."""
    text = text.lower().strip(" .!~;,")
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    text = re.sub(r"^(?:the user|user)'s\b", "my", text)
    text = re.sub(
        r"^(?:the user|user) (?:is|has)\b",
        lambda m: "i am" if "is" in m[0][-3:] else "i have",
        text,
    )
    text = re.sub(
        r"^(?:the user|user) (\w+?)(?:es|s)\b",
        lambda m: f"i {m[1]}" + ("e" if m[0].endswith("ves") or m[0].endswith("kes") else ""),
        text,
    )
    return " ".join(text.split())


def plain(text: str) -> str:
    """`words` without adverbs and lead-ins that change no fact."""
    text = re.sub(
        r"^(?:that|and|but|so|well|yes|no|ok|also|hi|hello|sorry|remember that|note that)[, ]+",
        "",
        words(text),
    )
    text = _FILLER.sub(" ", text.replace(" no longer ", " not "))
    return " ".join(re.sub(r"\s*,\s*$|^\s*,", "", text).split()).strip(" ,")


def _value(text: str) -> str:
    text = re.sub(r"^(?:an?|the|my|our|some|any)\s+", "", text.strip(" ,"))
    text = re.sub(r"(?:,| but | because | so that | which | and not | not ).*$", "", text)
    return re.sub(r"^(?:an?|the|to)\s+", "", text).strip(" \"'")


def _activity(value: str) -> str:
    """One form for "to run", "running", "runs"."""
    first, _, rest = value.partition(" ")
    stem = re.sub(r"(?<=\w{3})ing$", "", first)
    if stem != first and len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "ls":
        stem = stem[:-1]
    return f"{stem.rstrip('e') if stem != first else first.rstrip('e')} {rest}".strip()


def _fact(key: str, is_single: bool, match: re.Match[str], is_negated: bool) -> list[Fact] | None:
    groups = match.groupdict()
    noun = (groups.get("x") or "").strip()
    if groups.get("profession"):
        profession = groups["profession"].strip()
        last = profession.split()[-1]
        if (
            profession.split()[0].endswith("ing")
            or not _PROFESSION.search(profession)
            or last in _NOT_PROFESSION
        ):
            return None
        groups["v"] = profession
    value = _value(groups.get("v") or "")
    kept: list[Fact] = []
    if key == "have":
        return _possession(groups, is_negated)
    if key == "habit":
        verb = next(full for part, full in _STEM if groups["verb"].startswith(part))
        return [Fact("habit", f"{verb} {lexicon.canonical(value)}".strip(), is_negated, False)]
    if key == "my:":
        return _attribute(groups["owner"], noun, value, is_negated)
    if not value:
        return None
    if key in {"like", "dislike"}:
        name = lexicon.canonical(value)
        is_activity = name.endswith("ing") or lexicon.category(value) is None
        name = _activity(name) if is_activity else name
        return [Fact("like", name, is_negated != (key == "dislike"), False)]
    if key == "favorite":
        noun = attribute("my", noun).removeprefix("my:")
        return [Fact(f"favorite:{noun}", lexicon.canonical(value), is_negated)]
    if key == "take":
        return [Fact(f"take:{noun}", lexicon.canonical(value), is_negated)]
    if key == "routine":
        return [Fact(f"routine:{noun}", lexicon.canonical(value), is_negated)]
    if key == "decision":
        return _decision(noun, value, is_negated)
    if key in {"prefer:", "use:", "favorite:"}:
        return _choice(key, noun, value, groups.get("w"), is_negated)
    if key == "study" and groups.get("school"):
        kept.append(Fact("school", _value(groups["school"])))
    if key == "job" and groups.get("employer"):
        kept.append(Fact("employer", lexicon.canonical(_value(groups["employer"]))))
    if key in {"employment", "job"} and lexicon.category(value) == "employment":
        key = "job"
    return [Fact(key, lexicon.canonical(value), is_negated, is_single), *kept]


def _possession(groups: dict[str, str | None], is_negated: bool) -> list[Fact] | None:
    noun = (groups["noun"] or "").strip()
    number = groups["n"]
    if re.match(
        r"(?:to|been|not|just|never|a |an |question|problem|issue|idea|no idea|time|error|bug|meeting|doubt|look)\b",
        noun,
    ):
        return None
    if noun.split()[-1] in {
        "question",
        "questions",
        "problem",
        "problems",
        "issue",
        "error",
        "errors",
        "idea",
        "bug",
        "time",
        "trouble",
    }:
        return None
    singular = {"children": "child", "kids": "child", "kid": "child"}.get(
        noun
    ) or noun.removesuffix("s")
    count = (
        "0"
        if is_negated or number in {"no", "0"}
        else lexicon.canonical(number)
        if number
        else "some"
    )
    return [Fact(f"have:{singular}", count, False, True)]


def _attribute(owner: str, noun: str, value: str, is_negated: bool) -> list[Fact] | None:
    if not value or noun in {"problem", "question", "point", "idea", "answer"}:
        return None
    is_known = is_functional(noun)
    if not is_known and value.startswith(("not ", "going ", "so ", "very ")):
        return None
    return [
        Fact(
            attribute(owner, noun),
            lexicon.canonical(value),
            is_negated,
            is_known,
            is_known and owner == "my",
        )
    ]


def _decision(noun: str, value: str, is_negated: bool) -> list[Fact]:
    kind, name = lexicon.look_up(value)
    if kind is None:
        found = lexicon.find(value)
        kind, name = found or (None, value)
    about = kind or noun
    return [Fact(f"decision:{about}" if about else "decision", name, is_negated, bool(about))]


def _choice(key: str, noun: str, value: str, other: str | None, is_negated: bool) -> list[Fact]:
    prefix = key.rstrip(":")
    place = (
        re.search(r" (?:at|in) ((?:work|home|school|the office))$", value)
        if prefix == "use"
        else None
    )
    if place:
        value, noun = value[: place.start()], noun or place[1]
    named = lexicon.find(noun) if noun else None
    known = named[0] if named else None
    about = None
    if noun:
        about = (
            lexicon.category(value)
            or known
            or attribute("my", re.sub(r"^(?:my|our|the) ", "", noun)).removeprefix("my:")
        )
    full, name = choice(prefix, value, about=about)
    if prefix == "use" and noun and about == lexicon.category(value):
        full = f"{full} for {noun}"
    facts = [Fact(full, name, is_negated, is_single=full != prefix)]
    if other and prefix == "prefer":
        facts[0] = Fact(full, name, is_negated, is_single=True)
        facts.append(
            Fact("prefer pair", f"{name} > {lexicon.canonical(_value(other))}", is_negated, False)
        )
    return facts


def parse(text: str) -> list[Fact]:
    """The facts of an English sentence, the main one first."""
    sentence = plain(text)
    is_negated = (
        NEGATION.search(
            re.sub(
                r"\b(?:not only|why not)\b|\brather than\b|\b(?:left|right)[- ]handed\b|\bcan not (?:stand|bear)\b",
                "",
                sentence,
            )
        )
        is not None
    )
    if re.search(r",? (?:and )?not (?!\w+ing\b)\w+$", sentence) and not re.search(
        r"\b(?:do|did|am|is|are|will|would|can|have) not", sentence
    ):
        is_negated = False
    for key, is_single, rule in _RULES:
        match = rule.match(sentence)
        if match:
            found = _fact(key, is_single, match, is_negated)
            if found:
                return found
    return []
