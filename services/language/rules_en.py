"""The patterns of English sentences that tell facts."""

import re


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"^{pattern}$")


BE = (
    r"(?:is|are|was changed to|changed to|has changed to|is changed to|will be|has moved to"
    r"|moved to|is set to|has been moved to|(?:was|were|got|has been|have been) (?:moved"
    r"|changed|rescheduled|pushed|postponed|set|switched)"
    r"(?: back| forward)?(?: from .+?)? to)"
)
SELF = r"(?:i|we)"

# (key, single, rule); a key ending in ":" takes the kind of its value.
RULES: tuple[tuple[str, bool, re.Pattern[str]], ...] = (
    (
        "name",
        True,
        _rule(
            r"(?:my (?:full |real |first |new )?name (?:is|changed to|was changed to)(?: not)?"
            r"|i am(?: not)? called"
            r"|i changed my name to|i am named) (?P<v>.+?)"
        ),
    ),
    (
        "nickname",
        True,
        _rule(
            r"(?:please )?(?:do not )?(?:call me|you can call me|people call me|friends call me"
            r"|i go by"
            r"(?: the name)?|i (?:would )?(?:like|prefer|want) to be called"
            r"|address me as) (?P<v>.+?)"
        ),
    ),
    (
        "residence",
        True,
        _rule(
            r"(?:i|we) (?:do not |no longer |not )?(?:live|living|reside|am living|am based"
            r"|am staying|am residing|settled(?: down)?)"
            r"(?: not)? (?:in|at|near) (?P<v>.+?)"
        ),
    ),
    (
        "residence",
        True,
        _rule(
            r"(?:i|we) (?:am |have |am not )?(?:moved?|moving|relocated?|relocating|emigrated"
            r"|immigrated)(?: house| away| over)?"
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
            r"(?:i|we) (?:am|are|got|have got|became|am getting)(?: not)? (?P<v>married|single"
            r"|divorced|engaged|widowed)(?: to .+)?"
        ),
    ),
    ("hand", True, _rule(r"i am(?: not)? (?P<v>(?:left|right)[- ]handed|ambidextrous)")),
    (
        "diet",
        True,
        _rule(
            r"i (?:am|became|have become|turned|went"
            r"|have gone)(?: not)?(?: an?)? (?P<v>vegetarian|vegan|pescatarian|omnivore"
            r"|carnivore|keto)"
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
            r"i (?:do not )?work (?P<v>from home|remotely|remote|in the office|from the office"
            r"|in an office|hybrid|on[- ]site)"
        ),
    ),
    (
        "job",
        True,
        _rule(
            r"i (?:do not |not )?(?:work|working|am working|worked|started working|got hired"
            r"|was hired|started)(?: not)? as (?:an? |the )?"
            r"(?P<v>.+?)(?: (?:at|for|with) (?P<employer>.+))?"
        ),
    ),
    (
        "job",
        True,
        _rule(
            r"(?:my (?:job|occupation|profession|job title|position|role) (?:is|changed to)"
            r"|i (?:became|have become|got promoted to"
            r"|was promoted to|am employed as|trained as|switched (?:jobs"
            r"|careers) to(?: be)?))(?: not)? (?:an? |the |being an? )?"
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
            r"i am(?: not)?(?: an?| the)? (?P<profession>[a-z][a-z /-]{2,40}?)(?: (?:at|for"
            r"|with|of|by profession|by trade)(?: (?P<employer>.+))?)?"
        ),
    ),
    (
        "employer",
        True,
        _rule(
            r"i (?:do not |no longer |not |have )?(?:work|working|am working|am employed|joined"
            r"|started(?: working)?|moved over|switched jobs|changed jobs"
            r"|got a job|took a job|got hired)(?: not)? (?:at|for|by|to|with) (?P<v>.+)"
        ),
    ),
    ("employer", True, _rule(r"i (?:have )?joined (?P<v>.+)")),
    (
        "employer",
        True,
        _rule(
            r"i (?:have )?(?:left|quit|resigned from)(?: my job at| my position at"
            r"| from)? (?P<v>(?!smoking|drinking|sugar|coffee).+)"
        ),
    ),
    (
        "study",
        True,
        _rule(
            r"i (?:am |do not )?(?:stud(?:y|ying|ied)|majoring|major|switched my major"
            r"|changed my major)(?: not)?(?: in| to)? (?P<v>(?!at ).+?)(?: at (?P<school>.+))?"
        ),
    ),
    (
        "school",
        True,
        _rule(
            r"i (?:am |do not )?(?:stud(?:y|ying)|go to school|go to college"
            r"|transferred)(?: not)? (?:at|to) (?P<v>.+)"
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
            r"i (?:can |do not |can not |could )?speak(?: not)?(?: fluent| some"
            r"| a little)? (?P<v>.+?)(?: fluently)?"
        ),
    ),
    ("drive", True, _rule(r"i (?:do not )?drive (?:an? )(?P<v>.+)")),
    (
        "commute",
        True,
        _rule(
            r"i (?:do not )?(?:commute|go|get|travel|drive|cycle|walk|bike)(?: to (?:work"
            r"|school|the office))? (?:by|on|with)(?: an?| the)? (?P<v>.+?)"
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
            r"my (?:all[- ]time |most )?favorite (?P<x>[a-z ]+?) (?:is|are|is now|changed to"
            r"|became|has become)(?: not)? (?P<v>.+)"
        ),
    ),
    (
        "favorite",
        True,
        _rule(
            r"(?P<v>.+?) (?:is|are|became"
            r"|has become) (?:not )?my (?:all[- ]time )?(?:new )?favorite (?P<x>[a-z ]+)"
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
            rf"{SELF} (?:would |do )?(?:not )?(?:prefer(?:red|s)?|favor|would rather(?: have"
            rf"| use)?|rather have|rather use)(?: (?:using|to use|having|to have|to drink"
            rf"|drinking|to get"
            r"|getting|to be given|to see|seeing|to work with|working with|to write in"
            r"|writing in|to code in|coding in|to program in))? (?P<v>.+?)"
            r"(?: (?:over|to|instead of|rather than|than|not) (?P<w>(?!work|use|be\b"
            r"|the office).+))?"
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
            r"i (?:do not |never |not |would )?(?:like|liked|love|enjoy|enjoyed|adore|liking"
            r"|enjoying)(?: not)?(?: to)? (?P<v>.+)"
        ),
    ),
    (
        "like",
        False,
        _rule(
            r"i am(?: not)? (?:fond of|an? (?:big |huge )?fan of|into|interested in|keen on"
            r"|crazy about) (?P<v>.+)"
        ),
    ),
    (
        "dislike",
        False,
        _rule(
            r"i (?:do not |not )?(?:hate|dislike|despise|detest|can not stand|can not bear"
            r"|am tired of|am sick of|loathe|hated)(?: not)?(?: to)? (?P<v>.+)"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{SELF} (?:have )?(?:switch(?:ed)?|migrated|moved|changed|converted"
            rf"|upgraded)(?: over)?(?: from (?P<w>.+?))? to (?:using )?(?P<v>.+?)(?: for"
            rf" (?P<x>.+))?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{SELF} (?:always |do not |not |started )?(?:use|used"
            rf"|using)(?: not)? (?P<v>.+?)(?: (?:for|as (?:my|our|the|an?)) (?P<x>.+))?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{SELF} (?:do not |mostly )?(?:write (?:my |our )?code|code|program|develop|deploy"
            rf"|host|run everything)(?: \w+)? (?:in|on|with|to) (?P<v>.+)"
        ),
    ),
    (
        "decision",
        True,
        _rule(
            r"(?:we|i|the team|our team) (?:have |had )?(?:decided|agreed|chose|chosen|settled"
            r"|opted|picked|selected|are going|will go|went|changed (?:our|my) minds? and chose)"
            r"(?: not)?(?: (?:to (?:use|go with|choose|adopt|pick|deploy (?:on|to)|switch to)"
            r"|on(?: using)?|with|for using))? (?P<v>.+?)(?: (?:for|as) (?:the |our |my "
            r"|a )?(?P<x>.+))?"
        ),
    ),
    (
        "have",
        True,
        _rule(
            r"i (?:do not |not )?(?:have|have got|own|keep)(?: not)?(?: any)? (?P<n>an?|no|one"
            r"|two|three|four|five|six|seven|eight|nine|ten|\d+)? ?(?P<noun>[a-z][a-z -]{1,30}?)"
            r"(?: (?:named|called) .+)?"
        ),
    ),
    ("wear", True, _rule(r"i (?:do not )?wear(?: a| an)? size (?P<v>.+)")),
    (
        "routine",
        True,
        _rule(
            rf"{SELF} (?:do not )?(?P<x>(?:get|wake) up|go to (?:bed|sleep|the gym)|sleep"
            rf"|have (?:lunch|dinner|breakfast)|eat (?:lunch|dinner|breakfast)|exercise"
            rf"|work out|start work"
            r"|finish work|meet|work best|study)(?: not)?(?: at| in| on| around| by"
            r"| from)+(?: the)? (?P<v>.+)"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            rf"(?P<owner>my|our|the) (?P<x>(?!favorite|preferred"
            rf"|birthday)[a-z][a-z' -]{{1,40}}?) (?:{BE})(?: not)?(?: (?:on|at|in|called|named"
            rf"|due|due on|due by|scheduled for|set for|from|located in))? (?P<v>.+)"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            r"(?P<v>[a-z][\w .-]{0,40}?) is (?:not )?(?P<owner>my"
            r"|our) (?P<x>(?!favorite)[a-z][a-z' -]{1,30})"
        ),
    ),
    (
        "habit",
        False,
        _rule(
            r"i (?:do not |never |not |will |can not )?(?:(?:stopped|quit|gave up|given up"
            r"|have stopped|have quit|started|began) )?"
            r"(?P<verb>smok\w*|drink\w*|eat\w*|play\w*|read\w*|watch\w*|exercis\w*|meditat\w*"
            r"|jog\w*|run|running|swim\w*|cook\w*|driv\w*|danc\w*|sing\w*|paint\w*|gam\w*"
            r"|vap\w*)(?: not)? ?(?P<v>.*)"
        ),
    ),
)
