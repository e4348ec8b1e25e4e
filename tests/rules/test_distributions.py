"""Our top-level names are ours: nothing in site-packages may stand in for them."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_NAMES = (
    *("app", "schema", "resolvers", "services", "models", "sandbox", "migrations"),
    *("tests", "benchmarks"),
)


def test_no_installed_distribution_claims_a_name_of_ours() -> None:
    claims = {
        name: distributions
        for name, distributions in importlib.metadata.packages_distributions().items()
        if name in _NAMES
    }
    assert claims == {}


@pytest.mark.parametrize("name", [name for name in _NAMES if (_ROOT / name).is_dir()])
def test_the_name_is_found_in_this_checkout(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    assert [Path(place) for place in spec.submodule_search_locations] == [_ROOT / name]
    assert spec.origin == str(_ROOT / name / "__init__.py"), "a package needs its __init__.py"
