"""`keep_freed_memory`: the process keeps freed memory."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from vesalius.models.cpu_allocator import keep_freed_memory
{call}
for _ in range(20):
    torch.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_second_use_of_memory_costs_no_page_fault() -> None:
    faults = {}
    for name, call in {"kept": "assert keep_freed_memory()", "returned": ""}.items():
        command = [sys.executable, "-c", CODE.format(call=call)]
        faults[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["kept"] * 2 < faults["returned"]
