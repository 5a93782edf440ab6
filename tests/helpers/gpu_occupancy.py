"""What the GPU programs take of a multiprocessor: a table for cards of compute capability 9.0 (or the one given: 8.0).

Sizes of a multiprocessor are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability". Nothing runs: the programs are compiled, and what the compiler says of them is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from compile_gpu_programs import Compiled, Program, small_programs, weight_programs

REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # of a multiprocessor
SHARED_KIB = {90: 228, 80: 164}
RESERVED_KIB = 1  # of a program's shared memory
SHOWN = ("ALL", "ROWS", "COLUMNS", "BLOCKS")


def resident(built: Compiled, warps: int, capability: int) -> int:
    """Programs that a multiprocessor holds at once; registers are given out 8 a thread."""
    by_registers = REGISTERS // (-(-built.registers // 8) * 8 * 32 * warps)
    by_shared = SHARED_KIB[capability] * 1024 // (built.shared_bytes + RESERVED_KIB * 1024)
    return min(by_registers, by_shared, WARPS // warps, PROGRAMS)


def rows(capability: int) -> Iterator[tuple[object, ...]]:
    for each in [*weight_programs(), *small_programs()]:
        built = each.compiled(capability)
        programs = resident(built, each.warps, capability)
        asked = programs * each.asked_bytes / 1024
        used = 100 * programs * each.warps // WARPS
        yield (each.program.__name__, tile(each), each.warps, built.registers, programs, f"{used}%", f"{asked:.0f}")


def tile(program: Program) -> str:
    return ", ".join(f"{name.lower()} {program.constants[name]}" for name in SHOWN if name in program.constants)


if __name__ == "__main__":
    print("| program | tile | warps | registers | resident | warps held | KiB asked for |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 90):
        print("|", " | ".join(map(str, row)), "|")
