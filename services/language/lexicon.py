"""Words that exclude each other: values of one kind, with their English and Korean names.

Two values of one category cannot both be what somebody prefers; values of different categories
say nothing about each other. Canonical names join both languages ("서울" is "seoul").
"""

import functools
import re

_CATEGORIES: dict[str, str] = {
    "units": "metric=미터법,미터,si,kilometers,kilometres,km,kilograms,kg,centimeters|"
    "imperial=야드파운드법,야드파운드,feet,miles,pounds,us customary,customary,inches,인치,마일"
    ",파운드",
    "temperature": "celsius=섭씨,centigrade,°c|fahrenheit=화씨,°f|kelvin=켈빈",
    "clock": "12-hour=12 hour,12h,12시간제,12시간,am/pm"
    "|24-hour=24 hour,24h,24시간제,24시간,military time",
    "theme": "dark=다크,어두운,night mode,다크모드|light=라이트,밝은,bright,white,라이트모드",
    "drink": "coffee=커피,espresso,americano,아메리카노,latte,라떼"
    "|tea=차,green tea,녹차,홍차,black tea|"
    "water=물,sparkling water|juice=주스|beer=맥주|wine=와인|milk=우유|cola=콜라,coke|soju=소주|"
    "cocoa=hot chocolate,코코아",
    "language": "english=영어,영문|korean=한국어,한글,우리말|japanese=일본어"
    "|chinese=중국어,mandarin|"
    "spanish=스페인어|french=프랑스어,불어|german=독일어|italian=이탈리아어|russian=러시아어|"
    "portuguese=포르투갈어|arabic=아랍어|hindi=힌디어|vietnamese=베트남어|thai=태국어",
    "programming": "python=파이썬|rust=러스트|go=golang,고랭|java=자바|javascript=자바스크립트,js|"
    "typescript=타입스크립트,ts|c++=cpp|c#=csharp|c|ruby=루비|kotlin=코틀린|swift=스위프트"
    "|scala|haskell|"
    "php|elixir|perl|julia|r|clojure|ocaml|zig",
    "editor": "vim=neovim,빔|emacs=이맥스|vs code=vscode,visual studio code,비주얼 스튜디오 코드|"
    "pycharm=파이참|sublime=sublime text|nano|intellij|zed|notepad++|jetbrains|eclipse=이클립스"
    "|cursor",
    "system": "linux=리눅스,ubuntu,우분투,debian,fedora,arch linux|windows=윈도우,윈도"
    "|macos=mac,맥,osx,맥북,macbook",
    "phone": "iphone=아이폰,ios|android=안드로이드,galaxy,갤럭시,pixel",
    "browser": "firefox=파이어폭스|chrome=크롬|safari=사파리|edge=엣지|brave|opera|웨일=whale",
    "database": "postgresql=postgres,포스트그레스,psql|mysql=마이에스큐엘|mariadb|sqlite"
    "|mongodb=mongo,몽고디비|"
    "oracle=오라클|redis=레디스|dynamodb|cassandra|sql server",
    "framework": "react=리액트|vue=뷰|angular=앵귤러|svelte|django=장고|flask=플라스크|fastapi"
    "|rails|spring=스프링|"
    "next.js=nextjs|express|laravel",
    "cloud": "aws=amazon web services|gcp=google cloud,구글 클라우드|azure=애저|heroku"
    "|digitalocean|on-premise=on premises",
    "tracker": "jira=지라|linear|trello=트렐로|asana=아사나|notion=노션|github issues",
    "chat": "slack=슬랙|discord=디스코드|teams=microsoft teams,팀즈|telegram=텔레그램|whatsapp"
    "|kakaotalk=카카오톡,카톡|"
    "email=이메일,mail,메일|phone call=phone calls,전화|sms=text message,문자",
    "color": "red=빨간색,빨강|blue=파란색,파랑,navy|green=초록색,초록,녹색|yellow=노란색,노랑"
    "|black=검은색,검정,검정색|"
    "white=흰색,하얀색|purple=보라색,보라,violet|orange=주황색|pink=분홍색,핑크|brown=갈색"
    "|gray=grey,회색|"
    "teal=청록색|gold=금색|silver=은색|turquoise",
    "weekday": "monday=월요일,mondays|tuesday=화요일,tuesdays|wednesday=수요일,wednesdays"
    "|thursday=목요일,thursdays|"
    "friday=금요일,fridays|saturday=토요일,saturdays|sunday=일요일,sundays",
    "month": "january=1월|february=2월|march=3월|april=4월|may=5월|june=6월|july=7월|august=8월"
    "|september=9월|"
    "october=10월|november=11월|december=12월",
    "day part": "morning=아침,오전,mornings,early|afternoon=오후,afternoons|evening=저녁,evenings|"
    "night=밤,nights,late|noon=정오|dawn=새벽",
    "season": "spring=봄|summer=여름|autumn=가을,fall|winter=겨울",
    "pet": "dog=강아지,개,dogs,puppy|cat=고양이,cats,kitten|hamster=햄스터|rabbit=토끼"
    "|parrot=앵무새,bird,새",
    "transport": "car=자동차,자가용,승용차,driving|bus=버스|subway=지하철,metro,underground"
    "|train=기차,전철,trains|"
    "bike=자전거,bicycle,cycling,bikes|foot=걸어서,도보,walking,on foot,walk|taxi=택시"
    "|plane=비행기,flying,planes|"
    "scooter=스쿠터|motorcycle=오토바이",
    "diet": "vegetarian=채식주의자,채식,베지테리언|vegan=비건|pescatarian=페스코"
    "|omnivore=잡식,meat eater|"
    "carnivore|keto=키토|halal=할랄|kosher|meat=고기,육류",
    "length": "short=짧은,짧게,간결한,간결하게,brief,concise,terse,succinct,간단한,간단하게"
    ",shorter|"
    "long=긴,길게,detailed,자세한,자세하게,상세한,상세하게,verbose,thorough,longer,in depth,in"
    " detail",
    "tone": "formal=격식,정중한,존댓말,존댓말로,professional,politely"
    "|casual=반말,반말로,편한,informal,friendly,친근한",
    "indentation": "tabs=탭,tab|spaces=스페이스,공백,space",
    "seat": "window=창가|aisle=통로|middle=가운데",
    "workplace": "home=재택,재택근무,remotely,remote,from home,원격,집에서"
    "|office=사무실,출근,on site,on-site,"
    "in the office,오피스|hybrid=하이브리드",
    "payment": "card=카드,credit card|cash=현금|bank transfer=계좌이체,transfer",
    "currency": "usd=dollars,달러,us dollars|eur=euros,유로,euro|krw=won,원,원화"
    "|gbp=pounds sterling|jpy=yen,엔",
    "date format": "iso=iso 8601,yyyy-mm-dd|american=mm/dd/yyyy|european=dd/mm/yyyy",
    "format": "bullet=bullets,bullet points,list,lists,목록,글머리표"
    "|prose=paragraphs,paragraph,줄글,산문|table=tables,표,표로",
    "spice": "spicy=매운,매운맛,hot food|mild=순한,안 매운,순한맛",
    "activity": "tea ceremony=다도",
    "marital": "single=미혼,독신,싱글|married=기혼,결혼|divorced=이혼|engaged=약혼|widowed=사별",
    "employment": "retired=은퇴|unemployed=백수,실직,between jobs|self-employed=자영업,자영업자"
    "|student=학생,대학생|freelancer="
    "freelance,프리랜서",
    "hand": "left-handed=왼손잡이,left handed|right-handed=오른손잡이,right handed"
    "|ambidextrous=양손잡이",
    "sport": "soccer=축구,football|baseball=야구|basketball=농구|tennis=테니스|swimming=수영"
    "|golf=골프|running=달리기,"
    "jogging|badminton=배드민턴|volleyball=배구|hiking=등산",
    "media": "books=책,book,paper books,종이책|ebooks=전자책,e-books|audiobooks=오디오북"
    "|movies=영화,films|videos=동영상,영상",
    "meal": "breakfast=아침 식사,아침밥|lunch=점심,점심 식사|dinner=저녁 식사,저녁밥",
    "cuisine": "korean food=한식|japanese food=일식|chinese food=중식|western food=양식"
    "|italian food|thai food",
    "license": "mit=mit license|apache=apache 2,apache-2.0|gpl=gplv3|bsd",
    "architecture": "monolith=모놀리스,모놀리식|microservices=마이크로서비스",
    "api": "rest=레스트|graphql=그래프큐엘|grpc",
    "status": "open=열려|closed=닫혀|active=활성|paused=중단|done=finished,completed,끝"
    "|cancelled=canceled,취소",
}
# Places: one category, so that a move is recognised and both languages agree.
_PLACES = (
    "seoul=서울|busan=부산|incheon=인천|daegu=대구|daejeon=대전|gwangju=광주|ulsan=울산"
    "|jeju=제주,제주도|"
    "suwon=수원|sejong=세종|pangyo=판교|gangnam=강남|bundang=분당|tokyo=도쿄,동경|osaka=오사카"
    "|kyoto=교토|"
    "beijing=베이징,북경|shanghai=상하이|hong kong=홍콩|taipei=타이베이|singapore=싱가포르"
    "|bangkok=방콕|"
    "london=런던|paris=파리|berlin=베를린|munich=뮌헨|hamburg=함부르크|madrid=마드리드"
    "|rome=로마|milan=밀라노|"
    "amsterdam=암스테르담|vienna=빈|zurich=취리히|lisbon=리스본|dublin=더블린|prague=프라하|warsaw|"
    "new york=뉴욕,nyc,new york city|boston=보스턴|chicago=시카고|seattle=시애틀"
    "|los angeles=로스앤젤레스,la|"
    "san francisco=샌프란시스코|toronto=토론토|vancouver=밴쿠버|sydney=시드니|melbourne=멜버른|"
    "korea=한국,대한민국,south korea|japan=일본|china=중국"
    "|usa=미국,the united states,united states,america,us|"
    "uk=영국,england,the uk,united kingdom|germany=독일|france=프랑스|canada=캐나다"
    "|australia=호주|india=인도|"
    "spain=스페인|italy=이탈리아|vietnam=베트남|thailand=태국"
)
# Head nouns that only repeat what the category says: "metric units" is "metric".
_HEADS = (
    r"\s*(?:(?:units?|system|measurements?|measures?|mode|modes|theme|themes|time|format|clock"
    r"|degrees|language|color"
    r"|colour|editor|database|browser|시스템|단위|모드|테마|형식|색|언어|에디터|편집기"
    r"|데이터베이스|브라우저|도시)\s*)+$"
)
_HEAD = re.compile(_HEADS)
_NUMBER_WORDS = {
    **dict.fromkeys(("no", "zero", "none"), "0"),
    **dict.fromkeys(("one", "a", "an", "한", "하나"), "1"),
    **dict.fromkeys(("two", "a couple of", "두", "둘"), "2"),
    **dict.fromkeys(("three", "세", "셋"), "3"),
    **dict.fromkeys(("four", "네", "넷"), "4"),
    **dict.fromkeys(("five", "다섯"), "5"),
    **dict.fromkeys(("six", "여섯"), "6"),
    **dict.fromkeys(("seven", "일곱"), "7"),
    **dict.fromkeys(("eight", "여덟"), "8"),
    **dict.fromkeys(("nine", "아홉"), "9"),
    **dict.fromkeys(("ten", "열"), "10"),
    **dict.fromkeys(("eleven", "열한"), "11"),
    **dict.fromkeys(("twelve", "열두"), "12"),
}
_TIME = re.compile(
    r"(?:at )?(?:오전|오후|아침|저녁|새벽|밤)?\s*\d{1,2}(?::\d{2}|\s*(?:am|pm|a\.m\.|p\.m\."
    r"|o'clock|시))"
    r"(?:\s*(?:am|pm|\d{1,2}분|반))?|\w+ o'clock"
)


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    rf"{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|\d{{1,2}}(?:st|nd|rd"
    rf"|th)? (?:of )?{_MONTH}(?: \d{{4}})?"
    r"|\d{4}-\d\d-\d\d|\d{1,2}월 ?\d{1,2}일|\d{1,2}/\d{1,2}"
)


