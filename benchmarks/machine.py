"What the figures of a benchmark depend on: the machine, its threads, its load, and the versions."
import os, platform

import torch


def machine():
    "A description to be written beside the figures."
    cpu = platform.processor() or platform.machine()
    try: cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): pass
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads(), load=load, torch=torch.__version__, python=platform.python_version(), system=platform.system())


if __name__ == "__main__": print(machine())
