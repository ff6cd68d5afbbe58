"""Clusters: the numbers of this machine, whoever computes them, and nothing lost or done twice when a node dies.

Ray is tested on a real cluster of several nodes on this machine; submitit's own local executor stands in for Slurm.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from flatmin_lab import compare as comparing
from flatmin_lab.clusters import slurm, work
from flatmin_lab.clusters.options import SlurmOptions
from flatmin_lab.clusters.ray import RayPool, streamed
from flatmin_lab.clusters.slurm import SlurmPool
from flatmin_lab.errors import LabError, MissingPackageError, WorkerError
from flatmin_lab.job import Job
from flatmin_lab.store import Store
from flatmin_lab.sweep import Finished, Lost, Progressed, Started, Workers, pool_of
from small_runs import asked, outcome, run_spec, without_seconds

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # Ray's sockets and files
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # the same, when collected
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def outcomes(events):
    found = {e.job.spec.name: e.outcome for e in events if isinstance(e, Finished)}
    return {name: (o.result.model_dump(exclude={"seconds"}), o.weights) for name, o in sorted(found.items())}


# --- what is sent


def test_a_parcel_brings_weights_and_data_root(tmp_path, monkeypatch):
    """A run that was trained before is measured from the weights that were sent, without the file they lie in."""
    spec = run_spec(task="digits-tiny")
    trained = outcome(spec)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(trained.weights)
    job = Job(spec, stored=trained.result, weights=file, measure=True)
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))
    parcel = work.Parcel.of(job)
    monkeypatch.setenv("FLATMIN_DATA", "elsewhere")
    here = outcome(spec, stored=trained.result, weights=file, measure=True)
    file.unlink()
    *points, last = streamed(parcel)
    assert points == [None]
    assert last.result == here.result
    assert last.result.trace is not None
    assert os.environ["FLATMIN_DATA"] == str(tmp_path)


def test_a_worker_with_other_code_refuses(monkeypatch):
    parcel = work.Parcel.of(Job(run_spec()))
    monkeypatch.setattr(work, "comparable", lambda: {**parcel.comparable, "code": "other"})
    *_, last = streamed(parcel)
    assert "another version of flatmin" in last
    assert f"code is other there and {parcel.comparable['code']} here" in last
    assert "Install the same version" in last


# --- choosing a pool


def test_the_pool_is_chosen_by_name(tmp_path):
    assert isinstance(pool_of("local", None, tmp_path), Workers)
    assert isinstance(pool_of("ray", 3, tmp_path), RayPool)
    with pytest.raises(WorkerError, match=r"no sbatch on this machine.*login node"):
        pool_of("slurm", 3, tmp_path)


@pytest.mark.parametrize(("cluster", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_install_line(cluster, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"--cluster {cluster}.*pip install 'flatmin\[cluster\]'"):
        pool_of(cluster, 2, tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [("ray://127.0.0.1:1", "Ray Client.*ray job submit"), ("nonsense", "no Ray cluster can be used.*ray start --head")],
)
def test_a_bad_address_is_explained(address, message, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    out = sys.stdout
    with pytest.raises(WorkerError, match=f"RAY_ADDRESS is {address}.*{message}"), RayPool(1):
        pass
    assert sys.stdout is out


# --- Slurm


@pytest.fixture(autouse=True)
def controllers(monkeypatch):
    """The processes that submitit starts and forgets: waited for, so that nothing is left of a test."""
    from submitit.local import local

    started, start = [], local.start_controller
    monkeypatch.setattr(local, "start_controller", lambda *a, **k: started.append(start(*a, **k)) or started[-1])
    yield started
    for process in started:
        process.wait(timeout=30)


def submitting(folder, **options):
    return SlurmPool(2, folder, SlurmOptions(**options), executor="local", pause=0.05, patience=0.0)


def test_slurm_gives_the_numbers_of_this_machine_and_begins_lost_jobs_again(tmp_path):
    jobs = [Job(run_spec(name, task="digits-tiny", budget=600)) for name in ("sgd", "nso")]
    seen = []
    with submitting(tmp_path) as pool:
        for event in pool.run(jobs):
            if isinstance(event, Started) and event.job is jobs[0] and Started not in map(type, of(seen, jobs[0])):
                kill(pool, event.job)
            seen.append(event)
    with Workers(1) as pool:
        assert outcomes(seen) == outcomes(pool.run(jobs))
    (lost,) = (e for e in seen if isinstance(e, Lost))
    assert lost.job == jobs[0]
    assert "ended without a result" in lost.message
    assert Counter(type(e) for e in seen if isinstance(e, Started | Finished)) == {Started: 3, Finished: 2}
    kept = {path.name.split("_")[0] for path in tmp_path.iterdir()}
    assert len(kept) == 1, "the logs of what was lost are kept, and nothing of what has finished"
    assert f"{kept.pop()}_0_log.err" in lost.message


def of(events, job):
    return [event for event in events if event.job is job]


def handle_of(pool, job):
    return next(submitted.handle for submitted in pool._busy.values() if submitted.job == job)


def kill(pool, job):
    """End the processes of a job as the failure of its node would."""
    process = handle_of(pool, job)._process
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


LONG = Job(run_spec("sgd", budget=4_000_000, task="digits-tiny"))


@pytest.mark.slow
def test_slurm_says_when_time_is_up_and_ends_what_runs(tmp_path):
    with (
        submitting(tmp_path, minutes=7) as pool,
        pytest.raises(LabError, match=r"took longer than the 7 minutes.*--slurm.minutes"),
    ):
        events = pool.run([LONG])
        next(event for event in events if isinstance(event, Started))
        for pid in children(handle_of(pool, LONG)._process.pid):
            os.kill(pid, signal.SIGUSR2)  # what Slurm sends when time is up
        list(events)
    with submitting(tmp_path) as pool:
        for event in pool.run([LONG]):
            if isinstance(event, Started):
                process = handle_of(pool, LONG)._process
                break
    assert process.wait(timeout=20) is not None


def test_what_slurm_is_asked_for():
    pool = SlurmPool.__new__(SlurmPool)
    pool._options = SlurmOptions(partition="gpu", minutes=90, memory=12)
    assert pool._parameters(gpus=1) == {
        "name": "flatmin",
        "timeout_min": 90,
        "mem_gb": 12,
        "cpus_per_task": 1,
        "gpus_per_node": 1,
        "slurm_partition": "gpu",
    }
    assert slurm.COUNT > 1


# --- Ray: all of it takes more than ten seconds, so it is slow


@pytest.fixture
def cluster(monkeypatch):
    """Three nodes of one core each, and the address in the environment."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    size = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**size)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_sweep_outlives_a_node(cluster, tmp_path, monkeypatch):
    """One of three nodes is killed while it is at work: the numbers are the same, and each run is completed once."""
    study = asked(("sgd", "nso", "sam"), ("digits-tiny",), seeds=3, budget=600)
    with Store(tmp_path / "here") as store:
        wanted = comparing.compare(study, store, workers=1)
    log = tmp_path / "log"
    log.mkdir()
    doomed = cluster.list_all_nodes()[-1]
    doomed_id = doomed.node_id

    def counted(parcel):
        """What a worker does, and a file for each time that it has begun or completed a run.

        On the node that is to die no run comes to its end before that.
        """
        import time
        import uuid

        import ray

        node, me = ray.get_runtime_context().get_node_id(), uuid.uuid4().hex
        (log / f"{me}.begun").write_text(f"{parcel.job.spec.digest} {node}")
        for said in streamed(parcel):
            if said is not None and not hasattr(said, "evaluations"):
                (log / f"{me}.completed").write_text(f"{parcel.job.spec.digest} {parcel.job.stored is not None}")
            yield said
            if hasattr(said, "evaluations") and node == doomed_id:
                time.sleep(600)

    class Counting(RayPool):
        work = staticmethod(counted)

    seen = []

    def watch(event):
        seen.append(event)
        on = [text for text in texts(log, "begun") if text.endswith(doomed_id)]
        if isinstance(event, Progressed) and event.job.spec.digest in " ".join(on) and doomed in cluster.worker_nodes:
            cluster.remove_node(doomed, allow_graceful=False)

    monkeypatch.setattr(comparing, "pool_of", lambda *_: Counting(3))
    with Store(tmp_path / "there") as store:
        found = comparing.compare(study, store, workers=3, cluster="ray", watch=watch)
        assert without_seconds(found) == without_seconds(wanted)
        for result in wanted.results:
            here, there = (tmp_path / where / "runs" / result.spec.folder for where in ("here", "there"))
            assert (here / "weights.safetensors").read_bytes() == (there / "weights.safetensors").read_bytes()
        lost = [event for event in seen if isinstance(event, Lost)]
        assert [event.message for event in lost if event.job.spec.name in event.message]
        completed = Counter(texts(log, "completed"))
        assert set(completed.values()) == {1}
        assert len(completed) == sum(isinstance(e, Finished) for e in seen)
        assert len(texts(log, "begun")) == len(completed) + len(lost)

        seen.clear()
        comparing.compare(study, store, workers=3, cluster="ray", watch=watch)
        assert not [event for event in seen if isinstance(event, Started | Finished)]


def texts(folder, ending):
    return [path.read_text() for path in folder.glob(f"*.{ending}")]


@pytest.mark.slow
def test_a_cluster_of_ones_own_and_an_early_end(monkeypatch, capsys):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    former = signal.getsignal(signal.SIGTERM)
    jobs = [Job(run_spec(name, task="digits-tiny", budget=40)) for name in ("sgd", "nso")]
    with RayPool(2) as pool:
        there = list(pool.run(jobs))
        with pytest.raises(LabError, match="needs its sigma, rho"):
            list(pool.run([Job(run_spec("nso", value=None))]))
    assert not ray.is_initialized()
    with Workers(1) as pool:
        assert outcomes(there) == outcomes(pool.run(jobs))
    with pytest.raises(KeyboardInterrupt), RayPool(1) as pool:
        for event in pool.run([LONG]):
            if isinstance(event, Started):
                raise KeyboardInterrupt
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is former
    assert not capsys.readouterr().out
