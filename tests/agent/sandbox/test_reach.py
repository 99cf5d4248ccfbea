"""Whom a job may reach: names as it lists them, and addresses that nobody may dial."""

import ipaddress

import pytest

from agent.sandbox import reach


@pytest.mark.parametrize(
    ("listed", "host", "port", "may"),
    [
        ("huggingface.co", "huggingface.co", 443, True),
        ("huggingface.co", "HuggingFace.co.", 80, True),
        ("huggingface.co", "cdn.huggingface.co", 443, False),
        ("huggingface.co", "huggingface.co", 22, False),
        (".wandb.ai", "api.wandb.ai", 443, True),
        (".wandb.ai", "wandb.ai", 443, True),
        (".wandb.ai", "evilwandb.ai", 443, False),
        (".wandb.ai", "wandb.ai.evil.example", 443, False),
        ("pypi.example:8443", "pypi.example", 8443, True),
        ("pypi.example:8443", "pypi.example", 443, False),
    ],
)
def test_a_list_lets_through_what_it_names_and_nothing_else(listed, host, port, may):
    assert (reach.why_not([reach.parse(listed)], host, port) == "") is may


@pytest.mark.parametrize(
    "text", ["", ".", "*", "*.wandb.ai", "http://a.b", "a b", "a/b", "a..b", "-a.b", "a.b:0",
             "a.b:70000", "a" * 300, "a.b\n", "[::1]", "ä.example"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text):
    with pytest.raises(reach.BadName):
        reach.parse(text)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
     "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "93.184.215.99", "2130706433", "0x7f.1", ""],
)  # fmt: skip
def test_no_address_but_the_public_internets_is_dialled(address):
    own = [ipaddress.ip_address("93.184.215.99")]
    assert reach.usable([address], [], own) == []


def test_public_addresses_are_dialled_and_those_that_the_owner_allows():
    lan = ipaddress.ip_network("10.0.0.0/8")
    assert reach.usable(["1.1.1.1", "10.9.9.9", "192.168.1.1"], [lan], []) == [
        "1.1.1.1", "10.9.9.9",
    ]  # fmt: skip
