"""The launch of a process: ranks count beside their launcher's mark alone, and stray ones are removed or refused."""

from __future__ import annotations

import os

import pytest

from vlad.utils import distributed
from vlad.utils.errors import UserError
from vlad.utils.launcher import RANK_VARIABLES, SIZE_VARIABLES, check_launch, current_launch, forget_stray_ranks

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
SRUN = {
    **BATCH_SCRIPT,
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"},
}
OF_A_RUN = {"VLAD_RUN_PROCESS": str(os.getppid()), "LOCAL_RANK": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*TORCHRUN, *SRUN, *OF_A_RUN, *RANK_VARIABLES, *SIZE_VARIABLES}:
        monkeypatch.setenv(name, "")  # restored after the test, whatever it removes
        monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "launcher", "rank", "processes"),
    [
        ({}, None, 0, 1),
        (TORCHRUN, "torchrun", 3, 4),
        (SRUN, "srun", 3, 4),
        (BATCH_SCRIPT, None, 0, 1),
        (OF_A_RUN, "run", 1, 1),
        ({"VLAD_RUN_PROCESS": str(os.getppid())}, None, 0, 1),  # a helper of a run
        ({**OF_A_RUN, "VLAD_RUN_PROCESS": str(os.getpid())}, None, 0, 1),  # the run itself
        *(({name: "1"}, None, 0, 1) for name in RANK_VARIABLES),
    ],
)
def test_a_rank_is_what_its_launcher_says(
    environment: dict[str, str], launcher: str | None, rank: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    launch = current_launch()
    assert (launch.launcher, launch.rank, launch.processes) == (launcher, rank, processes)
    assert distributed.is_main_process() == (rank == 0)


@pytest.mark.parametrize("value", ["1", "0", "abc", ""])
@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_a_stray_rank_is_removed_before_libraries_believe_it(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    forget_stray_ranks()
    assert name not in os.environ
    check_launch(1, 2)


@pytest.mark.parametrize("name", SIZE_VARIABLES)
def test_processes_of_a_launcher_that_is_not_known_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {name: "2", "RANK": "1", "MASTER_ADDR": "node0"})
    with pytest.raises(UserError, match=rf"{name}=2 names several processes.*torchrun or srun"):
        forget_stray_ranks()


@pytest.mark.parametrize("launch", [TORCHRUN, SRUN, OF_A_RUN])
def test_the_variables_of_a_launcher_stay(launch: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, launch)
    forget_stray_ranks()
    assert {name: os.environ[name] for name in launch} == launch


@pytest.mark.parametrize(
    ("launch", "name"),
    [(TORCHRUN, "RANK"), (TORCHRUN, "WORLD_SIZE"), (SRUN, "SLURM_PROCID")],
)
@pytest.mark.parametrize("value", ["abc", "-1", None])
def test_a_launcher_s_rank_that_is_no_number_is_refused(
    launch: dict[str, str], name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, launch)
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name} is (not set|'{value}')"):
        forget_stray_ranks()


@pytest.mark.parametrize(
    ("environment", "nodes", "devices", "refusal"),
    [
        ({}, 1, 8, None),
        ({}, 100_000, 1, "nothing has started processes on other machines"),
        (TORCHRUN, 2, 2, None),
        (TORCHRUN, 2, 4, "torchrun has started 4 processes, 2 on this machine"),
        (TORCHRUN, 1, 1, "torchrun has started 4 processes"),
        (BATCH_SCRIPT, 2, 2, "nothing has started processes on other machines"),
        (BATCH_SCRIPT, 1, 2, None),  # the run starts its own two
        (SRUN, 2, 2, None),
        (SRUN, 1, 1, "srun has started 4 processes, 2 on this machine"),  # they would all train alone, in one directory
        (OF_A_RUN, 1, 2, None),
    ],
)
def test_a_launch_whose_processes_do_not_agree_is_refused(
    environment: dict[str, str], nodes: int, devices: int, refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    if refusal is None:
        check_launch(nodes, devices)
        return
    with pytest.raises(UserError, match=refusal):
        check_launch(nodes, devices)
