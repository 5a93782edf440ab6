"""Compiles the GPU programs for compute capability 9.0 and looks at what came out; run by test_gpu_kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).parents[2]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tda_demo.kernels.activations import SILU
from tda_demo.kernels.gpu import attention_programs as gpu_attention_programs
from tda_demo.kernels.gpu import nf4_programs as gpu_nf4_programs
from tda_demo.kernels.gpu import programs as gpu_programs
from tda_demo.kernels.gpu import rest_programs as gpu_rest_programs
from tda_demo.kernels.gpu.stages import LINEAR_TILES, float_stages, nf4_stages, rest_stages

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
D, FF = 4096, 14336


def compiled(program, pointers: dict[str, str], constants: dict[str, object], warps: int):
    names = program.arg_names
    signature = {name: pointers.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(program, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


def stack_bytes(kernel) -> int:
    """Registers that did not fit and went to memory show as stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return max(int(each) for each in re.findall(r"STACK:(\d+)", usage))


def weight_loads(kernel) -> set[str]:
    """The widths of the loads marked evict_first, which are those of weights, or of the copies of a pipeline."""
    ptx = kernel.asm["ptx"]
    loads = set(re.findall(r"ld\.global\.L1::evict_first\S*?\.(v\d\.b\d+|b\d+) ", ptx))
    copies = {int(size, 16) for size in re.findall(r"cp\.async\.\S+ .*?, 0x([0-9a-f]+)", ptx)}
    return loads | {"v4.b32" if size == 16 else f"{size} bytes" for size in copies - {4}}  # 4: of a list of numbers


def main() -> None:
    for kernel in float_programs():
        assert weight_loads(kernel) == {"v4.b32"}, weight_loads(kernel)
        assert stack_bytes(kernel) == 0
    compiled(
        gpu_programs.sum_program,
        {"partial": "*fp32", "out": "*bf16"},
        {
            "bias": None,
            "scale": None,
            "D": D,
            "SPLITS": 128,
            "BIAS": False,
            "SCALED": False,
            "COLUMNS": 32,
            "OVERLAP": True,
        },
        warps=4,
    )
    for kernel in nf4_programs(lists={"chosen": "*i32", "count": "*i32"}):
        assert weight_loads(kernel) == {"v4.b32"}, weight_loads(kernel)
        assert stack_bytes(kernel) == 0
    for kernel in rest_programs(lists={"chosen": "*i32", "count": "*i32"}):
        assert weight_loads(kernel) == {"v4.b32"}, weight_loads(kernel)
        assert stack_bytes(kernel) == 0
    for kernel in int8_programs(lists={"chosen": "*i32", "count": "*i32"}):
        assert weight_loads(kernel) == {"v4.b32"}, weight_loads(kernel)
        assert stack_bytes(kernel) == 0
    attention_programs()


def float_programs():
    first, second = float_stages(D, 132)
    lists = {"chosen": "*i32", "count": "*i32"}
    for every in (False, True):
        listed, absent = ({}, dict.fromkeys(lists)) if every else (lists, {})
        shape = {"D": D, "FF": FF, "ALL": every, "OVERLAP": True, **absent}
        for rows, warps in {(each["rows"], each["warps"]) for each in first}:
            yield compiled(
                gpu_programs.neurons_program,
                {"x": "*bf16", "gate": "*bf16", "up": "*bf16", "activations": "*fp32", **listed},
                {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False}
                | {"gate_scale": None, "up_scale": None, "SCALED": False, "PADDED": D}
                | {"GLU": True, "KIND": SILU, "ROWS": rows},
                warps=warps,
            )
        for each in second:
            yield compiled(
                gpu_programs.down_program,
                {"activations": "*fp32", "down": "*bf16", "partial": "*fp32", **listed},
                {**shape, "ROWS": each["down_rows"], "COLUMNS": each["down_columns"]},
                warps=each["down_warps"],
            )
    for tiles in LINEAR_TILES:
        yield compiled(
            gpu_programs.linear_program,
            {"x": "*bf16", "weight": "*bf16", "out": "*bf16"},
            {"bias": None, "OUTPUTS": D, "D": D, "PADDED": D, "BIAS": False, "ROWS": tiles.rows, "OVERLAP": True},
            warps=tiles.warps,
        )


def int8_programs(lists: dict[str, str]):
    shape = {"D": D, "FF": FF, "ALL": False, "OVERLAP": True}
    yield compiled(
        gpu_programs.neurons_program,
        {"x": "*bf16", "gate": "*i8", "up": "*i8", "gate_scale": "*fp32", "up_scale": "*fp32"}
        | {"activations": "*fp32", **lists},
        {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True, "KIND": SILU}
        | {"SCALED": True, "PADDED": D, "ROWS": 2},
        warps=4,
    )
    yield compiled(
        gpu_programs.down_program,
        {"activations": "*fp32", "down": "*i8", "partial": "*fp32", **lists},
        {**shape, "ROWS": 8, "COLUMNS": 1024},
        warps=4,
    )


