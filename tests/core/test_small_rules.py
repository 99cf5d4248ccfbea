"""Hardware names, reliability, energy, policy, ids, paths."""

import pytest

from marketplace.core import energy, hardware
from marketplace.core.errors import Invalid
from marketplace.core.hardware import Tier
from marketplace.core.ids import uuid7
from marketplace.core.policy import Policy
from marketplace.core.reliability import Outcome, assess
from marketplace.files import check_path, check_place


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40S", "l40s"),
        ("???", "unknown"),
    ],
)
def test_a_device_trades_in_its_class(device, expected):
    assert hardware.gpu_class(device) == expected


def test_a_machine_without_a_gpu_says_so_by_its_class():
    name = hardware.cpu_class("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz")
    assert name == "cpu-xeon-platinum-8375c"
    assert hardware.is_cpu(name)


def test_a_region_mask_without_names_is_anywhere():
    assert hardware.region_mask([]) == (1 << len(hardware.REGIONS)) - 1
    assert hardware.region_mask(["eu-central", "eu-central"]) == 2


def test_a_new_node_is_unproven_and_a_long_clean_record_is_steady():
    assert assess([]).tier == Tier.UNPROVEN
    clean = [Outcome(broken=False, age_days=1, hours=5)] * 40
    assert assess(clean).tier == Tier.STEADY
    assert assess([*clean, *[Outcome(True, 1, 1)] * 20]).tier == Tier.UNPROVEN


def test_old_failures_fade():
    recent = assess([Outcome(True, 0, 1)] * 5)
    old = assess([Outcome(True, 300, 1)] * 5)
    assert old.kept > recent.kept
    assert old.failures_per_hour < recent.failures_per_hour


def test_energy_at_the_wall_counts_the_building():
    used = energy.at_the_wall(3_600_000_000, pue=1.5, estimated=True)
    assert used.kwh == 1.5
    assert used.grams_co2(200) == 300


def test_an_ask_below_the_floor_would_not_pay_its_power():
    assert energy.ask_floor(watts=700, pue=1.2, micros_per_kwh=250_000) == 210_000


def test_a_policy_is_overridden_by_name_and_nothing_else():
    assert Policy().overridden({"round_s": "0.5", "take_bps": "100"}).take_bps == 100
    with pytest.raises(ValueError, match="no policy named 'tea'"):
        Policy().overridden({"tea": "1"})
    with pytest.raises(ValueError, match="take_bps must be a number"):
        Policy().overridden({"take_bps": "1.5"})


def test_ids_sort_by_the_time_they_were_made():
    made = [uuid7() for _ in range(100)]
    assert all(one.version == 7 for one in made)
    assert [one.int >> 80 for one in made] == sorted(one.int >> 80 for one in made)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a//b",
        "../a",
        "a/../b",
        ".",
        "a\\b",
        "a\0b",
        "a/" * 200 + "a",
        "a" * 256,
        "ä" * 128,
        "\ud800",
    ],
)
def test_a_path_that_could_lead_out_of_its_folder_is_refused(path):
    with pytest.raises(Invalid):
        check_path(path)


@pytest.mark.parametrize("place", ["output", "output/checkpoint-5", "work/out", ""])
def test_a_checkpoint_is_laid_back_where_a_job_writes(place):
    check_place(place, ["w"], project=["main.py"])


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("inputs/base", ["w"]), ("job.json", ["w"]), ("work/../inputs", ["w"]), ("../x", ["w"]),
        ("work/main.py", ["w"]), ("work", ["main.py/w"]), ("work", ["lib"]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_could_not_be_laid_back_is_refused(place, files):
    with pytest.raises(Invalid):
        check_place(place, files, project=["main.py", "lib/a.py"])
