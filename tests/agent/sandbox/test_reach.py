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
             "a.b:70000", "a" * 300, "a.b\n", "[::1]", "ä.example", "a.b:25", "a.b:465", "a.b:587",
             "a.b:22", "a.b:1023"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text):
    with pytest.raises(reach.BadName):
        reach.parse(text)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
     "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "93.184.215.99", "2130706433", "0x7f.1", "",
     "93.184.215.1", "fec0::1", "64:ff9b:1::5db8:d763", "::93.184.216.34", "2606:4700::5"],
)  # fmt: skip
def test_no_address_but_the_public_internets_is_dialled(address):
    near = [reach.network_of("93.184.215.99", "255.255.255.0"),
            reach.network_of("2606:4700::9%eth0", "ffff:ffff::")]  # fmt: skip
    assert reach.usable([address], [], near) == []


def test_an_interface_lies_in_its_network_however_its_mask_is_written():
    assert str(reach.network_of("10.1.2.3", "255.255.0.0")) == "10.1.0.0/16"
    assert str(reach.network_of("2001:db8::5%eth0", "ffff:ffff::")) == "2001:db8::/32"
    assert str(reach.network_of("192.0.2.7", None)) == "192.0.2.7/32"
    assert reach.network_of("52:54:00:12:34:56", None) is None


def test_public_addresses_are_dialled_and_those_that_the_owner_allows():
    lan = ipaddress.ip_network("10.0.0.0/8")
    near = [ipaddress.ip_network("10.9.0.0/16")]  # an owner may allow a neighbour as well
    assert reach.usable(["1.1.1.1", "10.9.9.9", "192.168.1.1"], [lan], near) == [
        "1.1.1.1", "10.9.9.9",
    ]  # fmt: skip
