"""What this process may use of the machine: cores, processes, memory. The host may have more."""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpus() -> int:
    """Cores that this process may keep busy, at least 1: by its affinity (taskset, cpusets) and the quotas of the
    cgroups that it is in (Docker's --cpus, a batch system's), the host's count aside."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for text in _cgroup_values("cpu", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            allowed = min(allowed, int(quota) / int(period or 100_000))
    pairs = zip(_cgroup_values("cpu", "cpu.cfs_quota_us"), _cgroup_values("cpu", "cpu.cfs_period_us"), strict=False)
    for quota, period in pairs:
        if int(quota) > 0:
            allowed = min(allowed, int(quota) / int(period))
    return max(1, math.floor(allowed + 1e-6))


def free_processes() -> float:
    """How many more processes and threads this user may start: inf where nothing limits them."""
    free = math.inf
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is exempt
        free = limit - _threads_of(os.getuid())
    for limit, used in zip(_cgroup_values("pids", "pids.max"), _cgroup_values("pids", "pids.current"), strict=False):
        if limit != "max":
            free = min(free, int(limit) - int(used))
    return free


def address_space() -> float:
    """Bytes of address space that a process may have (ulimit -v): inf where nothing limits them."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def tight() -> str:
    """The limits of this process by which programs fail to start, as text: empty where there are none."""
    said = []
    if math.isfinite(free := free_processes()):
        said.append(f"{max(0, free):.0f} more processes and threads allowed (ulimit -u, or the container's limit)")
    if math.isfinite(memory := address_space()):
        said.append(f"{memory / 2**30:.1f} GiB of address space allowed (ulimit -v)")
    if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) < 4096:
        said.append(f"{files} open files allowed (ulimit -n)")
    return ", ".join(said)


def _threads_of(user: int) -> int:
    """Threads of all processes of a user, which is what the kernel holds against its limit."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended meanwhile
            continue
        if int(fields["Uid"].split()[0]) == user:
            count += int(fields["Threads"])
    return count


def _cgroup_values(controller: str, name: str) -> Iterator[str]:
    """A setting in the cgroup of this process and in those above it, in both versions of cgroups."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        relative = PurePosixPath(own.lstrip("/"))
        # in a container, the path may be the host's while its own cgroup is mounted at the top
        for folder in (relative, *relative.parents) if str(relative) != "." else (relative,):
            for base in (CGROUPS / controller,) if controllers else (CGROUPS, CGROUPS / "unified"):
                try:
                    yield (base / folder / name).read_text().strip()
                except OSError:
                    continue
