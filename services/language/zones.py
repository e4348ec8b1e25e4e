"""Places people name when they ask for the time, and their time zones (IANA)."""

import functools
import re
from importlib import resources

_ALIASES = {
    "korea": "Asia/Seoul",
    "south korea": "Asia/Seoul",
    "busan": "Asia/Seoul",
    "japan": "Asia/Tokyo",
    "osaka": "Asia/Tokyo",
    "china": "Asia/Shanghai",
    "beijing": "Asia/Shanghai",
    "india": "Asia/Kolkata",
    "mumbai": "Asia/Kolkata",
    "delhi": "Asia/Kolkata",
    "bangalore": "Asia/Kolkata",
    "vietnam": "Asia/Ho_Chi_Minh",
    "hanoi": "Asia/Ho_Chi_Minh",
    "thailand": "Asia/Bangkok",
    "germany": "Europe/Berlin",
    "munich": "Europe/Berlin",
    "france": "Europe/Paris",
    "spain": "Europe/Madrid",
    "italy": "Europe/Rome",
    "uk": "Europe/London",
    "england": "Europe/London",
    "netherlands": "Europe/Amsterdam",
    "switzerland": "Europe/Zurich",
    "turkey": "Europe/Istanbul",
    "nyc": "America/New_York",
    "boston": "America/New_York",
    "washington": "America/New_York",
    "miami": "America/New_York",
    "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles",
    "california": "America/Los_Angeles",
    "la": "America/Los_Angeles",
    "texas": "America/Chicago",
    "hawaii": "Pacific/Honolulu",
    "new zealand": "Pacific/Auckland",
    "utc": "UTC",
    "gmt": "UTC",
    "kst": "Asia/Seoul",
    "jst": "Asia/Tokyo",
    "서울": "Asia/Seoul",
    "한국": "Asia/Seoul",
    "부산": "Asia/Seoul",
    "대한민국": "Asia/Seoul",
    "도쿄": "Asia/Tokyo",
    "동경": "Asia/Tokyo",
    "일본": "Asia/Tokyo",
    "오사카": "Asia/Tokyo",
    "중국": "Asia/Shanghai",
    "베이징": "Asia/Shanghai",
    "북경": "Asia/Shanghai",
    "상하이": "Asia/Shanghai",
    "홍콩": "Asia/Hong_Kong",
    "타이베이": "Asia/Taipei",
    "대만": "Asia/Taipei",
    "싱가포르": "Asia/Singapore",
    "방콕": "Asia/Bangkok",
    "하노이": "Asia/Ho_Chi_Minh",
    "베트남": "Asia/Ho_Chi_Minh",
    "인도": "Asia/Kolkata",
    "두바이": "Asia/Dubai",
    "모스크바": "Europe/Moscow",
    "런던": "Europe/London",
    "영국": "Europe/London",
    "파리": "Europe/Paris",
    "프랑스": "Europe/Paris",
    "베를린": "Europe/Berlin",
    "독일": "Europe/Berlin",
    "로마": "Europe/Rome",
    "이탈리아": "Europe/Rome",
    "마드리드": "Europe/Madrid",
    "스페인": "Europe/Madrid",
    "뉴욕": "America/New_York",
    "워싱턴": "America/New_York",
    "보스턴": "America/New_York",
    "시카고": "America/Chicago",
    "로스앤젤레스": "America/Los_Angeles",
    "샌프란시스코": "America/Los_Angeles",
    "시애틀": "America/Los_Angeles",
    "토론토": "America/Toronto",
    "밴쿠버": "America/Vancouver",
    "상파울루": "America/Sao_Paulo",
    "시드니": "Australia/Sydney",
    "하와이": "Pacific/Honolulu",
    "세계 표준시": "UTC",
    "협정 세계시": "UTC",
}


@functools.cache
def _cities() -> dict[str, str]:
    """The last part of every zone's name, in lower case with spaces, to the zone."""
    names = (resources.files("tzdata") / "zones").read_text(encoding="ascii").split()
    cities = {name.lower(): name for name in names}
    for name in names:
        area, _, city = name.rpartition("/")
        if area and area.partition("/")[0] not in {"Etc", "SystemV", "US", "Canada"}:
            cities.setdefault(city.replace("_", " ").lower(), name)
    return cities


def find(place: str) -> str | None:
    """The zone of a city, country or zone name in English or Korean; None if it is not known."""
    key = re.sub(r"\s+", " ", place).strip(" .,?!\"'").lower().removeprefix("the ")
    return _ALIASES.get(key) or _cities().get(key) or _cities().get(key.replace(" ", "_"))
