"""Sweeps on two nodes, one of which is killed while it trains. Slow: Ray notices a lost node after a while."""

from pathlib import Path

import pytest
import small
from programs import run_code

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


def test_a_node_that_is_killed_while_it_trains_loses_no_cell(tmp_path: Path, one_url: str) -> None:
    """First of nodes and a driver with nothing in common but a storage behind a URL, then of nodes that share a disk.
    Whichever node trains first is held until the other trains too, so that both do whatever the machine's speed."""
    root = small.make_folder(tmp_path / "images")
    code = f"""
    import contextlib, json, os, shutil, signal, threading, time
    from pathlib import Path
    from lchp.harness.cluster import QUIET, _lean
    os.environ.update(QUIET)
    os.environ["RAY_health_check_period_ms"] = "500"  # 3 s by default; what is dead refuses the connection
    from ray.cluster_utils import Cluster
    import small
    from lchp.config import override
    from lchp.files.remote import Remote
    from lchp.harness import Options, Sweep, grid, run
    from lchp.harness.attempts import MANIFEST

    machines, disk = Path({str(tmp_path / "machines")!r}), Path({str(tmp_path / "disk")!r})
    storage = Remote({one_url!r})

    def cache(name):
        return {{"XDG_CACHE_HOME": str(machines / name)}}

    def is_of(process, name):
        with contextlib.suppress(OSError):
            return f"XDG_CACHE_HOME={{machines / name}}".encode() in Path(f"/proc/{{process}}/environ").read_bytes()
        return False

    def signalled(name, signum):
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"ImplicitFunc" in (folder / "cmdline").read_bytes() and is_of(folder.name, name):
                    os.kill(int(folder.name), signum)

    def uploaded(name):
        for folder in (machines / name).rglob("work/*/config.json"):
            manifest = storage.read(f"sweeps/apart/work/{{folder.parent.name}}/{{MANIFEST}}") or b"{{}}"
            if json.loads(manifest).get("epochs", 0) >= 1:
                return True
        return False

    def written(name):
        for folder in disk.glob("sweeps/shared/work/*/checkpoints"):
            lock = folder.parent.with_name(f"{{folder.parent.name}}.lock")
            with contextlib.suppress(OSError, IndexError):
                if any(folder.glob("*.pt")) and is_of(lock.read_text().split()[1], name):
                    return True
        return False

    def kill(node, name, trained):
        both, held = ("one", name), set()
        while len(held) < 2:
            for each in both:
                if each not in held and trained(each):
                    signalled(each, signal.SIGSTOP)
                    if trained(each):  # and has not ended meanwhile
                        held.add(each)
                    else:
                        signalled(each, signal.SIGCONT)
            time.sleep(0.1)
        nodes.remove_node(node, allow_graceful=False)
        signalled(name, signal.SIGKILL)  # it does not see that its node is gone
        shutil.rmtree(machines / name, ignore_errors=True)
        signalled("one", signal.SIGCONT)

    def sweep(name, place, victim, trained):
        with _lean(whole=False):
            node = nodes.add_node(num_cpus=1, env_vars=cache(victim))
        nodes.wait_for_nodes()
        killer = threading.Thread(target=kill, args=(node, victim, trained), daemon=True)
        killer.start()
        result = run(Sweep(name, base, cells), Options(place, address=nodes.address))
        return {{"states": [c.state for c in result.cells], "killed": not killer.is_alive()}}

    base = small.config(Path({str(root)!r}), first=12, second=1)
    base = override(base, {{"initialization.localizer_start": 10}})
    cells = grid({{"initialization.delta": [0.2, 0.4]}})
    head = {{"num_cpus": 1, "include_dashboard": False, "env_vars": cache("one")}}
    with _lean(whole=False):
        nodes = Cluster(initialize_head=True, head_node_args=head)
    os.environ.update(cache("driver"))
    said = [sweep("apart", storage, "two", uploaded), sweep("shared", disk, "three", written)]
    for record in (storage.read("sweeps/apart/sweep.json"), (disk / "sweeps/shared/sweep.json").read_bytes()):
        attempts = [job["attempts"] for job in json.loads(record)["jobs"].values()]
        assert max(attempts) >= 2, attempts
    assert [name for name in storage.list("sweeps") if name != "apart/sweep.json"] == []
    assert not list((machines / "driver").rglob("*.pt"))
    print(json.dumps(said))
    nodes.shutdown()
    """
    assert run_code(tmp_path, code) == [{"states": ["done"] * 2, "killed": True}] * 2
