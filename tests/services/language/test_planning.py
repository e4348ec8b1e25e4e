import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.language.planning import MAX_STEPS, MIN_STEPS, OutlineStep, outline


def shape(goal):
    return [(step.description, step.depends_on) for step in outline(goal)]


def test_first_then_finally_is_a_chain():
    assert shape("first collect the data, then clean it and finally write a report") == [
        ("Collect the data", []),
        ("Clean it", [0]),
        ("Write a report", [1]),
    ]


def test_parallel_parts_join_in_what_follows():
    assert shape(
        "collect data; then draw the logo and write the copy in parallel; then publish"
    ) == [
        ("Collect data", []),
        ("Draw the logo", [0]),
        ("Write the copy", [0]),
        ("Publish", [1, 2]),
    ]


@pytest.mark.parametrize(
    "goal",
    [
        "1. Buy paint 2. Paint the wall 3. Clean up",
        "1) Buy paint\n2) Paint the wall\n3) Clean up",
        "- Buy paint\n- Paint the wall\n- Clean up",
        "Step 1: Buy paint. Step 2: Paint the wall. Step 3: Clean up.",
    ],
)
def test_lists_become_steps_in_order(goal):
    assert shape(goal) == [("Buy paint", []), ("Paint the wall", [0]), ("Clean up", [1])]


def test_korean_connectives_and_parallel():
    assert shape("먼저 자료를 모으고 그다음 초안을 쓰고 마지막으로 검토하기") == [
        ("자료를 모으기", []),
        ("초안을 쓰기", [0]),
        ("검토하기", [1]),
    ]
    assert shape("로고 디자인과 문구 작성을 동시에 하고 그다음 페이지 게시") == [
        ("로고 디자인", []),
        ("문구 작성", []),
        ("페이지 게시", [0, 1]),
    ]
    assert shape("자료 조사를 한 다음 보고서를 작성") == [
        ("자료 조사", []),
        ("보고서를 작성", [0]),
    ]


def test_code_becomes_a_step_that_runs_it():
    assert outline("run `print(1)`, then review `x then y`") == [
        OutlineStep("Run `print(1)`", "run_code", {"code": "print(1)"}, []),
        OutlineStep("Review `x then y`", "run_code", {"code": "x then y"}, [0]),
    ]
    steps = outline("run\n```python\nprint(1); print(2)\n```")
    assert steps[0].tool == "run_code"
    assert steps[0].arguments == {"code": "print(1); print(2)", "language": "python"}
    assert steps[1] == OutlineStep("Review the output", None, {}, [0])


@pytest.mark.parametrize(
    ("goal", "word"), [("launch a website", "Clarify"), ("부산으로 이사", "목표")]
)
def test_a_goal_in_one_phrase_gets_an_honest_frame(goal, word):
    steps = outline(goal)
    assert [step.depends_on for step in steps] == [[], [0], [0], [1, 2], [3]]
    assert word in steps[0].description
    assert all(step.tool is None for step in steps)
    assert goal.lower() in steps[3].description.lower()


def test_many_parts_are_kept_within_eight_steps():
    steps = outline(", then ".join(f"do part {letter}" for letter in "abcdefghijkl"))
    assert len(steps) == MAX_STEPS
    assert steps[-1].description == "Do part h; Do part i; Do part j; Do part k; Do part l"
    wide = outline("cut " + ", ".join(f"piece {n}" for n in range(20)) + " in parallel, then glue")
    assert len(wide) == MAX_STEPS
    assert "piece 19" in wide[-1].description.lower()


@pytest.mark.parametrize("goal", ["", "   ", "?!", "\x00"])
def test_an_empty_goal_is_refused(goal):
    with pytest.raises(ValueError, match="needs a goal"):
        outline(goal)


PIECES = [
    "then",
    "그다음",
    "in parallel",
    "동시에",
    "1.",
    "2)",
    "`x`",
    "```",
    "\n- ",
    ",",
    "and",
    "a b",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map(" ".join))
def test_any_goal_gives_an_acyclic_plan_of_two_to_eight_steps(goal):
    try:
        steps = outline(goal)
    except ValueError:
        return
    assert MIN_STEPS <= len(steps) <= MAX_STEPS
    for index, step in enumerate(steps):
        assert step.description.strip()
        assert all(0 <= earlier < index for earlier in step.depends_on)
        assert len(step.description) <= 500
