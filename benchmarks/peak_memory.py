"""Run a command and tell how much memory each of its processes had at most.

.venv/bin/python benchmarks/peak_memory.py .venv/bin/ssad label --out runs/large

Peaks are the kernel's own (VmHWM in /proc), looked at twenty times a second: what a process takes and gives back in
between is seen, but not a process that lives shorter than that. Shared memory counts for each that touched it.
"""

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
    peaks: dict[str, float] = {}
    while command.poll() is None:
        for pid in family(command.pid):
            name, peak = look_at(pid)
            if name:
                peaks[f"{pid} {name}"] = peak
        time.sleep(INTERVAL_S)
    print(f"{time.monotonic() - begun:.1f} s, exit code {command.returncode}")
    for name, peak in sorted(peaks.items(), key=lambda item: -item[1]):
        if peak >= LEAST_MIB:
            print(f"{peak:8.0f} MiB  {name}")


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


def look_at(pid: int) -> tuple[str, float]:
    """Return the name of a process and the most memory it had, MiB; no name if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "", 0.0
    peak = [float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return (command[:60], peak[0]) if peak else ("", 0.0)


if __name__ == "__main__":
    main()
