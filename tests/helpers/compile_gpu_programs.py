"""Compiles the GPU programs for cards that need not be there and looks at what came out; run by test_gpu_kernels.

``gpu_occupancy`` prints what they take of a multiprocessor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "0"  # as from Triton 3.10 on
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tda_demo.kernels.activations import SILU
from tda_demo.kernels.gpu import attention_programs as gpu_attention_programs
from tda_demo.kernels.gpu import nf4_programs as gpu_nf4_programs
from tda_demo.kernels.gpu import programs as gpu_programs
from tda_demo.kernels.gpu import rest_programs as gpu_rest_programs
from tda_demo.kernels.gpu.attention import combining_warps, tile_of
from tda_demo.kernels.gpu.blocks import launch_options, next_power_of_two
from tda_demo.kernels.gpu.nf4 import blocks_at_once
from tda_demo.kernels.gpu.stages import LINEAR_TILES, float_stages, nf4_stages, rest_stages

WAIT = "griddepcontrol.wait"
UNWRITTEN = {"gate", "up", "down", "weight", "codes", "gate_codes", "up_codes"}
UNWRITTEN |= {"gate_scale", "up_scale", "absmax", "gate_absmax", "up_absmax", "table"}
UNWRITTEN |= {"chosen", "count", "position", "keys", "values"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
D, FF = 4096, 14336
WEIGHT_BITS = {
    (name, kind): bits
    for name in ("gate", "up", "down", "weight", "codes")
    for kind, bits in {"*bf16": 16, "*i8": 8, "*i32": 4}.items()
}


@dataclass(frozen=True)
class Program:
    """A program with the types of its pointers, its constants and its warps."""

    program: Any
    pointers: dict[str, str]
    constants: dict[str, Any]
    warps: int

    @property
    def asked_bytes(self) -> int:
        """Of weights at once: a tile of each matrix, of the exact ones where a program has two kinds."""
        shape = self.constants
        wide = shape.get("COLUMNS") or 64 * shape.get("BLOCKS", 0) or shape.get("D", 0)
        bits = [WEIGHT_BITS.get((name.rpartition("_")[0] or name, kind), 0) for name, kind in self.pointers.items()]
        return bits.count(max(bits)) * max(bits) * shape.get("ROWS", 0) * wide // 8

    def compiled(self, capability: int) -> Compiled:
        """For cards of ``capability``, 90 say. Launches overlap from 90 on."""
        names = self.program.arg_names
        signature = {name: self.pointers.get(name, "constexpr") for name in names}
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in self.pointers}
        constants = self.constants | {"OVERLAP": capability >= 90}
        places = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(self.program, signature, places, attributes)
        options = {**launch_options(torch.device("cpu")), "num_warps": self.warps}
        del options["OVERLAP"]  # a constant
        return Compiled(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))


@dataclass(frozen=True)
class Compiled:
    kernel: Any

    @cached_property
    def _usage(self) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [CUOBJDUMP, "-res-usage", file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def _most(self, what: str) -> int:
        return max(int(each) for each in re.findall(rf"{what}:(\d+)", self._usage))

    @property
    def registers(self) -> int:
        """Of a thread."""
        return self._most("REG")

    @property
    def stack_bytes(self) -> int:
        """Registers that did not fit and went to memory show as stack."""
        return self._most("STACK")

    @property
    def shared_bytes(self) -> int:
        return max(self._most("SHARED"), self.kernel.metadata.shared)

    @property
    def is_fused(self) -> bool:
        """Whether a product and a sum are one instruction."""
        return "fma.rn.f32" in self.kernel.asm["ptx"]

    @property
    def waits(self) -> int:
        return self.kernel.asm["ptx"].count(WAIT)

    def read_before_wait(self, parameters: list[str]) -> set[str]:
        """Which of ``parameters`` something is read from before the wait.

        Raises:
            AssertionError: something is written before it.
        """
        early = self.kernel.asm["ptx"].partition(WAIT)[0]
        assert "st.global" not in early
        origins: dict[str, set[str]] = {}  # of what a register holds
        read: set[str] = set()
        for line in early.splitlines():
            operation, _, operands = re.sub(r"^@\S+\s+", "", line.strip()).partition(" ")
            target, *sources = re.findall(r"[%$]?[a-zA-Z_]\w*", operands) or [""]
            if operation.startswith("ld.param"):
                place = int(sources[0].rpartition("_")[2])
                origins[target] = set(parameters[place : place + 1])  # what comes after them is Triton's own
                continue
            found = set().union(*(origins.get(each, set()) for each in sources))
            if operation.startswith(("ld.global", "cp.async")):
                assert found, line
                read |= found
            else:
                origins[target] = origins.get(target, set()) | found
        return read

    @property
    def weight_loads(self) -> set[str]:
        """The widths of the loads marked evict_first, which are those of weights, or of the copies of a pipeline."""
        ptx = self.kernel.asm["ptx"]
        loads = set(re.findall(r"ld\.global\.L1::evict_first\S*?\.(v\d\.b\d+|b\d+) ", ptx))
        copies = {int(size, 16) for size in re.findall(r"cp\.async\.\S+ .*?, 0x([0-9a-f]+)", ptx)}
        return loads | {"v4.b32" if size == 16 else f"{size} bytes" for size in copies - {4}}  # 4: of a list of numbers


def main() -> None:
    programs = [*weight_programs(), *small_programs()]
    one_of_each = {each.program.__name__: each for each in programs}.values()
    for capability, some in {90: programs, 80: one_of_each}.items():
        for each in some:
            check(each, capability)


def check(program: Program, capability: int) -> None:
    built = program.compiled(capability)
    assert built.stack_bytes == 0, (capability, program)
    if program.asked_bytes:
        assert built.weight_loads == {"v4.b32"}, (capability, program, built.weight_loads)
        assert built.is_fused, (capability, program)
    check_order(program, built, capability)


def check_order(program: Program, built: Compiled, capability: int) -> None:
    """Where launches overlap, a program waits once for the one before it, writes nothing before that, and reads only
    what no launch of a step writes, or what the cache held before the step.
    """
    if capability < 90:
        assert built.waits == 0
        return
    assert built.waits == 1, program
    early = built.read_before_wait([name for name in program.program.arg_names if name in program.pointers])
    early -= {"positions"}  # a number
    assert early <= UNWRITTEN, (program, early - UNWRITTEN)


def weight_programs() -> Iterator[Program]:
    lists = {"chosen": "*i32", "count": "*i32"}
    yield from float_programs()
    yield from nf4_programs(lists)
    yield from rest_programs(lists)
    yield from int8_programs(lists)


def float_programs() -> Iterator[Program]:
    first, second = float_stages(D, 132)
    lists = {"chosen": "*i32", "count": "*i32"}
    for every in (False, True):
        listed, absent = ({}, dict.fromkeys(lists)) if every else (lists, {})
        shape = {"D": D, "FF": FF, "ALL": every, **absent}
        for rows, warps in {(each["rows"], each["warps"]) for each in first}:
            yield Program(
                gpu_programs.neurons_program,
                {"x": "*bf16", "gate": "*bf16", "up": "*bf16", "activations": "*fp32", **listed},
                {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False}
                | {"gate_scale": None, "up_scale": None, "SCALED": False, "PADDED": D}
                | {"GLU": True, "KIND": SILU, "ROWS": rows},
                warps=warps,
            )
        for each in second:
            yield Program(
                gpu_programs.down_program,
                {"activations": "*fp32", "down": "*bf16", "partial": "*fp32", **listed},
                {**shape, "ROWS": each["down_rows"], "COLUMNS": each["down_columns"]},
                warps=each["down_warps"],
            )
    for tiles in LINEAR_TILES:
        yield Program(
            gpu_programs.linear_program,
            {"x": "*bf16", "weight": "*bf16", "out": "*bf16"},
            {"bias": None, "OUTPUTS": D, "D": D, "PADDED": D, "BIAS": False, "ROWS": tiles.rows},
            warps=tiles.warps,
        )


def int8_programs(lists: dict[str, str]) -> Iterator[Program]:
    shape = {"D": D, "FF": FF, "ALL": False}
    yield Program(
        gpu_programs.neurons_program,
        {"x": "*bf16", "gate": "*i8", "up": "*i8", "gate_scale": "*fp32", "up_scale": "*fp32"}
        | {"activations": "*fp32", **lists},
        {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True, "KIND": SILU}
        | {"SCALED": True, "PADDED": D, "ROWS": 2},
        warps=4,
    )
    yield Program(
        gpu_programs.down_program,
        {"activations": "*fp32", "down": "*i8", "partial": "*fp32", **lists},
        {**shape, "ROWS": 8, "COLUMNS": 1024},
        warps=4,
    )


def nf4_programs(lists: dict[str, str]) -> Iterator[Program]:
    shape = {"D": D, "SHUFFLED": True}
    first, second = nf4_stages(D, 132)
    for rows, warps in {(each["rows"], each["warps"]) for each in first}:
        yield Program(
            gpu_nf4_programs.nf4_neurons_program,
            {"x": "*bf16", "gate": "*i32", "up": "*i32", "gate_absmax": "*fp32", "up_absmax": "*fp32"}
            | {"table": "*fp32", "activations": "*fp32", **lists},
            {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True}
            | {"FF": FF, "ALL": False, "KIND": SILU, "ROWS": rows, "BLOCKS": D // 64},
            warps=warps,
        )
    for rows, wide, warps in {(each["down_rows"], each["down_columns"], each["down_warps"]) for each in second}:
        yield Program(
            gpu_nf4_programs.nf4_down_program,
            {"activations": "*fp32", "down": "*i32", "absmax": "*fp32", "table": "*fp32", "partial": "*fp32", **lists},
            {**shape, "FF": FF, "ALL": False, "ROWS": rows, "BLOCKS": wide // 64},
            warps=warps,
        )
    for tiles in LINEAR_TILES:
        if tiles.rows * D // 8 < 4 * 32 * tiles.warps:  # fewer than four words a lane; the card will not choose it
            continue
        yield Program(
            gpu_nf4_programs.nf4_linear_program,
            {"x": "*bf16", "codes": "*i32", "absmax": "*fp32", "table": "*fp32", "out": "*bf16"},
            {**shape, "bias": None, "OUTPUTS": D, "BIAS": False, "ROWS": tiles.rows, "BLOCKS": D // 64},
            warps=tiles.warps,
        )
    for rows, warps in {(each["down_rows"], each["down_warps"]) for each in second}:
        yield Program(
            gpu_nf4_programs.nf4_linear_program,
            {"x": "*fp32", "codes": "*i32", "absmax": "*fp32", "table": "*fp32", "out": "*bf16"},
            {**shape, "D": FF, "bias": None, "OUTPUTS": D, "BIAS": False, "ROWS": rows}
            | {"BLOCKS": blocks_at_once(FF, warps)},
            warps=warps,
        )


def rest_programs(lists: dict[str, str]) -> Iterator[Program]:
    first, second = rest_stages(D, 132)
    shape = {"D": D, "FF": FF, "SHUFFLED": True}
    for rows, warps in {(each["rows"], each["warps"]) for each in first}:
        yield Program(
            gpu_rest_programs.neurons_and_rest_program,
            {"x": "*bf16", "gate": "*bf16", "up": "*bf16", "gate_codes": "*i32", "up_codes": "*i32"}
            | {"gate_absmax": "*fp32", "up_absmax": "*fp32", "table": "*fp32", "activations": "*fp32", **lists},
            {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True}
            | {"PADDED": D, "KIND": SILU, "ROWS": rows, "BLOCKS": D // 64},
            warps=warps,
        )
    for rows, columns, warps in {(each["down_rows"], each["down_columns"], each["down_warps"]) for each in second}:
        yield Program(
            gpu_rest_programs.down_and_rest_program,
            {"activations": "*fp32", "down": "*bf16", "codes": "*i32", "absmax": "*fp32", "table": "*fp32"}
            | {"partial": "*fp32", **lists},
            {**shape, "ROWS": rows, "BLOCKS": columns // 64},
            warps=warps,
        )


def small_programs() -> Iterator[Program]:
    """Those that read no weights but a norm's."""
    yield Program(
        gpu_programs.sum_program,
        {"partial": "*fp32", "out": "*bf16"},
        {"bias": None, "scale": None, "D": D, "SPLITS": 128, "BIAS": False, "SCALED": False, "COLUMNS": 32},
        warps=4,
    )
    for updated in (False, True):
        more = {"update": "*bf16", "total": "*bf16"} if updated else {}
        yield Program(
            gpu_attention_programs.norm_program,
            {"x": "*bf16", "weight": "*bf16", "out": "*bf16", **more},
            {"epsilon": 1e-5, "WIDTH": D, "PADDED": D, "ADDED": 0.0, "UPDATED": updated}
            | ({} if updated else {"update": None, "total": None}),
            warps=8,
        )
    for size in (64, 96, 128, 256):
        padded = next_power_of_two(size)
        head = {"HEAD": size, "PADDED": padded}
        for kind, width in {"*bf16": 2, "*fp32": 4}.items():
            names = ("query", "key", "value", "cosine", "sine", "keys", "values")
            yield Program(
                gpu_attention_programs.attend_program,
                dict.fromkeys(names, kind)
                | {"position": "*i64", "positions": "i32", "mixed": "*fp32", "highest": "*fp32", "total": "*fp32"},
                {**head, "scale": 0.1, "cap": 0.0, "GROUP": 4, "ROTARY": size, "WINDOW": 0, "CAPPED": False}
                | {"TILE": tile_of(padded, width)},
                warps=1,
            )
        for splits in (32, 64):
            yield Program(
                gpu_attention_programs.combine_program,
                {"mixed": "*fp32", "highest": "*fp32", "total": "*fp32", "out": "*bf16"},
                {**head, "SPLITS": splits},
                warps=combining_warps(padded, splits),
            )


if __name__ == "__main__":
    main()