def nf4_programs(lists: dict[str, str]):
    shape = {"D": D, "SHUFFLED": True, "OVERLAP": True}
    first, second = nf4_stages(D, 132)
    for rows, warps in {(each["rows"], each["warps"]) for each in first}:
        yield compiled(
            gpu_nf4_programs.nf4_neurons_program,
            {"x": "*bf16", "gate": "*i32", "up": "*i32", "gate_absmax": "*fp32", "up_absmax": "*fp32"}
            | {"table": "*fp32", "activations": "*fp32", **lists},
            {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True}
            | {"FF": FF, "ALL": False, "KIND": SILU, "ROWS": rows, "BLOCKS": D // 64},
            warps=warps,
        )
    for rows, wide, warps in {(each["down_rows"], each["down_columns"], each["down_warps"]) for each in second}:
        yield compiled(
            gpu_nf4_programs.nf4_down_program,
            {"activations": "*fp32", "down": "*i32", "absmax": "*fp32", "table": "*fp32", "partial": "*fp32", **lists},
            {**shape, "FF": FF, "ALL": False, "ROWS": rows, "BLOCKS": wide // 64},
            warps=warps,
        )
    for tiles in LINEAR_TILES:
        if tiles.rows * D // 8 < 4 * 32 * tiles.warps:  # fewer than four words a lane; the card will not choose it
            continue
        yield compiled(
            gpu_nf4_programs.nf4_linear_program,
            {"x": "*bf16", "codes": "*i32", "absmax": "*fp32", "table": "*fp32", "out": "*bf16"},
            {**shape, "bias": None, "OUTPUTS": D, "BIAS": False, "ROWS": tiles.rows, "BLOCKS": D // 64},
            warps=tiles.warps,
        )
    for rows, warps in {(each["down_rows"], each["down_warps"]) for each in second if each["down_warps"] > 2}:
        yield compiled(
            gpu_nf4_programs.nf4_linear_program,
            {"x": "*fp32", "codes": "*i32", "absmax": "*fp32", "table": "*fp32", "out": "*bf16"},
            {**shape, "D": FF, "bias": None, "OUTPUTS": D, "BIAS": False, "ROWS": rows, "BLOCKS": 64},
            warps=warps,
        )


def rest_programs(lists: dict[str, str]):
    first, second = rest_stages(D, 132)
    shape = {"D": D, "FF": FF, "SHUFFLED": True, "OVERLAP": True}
    for rows, warps in {(each["rows"], each["warps"]) for each in first}:
        yield compiled(
            gpu_rest_programs.neurons_and_rest_program,
            {"x": "*bf16", "gate": "*bf16", "up": "*bf16", "gate_codes": "*i32", "up_codes": "*i32"}
            | {"gate_absmax": "*fp32", "up_absmax": "*fp32", "table": "*fp32", "activations": "*fp32", **lists},
            {**shape, "gate_bias": None, "up_bias": None, "GATE_BIAS": False, "UP_BIAS": False, "GLU": True}
            | {"PADDED": D, "KIND": SILU, "ROWS": rows, "BLOCKS": D // 64},
            warps=warps,
        )
    for rows, columns, warps in {(each["down_rows"], each["down_columns"], each["down_warps"]) for each in second}:
        yield compiled(
            gpu_rest_programs.down_and_rest_program,
            {"activations": "*fp32", "down": "*bf16", "codes": "*i32", "absmax": "*fp32", "table": "*fp32"}
            | {"partial": "*fp32", **lists},
            {**shape, "ROWS": rows, "BLOCKS": columns // 64},
            warps=warps,
        )


def attention_programs() -> None:
    head = {"HEAD": 128, "PADDED": 128, "OVERLAP": True}
    cached = {"query": "*bf16", "keys": "*bf16", "values": "*bf16", "position": "*i64", "positions": "i32"}
    for updated in (False, True):
        more = {"update": "*bf16", "total": "*bf16"} if updated else {}
        compiled(
            gpu_attention_programs.norm_program,
            {"x": "*bf16", "weight": "*bf16", "out": "*bf16", **more},
            {"epsilon": 1e-5, "WIDTH": D, "PADDED": D, "ADDED": 0.0, "UPDATED": updated, "OVERLAP": True}
            | ({} if updated else {"update": None, "total": None}),
            warps=8,
        )
    attention = compiled(
        gpu_attention_programs.attend_program,
        {**cached, "key": "*bf16", "value": "*bf16", "cosine": "*bf16", "sine": "*bf16"}
        | {"mixed": "*fp32", "highest": "*fp32", "total": "*fp32"},
        {**head, "scale": 0.1, "cap": 0.0, "GROUP": 4, "ROTARY": 128, "WINDOW": 0, "CAPPED": False, "TILE": 16},
        warps=1,
    )
    assert stack_bytes(attention) == 0
    compiled(
        gpu_attention_programs.combine_program,
        {"mixed": "*fp32", "highest": "*fp32", "total": "*fp32", "out": "*bf16"},
        {**head, "SPLITS": 32},
        warps=1,
    )


if __name__ == "__main__":
    main()
