"""The tables of what a config can name."""

import pytest

from lt_train.config.schema import BACKBONES, LOSSES, METHODS, SAMPLERS, code_of

TABLES = {"methods": METHODS, "losses": LOSSES, "samplers": SAMPLERS, "backbones": BACKBONES}


@pytest.mark.parametrize("kind", TABLES)
def test_every_name_has_code_of_its_own(kind):
    table = TABLES[kind]
    codes = [code_of(table, name) for name in table]
    assert all(map(callable, codes)) and len(set(codes)) == len(codes)
