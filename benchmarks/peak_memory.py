"""Run a command and tell how much memory each of its processes had at most, and how long it computed.

.venv/bin/python benchmarks/peak_memory.py .venv/bin/ssad label --out runs/large

Peaks are the kernel's own (VmHWM in /proc), looked at twenty times a second: what a process takes and gives back in
between is seen, but not a process that lives shorter than that. Shared memory counts for each that touched it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

LEAST_MIB = 200
INTERVAL_S = 0.05


def main() -> None:
    """Run the command line's arguments as a command and print a line for each large process."""
    begun = time.monotonic()
    command = subprocess.Popen(sys.argv[1:])
    seen: dict[int, tuple[float, float, str]] = {}
    while command.poll() is None:
        seen |= {pid: looks for pid in family(command.pid) if (looks := look_at(pid))}
        time.sleep(INTERVAL_S)
    print(f"{time.monotonic() - begun:.1f} s, exit code {command.returncode}")
    for peak_mib, cpu_s, name in sorted(seen.values(), reverse=True):
        if peak_mib >= LEAST_MIB:
            print(f"{peak_mib:8.0f} MiB {cpu_s:8.1f} s of CPU  {name}")


def family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def look_at(pid: int) -> tuple[float, float, str] | None:
    """Return the most memory that a process had, MiB, its CPU time, seconds, and its name; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    peak_mib = [float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return (peak_mib[0], cpu_s, name[:60]) if peak_mib else None


if __name__ == "__main__":
    main()
