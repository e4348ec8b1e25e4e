"""Words that carry a tone, with how much of it (-3…3), in English and Korean.

English entries are whole words; Korean ones are stems, found at the beginning of a word.
"""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _weighed(**groups: str) -> dict[str, float]:
    return {
        word: float(name.replace("minus", "-").lstrip("_"))
        for name, words in groups.items()
        for word in words.split()
    }


ENGLISH = _weighed(
    _3="""amazing awesome best brilliant excellent fantastic incredible love loved loves
    marvellous marvelous outstanding perfect perfectly superb wonderful adore adored delighted
    thrilled magnificent stunning gorgeous exceptional flawless""",
    _2="""beautiful charming cool delicious delight delightful enjoy enjoyed enjoying
    enjoyable excited exciting fabulous glad great grateful happy happily hilarious hooray
    impressed impressive joy kind lovely lucky pleasant pleased proud recommend recommended
    relieved satisfied smooth smoothly success successful terrific thank thanks thankful tasty
    yay bravo congratulations comfortable elegant generous inspiring masterpiece refreshing
    splendid won""",
    _1="""accurate appreciate appreciated better calm clean clear convenient easy easier
    faster fine friendly fun funny good helpful helped helps improved improves improvement
    interesting like liked likes neat nice polite reliable solved succeeded sweet useful well
    wow fresh handy fixed affordable fair""",
    minus3="""abysmal appalling atrocious awful disaster disastrous disgusting dreadful
    furious hate hated hates horrible horribly horrific nightmare pathetic terrible terribly
    worst unacceptable unbearable heartbroken devastated scam disgrace""",
    minus2="""angry annoyed annoying bad boring broken broke cancelled canceled cheated
    confusing crap crash crashed crashes crashing dirty disappointed disappointing
    disappointment dislike embarrassing fail failed failing fails failure frustrated
    frustrating garbage inferior lonely lost mess miserable misleading nasty overpriced pain
    painful painfully poor poorly refund regret rude ruined sad sick stupid stressful suck
    sucks trash ugly unhappy unfriendly unreliable unusable upset useless waste wasted worse
    worried worthless wrong damaged died crying afraid scared exhausted depressed sadly
    unfortunately dull insulting unfair""",
    minus1="""bug bugs buggy cold complain complaint complaints complicated difficult error
    errors expensive flaw flaws ignored issue issues late missed missing noisy problem
    problems slow slower stuck tired trouble weak tedious unclear outdated delayed delays
    lacking harder annoys fell unable""",
)
KOREAN = _weighed(
    _3="""최고 완벽 훌륭 환상적 사랑해 사랑스 대박 감동 끝내주 끝내준 황홀 탁월""",
    _2="""좋 마음에들 행복 기쁘 기뻐 기쁨 즐거 즐겁 재밌 재미있 맛있 멋지 멋진 멋져 멋있 예쁘
    예뻐 예쁜 예뻤 아름다 아름답 감사 고마 고맙 만족 뿌듯 자랑스 설레 설렌 신나 신난 신났 다행
    추천 축하 뛰어나 뛰어난 반가 반갑 웃기 웃긴 사랑 합격 편해졌 빨라져 빨라졌 나아졌 든든
    보람""",
    _1="""괜찮 편리 편하 편해 친절 깔끔 유용 쉽고 쉬워 쉬운 도움 덕분 해결 깨끗 빨라서 빠르고
    시원 성공 안심 흥미 훌륭히 믿을""",
    minus3="""최악 끔찍 형편없 쓰레기 역겹 역겨 미치겠 혐오 증오 경악 빡치 빡쳐""",
    minus2="""싫 나쁘 나빠 나쁜 나빴 짜증 화나 실망 불편 불친절 불만 별로 지루 재미없 맛없
    슬프 슬퍼 슬픈 슬펐 우울 외롭 외로 힘들 힘든 속상 후회 답답 엉망 낭비 고장 아프 아파 무섭
    무서 두렵 두려 걱정 괴롭 괴로 억울 짜증나 망했 망쳤 망가 떨어졌 떨어져서 무례 더럽 더러
    날아갔 못쓰 꺼져 화났 스트레스 쓸모없 피곤 지쳤 지친 어이없 황당""",
    minus1="""느리 느려 느린 느렸 비싸 비싼 아쉽 아쉬 어렵 어려 오류 문제 버그 복잡 틀렸 틀린
    늦게 늦고 늦어 부족 차갑 시끄 실패 깨졌 깨져 귀찮 깨진 멈췄 졌다 짜고 잘못 어겼 번거""",
)
ENGLISH_NEGATIONS = _words(
    "not no never none nobody nothing neither nor without hardly barely scarcely cannot cant dont "
    "doesnt didnt isnt wasnt arent werent wont wouldnt couldnt shouldnt havent hasnt hadnt "
    "aint"
)
ENGLISH_STRONGER = _words(
    "very really so extremely absolutely totally completely incredibly super truly highly too such "
    "utterly deeply simply horribly terribly painfully"
)
ENGLISH_WEAKER = _words("slightly somewhat fairly rather little bit kinda mildly")
KOREAN_STRONGER = _words("너무 정말 진짜 매우 아주 완전 무척 굉장히 엄청 훨씬 몹시 참 되게")
KOREAN_WEAKER = _words("조금 좀 약간 다소 그다지")
