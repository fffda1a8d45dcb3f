"""What is in launch/: scripts that a shell understands, and the SLURM job run with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from forking import start_server
from running import REPOSITORY, Result, finish, free_port, listing, make_shards, scalars, tiny_arguments, wait_for

from pipeline.training import checkpoint

SCRIPTS = [
    *sorted(path for path in (REPOSITORY / "launch").rglob("*") if path.suffix in (".sh", ".sbatch")),
    REPOSITORY / ".ci" / "run",
    REPOSITORY / "launch" / "containers" / "bin" / "latentfuse",
]
SRUN = """#!/usr/bin/env bash
# Starts the tasks and returns the highest of their exit codes.
tasks=$SLURM_NTASKS
while [[ $1 == -* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#*=}
  shift
done
echo "$*" >>"$STAND_INS/steps"
for ((task = 0; task < tasks; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$tasks SLURM_NNODES=1 "$@" &
  pids+=("$!")
done
echo "${pids[@]}" >"$STAND_INS/pids"
highest=0
for pid in "${pids[@]}"; do
  wait "$pid" || { code=$?; ((code > highest)) && highest=$code; }
done
exit "$highest"
"""
SRUN_THAT_FAILS = """#!/usr/bin/env bash
touch "$STAND_INS/pids"
sleep "${SECONDS_TO_RUN:-0}"
exit "$CODE"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") echo 127.0.0.1 ;;
  "show job") echo "JobId=$3 JobName=latentfuse"; echo "   JobState=${STATE:-RUNNING} Reason=None" ;;
  requeue*) echo "$2" >>"$STAND_INS/requeued"; exit "${REFUSED:-0}" ;;
esac
"""


class Cluster:
    """A node of two tasks; `job` starts a script as SLURM does: a copy of it, in the folder of the submission."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.environment = environment
        self.stand_ins = folder / "stand-ins"
        self.stand_ins.mkdir(parents=True)
        self.program("srun", SRUN)
        self.program("scontrol", SCONTROL)

    def program(self, name: str, text: str) -> None:
        path = self.stand_ins / name
        path.write_text(text)
        path.chmod(0o755)

    def job(self, script: str, *arguments: str, **variables: object) -> "subprocess.Popen[str]":
        spooled = self.stand_ins / "slurm_script"
        spooled.write_text((REPOSITORY / "launch" / "slurm" / script).read_text())
        slurm = {"JOB_ID": 4711, "JOB_NODELIST": "node1", "JOB_NUM_NODES": 1, "NTASKS": 2, "CPUS_PER_TASK": 1}
        settings: dict[str, Any] = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        settings |= {"PATH": f"{self.stand_ins}:{os.environ['PATH']}", "OMP_NUM_THREADS": 1}
        settings |= {f"SLURM_{key}": value for key, value in slurm.items()}
        settings |= {"VENV": self.environment, "STAND_INS": self.stand_ins, **variables}
        return subprocess.Popen(
            ["bash", str(spooled), *arguments],
            cwd=REPOSITORY,
            env={key: str(value) for key, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lines(self, name: str) -> list[str]:
        path = self.stand_ins / name
        return path.read_text().splitlines() if path.exists() else []

    def signal_step(self, number: int) -> None:
        """As slurmstepd does: to the processes that it has started, not to their children."""
        for pid in self.lines("pids")[0].split():
            os.kill(int(pid), number)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of a virtual environment: `bin/latentfuse` starts in an instant."""
    return start_server(tmp_path_factory.mktemp("environment")).parents[1]


@pytest.fixture
def cluster(tmp_path: Path, environment: Path) -> Cluster:
    return Cluster(tmp_path, environment)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = Path(sys.prefix) / "bin" / "shellcheck"
    checked = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_every_file_is_tested() -> None:
    jobs = {"train.sbatch", "shard.sbatch", "smoke.sbatch", "compare.sbatch"}
    assert {path.name for path in SCRIPTS} >= jobs | {"rank.sh", "results_gpu.sh", "run"}
    assert {path.stem for path in (REPOSITORY / "launch" / "accelerate").iterdir()} == {"gpu1", "node8", "nodes"}


def test_containers_hold_the_pinned_versions_and_all_that_is_installed() -> None:
    folder = REPOSITORY / "launch" / "containers"
    dockerfile, definition = ((folder / name).read_text() for name in ("Dockerfile", "latentfuse.def"))
    (base,) = (line.split()[1] for line in dockerfile.splitlines() if line.startswith("FROM "))
    assert f"\nFrom: {base}\n" in definition
    install = ("pip install --requirement requirements.lock", "pip install --no-deps --no-build-isolation .")
    assert all(command in text for command in install for text in (dockerfile, definition))
    copied = {name for line in dockerfile.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]}
    files = definition.split("%files\n")[1].split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in files} == copied
    sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert all((REPOSITORY / name).exists() and f"!{name}" in sent for name in copied)
    commands = definition.split("%post\n")[1].split("\n\n")[0]
    subprocess.run(["sh", "-n"], input=commands, text=True, check=True)


def test_the_container_stands_in_for_an_environment(cluster: Cluster) -> None:
    cluster.program("apptainer", '#!/usr/bin/env bash\necho "$*"\n')
    variables = {"VENV": "launch/containers", "SIF": "some.sif", "LOCAL": "", "SLURM_NTASKS": 1}
    result = finish(cluster.job("train.sbatch", **variables))
    assert result.code == 0 and "exec --nv some.sif latentfuse pretrain --config" in result.out, result


@pytest.mark.parametrize(("name", "processes", "machines"), [("gpu1", 1, 1), ("node8", 8, 1), ("nodes", 16, 2)])
def test_accelerate_reads_its_files(name: str, processes: int, machines: int) -> None:
    read = load_config_from_file(str(REPOSITORY / "launch" / "accelerate" / f"{name}.yaml"))
    assert isinstance(read, ClusterConfig)
    assert (read.num_processes, read.num_machines, read.mixed_precision) == (processes, machines, "fp16")
    assert read.distributed_type == (DistributedType.NO if processes == 1 else DistributedType.MULTI_GPU)
    assert not read.use_cpu


def test_a_rank_is_told_its_place(cluster: Cluster) -> None:
    place = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"}
    told = subprocess.run(
        [REPOSITORY / "launch" / "slurm" / "rank.sh", "env"],
        env={"PATH": f"{cluster.stand_ins}:{os.environ['PATH']}", "SLURM_PROCID": "11", "SLURM_LOCALID": "3", **place},
        capture_output=True,
        text=True,
        check=True,
    )
    variables = dict(line.split("=", 1) for line in told.stdout.splitlines())
    wanted = {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "13456",
    }
    assert {key: variables[key] for key in wanted} == wanted


def test_signalled_ranks_save_and_the_same_job_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    run, local, shards = tmp_path / "run", tmp_path / "local", make_shards(tmp_path / "shards")
    steps = ("training.pretrain_steps=100000", "training.fusion_steps=2", "tracking.checkpoint_every=1000")
    batch = ("training.micro_batch_size=2", "tracking.image_every=100000")
    _, config, *settings = tiny_arguments(run, shards, *steps, *batch)
    variables = {"CONFIG": config, "RUN_DIR": run, "SHARDS": shards, "LOCAL": local, "PRECISION": "no"}

    def job(*more: str, **others: object) -> "subprocess.Popen[str]":
        return cluster.job("train.sbatch", *settings[4:], *more, MASTER_PORT=free_port(), **variables, **others)

    process = job()
    status = run / "status.json"
    wait_for(lambda: status.exists() and '"step"' in status.read_text(), process)
    cluster.signal_step(signal.SIGUSR1)
    stopped = finish(process)
    assert stopped.code == 75, stopped
    assert "stopped by SIGUSR1; the same command resumes" in stopped.errors
    assert "exit code 75: to be queued again" in stopped.out
    assert cluster.lines("requeued") == ["4711"]
    saved, _ = checkpoint.newest(run / "pretrain" / "checkpoints")
    assert saved is not None and saved.step >= 1

    end = saved.step + 2
    resumed = finish(job("--set", f"training.pretrain_steps={end}", SLURM_RESTART_COUNT=1))
    assert resumed.code == 0, resumed
    assert f"pretrain: resumed from {saved.path}" in resumed.out
    assert f"pretrain {end}/{end}" in resumed.out and "train 2/2" in resumed.out
    assert checkpoint.find(run).step == 2 and list(scalars(run, "train")["loss/total"])[-1] == 2
    assert cluster.lines("requeued") == ["4711"], "not a second time"
    commands = [" ".join(line.split()[:3]) for line in cluster.lines("steps")]
    staged = f"latentfuse stage {shards}"
    ranks = [f"launch/slurm/rank.sh latentfuse {stage}" for stage in ("pretrain", "train")]
    assert commands == [staged, ranks[0], staged, *ranks]
    (copy,) = local.iterdir()
    assert (copy / "train" / "manifest.json").is_file() and f"data.shards={copy}" in cluster.lines("steps")[-1]


SRUN_THAT_ONLY_NOTES = """#!/usr/bin/env bash
echo "$*" >>"$STAND_INS/calls"
"""


def test_the_job_asks_for_what_it_was_given(cluster: Cluster) -> None:
    cluster.program("srun", SRUN_THAT_ONLY_NOTES)
    assert finish(cluster.job("train.sbatch", "--set", "seed=1", SLURM_GPUS_ON_NODE=8)).code == 0
    staged, *trained = cluster.lines("calls")
    assert "--wait=0 " in staged, "a node that has its copy does not hurry the others"
    assert len(trained) == 2
    for call in trained:
        assert "--wait=300 " in call and call.endswith("--set training.device=cuda --set seed=1")
    assert finish(cluster.job("train.sbatch")).code == 0
    assert "training.device" not in cluster.lines("calls")[-1]


def test_each_job_of_an_array_has_its_seed(cluster: Cluster) -> None:
    cluster.program("srun", SRUN_THAT_ONLY_NOTES)
    variables = {"RUN_DIR": "runs/seeds", "STAGES": "run", "LOCAL": "", "SLURM_ARRAY_TASK_ID": 3}
    result = finish(cluster.job("train.sbatch", "--set", "training.fusion_steps=9", **variables))
    assert result.code == 0 and "-> runs/seeds/seed-3" in result.out, result
    (call,) = cluster.lines("calls")
    assert "rank.sh latentfuse run --config configs/default.yaml --set run_dir=runs/seeds/seed-3 " in call
    assert call.endswith("--set seed=3 --set training.fusion_steps=9")


@pytest.mark.parametrize("code", [0, 2])
def test_a_sweep_ends_in_one_table_or_none(tmp_path: Path, cluster: Cluster, code: int) -> None:
    for seed in (0, 1):
        (tmp_path / "seeds" / f"seed-{seed}" / "evaluation").mkdir(parents=True)
        (tmp_path / "seeds" / f"seed-{seed}" / "evaluation" / "metrics.json").touch()
    (cluster.stand_ins / "bin").mkdir()
    cluster.program("bin/latentfuse", '#!/usr/bin/env bash\necho "$*"\nexit "$CODE"\n')
    variables = {"RUN_DIR": tmp_path / "seeds", "VENV": cluster.stand_ins, "CODE": code}
    assert finish(cluster.job("compare.sbatch", **variables)).code == code
    table = tmp_path / "seeds" / "compare.md"
    if code:
        assert listing(tmp_path / "seeds") & {"compare.md", ".compare.md"} == set()
    else:
        files = [f"{tmp_path}/seeds/seed-{seed}/evaluation/metrics.json" for seed in (0, 1)]
        assert table.read_text() == f"compare {' '.join(files)}\n"


def smoke(cluster: Cluster, run: Path, *options: str) -> Result:
    """The job of five minutes, in seconds on two processes."""
    tiny = ("data.image_size=32", "data.synth_count=24", "data.workers=0", "model.base_channels=2", "model.warp=false")
    batch = ("training.global_batch_size=4", "training.micro_batch_size=2", "tracking.checkpoint_every=5")
    measured = ("evaluation.classifier_faces=8", "evaluation.half_way_pairs=2", "evaluation.corner_pairs=0")
    settings = [each for setting in (*tiny, *batch, *measured, *options) for each in ("--set", setting)]
    variables = {"RUN_DIR": run, "DEVICE": "cpu", "PRECISION": "no"}
    return finish(cluster.job("smoke.sbatch", *settings, **variables))


@pytest.mark.slow
def test_the_smoke_job_stops_resumes_and_evaluates(tmp_path: Path, cluster: Cluster) -> None:
    result = smoke(cluster, tmp_path / "run", "training.pretrain_steps=400", "training.fusion_steps=2")
    assert result.code == 0 and "smoke: all is well" in result.out, result
    assert f"stopped by the file {tmp_path / 'run' / 'STOP'}" in result.errors and "resumed from" in result.out
    assert (tmp_path / "run" / "evaluation" / "metrics.json").is_file()


def test_the_smoke_job_says_what_failed(tmp_path: Path, cluster: Cluster) -> None:
    result = smoke(cluster, tmp_path / "run", "training.micro_batch_size=3")
    assert result.code == 2 and "micro_batch_size: 3" in result.errors and "all is well" not in result.out


@pytest.mark.parametrize(("limit", "left", "code"), [(86400, 60, 75), (86400, 600, 0), (100, 60, 0)])
def test_no_command_begins_after_the_signal_for_the_time_limit(
    cluster: Cluster, limit: int, left: int, code: int
) -> None:
    cluster.program("srun", SRUN_THAT_ONLY_NOTES)
    end = int(time.time()) + left
    times = {"SLURM_JOB_START_TIME": end - limit, "SLURM_JOB_END_TIME": end}
    result = finish(cluster.job("train.sbatch", LOCAL="", **times))
    assert result.code == code, result
    assert len(cluster.lines("calls")) == (0 if code else 2)
    assert cluster.lines("requeued") == (["4711"] if code else [])


def test_a_mistake_ends_the_job_with_its_message(tmp_path: Path, cluster: Cluster) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    _, config, *settings = tiny_arguments(run, shards, "training.micro_batch_size=3")
    variables = {"CONFIG": config, "RUN_DIR": run, "SHARDS": shards, "LOCAL": ""}
    result = finish(cluster.job("train.sbatch", *settings[4:], **variables))
    assert result.code == 2, result
    assert "micro_batch_size: 3 does not divide global_batch_size 4" in result.errors
    assert "exit code 2: not to be queued again" in result.out
    assert len(cluster.lines("steps")) == 1 and not cluster.lines("requeued"), "training is not tried"


@pytest.mark.parametrize(
    ("code", "restarts", "state", "again"),
    [
        (75, 100, "RUNNING", True),
        (75, 0, "COMPLETING", False),  # cancelled, or SLURM has queued it again itself
        (143, 0, "RUNNING", True),
        (76, 9, "RUNNING", True),
        (76, 10, "RUNNING", False),
        (137, 0, "RUNNING", True),
        (137, 10, "RUNNING", False),
        (1, 0, "RUNNING", False),
        (130, 0, "RUNNING", False),
    ],
)
def test_what_is_queued_again(cluster: Cluster, code: int, restarts: int, state: str, again: bool) -> None:
    cluster.program("srun", SRUN_THAT_FAILS)
    result = finish(cluster.job("train.sbatch", CODE=code, SLURM_RESTART_COUNT=restarts, STATE=state))
    assert result.code == code, result
    assert cluster.lines("requeued") == (["4711"] if again else [])


def test_the_code_is_the_ranks_where_slurm_refuses_to_queue_again(cluster: Cluster) -> None:
    cluster.program("srun", SRUN_THAT_FAILS)
    assert finish(cluster.job("train.sbatch", CODE=75, REFUSED=1)).code == 75


def test_the_batch_shell_outlives_a_signal(cluster: Cluster) -> None:
    cluster.program("srun", SRUN_THAT_FAILS)
    process = cluster.job("train.sbatch", CODE=75, SECONDS_TO_RUN=0.5)
    wait_for(lambda: (cluster.stand_ins / "pids").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 75
    assert cluster.lines("requeued") == ["4711"]


def test_sharding_by_an_array_writes_what_one_process_writes(tmp_path: Path, cluster: Cluster) -> None:
    whole, out = make_shards(tmp_path / "whole"), tmp_path / "out"
    options = ("--split", str(4 / 14), "--samples-per-shard", "4", "--workers", "1")
    variables = {"SOURCE": whole / "photographs", "OUT": out}

    def job(**more: object) -> Result:
        return finish(cluster.job("shard.sbatch", *options, **variables, **more))

    for part in (1, 2):
        result = job(SLURM_ARRAY_TASK_ID=part, SLURM_ARRAY_TASK_COUNT=2)
        assert result.code == 0, result
    assert not list(out.rglob("manifest.json"))
    assert job().code == 0
    for split in ("train", "test"):
        assert (out / split / "manifest.json").read_bytes() == (whole / split / "manifest.json").read_bytes()
