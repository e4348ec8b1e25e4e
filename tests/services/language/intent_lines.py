"""Lines whose intent was decided by hand before anything was measured on them; none is a seed."""

ENGLISH: dict[str, tuple[str, ...]] = {
    "run_code": (
        "Run `print(sum(range(10)))`",
        "could you execute this python script: ```python\nprint('hi')\n```",
        "evaluate this snippet for me: `len('abc')`",
        "I need you to run a bash command",
    ),
    "remember": (
        "Remember that my dentist is called Dr. Lee.",
        "Please keep in mind that I am allergic to peanuts",
        "make a note: the wifi password is on the fridge",
        "don't forget that I prefer window seats",
    ),
    "recall": (
        "What did I tell you about my dentist?",
        "do you remember which seat I like?",
        "what's my favourite colour?",
        "remind me what we decided about the logo",
    ),
    "create_plan": (
        "Make a plan to move to a new flat",
        "plan a birthday party for ten people",
        "draw up a step-by-step plan for learning Spanish",
        "can you break this project down into steps?",
    ),
    "run_plan": (
        "Run the plan",
        "please start the last plan now",
        "carry out the plan we made",
    ),
    "ask_time": (
        "What time is it?",
        "what's the current time in Tokyo",
        "do you know what the date is today?",
    ),
    "calculate": ("what is 12 * 7?", "calculate 15% of 240"),
    "greeting": ("Hi there!", "good evening", "hey, how is it going?"),
    "thanks": ("Thanks a lot!", "I really appreciate your help", "thank you for explaining that"),
    "farewell": ("bye!", "see you tomorrow", "have a good night, talk to you later"),
    "help": ("help", "What can you do?", "how do I use this assistant?"),
    "identity": ("Who are you, actually?", "are you a human or a machine?"),
    "question": (
        "Why is the sky blue?",
        "How tall is Mount Everest?",
        "which city has the most bridges?",
        "Is a tomato a fruit?",
    ),
    "statement": (
        "I went to the cinema with my sister yesterday.",
        "The garden gate squeaks.",
        "Our printer ran out of ink.",
        "It rained all week in Glasgow.",
    ),
}
KOREAN: dict[str, tuple[str, ...]] = {
    "run_code": (
        "`print(1 + 1)` 실행해 줘",
        "이 파이썬 코드를 돌려 줄래?\n```python\nprint('안녕')\n```",
        "명령어 하나 실행해 줄 수 있어?",
    ),
    "remember": (
        "내 생일이 5월 3일이라는 걸 기억해 줘",
        "나는 창가 자리를 좋아한다고 기억해",
        "메모해 줘: 우리 집 비밀번호는 냉장고에 있어",
    ),
    "recall": (
        "내 생일이 언제인지 기억나?",
        "내가 좋아하는 색이 뭐였지?",
        "저번에 로고에 대해 뭐라고 정했지?",
    ),
    "create_plan": (
        "이사 계획을 세워 줘",
        "제주도 여행 계획 좀 짜 줘",
        "이 일을 단계별로 나눠 줄래?",
    ),
    "run_plan": ("계획을 실행해 줘", "방금 만든 계획 시작해 줘"),
    "ask_time": ("지금 몇 시야?", "오늘 무슨 요일이야?", "뉴욕은 지금 몇 시예요?"),
    "greeting": ("안녕하세요!", "좋은 저녁이에요", "오랜만이야, 잘 지냈니?"),
    "thanks": ("고마워요", "도와줘서 정말 고마워", "친절하게 알려 주셔서 감사드려요"),
    "farewell": ("잘 자", "내일 또 봐요", "이만 가 볼게, 안녕히 계세요"),
    "help": ("도움말", "너 뭘 할 수 있어?", "이거 어떻게 쓰는 거야?"),
    "identity": ("넌 누구야?", "사람이에요, 기계예요?"),
    "question": (
        "하늘은 왜 파란가요?",
        "에베레스트 산은 얼마나 높아?",
        "세계에서 가장 긴 강이 뭐야?",
        "토마토는 과일인가요?",
    ),
    "statement": (
        "어제 누나랑 영화를 봤어.",
        "프린터 잉크가 다 떨어졌어.",
        "일주일 내내 비가 왔다.",
        "마당에 감나무가 한 그루 있다.",
    ),
}
