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
from tda_demo.kernels.gpu.blocks import launch_options
from tda_demo.kernels.gpu.stages import LINEAR_TILES, float_stages, nf4_stages, rest_stages

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
    def weight_loads(self) -> set[str]:
        """The widths of the loads marked evict_first, which are those of weights, or of the copies of a pipeline."""
        ptx = self.kernel.asm["ptx"]
        loads = set(re.findall(r"ld\.global\.L1::evict_first\S*?\.(v\d\.b\d+|b\d+) ", ptx))
        copies = {int(size, 16) for size in re.findall(r"cp\.async\.\S+ .*?, 0x([0-9a-f]+)", ptx)}
        return loads | {"v4.b32" if size == 16 else f"{size} bytes" for size in copies - {4}}  # 4: of a list of numbers


def main() -> None:
    for capability in (90, 80):
        for each in weight_programs():
            built = each.compiled(capability)
            assert built.weight_loads == {"v4.b32"}, (capability, each, built.weight_loads)
            assert built.stack_bytes == 0, (capability, each)
            assert built.is_fused, (capability, each)
        for each in small_programs():
            assert each.compiled(capability).stack_bytes == 0, (capability, each)


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
    for rows, warps in {(each["down_rows"], each["down_warps"]) for each in second if each["down_warps"] > 2}:
        yield Program(
            gpu_nf4_programs.nf4_linear_program,
            {"x": "*fp32", "codes": "*i32", "absmax": "*fp32", "table": "*fp32", "out": "*bf16"},
            {**shape, "D": FF, "bias": None, "OUTPUTS": D, "BIAS": False, "ROWS": rows, "BLOCKS": 64},
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
    head = {"HEAD": 128, "PADDED": 128}
    cached = {"query": "*bf16", "keys": "*bf16", "values": "*bf16", "position": "*i64", "positions": "i32"}
    for updated in (False, True):
        more = {"update": "*bf16", "total": "*bf16"} if updated else {}
        yield Program(
            gpu_attention_programs.norm_program,
            {"x": "*bf16", "weight": "*bf16", "out": "*bf16", **more},
            {"epsilon": 1e-5, "WIDTH": D, "PADDED": D, "ADDED": 0.0, "UPDATED": updated}
            | ({} if updated else {"update": None, "total": None}),
            warps=8,
        )
    yield Program(
        gpu_attention_programs.attend_program,
        {**cached, "key": "*bf16", "value": "*bf16", "cosine": "*bf16", "sine": "*bf16"}
        | {"mixed": "*fp32", "highest": "*fp32", "total": "*fp32"},
        {**head, "scale": 0.1, "cap": 0.0, "GROUP": 4, "ROTARY": 128, "WINDOW": 0, "CAPPED": False, "TILE": 16},
        warps=1,
    )
    yield Program(
        gpu_attention_programs.combine_program,
        {"mixed": "*fp32", "highest": "*fp32", "total": "*fp32", "out": "*bf16"},
        {**head, "SPLITS": 32},
        warps=1,
    )


if __name__ == "__main__":
    main()
