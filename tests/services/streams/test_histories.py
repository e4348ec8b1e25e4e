"""Readers see everything once and in order, in any history."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.services.streams.conftest import STEPS, Stage, Step


@given(steps=STEPS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reader_sees_everything_once_and_in_order(stage: Stage, steps: list[Step]) -> None:
    stage.play(steps)


@pytest.mark.mysql
@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reader_sees_everything_once_and_in_order_on_mysql(
    mysql_stage: Stage, steps: list[Step]
) -> None:
    mysql_stage.play(steps)
