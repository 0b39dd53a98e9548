"""Static figures of the kernels from the real compilers, on machines without the device.

`weights` makes resident weights without data, `products` what is compiled, `compiling` compiles it
for a TPU that is not there, `schedule` reads the instructions that came out, `measuring` sets them
against the time that memory needs, `budgets` against what was held before.
"""
