"""Static figures of the kernels from the real compilers, on machines without the device.

`compiling` compiles for a device that is not there. `tpu` and `hopper` say what for, and set what
came out, which `schedule` and `sass` read, against the time that memory needs; `budgets` against
what it was before.
"""
