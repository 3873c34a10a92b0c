"""A sweep on nodes that share no disk. Slow: Ray notices a lost node after a while."""

from pathlib import Path

import pytest
import small
from programs import run_code

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


def test_nodes_that_share_no_disk_lose_no_cell(tmp_path: Path, one_url: str) -> None:
    """Two nodes and a driver with nothing in common but a storage behind a URL; one node is killed while it trains."""
    root = small.make_folder(tmp_path / "images")
    code = f"""
    import contextlib, json, os, shutil, signal, threading, time
    from pathlib import Path
    from lchp.harness.cluster import QUIET
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster
    import small
    from lchp.files.remote import Remote
    from lchp.harness import Options, Sweep, grid, run
    from lchp.harness.attempts import MANIFEST

    machines, storage = Path({str(tmp_path / "machines")!r}), Remote({one_url!r})

    def cache(name):
        return {{"XDG_CACHE_HOME": str(machines / name)}}

    head = {{"num_cpus": 1, "include_dashboard": False, "env_vars": cache("one")}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    second = nodes.add_node(num_cpus=1, env_vars=cache("two"))
    nodes.wait_for_nodes()
    os.environ.update(cache("driver"))
    sent = []

    def uploaded(job):
        manifest = json.loads(storage.read(f"sweeps/cluster/work/{{job}}/{{MANIFEST}}") or b"{{}}")
        return manifest.get("epochs", 0) >= 2

    def signalled(name, signum):
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                there = f"XDG_CACHE_HOME={{machines / name}}".encode() in (folder / "environ").read_bytes()
                if there and b"ImplicitFunc" in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signum)

    def kill():
        while not sent:
            begun = {{n: list((machines / n).rglob("work/classifier-*/config.json")) for n in ("one", "two")}}
            if all(begun.values()) and uploaded(job := begun["two"][0].parent.name):
                signalled("two", signal.SIGSTOP)  # known to be training when it is killed
                sent.extend([job] if uploaded(job) else [])
                if not sent:
                    signalled("two", signal.SIGCONT)
            time.sleep(0.05)
        nodes.remove_node(second, allow_graceful=False)
        shutil.rmtree(machines / "two")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    base = small.config(Path({str(root)!r}), first=40, second=1)
    cells = grid({{"initialization.delta": [0.2, 0.4]}})
    result = run(Sweep("cluster", base, cells), Options(storage, address=nodes.address))
    print(json.dumps({{"states": [c.state for c in result.cells], "killed": not killer.is_alive()}}))
    attempts = [j["attempts"] for j in json.loads(storage.read("sweeps/cluster/sweep.json"))["jobs"].values()]
    assert max(attempts) >= 2, attempts
    assert [name for name in storage.list("sweeps") if name != "cluster/sweep.json"] == []
    assert not list((machines / "driver").rglob("*.pt"))
    nodes.shutdown()
    """
    assert run_code(tmp_path, code) == {"states": ["done"] * 2, "killed": True}
