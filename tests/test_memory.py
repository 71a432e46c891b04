import platform
import resource

import torch

from recbole_ssd.memory import keep_freed_memory


def test_freed_memory_is_found_again_where_glibc_is():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    if not keep_freed_memory():
        return

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(2**21)  # 8 MB, 2,048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 2048