@functools.cache
def _names() -> dict[str, tuple[str, str]]:
    """Every name to its category and canonical name; the first category to claim a name has it."""
    names: dict[str, tuple[str, str]] = {}
    for category, entries in {**_CATEGORIES, "place": _PLACES}.items():
        for entry in entries.split("|"):
            canonical, _, others = entry.partition("=")
            for name in (canonical, *filter(None, others.split(","))):
                names.setdefault(name, (category, canonical))
    return names


def look_up(value: str) -> tuple[str | None, str]:
    """The category and canonical name of a value in lower case; (None, value) where unknown.

    "metric units" → ("units", "metric"); "three" → ("number", "3"); "7 am" → ("time", "7 am").
    """
    names = _names()
    value = value.strip()
    if value in names:
        return names[value]
    if value.endswith("s") and value[:-1] in names:
        return names[value[:-1]]
    short = _HEAD.sub("", value)
    if short != value and short in names:
        return names[short]
    if value in _NUMBER_WORDS:
        return "number", _NUMBER_WORDS[value]
    if _TIME.fullmatch(value):
        return "time", re.sub(r"^at ", "", re.sub(r"\s+", " ", value))
    if re.fullmatch(r"[$₩€]?\d[\d.,]*\s*(?:%|k|m|kg|cm|명|개|살|세|원|만원|층|호)?", value):
        return "number", value.replace(",", "")
    if _DATE.fullmatch(value):
        return "date", re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|,", "", value)
    if re.fullmatch(r"\d{1,4}(?:st|nd|rd|th)", value):
        return "ordinal", value
    return None, value


def canonical(value: str) -> str:
    """The canonical name of a value, itself where unknown."""
    return look_up(value)[1]


def category(value: str) -> str | None:
    """The category of a value, None where unknown."""
    return look_up(value)[0]


def find(text: str) -> tuple[str, str] | None:
    """The first named value inside a phrase, by its longest name: (category, canonical)."""
    words = text.split()
    for size in (3, 2, 1):
        for start in range(len(words) - size + 1):
            kind, name = look_up(" ".join(words[start : start + size]))
            if kind is not None and kind != "number":
                return kind, name
    return None
