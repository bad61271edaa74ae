"""Requests on the toy federation."""

from __future__ import annotations

import pytest

from quickdrop_bench.methods import Context
from tests.conftest import Clients, Make
from tests.contract.tiny import Asked, make_context


@pytest.fixture
def asked(make_federation: Make, toy_clients: Clients) -> Asked:
    def make(level: str = "class", **options: object) -> Context:
        return make_context(make_federation(**options), toy_clients, level)

    return make
