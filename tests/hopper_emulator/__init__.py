"""Runs the PTX that JAX compiles for Hopper on a CPU, and looks for what a chip might not forgive.

    host.py           the launch that the host's code asks for: grid, shared memory, copies' boxes
    ptx.py            instructions, labels and variables of a kernel's text
    arithmetic.py     what instructions on registers compute
    global_memory.py  arrays on the device, and which blocks of threads have seen what of them
    block.py          shared memory, barriers, and work that is done later, of a block of threads
    warp.py           registers and instructions of 32 threads
    tensor_cores.py   WGMMA: fragments, descriptors, what must not be touched while it runs
    machine.py        all blocks of a grid, a few instructions of some warp at a time
    products.py       compiles kernels of this project and runs them

Written from the PTX ISA (versions 8.7 and 9.0): no layout is taken from Mosaic or from the kernels.
Copies and products are done late, at random; memory is NaN until it is written; a copy poisons what
it will overwrite when it is asked for. Missing waits, fences and barriers so become faults or NaN.
What the PTX of the kernels does not need is a fault that names the instruction.
"""
