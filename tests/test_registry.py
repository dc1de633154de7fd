from __future__ import annotations

import pytest

from learn_rank.errors import InputError
from learn_rank.registry import look_up

TABLE = {"circle": 1, "square": 2, "line": 3}


def test_a_name_is_an_entry_of_the_table_or_what_a_module_holds() -> None:
    assert look_up("square", TABLE, option="shape") == 2
    assert look_up(f"{__name__}:TABLE", {}, option="shape") is TABLE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oval", r"shape is 'oval', expected circle, square or line, or module:Name of your own"),
        ("nowhere.shapes:Oval", r"shape is 'nowhere\.shapes:Oval': No module named 'nowhere'; expected module:Name"),
        ("json:Oval", r"shape is 'json:Oval': module 'json' has no attribute 'Oval'"),
        (":Oval", r"shape is ':Oval': Empty module name"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        look_up(name, TABLE, option="shape")
    assert "\n" not in str(error.value)
