import os
import platform
import subprocess
import sys

import pytest

# Twenty times 64 tensors of half a megabyte are made and freed. Prints what `keep_freed_memory` gave, and the pages
# that the system handed out while the last ten were.
SCRIPT = """
import resource, torch
from recbole_ssd.allocator import keep_freed_memory
kept = keep_freed_memory()
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**17) for _ in range(64)]
    del tensors
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def pages(**environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=env | environment
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@on_glibc
def test_what_was_freed_is_not_asked_for_again():
    kept, count = pages()
    assert kept and count < 100  # of 80,000


@on_glibc
def test_what_the_user_told_the_library_stays():
    kept, count = pages(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept and count > 10_000
