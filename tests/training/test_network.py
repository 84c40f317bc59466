"""Each worker meets the others over the interface of its node's address."""

import os

import pytest
import ray

from npdraw_dist.training.network import choose_gloo_interface, interface_of


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None  # reserved for documents


@pytest.mark.parametrize(("set_before", "chosen"), [(None, "lo"), ("mine", "mine")])
def test_what_the_user_set_stays(
    monkeypatch: pytest.MonkeyPatch, set_before: str | None, chosen: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", set_before or "")
    if set_before is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == chosen


def test_an_unknown_interface_is_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_gloo_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
